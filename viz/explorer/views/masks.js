// Masks and budget: which pairs one head computes, in token order and sorted by cluster.

import { el, isNumber, percent, put } from "../dom.js";
import { term } from "../words.js";
import { makeBudget } from "./budget.js";
import { makeMaskBoard } from "./maskboard.js";
import { makeSorting } from "./sorting.js";
import { makeTileTable } from "./tiletable.js";

const TILE_DELAY_MS = 200; // counting tiles is slow: it waits until the budget rests
const MASK = ["run", "step", "layer", "branch", "head", "top_p"];
const PIN = ["cluster", "side", "pair"];

export function makeMasks(app) {
  const budget = makeBudget(app);
  const board = makeMaskBoard(app);
  const sorting = makeSorting(app);
  const tiles = makeTileTable(app);
  const introduction = el("p", {});
  let waiting = 0;
  const countLater = () => {
    clearTimeout(waiting);
    waiting = setTimeout(tiles.count, TILE_DELAY_MS);
  };
  return {
    node: viewNode({ introduction, budget, board, sorting, tiles }),
    liveSlot: budget.liveSlot,
    picture: () => board.picture(),
    others: [{ name: "budget", label: "budget curve", picture: budget.picture }],
    summarised: budget.readout,
    say: budget.say,
    playSorting: sorting.play,
    close() {
      clearTimeout(waiting);
      sorting.close();
    },
    draw() {
      board.original.draw();
      board.sorted.draw();
    },
    update(state, changed) {
      const has = (names) => names.some((name) => changed.has(name));
      const mask = has(MASK);
      const marks = mask || has([...PIN, "hover"]);
      const order = has(["sort", "zoom"]);
      const tint = has(["tint"]);
      if (changed.has("run")) put(introduction, ...introductionOf(app));
      if (mask) {
        budget.update(state);
        countLater();
      }
      if (mask || order) {
        board.showTitles(state);
        sorting.update(state);
      }
      if (mask || tint) board.showTint();
      if (mask || has(PIN)) board.readPinned();
      if (marks || tint) board.original.draw();
      if (marks || order || tint) board.sorted.draw();
    },
  };
}

function viewNode({ introduction, budget, board, sorting, tiles }) {
  return el(
    "section",
    { class: "view masks", "aria-labelledby": "masks-title" },
    el(
      "div",
      { class: "side" },
      el("h3", { id: "masks-title" }, "Masks and budget"),
      introduction,
      budget.nodes,
    ),
    el(
      "div",
      { class: "main" },
      board.node,
      board.tint,
      el("div", { class: "sortrow" }, sorting.nodes, board.zoomButton),
      board.reading,
      board.why,
      tiles.node,
    ),
  );
}

/** What the mask is, by the rule of the method on show. */
function introductionOf(app) {
  return [
    "A ",
    term("mask"),
    " says which query–key pairs one head computes. ",
    ...selectionOf(app),
    " Left, in the order of the tokens, the kept pairs lie scattered. Right, ",
    term("permutation", "sorted by cluster"),
    ", the same pairs lie in blocks, and whole blocks can be skipped.",
  ];
}

function selectionOf(app) {
  const { rule, line, title } = app.method();
  const isDensity = isNumber(app.shownRun().config.density);
  if (rule === "error")
    return [
      ...(isDensity ? ["The density that was asked for"] : ["The budget, ", term("top-p")]),
      ", says how many. Which ones? Those whose skipping would ",
      term("predicted error", "change the result most"),
      ". In place of each block that is skipped one ",
      term("stand-in"),
      " is computed.",
    ];
  if (rule !== "top_p" || isDensity) return [`${title}: ${line}.`];
  const floor = app.floor();
  return [
    "Each query cluster keeps the fewest key clusters whose estimated attention mass reaches ",
    term("top-p"),
    floor ? `, and at least ${floor.least} of them (${percent(floor.share)}).` : ".",
  ];
}
