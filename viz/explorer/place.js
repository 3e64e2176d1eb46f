// Where in the run we look: step, layer, head, branch. What the trace does not hold is greyed and named.

import { el, fit, onFrame, percent, put } from "./dom.js";
import { runName } from "./header.js";
import { nearestPlace } from "./state.js";

const BRANCHES = ["conditional", "unconditional", "both, batched"];

const unique = (values) => [...new Set(values)].sort((a, b) => a - b);

/** All values a name takes in the sparse calls of a run, and those recorded there. */
export function placesOf(data, run, name) {
  const recorded = unique(data.index.filter((r) => r.run === run).map((r) => r[name]));
  const { call, heads } = data.runs[run];
  if (name === "head") return { all: unique([...Array(heads).keys(), ...recorded]), recorded };
  const column = { step: 0, layer: 1, branch: 2 }[name];
  const seen = [];
  for (let i = column; i < call.length; i += 3) seen.push(call[i]);
  return { all: unique([...seen, ...recorded]), recorded };
}

function picker(app, name, title, text) {
  const { data, store } = app;
  const select = el("select", {
    "aria-label": title,
    onchange: () => app.selectPlace({ [name]: Number(select.value) }),
  });
  const move = (by) => {
    const { recorded } = placesOf(data, app.source(), name);
    const at = recorded.indexOf(store.get()[name]);
    const next = recorded[at + by];
    if (next !== undefined) app.selectPlace({ [name]: next });
  };
  const back = el(
    "button",
    { type: "button", "aria-label": `Previous recorded ${name}`, onclick: () => move(-1) },
    "‹",
  );
  const on = el(
    "button",
    { type: "button", "aria-label": `Next recorded ${name}`, onclick: () => move(1) },
    "›",
  );
  return {
    node: el(
      "div",
      { class: name === "branch" ? "picker wide" : "picker" },
      el("span", { class: "label" }, title),
      back,
      select,
      on,
    ),
    move,
    fill() {
      const { all, recorded } = placesOf(data, app.source(), name);
      put(
        select,
        ...all.map((v) =>
          el(
            "option",
            { value: String(v), disabled: !recorded.includes(v) },
            recorded.includes(v) ? text(v) : `${text(v)} (not recorded)`,
          ),
        ),
      );
    },
    show() {
      const { recorded } = placesOf(data, app.source(), name);
      const at = recorded.indexOf(store.get()[name]);
      select.value = String(store.get()[name]);
      back.disabled = at <= 0;
      on.disabled = at === recorded.length - 1;
    },
  };
}

/** The bar that stays in sight: four pickers and the numbers of the call they point at. */
export function makePlaceBar(app) {
  const { data, store } = app;
  const pickers = {
    step: picker(app, "step", "Step", (v) => String(v + 1)),
    layer: picker(app, "layer", "Layer", (v) => String(v + 1)),
    head: picker(app, "head", "Head", (v) => String(v + 1)),
    branch: picker(app, "branch", "Guidance", (v) => BRANCHES[v] ?? String(v)),
  };
  const summary = el("p", { class: "summary", "aria-live": "polite" });
  const other = el("p", { class: "notice" });
  const node = el(
    "div",
    { class: "placebar", role: "group", "aria-label": "Which attention call is shown" },
    Object.values(pickers).map((p) => p.node),
    summary,
    other,
  );
  return {
    node,
    move: (name, by) => pickers[name].move(by),
    update(state, changed) {
      if (changed.has("run")) {
        Object.values(pickers).forEach((p) => p.fill());
        pickers.branch.node.hidden = placesOf(data, app.source(), "branch").all.length < 2;
        const elsewhere = app.source() !== state.run;
        other.hidden = !elsewhere;
        if (elsewhere) {
          put(
            other,
            `The clusters of ${runName(data.runs[state.run])} were not recorded; these are of ${runName(data.runs[app.source()])}.`,
          );
        }
      }
      if (!["run", "step", "layer", "head", "branch", "top_p"].some((n) => changed.has(n))) return;
      Object.values(pickers).forEach((p) => p.show());
      const { density } = app.stats();
      put(summary, el("strong", {}, percent(density)), " of this call's token pairs kept");
    },
  };
}

/** Density of every sparse call, layer by step, mean over heads and branches. Recorded calls have a ring and can be clicked. */
export function makeDensityMap(app) {
  const { data, store } = app;
  const canvas = el("canvas", { class: "densitymap", role: "img" });
  const caption = el("p", { class: "small" });
  let cells = null;

  function build(run) {
    const steps = placesOf(data, run, "step").all;
    const layers = placesOf(data, run, "layer").all;
    const sum = new Float64Array(steps.length * layers.length);
    const count = new Int32Array(sum.length);
    const { call, density, heads } = data.runs[run];
    for (let i = 0; i < call.length / 3; i += 1) {
      const at = layers.indexOf(call[3 * i + 1]) * steps.length + steps.indexOf(call[3 * i]);
      for (let h = 0; h < heads; h += 1) sum[at] += density[i * heads + h];
      count[at] += heads;
    }
    const mean = Array.from(sum, (s, i) => (count[i] ? s / count[i] : null));
    const known = mean.filter((m) => m !== null);
    return { steps, layers, mean, low: Math.min(...known), high: Math.max(...known) };
  }

  const recorded = (run, step, layer) =>
    data.index.some((r) => r.run === run && r.step === step && r.layer === layer);

  const draw = onFrame(() => {
    const state = store.get();
    const run = app.source();
    if (!cells) return;
    const { steps, layers, mean, low, high } = cells;
    const scale = devicePixelRatio;
    const width = Math.round(canvas.getBoundingClientRect().width * scale) || 240;
    const cell = Math.max(2, Math.min(Math.floor(width / steps.length), 22 * scale));
    canvas.style.height = `${(cell * layers.length) / scale}px`;
    const context = fit(canvas, width, cell * layers.length);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const { accent, ink, paper, line } = app.colours();
    layers.forEach((layer, y) => {
      steps.forEach((step, x) => {
        const value = mean[y * steps.length + x];
        context.fillStyle = line;
        context.globalAlpha = 1;
        context.fillRect(x * cell, y * cell, cell - 1, cell - 1);
        if (value !== null) {
          context.fillStyle = accent;
          context.globalAlpha = 0.12 + 0.88 * ((value - low) / Math.max(high - low, 1e-9));
          context.fillRect(x * cell, y * cell, cell - 1, cell - 1);
        }
        context.globalAlpha = 1;
        if (recorded(run, step, layer)) {
          context.fillStyle = paper;
          context.strokeStyle = ink;
          context.lineWidth = scale;
          context.beginPath();
          context.arc((x + 0.5) * cell - 0.5, (y + 0.5) * cell - 0.5, Math.max(1, cell / 6), 0, 7);
          context.fill();
          context.stroke();
        }
        if (step === state.step && layer === state.layer) {
          context.strokeStyle = ink;
          context.lineWidth = 2 * scale;
          context.strokeRect(
            x * cell + scale / 2,
            y * cell + scale / 2,
            cell - 1 - scale,
            cell - 1 - scale,
          );
        }
      });
    });
    cells.cell = cell / scale;
  });

  function under(event) {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / cells.cell);
    const y = Math.floor((event.clientY - box.top) / cells.cell);
    if (x < 0 || x >= cells.steps.length || y < 0 || y >= cells.layers.length) return null;
    return {
      step: cells.steps[x],
      layer: cells.layers[y],
      value: cells.mean[y * cells.steps.length + x],
    };
  }

  const idle = () =>
    put(
      caption,
      "Columns are steps, rows are layers; stronger colour keeps more. Calls with a dot are recorded: click one.",
    );
  canvas.addEventListener("pointermove", (event) => {
    const at = under(event);
    if (!at) return idle();
    const there = recorded(app.source(), at.step, at.layer)
      ? "click to open"
      : "not recorded in this trace";
    return put(
      caption,
      `Step ${at.step + 1}, layer ${at.layer + 1}: ${percent(at.value)} kept, ${there}.`,
    );
  });
  canvas.addEventListener("pointerleave", idle);
  canvas.addEventListener("click", (event) => {
    const at = under(event);
    if (!at) return;
    const { head, branch } = store.get();
    const wanted = nearestPlace(
      data,
      { head, branch, step: at.step, layer: at.layer },
      app.source(),
    );
    if (wanted.step === at.step && wanted.layer === at.layer) app.selectPlace(wanted);
  });
  idle();
  return {
    node: el(
      "div",
      { class: "mapbox" },
      el("p", { class: "label" }, "Density of every sparse call"),
      canvas,
      caption,
    ),
    draw,
    update(state, changed) {
      if (changed.has("run")) {
        cells = build(app.source());
        canvas.setAttribute(
          "aria-label",
          `Density of ${cells.layers.length} layers at ${cells.steps.length} steps, from ${percent(cells.low)} to ${percent(cells.high)}. Use the pickers above to choose a recorded call.`,
        );
      }
      if (["run", "step", "layer"].some((n) => changed.has(n))) draw();
    },
  };
}
