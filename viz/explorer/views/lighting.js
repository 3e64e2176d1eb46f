// The overlay of one latent frame: a colour per token, and outlines of the marked clusters.

import { paint } from "../frames.js";
import { massPerPartner, otherSide } from "../reads.js";

const DIMMED = [8, 9, 12];
const LEAST_CELL_PX = 5; // borders between all clusters would fill smaller cells
const OUTLINE = [
  ["rgba(0, 0, 0, .75)", 4],
  ["#fff", 2],
];

/** The cluster under the pointer, or else the pinned one, or null. */
export function focusOf(state) {
  if (state.hover) return state.hover;
  return state.cluster === null ? null : { side: state.side, cluster: state.cluster };
}

/**
 * What the overlay lights: `side` names the clusters that are drawn and `focus` the cluster in focus.
 * `weights` holds a brightness per cluster of that side, or is null where the focus alone is lit.
 */
export function lighting(state, record, kept) {
  const focus = focusOf(state);
  if (!focus) return { side: state.side, focus: null, weights: null };
  if (state.hover || state.lit === "members") return { side: focus.side, focus, weights: null };
  const side = otherSide(focus.side);
  const mass = massPerPartner(record, kept, focus.side, focus.cluster);
  const perToken = mass.map((m, c) => (record[side].sizes[c] ? m / record[side].sizes[c] : 0));
  const heaviest = Math.max(...perToken, 1e-30);
  return { side, focus, weights: perToken.map((m) => Math.sqrt(m / heaviest)) };
}

/** One RGBA word per cluster (bytes in memory order, as ImageData has them). */
export function clusterColours(light, record, opacity, accent) {
  const { rgb, sizes } = record[light.side];
  const bytes = new Uint8ClampedArray(4 * sizes.length);
  for (let c = 0; c < sizes.length; c += 1) {
    let colour = rgb.subarray(3 * c, 3 * c + 3);
    let alpha = 255 * opacity;
    if (light.weights) {
      const weight = light.weights[c];
      colour = weight > 0 ? accent : DIMMED;
      alpha = weight > 0 ? 40 + 190 * weight : 185;
    } else if (light.focus) {
      const member = c === light.focus.cluster;
      if (!member) colour = DIMMED;
      alpha = member ? Math.max(alpha, 150) : 165;
    }
    bytes.set(colour, 4 * c);
    bytes[4 * c + 3] = Math.round(alpha);
  }
  return new Uint32Array(bytes.buffer);
}

/**
 * Draw latent frame `t`. `scene` is {record, light, colours, marked, opacity, grid, cell}: `colours`
 * as `clusterColours` makes them, `marked` the clusters to outline, `cell` a token's side in pixels.
 */
export function drawFrame(context, picture, scene, t) {
  const { light, cell, opacity } = scene;
  const { width, height } = context.canvas;
  if (picture) paint(context, picture);
  else context.clearRect(0, 0, width, height);
  drawOverlay(context, scene, t);
  if (light.focus) drawOutlines(context, scene, t);
  else if (cell >= LEAST_CELL_PX) {
    const { labels } = scene.record[light.side];
    context.lineWidth = 1;
    context.strokeStyle = `rgba(0, 0, 0, ${0.6 * opacity})`;
    strokeBorders(context, scene, t, (i, j) => labels[i] !== labels[j]);
  }
}

function drawOverlay(context, { record, light, colours, grid: [, Y, X] }, t) {
  const { labels } = record[light.side];
  const image = new ImageData(X, Y);
  const words = new Uint32Array(image.data.buffer);
  for (let i = 0; i < words.length; i += 1) words[i] = colours[labels[t * Y * X + i]];
  const overlay = new OffscreenCanvas(X, Y);
  overlay.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(overlay, 0, 0, context.canvas.width, context.canvas.height);
}

/** Outline the marked clusters; the second half of a pinned block is dashed. */
export function drawOutlines(context, scene, t) {
  for (const [n, { side, cluster }] of scene.marked.entries()) {
    const { labels } = scene.record[side];
    context.setLineDash(n ? [5, 4] : []);
    for (const [style, width] of OUTLINE) {
      context.lineWidth = width * Math.max(1, devicePixelRatio * 0.75);
      context.strokeStyle = style;
      strokeBorders(context, scene, t, (i, j) => (labels[i] === cluster) !== (labels[j] === cluster));
    }
  }
  context.setLineDash([]);
}

/** Draw a line between two neighbouring tokens i and j of a frame where `differs(i, j)`. */
function strokeBorders(context, { grid: [, Y, X], cell }, t, differs) {
  context.beginPath();
  for (let y = 0; y < Y; y += 1) {
    for (let x = 0; x < X; x += 1) {
      const i = (t * Y + y) * X + x;
      if (x + 1 < X && differs(i, i + 1)) {
        context.moveTo((x + 1) * cell, y * cell);
        context.lineTo((x + 1) * cell, (y + 1) * cell);
      }
      if (y + 1 < Y && differs(i, i + X)) {
        context.moveTo(x * cell, (y + 1) * cell);
        context.lineTo((x + 1) * cell, (y + 1) * cell);
      }
    }
  }
  context.stroke();
}
