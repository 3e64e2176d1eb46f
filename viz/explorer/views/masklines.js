// Lines over a mask: the clusters' borders and numbers once zoomed, and what is pinned or pointed at.

const LEAST_BORDER_PX = 3;
const LEAST_LABEL_PX = 15;

/** The cluster that a place of the sorted order belongs to. */
export function clusterAt(offsets, place) {
  let low = 0;
  let high = offsets.length - 2;
  while (low < high) {
    const mid = (low + high + 1) >> 1;
    if (offsets[mid] <= place) low = mid;
    else high = mid - 1;
  }
  return low;
}

/**
 * Draw all lines of a mask. `scene` is {record, view, side, marked, isSorted, isZoomed, colours}:
 * `view` has the places in view (`rows`, `columns`) and the clusters' offsets, `side` is the canvas's
 * in pixels.
 */
export function drawMaskLines(context, scene) {
  const { view, side, isZoomed, isSorted, colours } = scene;
  context.clearRect(0, 0, side, side);
  if (isZoomed) {
    context.font = `${Math.round(11 * devicePixelRatio)}px sans-serif`;
    context.textBaseline = "top";
    drawBorders(context, view.qOffsets, view.rows, false, scene);
    drawBorders(context, view.kOffsets, view.columns, true, scene);
  }
  context.strokeStyle = colours.ink;
  context.fillStyle = colours.ink;
  context.lineWidth = Math.max(1, devicePixelRatio);
  for (const mark of scene.marked) {
    if (isSorted) drawBand(context, mark, scene);
    else drawRimTicks(context, mark, scene);
  }
}

/** Where the clusters of one axis meet, and their numbers; `across` is true on the key axis. */
function drawBorders(context, offsets, [from, to], across, { side, colours }) {
  const scale = side / (to - from);
  const leastLabel = (across ? 2 : 1) * LEAST_LABEL_PX * devicePixelRatio;
  for (let c = clusterAt(offsets, from); c < offsets.length - 1 && offsets[c] < to; c += 1) {
    const at = (offsets[c] - from) * scale;
    const length = (offsets[c + 1] - offsets[c]) * scale;
    context.fillStyle = colours.ink;
    context.globalAlpha = 0.35;
    if (length >= LEAST_BORDER_PX)
      context.fillRect(across ? at : 0, across ? 0 : at, across ? 1 : side, across ? side : 1);
    context.globalAlpha = 1;
    if (length < leastLabel) continue;
    const [x, y] = across ? [Math.max(at, 0) + 4, 3] : [4, Math.max(at, 0) + 3];
    drawLabel(context, String(c + 1), x, y, colours);
  }
}

function drawLabel(context, text, x, y, { ink, paper }) {
  context.fillStyle = paper;
  context.fillRect(x - 2, y - 1, context.measureText(text).width + 4, 13 * devicePixelRatio);
  context.fillStyle = ink;
  context.fillText(text, x, y);
}

/** A marked cluster of the sorted mask: a band from rim to rim. */
function drawBand(context, { side: which, cluster }, { view, side }) {
  const [from, to] = which === "q" ? view.rows : view.columns;
  const offsets = which === "q" ? view.qOffsets : view.kOffsets;
  const scale = side / (to - from);
  const at = (offsets[cluster] - from) * scale;
  const length = Math.max((offsets[cluster + 1] - offsets[cluster]) * scale, 1);
  if (which === "q") context.strokeRect(0.5, at, side - 1, length);
  else context.strokeRect(at, 0.5, length, side - 1);
}

/** A marked cluster in token order: ticks at the rim, one per run of its tokens. */
function drawRimTicks(context, { side: which, cluster }, { record, view, side }) {
  const { labels } = record[which];
  const [from, to] = which === "q" ? view.rows : view.columns;
  const scale = side / (to - from);
  for (let i = 0; i < labels.length; i += 1) {
    if (labels[i] !== cluster) continue;
    let end = i + 1;
    while (end < labels.length && labels[end] === cluster) end += 1;
    const at = i * scale;
    const length = Math.max((end - i) * scale, 1);
    if (which === "q") context.fillRect(0, at, side / 40, length);
    else context.fillRect(at, 0, length, side / 40);
    i = end;
  }
}
