// Where in the run we look: step, layer, head, branch. What the trace does not hold is greyed and named.

import { el, fit, onFrame, percent, put, write } from "../dom.js";
import { term } from "../words.js";

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

function picker(app, name, title, text, word = null) {
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
      el("span", { class: "label" }, word ? term(word, title) : title),
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
    head: picker(app, "head", "Head", (v) => String(v + 1), "head"),
    branch: picker(app, "branch", "Guidance", (v) => BRANCHES[v] ?? String(v), "guidance"),
  };
  const kept = el("strong", {});
  const summary = el(
    "p",
    { class: "summary", "aria-live": "polite" },
    kept,
    " of this call's pairs kept",
  );
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
            `The clusters of ${data.runs[state.run].name} were not recorded; these are of ${data.runs[app.source()].name}.`,
          );
        }
      }
      if (!["run", "step", "layer", "head", "branch", "top_p"].some((n) => changed.has(n))) return;
      Object.values(pickers).forEach((p) => p.show());
      const { density } = app.stats();
      write(kept, percent(density));
    },
  };
}

/**
 * Density of every sparse call: one small map a head, layers down and steps across, mean over
 * guidance branches. Recorded calls have a dot; click one, or go there by the arrow keys.
 */
export function makeDensityMap(app) {
  const { data, store } = app;
  const maps = el("div", { class: "headmaps" });
  const caption = el("p", { class: "small", "aria-live": "polite" });
  const board = el(
    "div",
    { class: "headboard", tabindex: 0, role: "group", onkeydown: onKey },
    maps,
  );
  let table = null;
  let canvases = [];

  function build(run) {
    const steps = placesOf(data, run, "step").all;
    const layers = placesOf(data, run, "layer").all;
    const { call, density, heads } = data.runs[run];
    const cells = layers.length * steps.length;
    const mean = new Float64Array(heads * cells);
    const count = new Int32Array(cells);
    for (let i = 0; i < call.length / 3; i += 1) {
      const at = layers.indexOf(call[3 * i + 1]) * steps.length + steps.indexOf(call[3 * i]);
      count[at] += 1;
      for (let h = 0; h < heads; h += 1) mean[h * cells + at] += density[i * heads + h];
    }
    let [low, high] = [1, 0];
    mean.forEach((sum, i) => {
      mean[i] = count[i % cells] ? sum / count[i % cells] : NaN;
      if (mean[i] < low) low = mean[i];
      if (mean[i] > high) high = mean[i];
    });
    const own = data.index.filter((r) => r.run === run);
    const recorded = new Set(own.map((r) => `${r.head} ${r.step} ${r.layer}`));
    return { steps, layers, heads, mean, low, high, recorded };
  }

  const valueAt = (head, y, x) =>
    table.mean[(head * table.layers.length + y) * table.steps.length + x];
  const recorded = (head, step, layer) => table.recorded.has(`${head} ${step} ${layer}`);

  function paintHead(canvas, head) {
    const state = store.get();
    const scale = devicePixelRatio;
    const { steps, layers, low, high } = table;
    const room = (canvas.parentElement.clientWidth || 200) * scale;
    const cell = Math.max(2, Math.min(Math.floor(room / steps.length), Math.round(18 * scale)));
    const context = fit(canvas, cell * steps.length, cell * layers.length);
    canvas.style.width = `${canvas.width / scale}px`;
    canvas.style.height = `${canvas.height / scale}px`;
    context.clearRect(0, 0, canvas.width, canvas.height);
    const { accent, ink, paper, line } = app.colours();
    const gap = cell > 4 ? 1 : 0;
    layers.forEach((layer, y) => {
      steps.forEach((step, x) => {
        const value = valueAt(head, y, x);
        const [left, top] = [x * cell, y * cell];
        context.fillStyle = line;
        context.fillRect(left, top, cell - gap, cell - gap);
        if (Number.isFinite(value)) {
          context.fillStyle = accent;
          context.globalAlpha = 0.1 + 0.9 * ((value - low) / Math.max(high - low, 1e-9));
          context.fillRect(left, top, cell - gap, cell - gap);
          context.globalAlpha = 1;
        }
        if (recorded(head, step, layer)) {
          context.fillStyle = paper;
          context.strokeStyle = ink;
          context.lineWidth = scale;
          context.beginPath();
          context.arc(left + (cell - gap) / 2, top + (cell - gap) / 2, Math.max(1, cell / 6), 0, 7);
          context.fill();
          context.stroke();
        }
        if (step === state.step && layer === state.layer && head === state.head) {
          context.strokeStyle = ink;
          context.lineWidth = 2 * scale;
          context.strokeRect(left + scale, top + scale, cell - gap - 2 * scale, cell - gap - 2 * scale);
        }
      });
    });
  }

  let ringed = null; // the head that shows where we are
  const draw = onFrame(() => table && canvases.forEach(paintHead));
  const drawMoved = onFrame(() => {
    const { head } = store.get();
    for (const h of new Set([ringed, head])) if (canvases[h]) paintHead(canvases[h], h);
    ringed = head;
  });

  const idle = () =>
    put(
      caption,
      `Columns are steps, rows are layers; stronger colour keeps more, from ${percent(table.low)} to ${percent(table.high)}. Calls with a dot are recorded: click one, or use the arrow keys.`,
    );

  function headMap(head) {
    const canvas = el("canvas", { class: "densitymap", role: "img" });
    const known = [...table.mean.subarray(head * table.layers.length * table.steps.length, (head + 1) * table.layers.length * table.steps.length)].filter(Number.isFinite);
    const mean = known.reduce((a, b) => a + b, 0) / Math.max(known.length, 1);
    canvas.setAttribute(
      "aria-label",
      `Density of head ${head + 1} by layer and step, ${percent(mean)} on average.`,
    );
    const under = (event) => {
      const box = canvas.getBoundingClientRect();
      const x = Math.floor(((event.clientX - box.left) / box.width) * table.steps.length);
      const y = Math.floor(((event.clientY - box.top) / box.height) * table.layers.length);
      const inside = x >= 0 && y >= 0 && x < table.steps.length && y < table.layers.length;
      return inside ? { x, y, step: table.steps[x], layer: table.layers[y] } : null;
    };
    canvas.addEventListener("pointermove", (event) => {
      const at = under(event);
      if (!at) return idle();
      const there = recorded(head, at.step, at.layer)
        ? "click to open"
        : "not recorded in this trace";
      return put(
        caption,
        `Step ${at.step + 1}, layer ${at.layer + 1}, head ${head + 1}: ${percent(valueAt(head, at.y, at.x))} kept, ${there}.`,
      );
    });
    canvas.addEventListener("pointerleave", idle);
    canvas.addEventListener("click", (event) => {
      const at = under(event);
      if (at && recorded(head, at.step, at.layer))
        app.selectPlace({ head, step: at.step, layer: at.layer });
    });
    const node = el(
      "figure",
      { class: "headmap" },
      canvas,
      el("figcaption", { class: "small" }, `head ${head + 1} · ${percent(mean, 0)}`),
    );
    return { node, canvas };
  }

  /** Arrow keys: the next recorded step or layer; up from the first layer is the head before. */
  function onKey(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[
      event.key
    ];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const state = store.get();
    const [name, by] = move[0] ? ["step", move[0]] : ["layer", move[1]];
    const line = placesOf(data, app.source(), name).recorded;
    const next = line[line.indexOf(state[name]) + by];
    if (next !== undefined) return void app.selectPlace({ [name]: next });
    const heads = placesOf(data, app.source(), "head").recorded;
    const head = heads[heads.indexOf(state.head) + by];
    if (head !== undefined) app.selectPlace({ head, [name]: line.at(by < 0 ? -1 : 0) });
  }

  return {
    node: el(
      "div",
      { class: "mapbox" },
      el("p", { class: "label" }, term("density", "Density"), " of every sparse call, by head, layer and step"),
      board,
      caption,
    ),
    draw,
    update(state, changed) {
      if (changed.has("run")) {
        table = build(app.source());
        const made = Array.from({ length: table.heads }, (_, head) => headMap(head));
        canvases = made.map((m) => m.canvas);
        put(maps, ...made.map((m) => m.node));
        board.setAttribute(
          "aria-label",
          `Density by head, layer and step, from ${percent(table.low)} to ${percent(table.high)}. Arrow keys go to the next recorded call.`,
        );
        idle();
      }
      if (changed.has("run")) draw();
      if (["step", "layer", "head"].some((n) => changed.has(n))) drawMoved();
    },
  };
}
