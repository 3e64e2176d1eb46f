// The mask in both orders, side by side: titles, the block under the pointer, and arrow keys.

import { choice, el, percent, plural, put, write } from "../dom.js";
import { AXIS, axesOf, drawWithAxes, makeMaskAxes } from "./maskaxes.js";
import { makeMaskPlot } from "./maskplot.js";
import { makeWhyBlock } from "./whyblock.js";

const PICTURE_PX = 560; // of each mask in a saved picture
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
      onView: (view, order) => showAxes(app, board, "original", view, order),
    }),
    sorted: makeMaskPlot(app, {
      orderOf: ({ sort, zoom }) => ({ sort, block: zoom && sort === 1 ? app.block() : null }),
      onHover,
      onPick: (block, twice) => pinBlock(app, block, twice),
      onView: (view, order) => showAxes(app, board, "sorted", view, order),
    }),
    title: el("figcaption", {}),
    axes: {}, // as they were last shown
    zoomButton: el("button", {
      type: "button",
      class: "plainbutton",
      onclick: () => toggleZoom(app),
    }),
  };
  board.frames = {
    original: makeMaskAxes(board.original.node),
    sorted: makeMaskAxes(keyboardBoard(app, board.sorted)),
  };
  return {
    node: boardNode(board),
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

// The same for a saved picture; the accent is a blue in both themes.
const MEANT = {
  kept: "blue: kept",
  mass: "blue: kept, orange: skipped, stronger where a key has more mass",
  error: "blue: kept, orange: skipped, stronger where more error is predicted",
};

function boardNode({ frames, title }) {
  return el(
    "div",
    { class: "pair" },
    el("figure", { class: "maskbox" }, el("figcaption", {}, "Original token order"), frames.original.node),
    el("figure", { class: "maskbox" }, title, frames.sorted.node),
  );
}

function showAxes(app, { axes, frames }, name, view, order) {
  axes[name] = axesOf(view, order, app.data.grid[0]);
  frames[name].show(axes[name]);
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

/** Both masks as they are, with their lines and axes. */
function pictureOf(app, { original, sorted, title, axes }) {
  const part = (plot, name, label) => {
    const drawn = { canvas: plot.picture(2 * PICTURE_PX), axes: axes[name], colours: app.colours() };
    return {
      draw: (context, x, y, width) => drawWithAxes(context, drawn, x, y, width),
      height: PICTURE_PX - AXIS.left + AXIS.bottom,
      label,
    };
  };
  return {
    title: `Attention mask${app.isMeasured() ? "" : ", what-if"}: ${percent(app.stats().density)} of the token pairs kept`,
    parts: [part(original, "original", "Original token order"), part(sorted, "sorted", title.textContent)],
    columns: 2,
    cell: PICTURE_PX,
    place: `${app.viewName()} · ${MEANT[app.tint()]}`,
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

function showTitles(app, { title, zoomButton, original, sorted }, { sort, zoom }) {
  const name = orderName(sort);
  const kept = `${percent(app.stats().density)} of token pairs kept.`;
  write(title, zoom && sort === 1 ? `${name}, zoomed` : name);
  write(zoomButton, zoom ? "Show the whole mask" : "Zoom to a block");
  original.canvas.setAttribute("aria-label", `Mask in original token order: ${kept}`);
  sorted.canvas.setAttribute("aria-label", `Mask, ${name.toLowerCase()}: ${kept}`);
}
