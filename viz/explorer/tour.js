// The tour: seven questions. Each moves the selection and points at the view that answers.

import { budget, decibel, el, isNumber, percent, plural, put, times } from "./dom.js";
import { rank } from "./select.js";

/** The query cluster of a record that says most: not the background, yet not tiny, and spread least. */
function tellingCluster(record) {
  const { sizes } = record.q;
  const { occupied, mass } = rank(record);
  const tokens = record.q.labels.length;
  let best = 0;
  let bestScore = -1;
  for (let q = 0; q < sizes.length; q += 1) {
    const share = sizes[q] / tokens;
    if (share < 0.005 || share > 0.15) continue;
    let focus = 0; // sum of squares: high where few key clusters hold the mass
    for (let j = 0; j < occupied; j += 1) focus += mass[q * occupied + j] ** 2;
    if (focus > bestScore) [best, bestScore] = [q, focus];
  }
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
  const cluster = () => ({ side: "q", cluster: tellingCluster(app.record()), pair: null });
  const list = [
    {
      view: "compare",
      title: "What was made twice?",
      patch: () => ({ ...calm, ...measured(), compare: "side", playing: !app.still }),
      text: () =>
        `One prompt, one seed, one starting noise. On the left every query–key pair was computed, on the right, in most steps, only a part. PSNR says how close the right one stays: ${decibel(result().psnr_db)}.`,
    },
    {
      view: "clusters",
      title: "What is a token?",
      patch: () => ({ ...calm, ...measured(), cluster: null, pair: null, side: "q", opacity: 0.6 }),
      text: () =>
        `Each small square is a token: a patch of a latent frame. This clip has ${plural(data.tokens, "token")}, so a dense head computes ${(data.tokens ** 2).toLocaleString("en")} pairs.`,
    },
    {
      view: "clusters",
      title: "What is a cluster here?",
      patch: () => ({ ...calm, ...measured(), ...cluster(), lit: "members" }),
      text: () => {
        const { cluster: c } = store.get();
        return `k-means groups tokens whose queries are alike. Lit is query cluster ${c + 1}: ${plural(app.record().q.sizes[c], "token")}, in every frame where something alike is seen.`;
      },
    },
    {
      view: "clusters",
      title: "Who does this cluster attend to?",
      patch: () => ({ ...calm, ...measured(), ...cluster(), lit: "attended" }),
      text: () =>
        `Lit now: the key clusters that it keeps, by weight. They hold top-p, ${budget(app.measuredBudget())}, of its attention mass. What is dark was skipped.`,
    },
    {
      view: "masks",
      title: "What was skipped?",
      patch: () => ({ ...calm, ...measured(), ...whole, ...cluster() }),
      text: () =>
        `Rows are queries, columns keys; empty is skipped. This call computes ${percent(app.stats().density)} of the pairs. Press “Play the sorting” to see scattered pairs become blocks.`,
    },
    {
      view: "masks",
      title: "What does a smaller budget skip?",
      patch: () => ({
        ...calm,
        ...whole,
        top_p: Math.max(0.05, Math.round((app.measuredBudget() - 0.2) * 200) / 200),
      }),
      text: () =>
        `At top-p ${budget(store.get().top_p)} this call would compute ${percent(app.stats().density)}. That is a what-if on recorded queries and keys. Its PSNR is known only when it is run: move the slider and let go.`,
    },
    {
      view: "tradeoff",
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
  function show(at) {
    if (at === null) {
      store.set({ tour: null });
      goTo(null);
      opener?.focus?.();
      return;
    }
    if (store.get().tour === null) opener = node.getRootNode().activeElement;
    store.set({ ...list[at].patch(), tour: at });
    goTo(list[at].view);
    node.focus({ preventScroll: true });
  }

  return {
    node,
    show,
    length: list.length,
    update(state, changed) {
      if (!["tour", "run", "top_p", "cluster"].some((n) => changed.has(n))) return;
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
