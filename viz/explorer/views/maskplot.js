// One picture of the N×N mask: its tokens in one order, whole or zoomed to a block.

import { blockDensity, makeBins, offsetsOf } from "../blocks.js";
import { FULL_LEVEL, levelsOf } from "../blockfacts.js";
import { clamp, el, fit, onFrame } from "../dom.js";
import { enlarged } from "../picture.js";
import { clusterAt, drawMaskLines } from "./masklines.js";

const MAX_BINS = 256; // at 300×1000 clusters one redraw then stays within a tick
const SHADES = 4095;
const FADE = 0.6; // a few per cent of kept pairs, as in token order, are seen too
const LEAST_KEPT = 40; // the palest kept block is still told from a skipped one
const LINES_PX = 380; // until the page is laid out

/**
 * A canvas with a mask. `orderOf(state)` gives its `sort`, 0 in original order to 1 sorted by
 * cluster, and the `block` that it is zoomed to, or null; `onView(view, order)` hears what is in view. A plain one has no lines over it, and is
 * at most `maxBins` pixels wide.
 */
export function makeMaskPlot(app, { orderOf, onHover, onPick, onView, maxBins = MAX_BINS, isPlain = false }) {
  // Pixels are put in main memory and enlarged by CSS, lines lie on a canvas of their own: a tick
  // then costs one small picture.
  const canvas = isPlain
    ? el("canvas", { class: "minimask", "aria-hidden": "true" })
    : el("canvas", { class: "mask", role: "img" });
  const lines = el("canvas", { class: "masklines", "aria-hidden": "true" });
  const plot = {
    app,
    orderOf,
    onView,
    maxBins,
    isPlain,
    canvas,
    pixels: canvas.getContext("2d", { willReadFrequently: true }),
    lines,
    geometries: new WeakMap(),
    tinted: new WeakMap(), // what counts kept and skipped levels, per shape
    shown: {},
    drawnLines: "",
  };
  canvas.addEventListener("pointermove", (event) => onHover(blockUnder(plot, event)));
  canvas.addEventListener("pointerleave", () => onHover(null));
  canvas.addEventListener("click", (event) => {
    const block = blockUnder(plot, event);
    if (block) onPick(block, event.detail > 1);
  });
  return {
    node: el("div", { class: "maskstack" }, canvas, lines),
    canvas,
    draw: onFrame(() => drawPlot(plot)),
    picture: (least) => pictureOf(plot, least),
  };
}

/** Where a record's clusters lie, and its bins in both whole orders once they were drawn. */
function geometryOf({ geometries }, record) {
  if (!geometries.has(record)) {
    geometries.set(record, {
      tokens: record.q.labels.length,
      qOffsets: offsetsOf(record.q.sizes),
      kOffsets: offsetsOf(record.k.sizes),
      whole: new Map(),
    });
  }
  return geometries.get(record);
}

/** Places around a block of the sorted mask: the block takes about a third of the view. */
function viewAround({ qOffsets, kOffsets, tokens }, { q, k }) {
  const length = Math.max(qOffsets[q + 1] - qOffsets[q], kOffsets[k + 1] - kOffsets[k]);
  const width = Math.min(tokens, Math.max(3 * length, Math.ceil(tokens / 40)));
  const around = (offsets, c) => {
    const middle = (offsets[c] + offsets[c + 1]) / 2;
    const from = clamp(Math.round(middle - width / 2), 0, tokens - width);
    return [from, from + width];
  };
  return { rows: around(qOffsets, q), columns: around(kOffsets, k) };
}

/** Density of each bin pair and the places in view. All but the selection is kept from draw to draw. */
function viewOf(plot, record, { sort, block }) {
  const geometry = geometryOf(plot, record);
  const view = block ? viewAround(geometry, block) : null;
  const key = `${sort} ${view ? [view.rows, view.columns] : ""}`;
  if (plot.shown.record !== record || plot.shown.key !== key) {
    const make = () => {
      const shape = makeBins(record, Math.min(plot.maxBins, geometry.tokens), sort, view);
      return { shape, density: blockDensity(shape, record) };
    };
    const isEnd = !view && (sort === 0 || sort === 1);
    if (isEnd && !geometry.whole.has(sort)) geometry.whole.set(sort, make());
    plot.shown = { record, key, view, ...(isEnd ? geometry.whole.get(sort) : make()) };
  }
  const all = [0, geometry.tokens];
  return { ...plot.shown, ...geometry, rows: view?.rows ?? all, columns: view?.columns ?? all };
}

function drawPlot(plot) {
  const { app, canvas, pixels } = plot;
  const state = app.store.get();
  const record = app.record();
  const order = plot.orderOf(state);
  const view = viewOf(plot, record, order);
  const { rows, columns } = view.shape;
  const image = new ImageData(columns.bins, rows.bins);
  if (app.tint() === "kept") paintKept(image, view.density(app.kept()), app.colours());
  else paintTinted(plot, image, view.shape, record);
  fit(canvas, columns.bins, rows.bins);
  pixels.putImageData(image, 0, 0);
  if (plot.isPlain) return;
  drawLines(plot, state, record, order, view);
  plot.onView?.(view, order);
}

/** The mask as it is, at least `least` pixels wide: each bin a square of whole pixels, the lines drawn anew. */
function pictureOf(plot, least) {
  const { app } = plot;
  const [state, record] = [app.store.get(), app.record()];
  const order = plot.orderOf(state);
  const large = enlarged(plot.canvas, least);
  const lines = el("canvas");
  drawMaskLines(fit(lines, large.width, large.width), sceneOf(plot, state, record, order, viewOf(plot, record, order), large.width));
  lines.getContext("2d").globalCompositeOperation = "destination-over";
  lines.getContext("2d").drawImage(large, 0, 0, lines.width, lines.height);
  return lines;
}

/** What `drawMaskLines` takes, on a canvas of `side` pixels. */
function sceneOf({ app }, state, record, { sort, block }, view, side) {
  return {
    record,
    view,
    side,
    marked: sort === 0 || sort === 1 ? app.marked(state) : [],
    isSorted: sort === 1,
    isZoomed: sort === 1 && Boolean(block),
    colours: app.colours(),
  };
}

function paintKept({ data }, density, colours) {
  const shades = shadesOf(colours);
  const words = new Uint32Array(data.buffer);
  for (let i = 0; i < words.length; i += 1) words[i] = shades[(density[i] * SHADES + 0.5) | 0];
}

/** Kept blocks in one colour and skipped ones in another, each as strong as its mass or error. */
function paintTinted({ app, tinted }, { data }, shape, record) {
  if (!tinted.has(shape))
    tinted.set(shape, [blockDensity(shape, record), blockDensity(shape, record)]);
  const levels = levelsOf(record, app.tint());
  const kept = app.kept();
  const shares = [true, false].map((wanted, n) =>
    tinted.get(shape)[n](
      levels.map((level, at) => {
        if (Boolean(kept[at]) !== wanted) return 0;
        return wanted ? LEAST_KEPT + (level * (FULL_LEVEL - LEAST_KEPT)) / FULL_LEVEL : level;
      }),
    ),
  );
  const { accentRgb, missedRgb, maskRgb: ground } = app.colours();
  for (let i = 0; i < shares[0].length; i += 1) {
    const [on, off] = [shares[0][i] / FULL_LEVEL, shares[1][i] / FULL_LEVEL];
    for (let c = 0; c < 3; c += 1)
      data[4 * i + c] =
        ground[c] + on * (accentRgb[c] - ground[c]) + off * (missedRgb[c] - ground[c]);
    data[4 * i + 3] = 255;
  }
}

/** Draw the lines over the mask anew where they have changed: most ticks leave them as they are. */
function drawLines(plot, state, record, order, view) {
  const { lines } = plot;
  const side = Math.round((lines.clientWidth || LINES_PX) * devicePixelRatio);
  const scene = sceneOf(plot, state, record, order, view, side);
  const what = JSON.stringify([side, view.key, scene.colours.ink, record.index, scene.marked]);
  if (what === plot.drawnLines) return;
  plot.drawnLines = what;
  drawMaskLines(fit(lines, side, side), scene);
}

/** The block under the pointer; null while tokens are between the two orders. */
function blockUnder(plot, event) {
  const { app, canvas } = plot;
  const record = app.record();
  const order = plot.orderOf(app.store.get());
  if (order.sort !== 0 && order.sort !== 1) return null;
  const { rows, columns, qOffsets, kOffsets } = viewOf(plot, record, order);
  const box = canvas.getBoundingClientRect();
  const at = ([from, to], share) => clamp(from + Math.floor(share * (to - from)), from, to - 1);
  const row = at(rows, (event.clientY - box.top) / box.height);
  const column = at(columns, (event.clientX - box.left) / box.width);
  return order.sort === 1
    ? { q: clusterAt(qOffsets, row), k: clusterAt(kOffsets, column) }
    : { q: record.q.labels[row], k: record.k.labels[column], row, column };
}

/** Colour words from empty to full, bytes in memory order as ImageData has them. */
function shadesOf({ accentRgb: on, maskRgb: off }) {
  const shades = new Uint8ClampedArray(4 * (SHADES + 1));
  for (let i = 0; i <= SHADES; i += 1) {
    const strength = (i / SHADES) ** FADE;
    for (let c = 0; c < 3; c += 1) shades[4 * i + c] = off[c] + (on[c] - off[c]) * strength;
    shades[4 * i + 3] = 255;
  }
  return new Uint32Array(shades.buffer);
}
