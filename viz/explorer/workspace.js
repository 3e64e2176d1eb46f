// All that lives as long as one trace is open: the state, the views on it, and what they share.

import { budget, decibel, el, isNumber, plural, put } from "./dom.js";
import { forecastAt } from "./forecast.js";
import { KEYS, listenToKeys } from "./keys.js";
import { makeSave } from "./picture.js";
import { makeClips, makeClock } from "./playback.js";
import { TICKS } from "./select.js";
import { makeMoves, makeCurrent, makeSummaries } from "./current.js";
import { follow, makeStore, openingState, recordAt, recordedRun } from "./state.js";
import { sourceOf } from "./views/header.js";
import { VIEWS } from "./views/index.js";
import { makeChooser } from "./views/telling.js";

const RELEASE_DELAY_MS = 400; // arrow keys on the slider make one release, not twenty
const LINK_DELAY_MS = 400; // browsers refuse an address that changes too often
const SUMMARY_DELAY_MS = 50; // the first picture comes first

/**
 * Open a trace in `root`, in place of what its body holds. `wanted` holds the parts of the state that
 * are asked for, `extras.can_run` whether a release can start a real run, `options` what `mount` takes
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
    forecast: makeForecast(data, current, summaries),
    colours: palette.colours,
    copyLink: options.copyLink,
    runsOnRelease: () => Boolean(extras.can_run && options.onRelease),
    measureAgain: () => options.onRelease({ ...releaseOf(app), again: true }),
    startTour: (step = 0, keepSelection = false) => tell("startTour", step, keepSelection),
  };
  app.tellingCluster = makeChooser(app);
  const release = makeRelease(app, options, (text) => tell("say", text));
  app.release = release.ask;
  const clock = makeClock(app, () => tell("tick"));
  views = fillBody(app, root, options);
  const redraw = () => tell("draw");
  const link = makeLater(LINK_DELAY_MS, () => options.onState?.());
  listen(app, { tell, clock, summaries, link });
  const resize = new ResizeObserver(redraw);
  resize.observe(root);
  const forgetKeys = listenToKeys(app, options.standalone ? document : root);
  begin(app, wanted, { clock, summaries });
  return {
    app,
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
function fillBody(app, root, { slide: slideName }) {
  const slide = VIEWS.find((entry) => entry.isSlide && entry.name === slideName);
  const views = VIEWS.filter((entry) => app.hasRecords || !entry.needsRecords).map((entry) => {
    const view = entry.make(app);
    view.node.dataset.view = entry.name;
    const isOff = slide && entry !== slide && !entry.besideSlide?.(slide);
    view.node.classList.toggle("offslide", Boolean(isOff));
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
  return [...views, { update: (state, changed) => changed.has("run") && showOrigin(state) }];
}

/** Pass each change of the state on to the views, the clock, the summaries and the link. */
function listen({ store, clips }, { tell, clock, summaries, link }) {
  store.listen((state, changed) => {
    tell("update", state, changed);
    if (changed.has("run")) {
      clips.sparse(state.run);
      summaries.start(0);
    }
    if (changed.has("playing") || changed.has("compare")) clock.wake();
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

/** `ask()` calls `act` once, `delayMs` after the last time that it was asked. */
function makeLater(delayMs, act) {
  let timer = 0;
  return {
    ask() {
      clearTimeout(timer);
      timer = setTimeout(act, delayMs);
    },
    close: () => clearTimeout(timer),
  };
}

/** Letting go of the slider asks for a run at that budget, or moves to the nearest one there is. */
function makeRelease(app, options, say) {
  return makeLater(RELEASE_DELAY_MS, () => {
    const { top_p, run: index } = app.store.get();
    if (app.isMeasured()) {
      say(null);
      return;
    }
    const { title } = app.data.runs[index];
    const near = nearestRun(app.data, index, top_p);
    const described = near && `${near.name}, ${decibel(near.result.psnr_db)}`;
    if (near && Math.abs(near.config.top_p - top_p) < 0.5 / TICKS) {
      app.selectRun(near.index);
      say(`Measured already: ${described}.`);
    } else if (app.runsOnRelease()) {
      say(`Asked for a real run of ${title} at top-p ${budget(top_p)}.`);
      options.onRelease(releaseOf(app));
    } else if (near) {
      app.selectRun(near.index);
      app.selectBudget(near.config.top_p);
      const stays = app.canRedo() ? "stays a what-if" : "was not run";
      say(
        `No model is loaded for this trace, so top-p ${budget(top_p)} ${stays}. Moved to the nearest measured run: ${described}.`,
      );
    } else {
      app.selectBudget(app.measuredBudget());
      say(`No model is loaded for this trace, so top-p ${budget(top_p)} was not run.`);
    }
  });
}

/** What a release asks for: the run on show, at the budget on show. */
function releaseOf({ data, store }) {
  const { top_p, run } = store.get();
  return { top_p, method: data.runs[run].method, run };
}

/** The measured run of the same method and clusters whose budget is nearest; undefined where there is none. */
function nearestRun({ runs }, index, top_p) {
  const { method, clusters } = runs[index];
  const far = (run) => Math.abs(run.config.top_p - top_p);
  return runs
    .filter((r) => r.method === method && r.clusters === clusters)
    .filter(({ config }) => isNumber(config.top_p) && !isNumber(config.density))
    .sort((a, b) => far(a) - far(b))[0];
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
  const from = sourceOf(run, provenance);
  const versions = Object.entries(from.versions ?? {}).filter(([, v]) => v);
  const parts = [
    `${run.name}: measured on ${from.hardware ?? "unknown hardware"}`,
    ...versions.map(([name, v]) => `${name} ${v}`),
    from.commit ? `commit ${String(from.commit).slice(0, 12)}` : "commit not recorded",
    from.date,
    `${plural(index.length, "recorded call")} of ${plural(tokens, "token")}`,
  ];
  return `${parts.filter(Boolean).join(" · ")}.`;
}
