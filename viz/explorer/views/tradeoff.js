// Measured runs on a chart: solid marks, a shape per method. The what-if has a density but no PSNR, so it is only a line.

import { budget, choice, decibel, el, isNumber, percent, put, svg, times } from "../dom.js";
import { term } from "../words.js";

const AXES = {
  density: {
    name: "Density",
    of: (p) => p.density,
    text: (v) => percent(v, 0),
    title: "density: token pairs kept in sparse calls",
  },
  compute: {
    name: "Compute",
    of: (p) => p.compute_density,
    text: (v) => percent(v, 0),
    title: "compute density: kept pairs and what compensation computes",
  },
  attention: {
    name: "Attention time",
    of: (p) => p.attention_speedup,
    text: (v) => times(v),
    title: "measured attention speedup",
  },
  speedup: {
    name: "End-to-end",
    of: (p) => p.speedup,
    text: (v) => times(v),
    title: "measured end-to-end speedup",
  },
};

const SHAPES = ["circle", "diamond", "square", "triangle", "cross", "star"];
const METHOD_ORDER = ["svg2", "svg2-comp", "svg1", "position", "oracle"];

function shapeOf(method, methods) {
  const at = METHOD_ORDER.indexOf(method);
  if (at >= 0) return SHAPES[at];
  return SHAPES[(METHOD_ORDER.length + methods.indexOf(method)) % SHAPES.length];
}

function mark(shape, x, y, r) {
  const d = {
    circle: `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
    diamond: `M${x} ${y - 1.3 * r}L${x + 1.3 * r} ${y}L${x} ${y + 1.3 * r}L${x - 1.3 * r} ${y}z`,
    square: `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    triangle: `M${x} ${y - 1.2 * r}L${x + 1.2 * r} ${y + r}H${x - 1.2 * r}z`,
    cross: `M${x - r} ${y - r}L${x + r} ${y + r}M${x + r} ${y - r}L${x - r} ${y + r}`,
    star: `M${x} ${y - r}V${y + r}M${x - r} ${y}H${x + r}M${x - 0.7 * r} ${y - 0.7 * r}l${1.4 * r} ${1.4 * r}m0 ${-1.4 * r}l${-1.4 * r} ${1.4 * r}`,
  };
  return d[shape];
}

/** Round steps for an axis: about `count` of them between two numbers. */
export function niceTicks(low, high, count) {
  const span = Math.max(high - low, 1e-9);
  const raw = span / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const ticks = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + 1e-9; v += step) ticks.push(v);
  return ticks;
}

export function makeTradeoff(app) {
  const { data, store } = app;
  const axes = choice(
    "Horizontal axis",
    Object.entries(AXES).map(([name, a]) => [name, a.name, a.title]),
    (name) => store.set({ axis: name }),
  );
  const chart = svg("svg", {
    class: "chart",
    role: "group",
    "aria-label": "PSNR of measured runs",
  });
  const whatIf = svg("g", {});
  let place = null; // of the axes, so that a tick moves one line and leaves the rest alone
  const legend = el("p", { class: "legend small" });
  const reading = el("p", { class: "reading small", "aria-live": "polite" });
  const node = el(
    "section",
    { class: "view", "data-view": "tradeoff", "aria-labelledby": "tradeoff-title" },
    el(
      "div",
      { class: "side" },
      el("h3", { id: "tradeoff-title" }, "Trade-off"),
      el(
        "p",
        {},
        "Every solid mark is a run that was made and timed: ",
        term("psnr", "PSNR"),
        " against ",
        term("density"),
        ", or against the time gained. Click one to load its clip. The dashed line is the what-if budget: its density is known from the recorded calls, its PSNR is not, until it is run.",
      ),
      axes.node,
      legend,
      reading,
    ),
    el("div", { class: "main" }, chart),
  );

  function points() {
    return data.runs.map((run) => ({
      run: run.index,
      method: run.method,
      name: run.name.replaceAll(" · ", ", "),
      top_p: run.config.top_p,
      density: run.result.density,
      compute_density: run.result.compute_density,
      psnr_db: run.result.psnr_db,
      speedup: run.result.speedup,
      attention_speedup: run.result.attention_speedup,
    }));
  }

  const describe = (p) =>
    `${p.name}: ${decibel(p.psnr_db)}, density ${percent(p.density)}, attention ${times(p.attention_speedup)}, end-to-end ${times(p.speedup)}.`;

  /** The budget on the slider, where it was not run: a dashed line at its density. */
  function drawWhatIf() {
    put(whatIf);
    const { top_p } = store.get();
    const mean = app.meanDensity(top_p).value;
    if (!place || place.axis !== "density" || app.isMeasured() || mean === null) return;
    const { x, pad, width, bottom } = place;
    const at = x(mean);
    const left = at > width * 0.6;
    put(
      whatIf,
      svg("line", { class: "whatif", x1: at, x2: at, y1: pad.top, y2: bottom }),
      svg("path", { class: "hollow", d: mark("circle", at, bottom, 5.5) }),
      svg(
        "text",
        {
          class: "whatiftext",
          x: at + (left ? -10 : 10),
          y: pad.top + 10,
          "text-anchor": left ? "end" : "start",
        },
        width < 480
          ? `what-if ${percent(mean)}`
          : `what-if top-p ${budget(top_p)}: ${percent(mean)}, PSNR not measured`,
      ),
    );
  }

  function draw() {
    const { axis } = store.get();
    const box = chart.getBoundingClientRect();
    const width = Math.max(280, box.width || 600);
    const height = Math.max(220, Math.min(340, width * 0.5));
    const pad = { left: 52, right: 18, top: 34, bottom: 44 };
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    chart.style.height = `${height}px`;
    const all = points().filter((p) => isNumber(AXES[axis].of(p)));
    const finite = all.filter((p) => isNumber(p.psnr_db));
    const methods = [...new Set(all.map((p) => p.method))];
    const share = axis === "density" || axis === "compute";
    const values = all.map(AXES[axis].of);
    const [x0, x1] = share
      ? [0, 1]
      : [Math.min(1, ...values) - 0.1, Math.max(1.5, ...values) + 0.1];
    const dbs = finite.map((p) => p.psnr_db);
    const y0 = Math.floor(Math.min(...dbs, 30) - 2);
    const y1 = Math.ceil(Math.max(...dbs, 34) + 3);
    const x = (v) => pad.left + ((v - x0) / (x1 - x0)) * (width - pad.left - pad.right);
    const y = (v) =>
      v === null ? pad.top : pad.top + ((y1 - v) / (y1 - y0)) * (height - pad.top - pad.bottom);
    const bottom = height - pad.bottom;

    const parts = [];
    for (const v of niceTicks(y0, y1, 5)) {
      parts.push(
        svg("line", {
          class: "gridline",
          x1: pad.left,
          x2: width - pad.right,
          y1: y(v),
          y2: y(v),
        }),
      );
      parts.push(
        svg(
          "text",
          { class: "tick", x: pad.left - 8, y: y(v) + 4, "text-anchor": "end" },
          String(Number(v.toFixed(1))),
        ),
      );
    }
    for (const v of niceTicks(x0, x1, width < 420 ? 4 : 6)) {
      parts.push(
        svg(
          "text",
          { class: "tick", x: x(v), y: bottom + 18, "text-anchor": "middle" },
          AXES[axis].text(v),
        ),
      );
    }
    parts.push(
      svg("line", { class: "axis", x1: pad.left, x2: width - pad.right, y1: bottom, y2: bottom }),
    );
    parts.push(svg("text", { class: "axisname", x: pad.left - 40, y: 12 }, "PSNR, dB"));
    parts.push(
      svg(
        "text",
        { class: "axisname", x: width - pad.right, y: height - 6, "text-anchor": "end" },
        AXES[axis].title,
      ),
    );

    const state = store.get();
    parts.push(whatIf);
    place = { x, pad, width, bottom, axis };
    drawWhatIf();
    for (const method of methods) {
      const line = finite
        .filter((p) => p.method === method)
        .sort((a, b) => AXES[axis].of(a) - AXES[axis].of(b))
        .map((p, i) => `${i ? "L" : "M"}${x(AXES[axis].of(p))} ${y(p.psnr_db)}`)
        .join("");
      parts.push(svg("path", { class: "joined", d: line }));
    }
    for (const p of all) {
      if (!isNumber(p.psnr_db) && p.psnr_db !== null) continue;
      const px = x(AXES[axis].of(p));
      const py = y(p.psnr_db);
      const current = p.run === state.run;
      const pick = () => app.selectRun(p.run);
      const right = px > width - 130;
      parts.push(
        svg(
          "g",
          {
            class: `point${current ? " current" : ""}`,
            tabindex: 0,
            role: "button",
            "aria-label": describe(p),
            "aria-pressed": String(current),
            onclick: pick,
            onkeydown: (event) => {
              if (event.key === "Enter" || event.key === " ") {
                event.preventDefault();
                pick();
              }
            },
            onpointerenter: () => put(reading, describe(p)),
            onfocus: () => put(reading, describe(p)),
          },
          svg("circle", { class: "halo", cx: px, cy: py, r: 13 }),
          svg("path", { class: "solid", d: mark(shapeOf(p.method, methods), px, py, 6) }),
          svg(
            "text",
            {
              class: "pointname",
              x: px + (right ? -12 : 12),
              y: py + 4,
              "text-anchor": right ? "end" : "start",
            },
            [isNumber(p.top_p) && `p ${budget(p.top_p)}`, p.psnr_db === null && "identical"]
              .filter(Boolean)
              .join(", "),
          ),
        ),
      );
    }
    const focused = [...chart.querySelectorAll(".point")].indexOf(
      chart.getRootNode().activeElement,
    );
    put(chart, ...parts);
    if (focused >= 0) chart.querySelectorAll(".point")[focused]?.focus();
    put(
      legend,
      ...methods.map((method) =>
        el(
          "span",
          { class: "method" },
          svg(
            "svg",
            { width: 16, height: 16, "aria-hidden": "true" },
            svg("path", { class: "solid", d: mark(shapeOf(method, methods), 8, 8, 5) }),
          ),
          method,
        ),
      ),
    );
  }

  return {
    node,
    draw,
    update(state, changed) {
      if (changed.has("axis")) axes.show(state.axis);
      if (changed.has("run") || changed.has("axis")) draw();
      else if (changed.has("top_p")) drawWhatIf();
      if (changed.has("run")) {
        const current = points().find((p) => p.run === state.run);
        put(reading, describe(current));
      }
    },
  };
}
