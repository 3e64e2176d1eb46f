// What a kernel computes for a mask: fixed tiles in either order, or blocks of the clusters' own sizes.

import { tilesTouched } from "../blocks.js";
import { el, percent, plural, put } from "../dom.js";
import { countUsed } from "../reads.js";
import { term } from "../words.js";

const TILE = 64;
const ROWS = {
  original: ["Token order", `tiles of ${TILE}×${TILE}`],
  fixed: ["Sorted by cluster", `the same tiles of ${TILE}×${TILE}`],
  blocks: ["Sorted by cluster", "blocks of the clusters' own sizes"],
};

export function makeTileTable(app) {
  const cells = Object.fromEntries(
    Object.keys(ROWS).map((name) => [name, { share: el("td", {}), waste: el("td", {}) }]),
  );
  const note = el("p", { class: "small" });
  return {
    node: el("div", { class: "tilebox" }, table(app, cells), note),
    count: () => showCosts(cells, note, tileCosts(app)),
  };
}

function table({ data }, cells) {
  return el(
    "table",
    { class: "tiletable" },
    el(
      "caption",
      {},
      "What has to be computed for this mask",
      data.textTokens ? ", prompt tokens aside" : "",
    ),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "col" }, "Order and blocks"),
        el("th", { scope: "col" }, "Computed"),
        el("th", { scope: "col" }, term("tile", "Wasted")),
      ),
    ),
    el(
      "tbody",
      {},
      Object.entries(ROWS).map(([name, [title, detail]]) =>
        el(
          "tr",
          { "data-row": name },
          el("th", { scope: "row" }, title, el("span", { class: "note" }, detail)),
          cells[name].share,
          cells[name].waste,
        ),
      ),
    ),
  );
}

/** Tiles with a kept pair in both orders, and the share of pairs that blocks of the clusters' own sizes compute. */
function tileCosts(app) {
  const record = app.record();
  const kept = app.kept();
  return {
    original: tilesTouched(record, kept, TILE, false),
    fixed: tilesTouched(record, kept, TILE, true),
    blocks: app.stats().videoDensity,
    meanKeys: Math.round(record.k.labels.length / Math.max(countUsed(record.k.sizes), 1)),
  };
}

function showCosts(cells, note, costs) {
  for (const name of ["original", "fixed"]) {
    const { touched, total, share, waste } = costs[name];
    const count = `${touched.toLocaleString("en")} of ${total.toLocaleString("en")} tiles`;
    put(cells[name].share, percent(share, 0), el("span", { class: "note" }, count));
    put(cells[name].waste, percent(waste, 0), el("span", { class: "note" }, "of that work"));
  }
  put(cells.blocks.share, percent(costs.blocks));
  put(cells.blocks.waste, "none");
  const change = changeBySorting(costs.fixed.share - costs.original.share);
  put(
    note,
    `A key cluster holds ${plural(costs.meanKeys, "token")} on average here, and a tile is ${TILE} wide: ${change}. Blocks of the clusters' own sizes hold only kept pairs.`,
  );
}

function changeBySorting(share) {
  const points = Math.round(100 * share);
  if (points < 0) return `sorting avoids ${-points} % of all fixed tiles`;
  if (points > 0) return `sorting touches ${points} % more of all fixed tiles`;
  return "sorting avoids no fixed tile";
}
