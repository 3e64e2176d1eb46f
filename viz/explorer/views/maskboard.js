// The mask in both orders, side by side: titles, the block under the pointer, and arrow keys.

import { budget, choice, el, percent, plural, put, write } from "../dom.js";
import { makeMaskPlot } from "./maskplot.js";
import { makeWhyBlock } from "./whyblock.js";

const IDLE =
  "Rows are queries, columns are keys. Point at a block to read it, click to pin it, double-click to zoom.";

export function makeMaskBoard(app) {
  const reading = el("p", { class: "reading small", "aria-live": "polite" });
  const why = makeWhyBlock(app);
  const read = (block) => {
    readBlock(app, reading, block);
    why.show(block);
  };
  const tint = makeTint(app);
  const onHover = (block) => {
    read(block ?? pinnedBlock(app));
    lightBlock(app, block);
  };
  const board = {
    reading,
    original: makeMaskPlot(app, {
      orderOf: () => ({ sort: 0, block: null }),
      onHover,
      onPick: (block) => pinBlock(app, block, false),
    }),
    sorted: makeMaskPlot(app, {
      orderOf: ({ sort, zoom }) => ({ sort, block: zoom && sort === 1 ? app.block() : null }),
      onHover,
      onPick: (block, twice) => pinBlock(app, block, twice),
    }),
    title: el("figcaption", {}),
    foot: el("span", {}),
    zoomButton: el("button", {
      type: "button",
      class: "plainbutton",
      onclick: () => toggleZoom(app),
    }),
  };
  return {
    node: boardNode(app, board),
    reading,
    picture: () => pictureOf(app, board),
    why: why.node,
    tint: tint.node,
    original: board.original,
    sorted: board.sorted,
    zoomButton: board.zoomButton,
    showTitles: (state) => showTitles(app, board, state),
    showTint: tint.show,
    readPinned: () => read(pinnedBlock(app)),
  };
}

/** What colours the blocks, and what the colours mean. */
function makeTint(app) {
  const colours = choice(
    "Colour of blocks",
    [
      ["kept", "Kept"],
      ["mass", "Mass"],
      ["error", "Error"],
    ],
    (tint) => app.store.set({ tint }),
  );
  const legend = el("p", { class: "legend small" });
  return {
    node: el("div", { class: "maskbar" }, el("span", { class: "label" }, "Colour by"), colours.node, legend),
    show() {
      const tint = app.tint();
      colours.show(tint);
      colours.buttons[2].hidden = !app.record().gain;
      put(legend, ...LEGENDS[tint]());
    },
  };
}

const key = (kind, text) => el("span", { class: `swatchkey ${kind}` }, text);
const strength = (what) => [
  key("", "kept"),
  " ",
  key("missed", "skipped"),
  ` The stronger, the more ${what}; faint is a thousandth of this head's largest.`,
];
const LEGENDS = {
  kept: () => [key("", "kept"), " ", key("off", "skipped")],
  mass: () => strength("attention mass per key"),
  error: () => strength("predicted error per key"),
};

function boardNode(app, { original, sorted, title, foot }) {
  const [T] = app.data.grid;
  const frameTicks = Array.from({ length: T }, (_, t) =>
    el("span", {}, T <= 12 || t % 5 === 0 ? String(t + 1) : ""),
  );
  return el(
    "div",
    { class: "pair" },
    el(
      "figure",
      { class: "maskbox" },
      el("figcaption", {}, "Original token order"),
      original.node,
      el("div", { class: "ticks", "aria-hidden": "true" }, frameTicks),
    ),
    el(
      "figure",
      { class: "maskbox" },
      title,
      keyboardBoard(app, sorted),
      el("div", { class: "ticks", "aria-hidden": "true" }, foot),
    ),
  );
}

/** The sorted mask under the keyboard: arrow keys go from block to block. */
function keyboardBoard(app, sorted) {
  const keys = {
    ArrowUp: () => moveBlock(app, -1, 0),
    ArrowDown: () => moveBlock(app, 1, 0),
    ArrowLeft: () => moveBlock(app, 0, -1),
    ArrowRight: () => moveBlock(app, 0, 1),
    Enter: () => toggleZoom(app),
  };
  return el(
    "div",
    {
      class: "board",
      tabindex: 0,
      role: "group",
      "aria-label":
        "Sorted mask. Arrow keys go from block to block, Enter zooms in and out, Escape unpins.",
      onkeydown: (event) => {
        const act = keys[event.key];
        if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        event.stopPropagation();
        act();
      },
    },
    sorted.node,
  );
}

/** Both masks as they are, with the lines over them. */
function pictureOf(app, { original, sorted, title }) {
  const whole = (plot) => {
    const canvas = document.createElement("canvas");
    const side = plot.canvas.width * Math.max(1, Math.ceil(1120 / plot.canvas.width));
    canvas.width = side;
    canvas.height = side;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    for (const layer of plot.node.querySelectorAll("canvas")) context.drawImage(layer, 0, 0, side, side);
    return canvas;
  };
  return {
    title: `Attention mask: ${percent(app.stats().density)} of the token pairs kept`,
    parts: [
      { canvas: whole(original), label: "Original token order" },
      { canvas: whole(sorted), label: title.textContent },
    ],
    columns: 2,
    cell: 560,
    place: `${app.placeName()}, ${app.isMeasured() ? app.measuredName() : `what-if top-p ${budget(app.store.get().top_p)}`}`,
  };
}

const pinnedBlock = (app) => (app.store.get().pair === null ? null : app.block());

function lightBlock({ store }, block) {
  const { hover } = store.get();
  if (!block) store.set({ hover: null });
  else if (hover?.side !== "q" || hover.cluster !== block.q)
    store.set({ hover: { side: "q", cluster: block.q } });
}

function pinBlock({ store }, { q, k }, zoomIn) {
  store.set({ side: "q", cluster: q, pair: k, hover: null, zoom: zoomIn || store.get().zoom });
}

/** Pin the next block down and to the right by so many clusters; empty clusters are passed over. */
function moveBlock(app, rows, columns) {
  const record = app.record();
  const { q, k } = app.block();
  app.store.set({
    side: "q",
    cluster: nextUsed(record.q.sizes, q, rows),
    pair: nextUsed(record.k.sizes, k, columns),
    hover: null,
  });
}

function nextUsed(sizes, c, by) {
  let to = c + by;
  while (by && to >= 0 && to < sizes.length && !sizes[to]) to += by;
  return to < 0 || to >= sizes.length ? c : to;
}

function toggleZoom(app) {
  const { q, k } = app.block();
  app.store.set(
    app.store.get().zoom
      ? { zoom: false }
      : { zoom: true, sort: 1, side: "q", cluster: q, pair: k, hover: null },
  );
}

/** Say in words what the mask shows of a block; null says what the mask is. */
function readBlock(app, reading, block) {
  if (!block) {
    put(reading, IDLE);
    return;
  }
  const record = app.record();
  const { q, k, row, column } = block;
  const at = q * record.K + k;
  put(
    reading,
    row === undefined ? "" : `Query token ${row + 1} and key token ${column + 1}: `,
    `query cluster ${q + 1} (${plural(record.q.sizes[q], "token")}) × key cluster ${k + 1} (${plural(record.k.sizes[k], "token")}): `,
    el("strong", {}, app.kept()[at] ? "kept" : "skipped"),
    `, ${percent(record.P[at], 2)} of the query cluster's mass.`,
  );
}

function orderName(sort) {
  if (sort === 1) return "Permuted: sorted by cluster";
  return sort === 0 ? "Original token order" : "On the way to sorted";
}

function showTitles(app, { title, foot, zoomButton, original, sorted }, { sort, zoom }) {
  const name = orderName(sort);
  const kept = `${percent(app.stats().density)} of token pairs kept.`;
  write(title, zoom && sort === 1 ? `${name}, zoomed` : name);
  write(foot, sort === 1 ? "key clusters, true sizes →" : "key tokens →");
  write(zoomButton, zoom ? "Show the whole mask" : "Zoom to a block");
  original.canvas.setAttribute("aria-label", `Mask in original token order: ${kept}`);
  sorted.canvas.setAttribute("aria-label", `Mask, ${name.toLowerCase()}: ${kept}`);
}
