// Masks and budget: which pairs one head computes, in token order and sorted by cluster.

import { tilesTouched } from "../blocks.js";
import { budget, el, percent, plural, put, svg, write } from "../dom.js";
import { makeMaskPlot } from "./maskplot.js";
import { TICKS } from "../select.js";
import { term } from "../words.js";

const TILE = 64;
const TILE_DELAY_MS = 200;
const SORTING_MS = 1600;
const CURVE = { width: 300, height: 90 };
const LEAST_TICK = 10;

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

/** How much a kernel has to compute in each order, and how much of that nobody asked for. */
function tileTable(app) {
  const rows = {
    original: ["Token order", `tiles of ${TILE}×${TILE}`],
    fixed: ["Sorted by cluster", `the same tiles of ${TILE}×${TILE}`],
    blocks: ["Sorted by cluster", "blocks of the clusters' own sizes"],
  };
  const cells = Object.fromEntries(
    Object.keys(rows).map((name) => [name, { share: el("td", {}), waste: el("td", {}) }]),
  );
  const note = el("p", { class: "small" });
  const node = el(
    "div",
    { class: "tilebox" },
    el(
      "table",
      { class: "tiletable" },
      el(
        "caption",
        {},
        "What has to be computed for this mask",
        app.data.textTokens ? ", prompt tokens aside" : "",
      ),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { scope: "col" }, "Order and blocks"),
          el("th", { scope: "col" }, "Computed"),
          el("th", { scope: "col" }, term("tile", "Wasted")),
        ),
      ),
      el(
        "tbody",
        {},
        Object.entries(rows).map(([name, [title, detail]]) =>
          el(
            "tr",
            { "data-row": name },
            el("th", { scope: "row" }, title, el("span", { class: "note" }, detail)),
            cells[name].share,
            cells[name].waste,
          ),
        ),
      ),
    ),
    note,
  );
  return {
    node,
    count() {
      const record = app.record();
      const shares = {};
      for (const [name, permuted] of [
        ["original", false],
        ["fixed", true],
      ]) {
        const { touched, total, share, waste } = tilesTouched(record, app.kept(), TILE, permuted);
        shares[name] = share;
        put(
          cells[name].share,
          percent(share, 0),
          el(
            "span",
            { class: "note" },
            `${touched.toLocaleString("en")} of ${total.toLocaleString("en")} tiles`,
          ),
        );
        put(cells[name].waste, percent(waste, 0), el("span", { class: "note" }, "of that work"));
      }
      put(cells.blocks.share, percent(app.stats().videoDensity));
      put(cells.blocks.waste, "none");
      const used = record.k.sizes.reduce((n, size) => n + (size > 0), 0);
      const mean = Math.round(record.k.labels.length / Math.max(used, 1));
      const points = Math.round(100 * (shares.fixed - shares.original));
      const change =
        points < 0
          ? `sorting spares ${-points} % of all fixed tiles`
          : points > 0
            ? `sorting touches ${points} % more of all fixed tiles`
            : "sorting spares no fixed tile";
      put(
        note,
        `A key cluster holds ${plural(mean, "token")} on average here, and a tile is ${TILE} wide: ${change}. Blocks of the clusters' own sizes hold kept pairs alone.`,
      );
    },
  };
}

export function makeMasks(app) {
  const { store } = app;
  const reading = el("p", { class: "reading small", "aria-live": "polite" });
  const hovered = (block) => {
    read(block ?? pinnedBlock());
    const { hover } = store.get();
    if (!block) store.set({ hover: null });
    else if (hover?.side !== "q" || hover.cluster !== block.q)
      store.set({ hover: { side: "q", cluster: block.q } });
  };
  const picked = ({ q, k }, twice) =>
    store.set({ side: "q", cluster: q, pair: k, hover: null, zoom: twice || store.get().zoom });
  const original = makeMaskPlot(app, {
    orderOf: () => ({ sort: 0, block: null }),
    onHover: hovered,
    onPick: (block) => picked(block, false),
  });
  const sorted = makeMaskPlot(app, {
    orderOf: ({ sort, zoom }) => ({ sort, block: zoom && sort === 1 ? app.block() : null }),
    onHover: hovered,
    onPick: picked,
  });

  function pinnedBlock() {
    return store.get().pair === null ? null : app.block();
  }

  // Arrow keys go from block to block of the sorted mask.
  function move(rows, columns) {
    const record = app.record();
    const { q, k } = app.block();
    const next = (sizes, c, by) => {
      let to = c + by;
      while (by && to >= 0 && to < sizes.length && !sizes[to]) to += by;
      return to < 0 || to >= sizes.length ? c : to;
    };
    store.set({
      side: "q",
      cluster: next(record.q.sizes, q, rows),
      pair: next(record.k.sizes, k, columns),
      hover: null,
    });
  }
  const keys = {
    ArrowUp: () => move(-1, 0),
    ArrowDown: () => move(1, 0),
    ArrowLeft: () => move(0, -1),
    ArrowRight: () => move(0, 1),
    Enter: () => toggleZoom(),
  };
  const board = el(
    "div",
    {
      class: "board",
      tabindex: 0,
      role: "group",
      "aria-label":
        "Sorted mask. Arrow keys go from block to block, Enter zooms in and out, Escape unpins.",
      onkeydown: (event) => {
        const act = keys[event.key];
        if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        event.stopPropagation();
        act();
      },
    },
    sorted.node,
  );

  function toggleZoom() {
    const { zoom } = store.get();
    const { q, k } = app.block();
    store.set(
      zoom
        ? { zoom: false }
        : { zoom: true, sort: 1, side: "q", cluster: q, pair: k, hover: null },
    );
  }
  const zoomButton = el("button", { type: "button", class: "plainbutton", onclick: toggleZoom });

  // The way from one order to the other. Under reduced motion it is one step.
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let morph = 0;
  function playSorting() {
    morph += 1;
    if (still.matches) return store.set({ zoom: false, sort: store.get().sort < 1 ? 1 : 0 });
    const mine = morph;
    let began = null;
    store.set({ zoom: false, sort: 0, hover: null });
    const frame = (now) => {
      if (mine !== morph || !sorted.canvas.isConnected) return;
      began ??= now + 250; // a moment to see where it starts
      const t = Math.min(Math.max((now - began) / SORTING_MS, 0), 1);
      store.set({ sort: t < 1 ? Math.round(1000 * t * t * (3 - 2 * t)) / 1000 : 1 });
      if (t < 1) requestAnimationFrame(frame);
    };
    return requestAnimationFrame(frame);
  }
  const sortSlider = el("input", {
    type: "range",
    min: 0,
    max: 1,
    step: 0.01,
    "aria-label": "From token order to sorted by cluster",
    oninput: () => {
      morph += 1;
      store.set({ sort: Number(sortSlider.value), zoom: false });
    },
  });
  const sortButton = el("button", { type: "button", class: "plainbutton", onclick: playSorting });
  const sortedTitle = el("figcaption", {});
  const sortedFoot = el("span", {});

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
  const badge = el("span", {});
  const kindText = el("span", {});
  const kind = el("p", { class: "kind" }, badge, kindText);
  const back = el("button", {
    type: "button",
    class: "quiet",
    onclick: () => app.selectBudget(app.measuredBudget()),
  });
  const names = ["density", "mass", "recall", "recallNote", "all", "allNote"];
  const facts = Object.fromEntries(names.map((name) => [name, el("span", {})]));
  for (const name of ["recallNote", "allNote"]) facts[name].className = "note";
  const massNote = el("span", { class: "note" }, "estimate from centroids");
  const numbers = el(
    "dl",
    { class: "readout" },
    el("dt", {}, term("density", "Density, this call")),
    el("dd", {}, facts.density),
    el("dt", {}, term("kept mass", "Kept mass")),
    el("dd", {}, facts.mass, massNote),
    el("dt", {}, term("recall", "Recall")),
    el("dd", {}, facts.recall, facts.recallNote),
    el("dt", {}, "Density, recorded calls"),
    el("dd", {}, facts.all, facts.allNote),
  );
  const curve = budgetCurve(app);
  const status = el("p", { class: "answer", role: "status", hidden: true });
  const liveSlot = el("div", { class: "liveslot" });
  const tiles = tileTable(app);
  const [T] = app.data.grid;
  const node = el(
    "section",
    { class: "view masks", "data-view": "masks", "aria-labelledby": "masks-title" },
    el(
      "div",
      { class: "side" },
      el("h3", { id: "masks-title" }, "Masks and budget"),
      el(
        "p",
        {},
        "A ",
        term("mask"),
        " says which query–key pairs one head computes. Each query cluster keeps the fewest key clusters whose estimated attention mass reaches ",
        term("top-p"),
        ". In token order the kept pairs lie scattered; ",
        term("permutation", "sorted by cluster"),
        " they fill whole blocks, often thin ones, and a kernel for blocks of any size skips the rest.",
      ),
      el("div", { class: "budgetrow" }, el("label", { for: "budget" }, "Budget top-p"), value),
      el("div", { class: "curvebox" }, curve.node, slider),
      el(
        "p",
        { class: "legend small" },
        el("span", { class: "key first" }, "density"),
        el("span", { class: "key second" }, "kept mass"),
      ),
      el(
        "p",
        { class: "small" },
        app.runsOnRelease()
          ? "Let go of the slider to measure a budget: that starts a real run, which can be cancelled."
          : "Let go of the slider to move to the nearest measured run.",
      ),
      kind,
      back,
      status,
      liveSlot,
      numbers,
    ),
    el(
      "div",
      { class: "main" },
      el(
        "div",
        { class: "pair" },
        el(
          "figure",
          { class: "maskbox" },
          el("figcaption", {}, "Original token order"),
          original.node,
          el(
            "div",
            { class: "ticks", "aria-hidden": "true" },
            Array.from({ length: T }, (_, t) =>
              el("span", {}, T <= 12 || t % 5 === 0 ? String(t + 1) : ""),
            ),
          ),
        ),
        el(
          "figure",
          { class: "maskbox" },
          sortedTitle,
          board,
          el("div", { class: "ticks", "aria-hidden": "true" }, sortedFoot),
        ),
      ),
      el(
        "div",
        { class: "sortrow" },
        sortButton,
        el("label", { class: "sortslider" }, el("span", {}, "tokens"), sortSlider, el("span", {}, "clusters")),
        zoomButton,
      ),
      reading,
      tiles.node,
    ),
  );

  let waiting = 0;
  const slow = () => {
    clearTimeout(waiting);
    waiting = setTimeout(tiles.count, TILE_DELAY_MS);
  };

  const idle =
    "Rows are queries, columns are keys; full colour is kept, empty is skipped. Point at a block to read it, click to pin it, double-click to zoom.";
  function read(block) {
    if (!block) {
      put(reading, idle);
      return;
    }
    const record = app.record();
    const { q, k } = block;
    const keep = app.kept()[q * record.K + k];
    put(
      reading,
      block.row === undefined
        ? ""
        : `Query token ${block.row + 1} and key token ${block.column + 1}: `,
      `query cluster ${q + 1} (${plural(record.q.sizes[q], "token")}) × key cluster ${k + 1} (${plural(record.k.sizes[k], "token")}): `,
      el("strong", {}, keep ? "kept" : "skipped"),
      `, ${percent(record.P[q * record.K + k], 2)} of the query cluster's mass.`,
    );
  }

  function readout(state) {
    const { density, keptMass } = app.stats();
    const measured = app.isMeasured();
    const all = app.meanDensity(state.top_p);
    write(facts.density, percent(density));
    write(facts.mass, percent(keptMass));
    write(facts.recall, measured ? percent(app.record().recall) : "not measured");
    write(
      facts.recallNote,
      measured ? "true attention mass, 64 random queries" : "only at the measured budget",
    );
    write(facts.all, all.value === null ? "computing…" : percent(all.value));
    write(facts.allNote, `mean of ${all.count}`);
    write(value, budget(state.top_p));
    write(badge, measured ? "measured" : "what-if");
    badge.className = measured ? "badge solid" : "badge hollow";
    write(
      kindText,
      measured
        ? " The selection the method made in this run."
        : " Selected from the recorded queries and keys; in a real run later steps would change.",
    );
    back.hidden = measured;
    write(back, `Back to the measured ${budget(app.measuredBudget())}`);
  }

  function titles({ sort, zoom }) {
    const { density } = app.stats();
    const name =
      sort === 1 ? "Permuted: sorted by cluster" : sort === 0 ? "Original token order" : "On the way to sorted";
    write(sortedTitle, zoom && sort === 1 ? `${name}, zoomed` : name);
    write(sortedFoot, sort === 1 ? "key clusters, true sizes →" : "key tokens →");
    write(zoomButton, zoom ? "Show the whole mask" : "Zoom to a block");
    write(sortButton, still.matches ? (sort < 1 ? "Sort by cluster" : "Back to token order") : "Play the sorting");
    sortSlider.value = String(sort);
    sortSlider.setAttribute("aria-valuetext", `${percent(sort, 0)} of the way to sorted by cluster`);
    const kept = `${percent(density)} of token pairs kept.`;
    original.canvas.setAttribute("aria-label", `Mask in original token order: ${kept}`);
    sorted.canvas.setAttribute("aria-label", `Mask, ${name.toLowerCase()}: ${kept}`);
  }

  return {
    node,
    liveSlot,
    close() {
      clearTimeout(waiting);
      morph += 1;
    },
    draw() {
      original.draw();
      sorted.draw();
    },
    readout,
    say(text) {
      status.hidden = !text;
      put(status, text ?? "");
    },
    update(state, changed) {
      const has = (names) => names.some((n) => changed.has(n));
      const mask = has(["run", "step", "layer", "branch", "head", "top_p"]);
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
      const pinned = has(["cluster", "side", "pair"]);
      if (mask || has(["sort", "zoom"])) titles(state);
      if (mask || pinned) read(pinnedBlock());
      if (mask || pinned || changed.has("hover")) original.draw();
      if (mask || pinned || has(["hover", "sort", "zoom"])) sorted.draw();
    },
  };
}
