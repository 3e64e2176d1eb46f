// The N×N attention mask of one head, before and after permutation, and the budget that decides it.

import { blockDensity, makeBins, offsetsOf, tilesTouched } from "./blocks.js";
import { budget, el, fit, onFrame, percent, plural, put, svg } from "./dom.js";
import { TICKS } from "./select.js";

const MAX_BINS = 256; // at 300×1000 clusters one redraw then stays within a tick
const TILE = 64;
const TILE_DELAY_MS = 200;
const CURVE = { width: 300, height: 90 };
const LEAST_TICK = 10;

/** The cluster that each place of the sorted order belongs to. */
function clusterAt(offsets, place) {
  let low = 0;
  let high = offsets.length - 2;
  while (low < high) {
    const mid = (low + high + 1) >> 1;
    if (offsets[mid] <= place) low = mid;
    else high = mid - 1;
  }
  return low;
}

function maskPlot(app, permuted) {
  const { data, store } = app;
  const canvas = el("canvas", { class: "mask", role: "img" });
  const tiles = el("p", { class: "small" });
  const cache = new WeakMap();

  function geometry(record) {
    if (!cache.has(record)) {
      const tokens = record.q.labels.length;
      const shape = makeBins(record, Math.min(MAX_BINS, tokens), permuted);
      shape.qOffsets = offsetsOf(record.q.sizes);
      shape.kOffsets = offsetsOf(record.k.sizes);
      cache.set(record, shape);
    }
    return cache.get(record);
  }

  const draw = onFrame(() => {
    const state = store.get();
    const record = app.record();
    const shape = geometry(record);
    const { bins } = shape;
    const density = blockDensity(shape, app.kept(), record.Q, record.K);
    const image = new ImageData(bins, bins);
    const { accentRgb: on, maskRgb: off } = app.colours();
    for (let i = 0; i < density.length; i += 1) {
      const d = density[i];
      image.data[4 * i] = off[0] + (on[0] - off[0]) * d;
      image.data[4 * i + 1] = off[1] + (on[1] - off[1]) * d;
      image.data[4 * i + 2] = off[2] + (on[2] - off[2]) * d;
      image.data[4 * i + 3] = 255;
    }
    const small = new OffscreenCanvas(bins, bins);
    small.getContext("2d").putImageData(image, 0, 0);
    const factor = Math.max(1, Math.ceil(((canvas.clientWidth || 380) * devicePixelRatio) / bins));
    const side = bins * factor;
    const context = fit(canvas, side, side);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, side, side);
    const focus =
      state.hover ??
      (state.cluster === null ? null : { side: state.side, cluster: state.cluster });
    if (focus) mark(context, record, shape, focus, side);
  });

  function mark(context, record, shape, focus, side) {
    const tokens = record.q.labels.length;
    const { ink } = app.colours();
    const bands = [];
    if (permuted) {
      const offsets = focus.side === "q" ? shape.qOffsets : shape.kOffsets;
      bands.push([offsets[focus.cluster], offsets[focus.cluster + 1]]);
    } else {
      const { labels } = record[focus.side];
      for (let i = 0; i < tokens; i += 1) {
        if (labels[i] !== focus.cluster) continue;
        if (bands.length && bands[bands.length - 1][1] === i) bands[bands.length - 1][1] = i + 1;
        else bands.push([i, i + 1]);
      }
    }
    context.strokeStyle = ink;
    context.lineWidth = Math.max(1, devicePixelRatio);
    context.fillStyle = ink;
    for (const [from, to] of bands) {
      const a = (from / tokens) * side;
      const b = Math.max(((to - from) / tokens) * side, 1);
      if (permuted) {
        if (focus.side === "q") context.strokeRect(0.5, a, side - 1, b);
        else context.strokeRect(a, 0.5, b, side - 1);
      } else {
        context.globalAlpha = 0.9;
        if (focus.side === "q") context.fillRect(0, a, side / 40, b);
        else context.fillRect(a, 0, b, side / 40);
        context.globalAlpha = 1;
      }
    }
  }

  function under(event) {
    const record = app.record();
    const tokens = record.q.labels.length;
    const box = canvas.getBoundingClientRect();
    const at = (share) => Math.min(tokens - 1, Math.max(0, Math.floor(share * tokens)));
    const row = at((event.clientY - box.top) / box.height);
    const column = at((event.clientX - box.left) / box.width);
    const { qOffsets, kOffsets } = geometry(record);
    return {
      q: permuted ? clusterAt(qOffsets, row) : record.q.labels[row],
      k: permuted ? clusterAt(kOffsets, column) : record.k.labels[column],
      row,
      column,
    };
  }

  canvas.addEventListener("pointermove", (event) => {
    const at = under(event);
    app.readBlock(at, permuted);
    const { hover } = store.get();
    if (hover?.side !== "q" || hover.cluster !== at.q)
      store.set({ hover: { side: "q", cluster: at.q } });
  });
  canvas.addEventListener("pointerleave", () => {
    app.readBlock(null);
    store.set({ hover: null });
  });
  canvas.addEventListener("click", (event) => {
    store.set({ side: "q", cluster: under(event).q, hover: null });
  });

  const [T] = data.grid;
  const title = permuted ? "Permuted: sorted by cluster" : "Original token order";
  const ticks = permuted
    ? null
    : el(
        "div",
        { class: "ticks", "aria-hidden": "true" },
        Array.from({ length: T }, (_, t) =>
          el("span", {}, T <= 12 || t % 5 === 0 ? String(t + 1) : ""),
        ),
      );
  const node = el(
    "figure",
    { class: "maskbox" },
    el("figcaption", {}, title),
    canvas,
    ticks ??
      el(
        "div",
        { class: "ticks", "aria-hidden": "true" },
        el("span", {}, "key clusters, true sizes →"),
      ),
    tiles,
  );
  return {
    node,
    canvas,
    draw,
    countTiles() {
      const record = app.record();
      const { touched, total, share } = tilesTouched(record, app.kept(), TILE, permuted);
      put(
        tiles,
        el("strong", {}, percent(share, 0)),
        ` of ${TILE}×${TILE} tiles hold a kept pair (${touched.toLocaleString("en")} of ${total.toLocaleString("en")})`,
        permuted
          ? `; blocks of the clusters' own sizes compute ${percent(app.stats().density)}`
          : null,
      );
      canvas.setAttribute(
        "aria-label",
        `${title}: ${percent(app.stats().density)} of token pairs kept, in ${percent(share, 0)} of the tiles.`,
      );
    },
  };
}

/** Density and kept mass at every budget, above the slider and in step with it. */
function budgetCurve(app) {
  const density = svg("path", { class: "line" });
  const mass = svg("path", { class: "line second" });
  const now = svg("line", { class: "cursor", y1: 0, y2: CURVE.height });
  const measured = svg("line", { class: "measured", y1: 0, y2: CURVE.height });
  const chart = svg(
    "svg",
    {
      viewBox: `0 0 ${CURVE.width} ${CURVE.height}`,
      preserveAspectRatio: "none",
      class: "spark",
      "aria-hidden": "true",
    },
    measured,
    mass,
    density,
    now,
  );
  const x = (p) => ((p * TICKS - LEAST_TICK) / (TICKS - LEAST_TICK)) * CURVE.width;
  const path = (values) => {
    let d = "";
    for (let i = LEAST_TICK; i <= TICKS; i += 1) {
      d += `${d ? "L" : "M"}${x(i / TICKS).toFixed(1)} ${((1 - values[i]) * (CURVE.height - 4) + 2).toFixed(1)}`;
    }
    return d;
  };
  let shown = null;
  return {
    node: chart,
    update(state) {
      const record = app.record();
      if (shown !== record) {
        shown = record;
        const curves = app.curve(record);
        density.setAttribute("d", path(curves.density));
        mass.setAttribute("d", path(curves.keptMass));
      }
      for (const [line, p] of [
        [now, state.top_p],
        [measured, app.measuredBudget()],
      ]) {
        line.setAttribute("x1", x(p));
        line.setAttribute("x2", x(p));
      }
    },
  };
}

export function makeMasks(app) {
  const { store } = app;
  const original = maskPlot(app, false);
  const permuted = maskPlot(app, true);
  const reading = el("p", { class: "reading small", "aria-live": "off" });
  const slider = el("input", {
    type: "range",
    id: "budget",
    class: "budget",
    min: LEAST_TICK / TICKS,
    max: 1,
    step: 1 / TICKS,
    oninput: () => app.selectBudget(Number(slider.value)),
    onchange: () => app.release(),
  });
  const value = el("output", { class: "budgetvalue", for: "budget" });
  const kind = el("p", { class: "kind" });
  const back = el("button", {
    type: "button",
    class: "quiet",
    onclick: () => app.selectBudget(app.measuredBudget()),
  });
  const numbers = el("dl", { class: "readout" });
  const curve = budgetCurve(app);
  const status = el("p", { class: "notice", role: "status", hidden: true });
  const node = el(
    "section",
    { class: "view masks", "aria-labelledby": "masks-title" },
    el(
      "div",
      { class: "side" },
      el("h3", { id: "masks-title" }, "Masks and budget"),
      el(
        "p",
        {},
        "Each query cluster keeps the fewest key clusters whose estimated attention mass reaches top-p. ",
        "In token order the kept pairs are scattered over every tile; sorted by cluster they form solid blocks, and the rest is never computed.",
      ),
      el("div", { class: "budgetrow" }, el("label", { for: "budget" }, "Budget top-p"), value),
      el("div", { class: "curvebox" }, curve.node, slider),
      el(
        "p",
        { class: "legend small" },
        el("span", { class: "key first" }, "density"),
        el("span", { class: "key second" }, "kept mass"),
      ),
      kind,
      back,
      status,
      numbers,
    ),
    el(
      "div",
      { class: "main" },
      el("div", { class: "pair" }, original.node, permuted.node),
      reading,
    ),
  );

  let waiting = 0;
  const slow = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      original.countTiles();
      permuted.countTiles();
    }, TILE_DELAY_MS);
  };

  const idle =
    "Rows are queries, columns are keys; full colour is kept, empty is skipped. Point at a block to read it.";
  app.readBlock = (at, sorted) => {
    if (!at) {
      put(reading, idle);
      return;
    }
    const record = app.record();
    const keep = app.kept()[at.q * record.K + at.k];
    put(
      reading,
      sorted ? "" : `Query token ${at.row + 1} and key token ${at.column + 1}: `,
      `query cluster ${at.q + 1} (${plural(record.q.sizes[at.q], "token")}) × key cluster ${at.k + 1} (${plural(record.k.sizes[at.k], "token")}): `,
      el("strong", {}, keep ? "kept" : "skipped"),
      `, ${percent(record.P[at.q * record.K + at.k], 2)} of the query cluster's mass.`,
    );
  };
  app.readBlock(null);

  function readout(state) {
    const { density, keptMass } = app.stats();
    const measured = app.isMeasured();
    const record = app.record();
    const all = app.meanDensity(state.top_p);
    const row = (name, text, note) => [
      el("dt", {}, name),
      el("dd", {}, text, note ? el("span", { class: "note" }, note) : null),
    ];
    put(
      numbers,
      ...row("Density, this call", percent(density)),
      ...row("Kept mass", percent(keptMass), "estimate from centroids"),
      ...row(
        "Recall",
        measured ? percent(record.recall) : "not measured",
        measured ? "true attention mass, 64 random queries" : "only at the measured budget",
      ),
      ...row(
        "Density, recorded calls",
        all.value === null ? "computing…" : percent(all.value),
        `mean of ${all.count}`,
      ),
    );
    put(value, budget(state.top_p));
    put(
      kind,
      el(
        "span",
        { class: measured ? "badge solid" : "badge hollow" },
        measured ? "measured" : "what-if",
      ),
      measured
        ? " The selection the method made in this run."
        : " Selected from the recorded queries and keys; in a real run later steps would change.",
    );
    back.hidden = measured;
    put(back, `Back to the measured ${budget(app.measuredBudget())}`);
  }

  return {
    node,
    draw() {
      original.draw();
      permuted.draw();
    },
    readout,
    say(text) {
      status.hidden = !text;
      put(status, text ?? "");
    },
    update(state, changed) {
      const mask = ["run", "step", "layer", "branch", "head", "top_p"].some((n) => changed.has(n));
      if (mask) {
        slider.value = String(state.top_p);
        slider.setAttribute(
          "aria-valuetext",
          `top-p ${budget(state.top_p)}, density ${percent(app.stats().density)}`,
        );
        readout(state);
        curve.update(state);
        slow();
      }
      if (mask || ["hover", "cluster", "side"].some((n) => changed.has(n))) {
        original.draw();
        permuted.draw();
      }
    },
  };
}
