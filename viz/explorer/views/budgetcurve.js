// Density and kept mass at every budget, above the slider and in step with it.

import { el, svg } from "../dom.js";
import { TICKS } from "../select.js";

export const LEAST_TICK = 10;

const SIZE = { width: 300, height: 90 };
const RIM = 2; // half a line's width stays inside of the picture
const BUDGETS = [0.2, 0.4, 0.6, 0.8, 1];
const SHARES = [1, 0.5, 0];

const placeOf = (budget) => ((budget * TICKS - LEAST_TICK) / (TICKS - LEAST_TICK)) * SIZE.width;

const heightOf = (share) => (1 - share) * (SIZE.height - 2 * RIM) + RIM;

/** The path of a curve of shares: entry i belongs to budget i / TICKS. */
function curvePath(shares) {
  let d = "";
  for (let i = LEAST_TICK; i <= TICKS; i += 1) {
    d += `${d ? "L" : "M"}${placeOf(i / TICKS).toFixed(1)} ${heightOf(shares[i]).toFixed(1)}`;
  }
  return d;
}

/** Lines at the budgets and shares that the axes name. */
const gridLines = () => [
  ...SHARES.map((share) => svg("line", { class: "gridline", x1: 0, x2: SIZE.width, y1: heightOf(share), y2: heightOf(share) })),
  ...BUDGETS.map((p) => svg("line", { class: "gridline", x1: placeOf(p), x2: placeOf(p), y1: 0, y2: SIZE.height })),
];

/** The curves over the slider, with the axes of both. */
function withAxes(chart, slider) {
  const ticks = BUDGETS.map((p) =>
    el("span", { style: `left: ${((100 * placeOf(p)) / SIZE.width).toFixed(2)}%` }, String(p)),
  );
  return el(
    "div",
    { class: "curvebox" },
    chart,
    el("div", { class: "range", "aria-hidden": "true" }, SHARES.map((share) => el("span", {}, `${100 * share} %`))),
    slider,
    el("div", { class: "axiscolumns", "aria-hidden": "true" }, ticks),
  );
}

/** The curves of the call on show over `slider`. */
export function makeBudgetCurve(app, slider) {
  const density = svg("path", { class: "line" });
  const mass = svg("path", { class: "line second" });
  const now = svg("line", { class: "cursor", y1: 0, y2: SIZE.height });
  const measured = svg("line", { class: "measured", y1: 0, y2: SIZE.height });
  const chart = svg(
    "svg",
    {
      viewBox: `0 0 ${SIZE.width} ${SIZE.height}`,
      preserveAspectRatio: "none",
      class: "spark",
      "aria-hidden": "true",
    },
    gridLines(),
    measured,
    mass,
    density,
    now,
  );
  let shown = null;
  return {
    node: withAxes(chart, slider),
    update(state) {
      const record = app.record();
      if (shown !== record) {
        shown = record;
        const curves = app.canRedo() ? app.curve(record) : null;
        density.setAttribute("d", curves ? curvePath(curves.density) : "");
        mass.setAttribute("d", curves ? curvePath(curves.keptMass) : "");
      }
      moveTo(now, placeOf(state.top_p));
      moveTo(measured, placeOf(app.measuredBudget()));
    },
  };
}

function moveTo(line, x) {
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
}
