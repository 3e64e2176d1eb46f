// The tour: eight questions. Each moves the selection and points at the view that answers.

import { computedShare } from "../data.js";
import { budget, decibel, el, isNumber, percent, plural, put, seen, times } from "../dom.js";
import { LOOKS, SELECTION } from "../state.js";
import { memoryCost, whereTimeWent } from "./gain.js";
import { foretold } from "./points.js";
import { journeys } from "./telling.js";

const ACT_DELAY_MS = 700; // the view is in sight by then
const SAID = ["tour", "run", "step", "layer", "head", "branch", "side", "cluster", "top_p"];

const CALM = { hover: null, playing: false };
const WHOLE = { sort: 1, zoom: false, lit: "attended" };

/**
 * The steps of the tour on a trace. Each has the `view` that answers and what of it the card stands `near`,
 * the `patch` that it makes to the state, its `title` and `text()`, and perhaps `act()`, which is called once
 * the view is in sight.
 */
function stepsOf(app) {
  const measured = () => (app.hasRecords ? { top_p: app.measuredBudget() } : {});
  const calm = () => ({ ...CALM, ...measured() });
  const cluster = app.tellingCluster;
  const opening = openingStep(app, calm);
  const closing = closingStep(app, calm);
  if (!app.hasRecords) return [opening, timeStep(app, calm), closing];
  return [
    opening,
    tokenStep(app, calm),
    clusterStep(app, calm, cluster),
    attentionStep(app, calm, cluster),
    maskStep(app, calm, cluster),
    budgetStep(app),
    timeStep(app, calm),
    closing,
  ];
}

function openingStep(app, calm) {
  return {
    view: "compare",
    near: ".stage",
    title: "What was made twice?",
    patch: () => ({ ...calm(), compare: "side", playing: !app.still }),
    text() {
      const result = resultOf(app);
      const share = computedShare(result);
      const part = isNumber(share) ? `${percent(share)} of them over the whole run` : "only a part";
      return `One prompt, one seed, one starting noise. On the left every query–key pair was computed, on the right ${part}. PSNR says how close the right one stays: ${decibel(result.psnr_db)}.`;
    },
  };
}

function tokenStep({ data: { tokens, textTokens } }, calm) {
  return {
    view: "clusters",
    near: ".tiles",
    title: "What is a token?",
    patch: () => ({ ...calm(), cluster: null, pair: null, side: "q", opacity: 0.6 }),
    text() {
      const prompt = textTokens ? ` and the prompt ${textTokens.toLocaleString("en")}` : "";
      return `A fine grid cuts each latent frame into small squares, the tokens; the outlines follow it. This clip has ${plural(tokens, "token")}${prompt}, so a dense head computes ${((tokens + textTokens) ** 2).toLocaleString("en")} pairs.`;
    },
  };
}

function clusterStep(app, calm, cluster) {
  return {
    view: "clusters",
    near: ".tiles",
    title: "What is a cluster here?",
    patch: () => ({ ...calm(), ...cluster(), lit: "members" }),
    text() {
      const { cluster: c, side, layer } = app.store.get();
      const idea = app.method().byPlace
        ? "Here a cluster is a block of neighbouring tokens, whatever they show."
        : "k-means groups tokens whose queries are alike, wherever they lie.";
      if (c === null || side !== "q") return idea;
      const { grid } = app.data;
      const { frames } = journeys(app.record(), grid)[c];
      return `${idea} Lit is query cluster ${c + 1} of layer ${layer + 1}: ${plural(app.record().q.sizes[c], "token")} in ${frames} of ${plural(grid[0], "latent frame")}.`;
    },
  };
}

function attentionStep(app, calm, cluster) {
  return {
    view: "clusters",
    near: ".tiles",
    title: "Who does this cluster attend to?",
    patch: () => ({ ...calm(), ...cluster(), lit: "attended" }),
    text: () =>
      `Lit now: the key clusters that it keeps, by weight. ${whyKept(app)}What is dark was skipped.`,
  };
}

/** Why the lit clusters were kept, by the rule of the method on show. */
function whyKept(app) {
  if (app.method().rule === "error")
    return "One is its heaviest; the others are those that it would miss most, by their predicted error. ";
  if (!app.canRedo()) return "";
  const floor = app.floor();
  const more = floor ? ` The ${floor.least} heaviest are always kept.` : "";
  return `Together they hold at least top-p, ${budget(app.measuredBudget())}, of its estimated attention mass.${more} `;
}

function maskStep(app, calm, cluster) {
  return {
    view: "masks",
    near: ".maskbox ~ .maskbox", // the one that the sorting moves, with its button
    title: "What was skipped?",
    patch: () => ({ ...calm(), ...WHOLE, ...cluster() }),
    text: () =>
      `Rows are queries, columns keys; empty is skipped${runOf(app).compensates ? ", with one stand-in for each block" : ""}. This call computes ${percent(app.stats().density)} of the pairs. ${app.still ? "“Back to token order” shows how scattered they lay." : "Watch the scattered pairs become blocks."}`,
    act: app.playSorting,
  };
}

function budgetStep(app) {
  return {
    view: "masks",
    near: ".maskbox ~ .maskbox", // what the budget changes; its slider stands beside
    title: "What does a smaller budget skip?",
    patch: () => ({
      ...CALM,
      ...WHOLE,
      top_p: Math.max(0.05, Math.round((app.measuredBudget() - 0.2) * 200) / 200),
    }),
    text() {
      const told = app.forecast(app.store.get().top_p);
      const top_p = budget(app.store.get().top_p);
      const how = app.runsOnRelease()
        ? "move the budget's slider and press Enter"
        : "letting go of the slider goes to the nearest run that was made";
      return app.canRedo()
        ? `At top-p ${top_p} this call would compute ${percent(app.stats().density)}. That is a what-if on recorded queries and keys. Its PSNR is ${told ? `foretold, ${foretold(told)}` : "not foretold"}, and known only when it is run: ${how}.`
        : `What ${runOf(app).title} computes at top-p ${top_p} is known only when it is run: ${how}.`;
    },
  };
}

function timeStep(app, calm) {
  return {
    view: "gain",
    near: ".timebars",
    title: "Why does time gain less than work?",
    patch: calm,
    text: () => whereTimeWent(runOf(app)) || "Where the seconds of this run went was not measured.",
  };
}

function closingStep(app, calm) {
  return {
    view: "tradeoff",
    near: ".chart",
    title: "What did it cost, what did it gain?",
    patch: () => ({ ...calm(), axis: "speedup" }),
    text() {
      const { psnr_db, speedup, attention_speedup } = resultOf(app);
      const gain = isNumber(speedup)
        ? `${times(speedup)} the speed end to end, ${times(attention_speedup)} in attention, each timed once`
        : "a time that was not measured";
      return `The cost: ${decibel(psnr_db)} against dense${seen(psnr_db) && `, ${seen(psnr_db)}`}${memoryCost(resultOf(app))}. The gain: ${gain}. Each solid mark is a run that was made and timed; click one to see its clip.`;
    },
  };
}

const runOf = ({ data, store }) => data.runs[store.get().run];
const resultOf = (app) => runOf(app).result;

/** A card that walks through the steps; each brings a view into sight and marks it. */
export function makeTour(app) {
  const { store } = app;
  const steps = stepsOf(app);
  const move = (by) => {
    const at = store.get().tour + by;
    show(at < steps.length ? Math.max(0, at) : null);
  };
  const card = makeCard(move, () => show(null));
  let opener = null;
  let before = null; // what was on show when the tour began
  let timer = 0;
  /** Step `at` of the tour, or its end, which brings back what was on show before. */
  function show(at, keepSelection = false) {
    clearTimeout(timer);
    if (at === null) {
      store.set({ tour: null });
      store.set(before);
      pointAt(app, null, card.node);
      opener?.focus?.();
      return;
    }
    const state = store.get();
    if (state.tour === null) {
      opener = card.node.getRootNode().activeElement;
      before = Object.fromEntries([...SELECTION, ...LOOKS, "playing"].map((name) => [name, state[name]]));
    }
    const step = steps[at];
    store.set(keepSelection ? { tour: at } : { ...step.patch(), tour: at });
    pointAt(app, step, card.node);
    card.node.focus({ preventScroll: true });
    if (step.act && !app.still && !keepSelection) timer = setTimeout(step.act, ACT_DELAY_MS);
  }
  return {
    node: card.node,
    startTour(at, keepSelection) {
      if (at < steps.length) show(at, keepSelection);
    },
    close: () => clearTimeout(timer),
    update(state, changed) {
      if (!SAID.some((n) => changed.has(n))) return;
      card.node.hidden = state.tour === null;
      if (state.tour !== null) card.show(steps[state.tour], state.tour, steps.length);
    },
  };
}

function makeCard(move, close) {
  const count = el("span", { class: "small" });
  const title = el("h3", { id: "tour-title" });
  const text = el("p", {});
  const button = (kind, label, onclick) => el("button", { type: "button", class: kind, onclick }, label);
  const back = button("plainbutton", "Back", () => move(-1));
  const next = button("mainbutton", "Next", () => move(1));
  const keys = { ArrowLeft: () => move(-1), ArrowRight: () => move(1), Escape: close };
  const node = el(
    "section",
    {
      class: "tour",
      tabindex: -1,
      role: "region",
      "aria-labelledby": "tour-title",
      hidden: true,
      onkeydown: (event) => {
        const act = keys[event.key];
        if (!act) return;
        event.preventDefault();
        event.stopPropagation();
        act();
      },
    },
    count,
    title,
    el("div", { "aria-live": "polite" }, text),
    el("div", { class: "tourbuttons" }, back, next, button("quiet", "Close", close)),
  );
  return {
    node,
    show(step, at, length) {
      put(count, `Tour, ${at + 1} of ${length}`);
      put(title, step.title);
      put(text, step.text());
      back.disabled = at === 0;
      put(next, at === length - 1 ? "Done" : "Next");
    },
  };
}

/** Bring the view of a step into sight, mark it, and put the card above what it speaks of; null marks none. */
function pointAt({ still }, step, card) {
  const root = card.closest(".lab");
  for (const view of root.querySelectorAll(".pointed")) view.classList.remove("pointed");
  const view = step && root.querySelector(`[data-view=${step.view}]`);
  if (!view) return;
  view.classList.add("pointed");
  view.querySelector(step.near).before(card);
  card.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
}
