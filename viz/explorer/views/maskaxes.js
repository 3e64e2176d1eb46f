// The axes of a mask: latent frames in token order, cluster numbers once it is sorted.

import { el, put } from "../dom.js";
import { clusterAt } from "./masklines.js";

const MOST_FRAMES = 12; // with more of them every fifth has its number
const CLUSTERS = 7; // numbers on an axis of clusters
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";

/** Space around a mask in a saved picture, in CSS pixels. */
export const AXIS = { left: 42, bottom: 42 };

const NAMES = {
  0: ["queries, by latent frame", "keys, by latent frame"],
  1: ["query clusters, in their true sizes", "key clusters, in their true sizes"],
};

/** Ticks {at, text} of both axes, `at` from 0 to 1, and their names; none while tokens are between the orders. */
export function axesOf({ rows, columns, qOffsets, kOffsets, tokens }, { sort }, frames) {
  if (sort !== 0 && sort !== 1) return { rows: [], columns: [], names: ["", ""] };
  const ticks = (range, offsets) => (sort === 1 ? clusterTicks(range, offsets) : frameTicks(range, tokens, frames));
  return { rows: ticks(rows, qOffsets), columns: ticks(columns, kOffsets), names: NAMES[sort] };
}

/** The number of each latent frame in the middle of its tokens. */
function frameTicks([from, to], tokens, frames) {
  const found = [];
  for (let t = 0; t < frames; t += 1) {
    const at = (((t + 0.5) * tokens) / frames - from) / (to - from);
    if (at > 0 && at < 1 && (frames <= MOST_FRAMES || t % 5 === 0)) found.push({ at, text: String(t + 1) });
  }
  return found;
}

/** Numbers of a few clusters that lie about evenly spread, each in the middle of what is in view of it. */
function clusterTicks([from, to], offsets) {
  const found = new Map();
  for (let i = 0; i < CLUSTERS; i += 1) {
    const c = clusterAt(offsets, from + Math.floor(((i + 0.5) * (to - from)) / CLUSTERS));
    const middle = (Math.max(offsets[c], from) + Math.min(offsets[c + 1], to)) / 2;
    found.set(c, { at: (middle - from) / (to - from), text: String(c + 1) });
  }
  return [...found.values()];
}

/** A mask between its axes: the node, and `show(axes)`. */
export function makeMaskAxes(mask) {
  const parts = { rows: el("div", { class: "axisrows" }), columns: el("div", { class: "axiscolumns" }) };
  const names = [el("span", { class: "axisleft" }), el("span", { class: "axisbelow" })];
  let shown = "";
  return {
    node: el(
      "div",
      { class: "maskaxes" },
      el("div", { class: "axisside", "aria-hidden": "true" }, names[0], parts.rows),
      mask,
      el("div", { class: "axisfoot", "aria-hidden": "true" }, parts.columns, names[1]),
    ),
    show(axes) {
      const key = JSON.stringify(axes);
      if (key === shown) return;
      shown = key;
      for (const [name, side] of [["rows", "top"], ["columns", "left"]])
        put(
          parts[name],
          axes[name].map(({ at, text }) => el("span", { style: `${side}: ${(100 * at).toFixed(2)}%` }, text)),
        );
      put(names[0], axes.names[0]);
      put(names[1], axes.names[1]);
    },
  };
}

/** Draw a mask's picture with its axes, `width` wide in all; returns nothing. */
export function drawWithAxes(context, { canvas, axes, colours }, x, y, width) {
  const side = width - AXIS.left;
  const left = x + AXIS.left;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(canvas, left, y, side, side);
  context.font = `12px ${FONT}`;
  context.fillStyle = colours.soft;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const { at, text } of axes.rows) context.fillText(text, left - 5, y + at * side);
  context.textAlign = "center";
  for (const { at, text } of axes.columns) context.fillText(text, left + at * side, y + side + 11);
  context.fillText(axes.names[1], left + side / 2, y + side + 30);
  context.save();
  context.translate(x + 7, y + side / 2);
  context.rotate(-Math.PI / 2);
  context.fillText(axes.names[0], 0, 0);
  context.restore();
  context.textAlign = "start";
  context.textBaseline = "alphabetic";
}
