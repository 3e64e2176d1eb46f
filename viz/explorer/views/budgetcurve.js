// Density and kept mass at every budget, above the slider and in step with it.

import { budget, el, svg } from "../dom.js";
import { TICKS } from "../select.js";

export const LEAST_TICK = 10;

const SIZE = { width: 300, height: 90 };
const RIM = 2; // half a line's width stays inside of the picture
const PICTURE = { width: 760, height: 340, left: 56, bottom: 44, top: 30 };
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
    picture: () => (app.canRedo() ? pictureOf(app) : null),
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

/** The curves in large, with their axes and names. */
function pictureOf(app) {
  const { density, keptMass } = app.curve(app.record());
  const { top_p } = app.store.get();
  return {
    title: "What a budget keeps of this call",
    parts: [
      {
        height: PICTURE.height,
        draw: (context, x, y) => {
          context.save();
          context.translate(x + PICTURE.left, y + PICTURE.top);
          drawCurves(context, { density, keptMass, top_p, measured: app.measuredBudget() }, app.colours());
          context.restore();
        },
      },
    ],
    columns: 1,
    cell: PICTURE.width,
    place: app.viewName(),
  };
}

function drawCurves(context, { density, keptMass, top_p, measured }, { ink, soft, line, accent }) {
  const width = PICTURE.width - PICTURE.left - 20;
  const height = PICTURE.height - PICTURE.top - PICTURE.bottom;
  const at = (p) => (placeOf(p) / SIZE.width) * width;
  const up = (share) => (1 - share) * height;
  const stroke = (points, colour, wide = 1, dash = []) => {
    context.setLineDash(dash);
    context.lineWidth = wide;
    context.strokeStyle = colour;
    context.beginPath();
    points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
    context.stroke();
  };
  const write = (text, x, y, align, colour = soft) => {
    context.textAlign = align;
    context.fillStyle = colour;
    context.fillText(text, x, y);
  };
  const pointsOf = (shares) =>
    Array.from({ length: TICKS - LEAST_TICK + 1 }, (_, i) => [at((i + LEAST_TICK) / TICKS), up(shares[i + LEAST_TICK])]);
  context.font = "400 13px system-ui, sans-serif";
  for (const share of SHARES) {
    stroke([[0, up(share)], [width, up(share)]], line);
    write(`${100 * share} %`, -8, up(share) + 4, "right");
  }
  for (const p of BUDGETS) {
    stroke([[at(p), 0], [at(p), height]], line);
    write(String(p), at(p), height + 18, "center");
  }
  write("budget, top-p", width, height + 36, "right");
  stroke([[at(measured), 0], [at(measured), height]], soft, 1, [2, 3]);
  stroke([[at(top_p), 0], [at(top_p), height]], ink, 2);
  write(budget(top_p), at(top_p), -8, "center", ink);
  stroke(pointsOf(keptMass), soft, 2, [6, 4]);
  stroke(pointsOf(density), accent, 2.5);
  write("— density: share of the pairs computed", 0, height + 36, "left", accent);
  write("- - kept mass", 290, height + 36, "left", soft);
}

function moveTo(line, x) {
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
}
