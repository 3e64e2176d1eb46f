// All that lives as long as one trace is open: the state, the views on it, and what they share.

import { el, isNumber, plural, put } from "./dom.js";
import { forecastAt } from "./forecast.js";
import { KEYS, listenToKeys } from "./keys.js";
import { makeSave } from "./picture.js";
import { makeClips, makeClock } from "./playback.js";
import { makePresentation } from "./present.js";
import { makeMoves, makeCurrent, makeSummaries } from "./current.js";
import { makeLater, makeRelease, releaseOf } from "./release.js";
import { follow, makeStore, openingState, recordAt, recordedRun } from "./state.js";
import { sourceOf } from "./views/header.js";
import { VIEWS } from "./views/index.js";
import { makeChooser } from "./views/telling.js";

const READY_MADE = "ready-made trace"; // how the server calls those that stay
const LINK_DELAY_MS = 400; // browsers refuse an address that changes too often
const SUMMARY_DELAY_MS = 50; // the first picture comes first

/**
 * Open a trace in `root`, in place of what its body holds. `wanted` holds the parts of the state that
 * are asked for, `extras` what the page around says of real runs (`can_run`, `has_dense`), `options` what `mount` takes
 * and `onState()`, called when the link to the page has changed, `copyLink()` and `slide`.
 */
export function openWorkspace(data, { root, options, extras, wanted }) {
  const store = makeStore(openingState(data, wanted), follow);
  const { run } = store.get();
  const source = recordedRun(data, run);
  if (source >= 0) data.record(recordAt(data, store.get(), source)); // fails before anything is made

  let views = [];
  const tell = (event, ...args) => views.forEach((view) => view[event]?.(...args));
  const palette = makePalette(root);
  const clips = makeClips(
    data,
    () => tell("drawClips"),
    () => tell("failClips", "This browser can't play the clips (H.264). Clusters and masks still work."),
  );
  const current = makeCurrent(data, store);
  const summaries = makeSummaries(data, current, () => tell("summarised", store.get()));
  const app = {
    standalone: Boolean(options.standalone),
    hasRecords: source >= 0,
    still: matchMedia("(prefers-reduced-motion: reduce)").matches,
    data,
    store,
    clips,
    ...current,
    ...makeMoves(data, store, current),
    meanDensity: summaries.meanDensity,
    curves: summaries.curves,
    forecast: makeForecast(data, current, summaries),
    colours: palette.colours,
    copyLink: options.copyLink,
    /** Said where a link was copied: how long it works. */
    linkCopied: () =>
      options.standalone || data.mode === READY_MADE ? "Link copied" : "Link copied; it works while this page is open",
    fetchFile: options.fetchFile,
    runsOnRelease: () => Boolean(extras.can_run && options.onRelease),
    measureAgain: () => options.onRelease({ ...releaseOf(app), again: true }),
    playSorting: () => tell("playSorting"),
    startTour: (step = 0, keepSelection = false) => tell("startTour", step, keepSelection),
  };
  app.tellingCluster = makeChooser(app);
  const release = makeRelease(app, { options, extras }, (text) => tell("say", text));
  Object.assign(app, { release: release.ask, measure: release.measure, offer: release.offer });
  const clock = makeClock(app, () => tell("tick"));
  views = fillBody(app, root, options);
  const redraw = () => tell("draw");
  const link = makeLater(LINK_DELAY_MS, () => options.onState?.());
  const shareBudget = () => {
    if (!isNumber(app.shownRun().config.density)) options.onBudget?.(store.get().top_p);
  };
  listen(app, { tell, clock, summaries, link, shareBudget });
  const resize = new ResizeObserver(redraw);
  resize.observe(root);
  const forgetKeys = listenToKeys(app, options.standalone ? document : root);
  begin(app, options.isPresented ? { ...wanted, tour: undefined } : wanted, { clock, summaries });
  return {
    app,
    shareBudget,
    /** The view in the middle of the window, by name; null while the head of the page is in sight. */
    viewInSight() {
      const middle = innerHeight / 2;
      const covers = ({ node }) => {
        const { top, bottom } = node.getBoundingClientRect();
        return top <= middle && bottom >= middle;
      };
      const name = scrollY > 0 ? views.find((view) => view.node && covers(view))?.node.dataset.view : null;
      return VIEWS.some((entry) => entry.isSlide && entry.name === name) ? name : null;
    },
    /** Scroll to a view once it is laid out; a name that no view has is passed over. */
    bringIntoSight(name) {
      const entry = VIEWS.find((one) => one.isSlide && one.name === name);
      const node = entry && root.querySelector(`[data-view=${entry.name}]`);
      if (node) requestAnimationFrame(() => node.scrollIntoView({ block: "start" }));
    },
    redraw() {
      palette.forget();
      redraw();
    },
    liveSlot: views.find((view) => view.liveSlot)?.liveSlot,
    /** Say a sentence beside the budget, null hides it. Whether there is a place for it. */
    say(text) {
      tell("say", text);
      return views.some((view) => view.say);
    },
    close() {
      tell("close");
      [clock, release, link, summaries, clips].forEach((part) => part.close());
      resize.disconnect();
      forgetKeys();
    },
  };
}

/** Make the views and put them into the body of the page, with what stands below them. */
function fillBody(app, root, { slide: slideName, isPresented }) {
  const entries = VIEWS.filter((entry) => app.hasRecords || !entry.needsRecords);
  const views = entries.map((entry) => {
    const view = entry.make(app);
    view.node.dataset.view = entry.name;
    if (view.picture) view.node.querySelector(".side").append(makeSave(app, entry.name, view));
    return view;
  });
  const foot = el("p", {});
  const showOrigin = ({ run }) => put(foot, originOf(app.data, app.data.runs[run]));
  showOrigin(app.store.get());
  put(
    root.querySelector(".body"),
    ...views.map((view) => view.node),
    app.hasRecords
      ? null
      : el(
          "p",
          { class: "notice" },
          "This trace holds no recorded clusters, so there are no maps or masks to show.",
        ),
    el("footer", { class: "foot small" }, foot, el("p", {}, KEYS)),
  );
  const origin = { update: (state, changed) => changed.has("run") && showOrigin(state) };
  const showSlide = (name) => {
    const slide = entries.find((entry) => entry.isSlide && entry.name === name);
    entries.forEach((entry, i) => {
      const isOff = slide && entry !== slide && !entry.besideSlide?.(slide, isPresented);
      views[i].node.classList.toggle("offslide", Boolean(isOff));
      if (slide && !isOff) views[i].draw?.(); // what is hidden has no size to be drawn at
    });
  };
  if (!isPresented) {
    showSlide(slideName);
    return [...views, origin];
  }
  const slides = entries.flatMap(({ name, isSlide }, i) =>
    isSlide ? [{ name, title: views[i].node.querySelector("h3").textContent }] : [],
  );
  const presentation = makePresentation(slides, slideName, showSlide);
  root.querySelector(".body").prepend(presentation.node);
  return [...views, origin, { close: presentation.close }];
}

/** Pass each change of the state on to the views, the clock, the summaries and the link. */
function listen({ store, clips }, { tell, clock, summaries, link, shareBudget }) {
  store.listen((state, changed) => {
    tell("update", state, changed);
    if (changed.has("run")) {
      clips.sparse(state.run);
      summaries.start(0);
    }
    if (changed.has("playing") || changed.has("compare")) clock.wake();
    if (changed.has("top_p") && state.tour === null) shareBudget();
    const isPlaying = state.playing && [...changed].every((n) => n === "frame");
    if (!isPlaying && !(changed.size === 1 && changed.has("hover"))) link.ask();
  });
  tell("update", store.get(), new Set(Object.keys(store.get())));
}

/** Start what runs by itself: the summaries, the clips, and the tour where a link asks for it. */
function begin({ store, still, startTour }, wanted, { clock, summaries }) {
  summaries.start(SUMMARY_DELAY_MS);
  if (store.get().compare === "blink") clock.wake();
  if (wanted.playing ?? (!still && wanted.frame === undefined)) store.set({ playing: true });
  if (isNumber(wanted.tour)) startTour(wanted.tour, wanted.run !== undefined); // a whole link is shown as it was
}

/** `forecast()` tells what a run at the budget on show would give; null where it was run, or nothing can be said. */
function makeForecast({ runs }, current, summaries) {
  return (top_p) => {
    const curves = current.isOwnMask() ? null : summaries.curves();
    if (!curves) return null;
    const { method, clusters } = current.shownRun();
    const same = runs.filter((run) => run.method === method && run.clusters === clusters);
    return forecastAt(top_p, same, curves);
  };
}

/** Colours follow the theme and are read once for each. */
function makePalette(root) {
  let palette = null;
  return {
    forget() {
      palette = null;
    },
    colours() {
      const { theme } = root.dataset;
      if (palette?.theme === theme) return palette;
      const style = getComputedStyle(root);
      const read = (name) => style.getPropertyValue(name).trim();
      palette = {
        theme,
        ink: read("--ink"),
        paper: read("--paper"),
        line: read("--line"),
        soft: read("--soft"),
        accent: read("--accent"),
        accentRgb: hexToRgb(read("--accent")),
        missedRgb: hexToRgb(read("--missed")),
        maskRgb: hexToRgb(read("--skipped")),
      };
      return palette;
    },
  };
}

function hexToRgb(text) {
  const n = parseInt(text.slice(1), 16);
  return [(n >> 16) & 255, (n >> 8) & 255, n & 255];
}

/** Where a run's numbers come from: hardware, versions, commit, and what was recorded. */
function originOf({ provenance, tokens, index }, run) {
  const recorded = index.filter((record) => record.run === run.index).length;
  const from = sourceOf(run, provenance);
  const versions = Object.entries(from.versions ?? {}).filter(([, v]) => v);
  const parts = [
    `${run.name}: measured on ${from.hardware ?? "unknown hardware"}`,
    ...versions.map(([name, v]) => `${name} ${v}`),
    from.commit ? `commit ${String(from.commit).slice(0, 12)}` : "commit not recorded",
    from.date,
    `${plural(recorded, "recorded call")} of ${plural(tokens, "token")}`,
  ];
  return `${parts.filter(Boolean).join(" · ")}.`;
}
