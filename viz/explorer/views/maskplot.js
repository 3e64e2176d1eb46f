// One picture of the N×N mask: its tokens in one order, whole or zoomed to a block.

import { blockDensity, makeBins, offsetsOf } from "../blocks.js";
import { clamp, el, fit, onFrame } from "../dom.js";

const MAX_BINS = 256; // at 300×1000 clusters one redraw then stays within a tick
const SHADES = 255;
const LEAST_LABEL_PX = 15;

/** The cluster that a place of the sorted order belongs to. */
function clusterAt(offsets, place) {
  let low = 0;
  let high = offsets.length - 2;
  while (low < high) {
    const mid = (low + high + 1) >> 1;
    if (offsets[mid] <= place) low = mid;
    else high = mid - 1;
  }
  return low;
}

/** Places around a block of the sorted mask: the block takes about a third of the view. */
function viewAround(geometry, { q, k }) {
  const { qOffsets, kOffsets, tokens } = geometry;
  const length = Math.max(qOffsets[q + 1] - qOffsets[q], kOffsets[k + 1] - kOffsets[k]);
  const width = Math.min(tokens, Math.max(3 * length, Math.ceil(tokens / 40)));
  const around = (offsets, c) => {
    const middle = (offsets[c] + offsets[c + 1]) / 2;
    const from = clamp(Math.round(middle - width / 2), 0, tokens - width);
    return [from, from + width];
  };
  return { rows: around(qOffsets, q), columns: around(kOffsets, k) };
}

/**
 * A canvas with a mask. `orderOf(state)` gives its `sort`, 0 in original order to 1 sorted by
 * cluster, and the `block` that it is zoomed to, or null.
 */
export function makeMaskPlot(app, { orderOf, onHover, onPick }) {
  const { store } = app;
  // Pixels are put in main memory and enlarged by CSS, lines lie on a canvas of their own: a tick
  // then costs one small picture.
  const canvas = el("canvas", { class: "mask", role: "img" });
  const pixels = canvas.getContext("2d", { willReadFrequently: true });
  const lines = el("canvas", { class: "masklines", "aria-hidden": "true" });
  const node = el("div", { class: "maskstack" }, canvas, lines);
  const geometries = new WeakMap();
  let shown = {};

  function geometry(record) {
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

  /** Density of each bin pair and the places in view; what only a tick changes is kept. */
  function look(record, { sort, block }) {
    const place = geometry(record);
    const view = block ? viewAround(place, block) : null;
    const key = `${sort} ${view ? [view.rows, view.columns] : ""}`;
    if (shown.record !== record || shown.key !== key) {
      const make = () => {
        const shape = makeBins(record, Math.min(MAX_BINS, place.tokens), sort, view);
        return { shape, density: blockDensity(shape, record) };
      };
      const isEnd = !view && (sort === 0 || sort === 1);
      if (isEnd && !place.whole.has(sort)) place.whole.set(sort, make());
      shown = { record, key, view, ...(isEnd ? place.whole.get(sort) : make()) };
    }
    const all = [0, place.tokens];
    return { ...shown, ...place, rows: view?.rows ?? all, columns: view?.columns ?? all };
  }

  const draw = onFrame(() => {
    const state = store.get();
    const record = app.record();
    const order = orderOf(state);
    const seen = look(record, order);
    const { rows, columns } = seen.shape;
    const density = seen.density(app.kept());
    const shades = shadesOf(app.colours());
    const image = new ImageData(columns.bins, rows.bins);
    const words = new Uint32Array(image.data.buffer);
    for (let i = 0; i < words.length; i += 1) words[i] = shades[(density[i] * SHADES + 0.5) | 0];
    fit(canvas, columns.bins, rows.bins);
    pixels.putImageData(image, 0, 0);
    drawLines(state, record, order, seen);
  });

  let drawnLines = "";
  function drawLines(state, record, order, seen) {
    const marked = order.sort === 0 || order.sort === 1 ? app.marked(state) : [];
    const side = Math.round((lines.clientWidth || 380) * devicePixelRatio);
    const what = JSON.stringify([side, seen.key, app.colours().ink, record.index, marked]);
    if (what === drawnLines) return;
    drawnLines = what;
    const context = fit(lines, side, side);
    context.clearRect(0, 0, side, side);
    if (order.sort === 1 && order.block) boundaries(context, seen, side);
    marks(context, record, seen, order, side, marked);
  }

  /** Where clusters meet, and their numbers, once zoomed. */
  function boundaries(context, { rows, columns, qOffsets, kOffsets }, side) {
    const { ink, paper } = app.colours();
    context.font = `${Math.round(11 * devicePixelRatio)}px sans-serif`;
    context.textBaseline = "top";
    for (const [offsets, [from, to], across] of [
      [qOffsets, rows, false],
      [kOffsets, columns, true],
    ]) {
      const scale = side / (to - from);
      const first = clusterAt(offsets, from);
      for (let c = first; c < offsets.length - 1 && offsets[c] < to; c += 1) {
        const at = (offsets[c] - from) * scale;
        const length = (offsets[c + 1] - offsets[c]) * scale;
        context.fillStyle = ink;
        context.globalAlpha = 0.35;
        if (length >= 3) context.fillRect(across ? at : 0, across ? 0 : at, across ? 1 : side, across ? side : 1);
        context.globalAlpha = 1;
        if (length < (across ? 2 : 1) * LEAST_LABEL_PX * devicePixelRatio) continue;
        const [x, y] = across ? [Math.max(at, 0) + 4, 3] : [4, Math.max(at, 0) + 3];
        const text = String(c + 1);
        context.fillStyle = paper;
        context.fillRect(x - 2, y - 1, context.measureText(text).width + 4, 13 * devicePixelRatio);
        context.fillStyle = ink;
        context.fillText(text, x, y);
      }
    }
  }

  /** What is pinned or pointed at: bands through the sorted mask, ticks at the rim of the other. */
  function marks(context, record, seen, { sort }, side, marked) {
    const { ink } = app.colours();
    context.strokeStyle = ink;
    context.fillStyle = ink;
    context.lineWidth = Math.max(1, devicePixelRatio);
    for (const { side: which, cluster } of marked) {
      const [from, to] = which === "q" ? seen.rows : seen.columns;
      const scale = side / (to - from);
      if (sort === 1) {
        const offsets = which === "q" ? seen.qOffsets : seen.kOffsets;
        const a = (offsets[cluster] - from) * scale;
        const b = Math.max((offsets[cluster + 1] - offsets[cluster]) * scale, 1);
        if (which === "q") context.strokeRect(0.5, a, side - 1, b);
        else context.strokeRect(a, 0.5, b, side - 1);
        continue;
      }
      const { labels } = record[which];
      for (let i = 0; i < labels.length; i += 1) {
        if (labels[i] !== cluster) continue;
        let end = i + 1;
        while (end < labels.length && labels[end] === cluster) end += 1;
        const a = i * scale;
        const b = Math.max((end - i) * scale, 1);
        if (which === "q") context.fillRect(0, a, side / 40, b);
        else context.fillRect(a, 0, b, side / 40);
        i = end;
      }
    }
  }

  /** The block under the pointer, or null where the order is none of both. */
  function under(event) {
    const record = app.record();
    const order = orderOf(store.get());
    const { rows, columns, qOffsets, kOffsets } = look(record, order);
    const box = canvas.getBoundingClientRect();
    const at = ([from, to], share) =>
      clamp(from + Math.floor(share * (to - from)), from, to - 1);
    const row = at(rows, (event.clientY - box.top) / box.height);
    const column = at(columns, (event.clientX - box.left) / box.width);
    if (order.sort !== 0 && order.sort !== 1) return null;
    return order.sort === 1
      ? { q: clusterAt(qOffsets, row), k: clusterAt(kOffsets, column) }
      : { q: record.q.labels[row], k: record.k.labels[column], row, column };
  }

  canvas.addEventListener("pointermove", (event) => onHover(under(event)));
  canvas.addEventListener("pointerleave", () => onHover(null));
  canvas.addEventListener("click", (event) => {
    const block = under(event);
    if (block) onPick(block, event.detail > 1);
  });
  return { node, canvas, draw };
}

/** Colour words from empty to full, bytes in memory order as ImageData has them. */
function shadesOf({ accentRgb: on, maskRgb: off }) {
  const shades = new Uint8ClampedArray(4 * (SHADES + 1));
  for (let i = 0; i <= SHADES; i += 1) {
    for (let c = 0; c < 3; c += 1) shades[4 * i + c] = off[c] + ((on[c] - off[c]) * i) / SHADES;
    shades[4 * i + 3] = 255;
  }
  return new Uint32Array(shades.buffer);
}
