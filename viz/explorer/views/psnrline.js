// PSNR of each frame as a small chart; a click goes to the frame.

import { clamp, decibel, el, put, svg } from "../dom.js";

const SIZE = { width: 600, height: 96, pad: 8 };
const LEAST_SPAN_DB = 3; // a flat line stays flat
const MAX_DOTS = 40;

/** Range of the chart in decibels. Frames that equal the dense ones have no finite PSNR. */
function rangeOf(psnr) {
  const finite = Array.from(psnr).filter(Number.isFinite);
  const peak = finite.length ? Math.max(...finite) : 0;
  const least = finite.length ? Math.min(...finite) : 0;
  const span = Math.max(peak - least, LEAST_SPAN_DB);
  const top = (peak + least + span) / 2;
  return {
    top,
    span,
    hasFinite: finite.length > 0,
    hasIdentical: finite.length < psnr.length,
  };
}

const placeOf = (frame, count) => ((frame + 0.5) / count) * SIZE.width;

/** Height of a PSNR in the chart; identical frames sit at the top. */
function heightOf(value, { top, span }) {
  const share = Number.isFinite(value) ? clamp((top - value) / span, 0, 1) : 0;
  return SIZE.pad + share * (SIZE.height - 2 * SIZE.pad);
}

export function makePsnrLine(app) {
  const { data, store } = app;
  const parts = {
    line: svg("path", { class: "line" }),
    dots: svg("g", {}),
    cursor: svg("line", { class: "cursor", y1: 0, y2: SIZE.height }),
    high: el("span", {}),
    low: el("span", {}),
    value: el("strong", {}),
  };
  return {
    node: chartNode(parts, (share) => {
      const frame = clamp(Math.floor(share * data.frameCount), 0, data.frameCount - 1);
      store.set({ frame, playing: false });
    }),
    update(state, changed) {
      const psnr = data.runs[state.run].psnrFrame;
      if (changed.has("run")) drawLine(parts, psnr, data.frameCount);
      const x = placeOf(state.frame, data.frameCount);
      parts.cursor.setAttribute("x1", x);
      parts.cursor.setAttribute("x2", x);
      put(parts.value, decibel(psnr[state.frame]));
    },
  };
}

/** `onPick(share)` is called with how far from the left the chart was clicked. */
function chartNode({ line, dots, cursor, high, low, value }, onPick) {
  const chart = svg(
    "svg",
    {
      viewBox: `0 0 ${SIZE.width} ${SIZE.height}`,
      preserveAspectRatio: "none",
      class: "spark",
      "aria-hidden": "true",
      onclick: (event) => {
        const box = chart.getBoundingClientRect();
        onPick((event.clientX - box.left) / box.width);
      },
    },
    line,
    dots,
    cursor,
  );
  return el(
    "div",
    { class: "sparkbox" },
    el("p", { class: "label" }, "PSNR of each frame ", value),
    el("div", { class: "plot" }, chart, el("div", { class: "range" }, high, low)),
    el(
      "p",
      { class: "small" },
      "What one sees, about: 25 dB differ plainly, 30 dB are seen when compared, 35 dB are hard to see.",
    ),
  );
}

function drawLine({ line, dots, high, low }, psnr, count) {
  const range = rangeOf(psnr);
  const points = Array.from(psnr, (v, i) => `${placeOf(i, count)} ${heightOf(v, range)}`);
  line.setAttribute("d", points.map((p, i) => `${i ? "L" : "M"}${p}`).join(""));
  const isFew = points.length <= MAX_DOTS;
  put(dots, ...(isFew ? points.map((p) => svg("path", { class: "dot", d: `M${p}h0` })) : []));
  put(high, range.hasIdentical ? "identical" : `${range.top.toFixed(1)} dB`);
  put(low, range.hasFinite ? `${(range.top - range.span).toFixed(1)} dB` : "");
}
