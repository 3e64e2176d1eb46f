// The tour: seven questions. Each moves the selection and points at the view that answers.

import { budget, decibel, el, isNumber, percent, plural, put, times } from "../dom.js";

const LEAST_TOKENS = 3; // of a cluster in a frame, to say that it is there
const SAID = ["tour", "run", "step", "layer", "head", "branch", "side", "cluster", "top_p"];

/**
 * Of each query cluster: in how many latent frames it lies, and how well it looks like a thing:
 * compact in every frame, off the rim (where strips of background lie), and best on the move.
 */
function journeys(record, [T, Y, X]) {
  const { labels, sizes } = record.q;
  const sums = new Float64Array(sizes.length * T * 4); // tokens, Σx, Σy, Σ(x²+y²)
  const rim = new Int32Array(sizes.length);
  labels.forEach((c, i) => {
    const at = 4 * (c * T + Math.floor(i / (Y * X)));
    const [column, row] = [i % X, Math.floor(i / X) % Y];
    if (!column || !row || column === X - 1 || row === Y - 1) rim[c] += 1;
    const [x, y] = [column / X, row / X];
    sums[at] += 1;
    sums[at + 1] += x;
    sums[at + 2] += y;
    sums[at + 3] += x * x + y * y;
  });
  return Array.from(sizes, (size, c) => {
    let [spread, compact] = [0, 0];
    const centres = [];
    for (let t = 0; t < T; t += 1) {
      const [n, x, y, square] = sums.subarray(4 * (c * T + t), 4 * (c * T + t) + 4);
      if (n < LEAST_TOKENS) continue;
      const variance = Math.max(square / n - (x / n) ** 2 - (y / n) ** 2, 1e-9);
      spread += Math.sqrt(variance);
      compact += Math.min(1, n / (2 * Math.PI * variance * X * X)); // a full disc has 1
      centres.push([x / n, y / n]);
    }
    const frames = centres.length;
    if (!frames) return { frames, thing: 0 };
    const mean = [0, 1].map((k) => centres.reduce((sum, at) => sum + at[k], 0) / frames);
    const reach = Math.sqrt(
      centres.reduce((sum, at) => sum + (at[0] - mean[0]) ** 2 + (at[1] - mean[1]) ** 2, 0) / frames,
    );
    const travel = reach / (spread / frames + 0.05);
    return { frames, thing: ((compact / T) * (1 - rim[c] / size)) ** 2 * (0.2 + travel) };
  });
}

/** How far the colour of each query cluster lies from the mean, over the usual distance: things are rare, and unlike the rest. */
function apart({ q: { sizes, rgb } }) {
  const tokens = sizes.reduce((sum, n) => sum + n, 0);
  const mean = [0, 1, 2].map((k) => sizes.reduce((sum, n, c) => sum + n * rgb[3 * c + k], 0) / tokens);
  const far = Array.from(sizes, (_, c) => Math.hypot(...mean.map((m, k) => rgb[3 * c + k] - m)));
  const usual = Math.sqrt(far.reduce((sum, d, c) => sum + sizes[c] * d * d, 0) / tokens);
  return far.map((d) => d / Math.max(usual, 1e-9));
}

/** The query cluster, of any recorded layer at this step and head, that looks most like a thing. */
function tellingCluster(app) {
  const { data, store } = app;
  const { step, head, branch } = store.get();
  let best = { layer: store.get().layer, cluster: 0, score: -1 };
  data.index.forEach((place, i) => {
    const here = place.step === step && place.head === head && place.branch === branch;
    if (place.run !== app.source() || !here) return;
    const record = data.record(i);
    const far = apart(record);
    journeys(record, data.grid).forEach(({ thing }, q) => {
      const share = record.q.sizes[q] / data.tokens; // neither the background nor a speck
      const score = share > 0.005 && share < 0.15 ? thing * far[q] : 0;
      if (score > best.score) best = { layer: place.layer, cluster: q, score };
    });
  });
  return best;
}

function steps(app) {
  const { data, store } = app;
  const run = () => data.runs[store.get().run];
  const result = () => run().result;
  const hasRecords = app.hasRecords;
  const calm = { hover: null, playing: false };
  const whole = { sort: 1, zoom: false, lit: "attended" };
  const measured = () => (hasRecords ? { top_p: app.measuredBudget() } : {});
  let chosen = null;
  let chosenAt = "";
  const cluster = () => {
    const { step, head, branch } = store.get();
    const at = [app.source(), step, head, branch].join(" ");
    if (chosenAt !== at) chosen = tellingCluster(app);
    chosenAt = at;
    return { side: "q", layer: chosen.layer, cluster: chosen.cluster, pair: null };
  };
  const list = [
    {
      view: "compare",
      near: ".main",
      title: "What was made twice?",
      patch: () => ({ ...calm, ...measured(), compare: "side", playing: !app.still }),
      text: () => {
        const { density_run: share, psnr_db } = result();
        const part = isNumber(share) ? `${percent(share)} of them over the whole run` : "only a part";
        return `One prompt, one seed, one starting noise. On the left every query–key pair was computed, on the right ${part}. PSNR says how close the right one stays: ${decibel(psnr_db)}.`;
      },
    },
    {
      view: "clusters",
      near: ".main",
      title: "What is a token?",
      patch: () => ({ ...calm, ...measured(), cluster: null, pair: null, side: "q", opacity: 0.6 }),
      text: () => {
        const { tokens, textTokens } = data;
        const prompt = textTokens ? ` and the prompt ${textTokens.toLocaleString("en")}` : "";
        return `Each small square is a token: a patch of a latent frame. This clip has ${plural(tokens, "token")}${prompt}, so a dense head computes ${((tokens + textTokens) ** 2).toLocaleString("en")} pairs.`;
      },
    },
    {
      view: "clusters",
      near: ".main",
      title: "What is a cluster here?",
      patch: () => ({ ...calm, ...measured(), ...cluster(), lit: "members" }),
      text: () => {
        const { cluster: c, side } = store.get();
        const idea = "k-means groups tokens whose queries are alike, wherever they lie.";
        if (c === null || side !== "q") return idea;
        const { frames } = journeys(app.record(), data.grid)[c];
        return `${idea} Lit is query cluster ${c + 1} of layer ${store.get().layer + 1}: ${plural(app.record().q.sizes[c], "token")} in ${frames} of ${plural(data.grid[0], "latent frame")}.`;
      },
    },
    {
      view: "clusters",
      near: ".main",
      title: "Who does this cluster attend to?",
      patch: () => ({ ...calm, ...measured(), ...cluster(), lit: "attended" }),
      text: () =>
        `Lit now: the key clusters that it keeps, by weight. Together they hold at least top-p, ${budget(app.measuredBudget())}, of its estimated attention mass. What is dark was skipped.`,
    },
    {
      view: "masks",
      near: ".maskbox + .maskbox", // the one that the sorting moves, with its button
      title: "What was skipped?",
      patch: () => ({ ...calm, ...measured(), ...whole, ...cluster() }),
      text: () =>
        `Rows are queries, columns keys; empty is skipped. This call computes ${percent(app.stats().density)} of the pairs. ${app.still ? "“Back to token order” shows how scattered they lay." : "Press “Play the sorting” to see scattered pairs become blocks."}`,
    },
    {
      view: "masks",
      near: ".budgetrow",
      title: "What does a smaller budget skip?",
      patch: () => ({
        ...calm,
        ...whole,
        top_p: Math.max(0.05, Math.round((app.measuredBudget() - 0.2) * 200) / 200),
      }),
      text: () =>
        `At top-p ${budget(store.get().top_p)} this call would compute ${percent(app.stats().density)}. That is a what-if on recorded queries and keys. Its PSNR is known only when it is run: ${app.runsOnRelease() ? "move the slider and let go" : "letting go of the slider goes to the nearest run that was made"}.`,
    },
    {
      view: "tradeoff",
      near: ".main",
      title: "What did it cost, what did it gain?",
      patch: () => ({ ...calm, ...measured(), axis: "speedup" }),
      text: () => {
        const { psnr_db, speedup, attention_speedup } = result();
        const gain = isNumber(speedup)
          ? `${times(speedup)} the speed end to end, ${times(attention_speedup)} in attention`
          : "a time that was not measured";
        return `The cost: ${decibel(psnr_db)} against dense. The gain: ${gain}. Each solid mark is a run that was made and timed; click one to see its clip.`;
      },
    },
  ];
  return hasRecords ? list : [list[0], list[6]];
}

/** A panel that walks through the steps. `goTo(view)` brings a view into sight and marks it. */
export function makeTour(app, goTo) {
  const { store } = app;
  const list = steps(app);
  const count = el("span", { class: "small" });
  const title = el("h3", { id: "tour-title" });
  const text = el("p", {});
  const move = (by) => {
    const at = store.get().tour + by;
    if (at >= list.length) return show(null);
    return show(Math.max(0, at));
  };
  const back = el("button", { type: "button", class: "plainbutton", onclick: () => move(-1) }, "Back");
  const next = el("button", { type: "button", class: "mainbutton", onclick: () => move(1) }, "Next");
  const node = el(
    "section",
    {
      class: "tour",
      tabindex: -1,
      role: "region",
      "aria-labelledby": "tour-title",
      hidden: true,
      onkeydown: (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!by && event.key !== "Escape") return;
        event.preventDefault();
        event.stopPropagation();
        if (by) move(by);
        else show(null);
      },
    },
    count,
    title,
    el("div", { "aria-live": "polite" }, text),
    el(
      "div",
      { class: "tourbuttons" },
      back,
      next,
      el("button", { type: "button", class: "quiet", onclick: () => show(null) }, "Close"),
    ),
  );

  let opener = null;
  /** Step `at` of the tour, or its end. The selection that the tour leaves stays. */
  function show(at, keepSelection = false) {
    if (at === null) {
      store.set({ tour: null });
      goTo(null);
      opener?.focus?.();
      return;
    }
    if (store.get().tour === null) opener = node.getRootNode().activeElement;
    store.set(keepSelection ? { tour: at } : { ...list[at].patch(), tour: at });
    goTo(list[at].view, node, list[at].near);
    node.focus({ preventScroll: true });
  }

  return {
    node,
    show,
    length: list.length,
    update(state, changed) {
      if (!SAID.some((n) => changed.has(n))) return;
      node.hidden = state.tour === null;
      if (state.tour === null) return;
      const step = list[state.tour];
      put(count, `Tour, ${state.tour + 1} of ${list.length}`);
      put(title, step.title);
      put(text, step.text());
      back.disabled = state.tour === 0;
      put(next, state.tour === list.length - 1 ? "Done" : "Next");
    },
  };
}
