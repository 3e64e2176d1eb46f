// Measured runs on a chart: solid marks, a symbol per method. The what-if is a hollow mark where it is foretold, else a line.

import { budget, choice, el, isNumber, LETTER, percent, put, svg } from "../dom.js";
import { svgImage } from "../picture.js";
import { term } from "../words.js";
import { marksOf, symbolPath } from "./marks.js";
import { AXES, PAD, chartData, describe, foretold, foretoldPace, makeScale, namesOf, pointOf, settingsOf } from "./points.js";

const RADIUS = { run: 6, current: 8, legend: 5 };

export function makeTradeoff(app) {
  const { store } = app;
  const axes = choice(
    "Horizontal axis",
    Object.entries(AXES).map(([name, a]) => [name, a.name, a.title]),
    (name) => store.set({ axis: name }),
  );
  const settings = settingsOf(app.data);
  const view = {
    app,
    chart: svg("svg", { class: "chart", role: "group", "aria-label": "PSNR of measured runs" }),
    whatIf: svg("g", {}),
    reading: el("p", { class: "reading small", "aria-live": "polite" }),
    scale: null, // of the last drawing, so that a tick moves one line and leaves the rest alone
  };
  return {
    node: viewNode(axes, settings, view),
    draw: () => draw(view),
    chart: view.chart,
    async picture() {
      const parts = [{ canvas: await svgImage(view.chart) }];
      const { isShare, name, title: long } = AXES[store.get().axis];
      const title = `Trade-off: PSNR against ${isShare ? name.toLowerCase() : long}`;
      return { title, parts, columns: 1, cell: 800, place: settings || null };
    },
    summarised: () => draw(view),
    update(state, changed) {
      if (changed.has("axis")) axes.show(state.axis);
      if (changed.has("run") || changed.has("axis")) draw(view);
      else if (changed.has("top_p")) drawWhatIf(view);
      if (changed.has("run")) put(view.reading, describe(pointOf(app.data.runs[state.run])));
    },
  };
}

function viewNode(axes, settings, { chart, reading }) {
  return el(
    "section",
    { class: "view", "aria-labelledby": "tradeoff-title" },
    el(
      "div",
      { class: "side" },
      el("h3", { id: "tradeoff-title" }, "Trade-off"),
      el(
        "p",
        {},
        "Every solid mark is a run that was made and timed: ",
        term("psnr", "PSNR"),
        " against how much of all pairs was ",
        term("computed"),
        ", or against the time gained. Click one to load its clip. The hollow mark is the budget on the slider: foretold from the recorded calls and the runs beside it, with a bar for how far off that may be, until it is run.",
      ),
      axes.node,
      settings && el("p", { class: "small" }, `Methods run with their own settings. ${settings}.`),
      reading,
    ),
    el("div", { class: "main" }, chart),
  );
}

function draw(view) {
  const { app, chart, whatIf } = view;
  const state = app.store.get();
  const found = chartData(app.data, state.axis);
  const marks = marksOf(app.data, found.methods, app.colours());
  const width = Math.max(280, chart.getBoundingClientRect().width || 600);
  const keys = legendOf(found.methods.map((name) => marks.get(name)), width);
  const scale = makeScale(found, width, keys.height);
  const names = namesOf(found.points, scale);
  view.scale = scale;
  chart.setAttribute("viewBox", `0 0 ${scale.width} ${scale.height}`);
  chart.style.height = `${scale.height}px`;
  drawWhatIf(view);
  keepFocus(chart, () =>
    put(
      chart,
      ...drawAxes(scale),
      svg("g", { class: "legend", transform: `translate(0 ${scale.height - keys.height})` }, keys.nodes),
      whatIf,
      ...found.lines.map((line) => drawLine(line, scale, marks)),
      ...found.points.map((p, i) => drawPoint(view, p, marks.get(p.method), names[i], p.run === state.run)),
    ),
  );
}

/** Draw the points anew; the keyboard's focus stays on the same one. */
function keepFocus(chart, redraw) {
  const points = () => [...chart.querySelectorAll(".point")];
  const focused = points().indexOf(chart.getRootNode().activeElement);
  redraw();
  if (focused >= 0) points()[focused]?.focus();
}

function drawAxes({ axis, x, y, xTicks, yTicks, right, bottom }) {
  const horizontal = (name, at) => svg("line", { class: name, x1: PAD.left, x2: right, y1: at, y2: at });
  return [
    ...yTicks.flatMap((v) => [
      horizontal("gridline", y(v)),
      svg(
        "text",
        { class: "tick", x: PAD.left - 8, y: y(v) + 4, "text-anchor": "end" },
        String(Number(v.toFixed(1))),
      ),
    ]),
    ...xTicks.flatMap((v) => [
      svg("line", { class: "axis", x1: x(v), x2: x(v), y1: bottom, y2: bottom + 5 }),
      svg("text", { class: "tick", x: x(v), y: bottom + 18, "text-anchor": "middle" }, axis.text(v)),
    ]),
    horizontal("axis", bottom),
    svg("text", { class: "axisname", x: PAD.left - 40, y: 12 }, "PSNR, dB"),
    svg(
      "text",
      { class: "axisname", x: right, y: bottom + 38, "text-anchor": "end" },
      axis.title,
    ),
  ];
}

/** The budget on the slider, where it was not run: a hollow mark at what is foretold, and how far off that may be. */
function drawWhatIf({ app, whatIf, scale }) {
  put(whatIf);
  const { top_p } = app.store.get();
  const told = app.forecast(top_p);
  const mean = app.isOwnMask() ? null : app.meanDensity(top_p).value;
  const across = told ? scale?.axis.of(told) : scale?.axis === AXES.density ? mean : null;
  if (!scale || !isNumber(across)) return;
  const x = scale.x(across);
  const y = told ? scale.y(told.psnr_db) : scale.bottom;
  const isLeft = x > scale.width * 0.6;
  const anchor = { x: x + (isLeft ? -10 : 10), y: PAD.top + 10, "text-anchor": isLeft ? "end" : "start" };
  put(
    whatIf,
    svg("line", { class: "whatif", x1: x, x2: x, y1: PAD.top, y2: scale.bottom }),
    told && svg("line", { class: "offby", x1: x, x2: x, y1: y - heightOf(told, scale), y2: y + heightOf(told, scale) }),
    svg("path", { class: "hollow", d: symbolPath("circle", x, y, 5.5) }),
    svg("text", { class: "whatiftext", ...anchor }, whatIfText(top_p, told, mean, scale.width < 480)),
  );
}

/** Pixels that the uncertainty of a forecast takes. */
const heightOf = ({ psnr_db, off_db }, { y }) => Math.abs(y(psnr_db + off_db) - y(psnr_db));

function whatIfText(top_p, told, mean, isNarrow) {
  const asked = isNarrow ? "what-if" : `what-if top-p ${budget(top_p)}`;
  if (!told) return isNarrow ? `${asked} ${percent(mean)}` : `${asked}: ${percent(mean)}, PSNR not measured`;
  const pace = isNarrow ? "" : foretoldPace(told);
  return `${asked}: about ${[foretold(told), pace].filter(Boolean).join(", ")}`;
}

function drawLine({ method, points }, { axis, x, y }, marks) {
  const d = points.map((p, i) => `${i ? "L" : "M"}${x(axis.of(p))} ${y(p.psnr_db)}`).join("");
  return svg("path", { class: "joined", d, style: `stroke: ${marks.get(method).colour}` });
}

/** A run's mark: a button that shows the run, with its numbers on hover and focus. */
function drawPoint({ app, reading, scale }, p, mark, { name, anchor, ...at }, isCurrent) {
  const x = scale.x(scale.axis.of(p));
  const y = scale.y(p.psnr_db);
  const pick = () => app.selectRun(p.run);
  const read = () => put(reading, describe(p));
  return svg(
    "g",
    {
      class: `point${isCurrent ? " current" : ""}`,
      tabindex: 0,
      role: "button",
      "aria-label": describe(p),
      "aria-pressed": String(isCurrent),
      onclick: pick,
      onkeydown: (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        pick();
      },
      onpointerenter: read,
      onfocus: read,
    },
    svg("circle", { class: "halo", cx: x, cy: y, r: 13 }),
    solidMark(mark, x, y, isCurrent ? RADIUS.current : RADIUS.run),
    svg("text", { class: "pointname", ...at, "text-anchor": anchor }, name),
  );
}

function solidMark({ symbol, colour }, x, y, r) {
  return svg("path", {
    class: "solid",
    d: symbolPath(symbol, x, y, r),
    style: `fill: ${colour}; stroke: ${colour}`,
  });
}

/** Each method's mark and title, in as many rows as they take. */
function legendOf(marks, width) {
  let [x, y] = [PAD.left, 16];
  const nodes = marks.map((mark) => {
    const takes = 22 + mark.title.length * LETTER + 16;
    if (x > PAD.left && x + takes > width) [x, y] = [PAD.left, y + 20];
    const node = svg(
      "g",
      { class: "method" },
      solidMark(mark, x + 8, y - 4, RADIUS.legend),
      svg("text", { x: x + 22, y }, mark.title),
    );
    x += takes;
    return node;
  });
  return { nodes, height: y + 8 };
}
