// Density and kept mass at every budget, above the slider and in step with it.

import { svg } from "../dom.js";
import { TICKS } from "../select.js";

export const LEAST_TICK = 10;

const SIZE = { width: 300, height: 90 };
const RIM = 2; // half a line's width stays inside of the picture

const placeOf = (budget) => ((budget * TICKS - LEAST_TICK) / (TICKS - LEAST_TICK)) * SIZE.width;

/** The path of a curve of shares: entry i belongs to budget i / TICKS. */
function curvePath(shares) {
  let d = "";
  for (let i = LEAST_TICK; i <= TICKS; i += 1) {
    const y = (1 - shares[i]) * (SIZE.height - 2 * RIM) + RIM;
    d += `${d ? "L" : "M"}${placeOf(i / TICKS).toFixed(1)} ${y.toFixed(1)}`;
  }
  return d;
}

export function makeBudgetCurve(app) {
  const density = svg("path", { class: "line" });
  const mass = svg("path", { class: "line second" });
  const now = svg("line", { class: "cursor", y1: 0, y2: SIZE.height });
  const measured = svg("line", { class: "measured", y1: 0, y2: SIZE.height });
  const node = svg(
    "svg",
    {
      viewBox: `0 0 ${SIZE.width} ${SIZE.height}`,
      preserveAspectRatio: "none",
      class: "spark",
      "aria-hidden": "true",
    },
    measured,
    mass,
    density,
    now,
  );
  let shown = null;
  return {
    node,
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
