// What letting go of the budget slider offers, and the run that is asked for.

import { budget, decibel, isNumber, seconds } from "./dom.js";
import { TICKS } from "./select.js";

const RELEASE_DELAY_MS = 400; // arrow keys on the slider make one release, not twenty

/** `ask()` calls `act` once, `delayMs` after the last time that it was asked. */
export function makeLater(delayMs, act) {
  let timer = 0;
  return {
    ask() {
      clearTimeout(timer);
      timer = setTimeout(act, delayMs);
    },
    close: () => clearTimeout(timer),
  };
}

/**
 * `ask()` is called when the slider is let go: it goes to the run of that budget where there is one, and
 * where no run can be made to the nearest. `offer()` is what `measure()` would do, as a button says it;
 * null where the budget on show was run, or can't be.
 */
export function makeRelease(app, { options, extras }, say) {
  const near = () => nearestRun(app.data, app.store.get().run, app.store.get().top_p);
  const isThere = (run) => run && Math.abs(run.config.top_p - app.store.get().top_p) < 0.5 / TICKS;
  const canMeasure = () => !app.isMeasured() && app.runsOnRelease() && !isThere(near());
  const later = makeLater(RELEASE_DELAY_MS, () => {
    const { top_p } = app.store.get();
    if (app.isMeasured() || canMeasure()) return say(null);
    const run = near();
    const described = run && `${run.name}, ${decibel(run.result.psnr_db)}`;
    if (isThere(run)) {
      app.selectRun(run.index);
      return say(`Measured already: ${described}.`);
    }
    if (!run) {
      app.selectBudget(app.measuredBudget());
      return say(`No model is loaded for this trace, so top-p ${budget(top_p)} was not run.`);
    }
    app.selectRun(run.index);
    app.selectBudget(run.config.top_p);
    const stays = app.canRedo() ? "stays a what-if" : "was not run";
    return say(
      `No model is loaded for this trace, so top-p ${budget(top_p)} ${stays}. Moved to the nearest measured run: ${described}.`,
    );
  });
  return {
    ...later,
    offer() {
      if (!canMeasure()) return null;
      const took = secondsOf(near(), extras.has_dense);
      return `Measure ${budget(app.store.get().top_p)}${took === null ? "" : `, about ${seconds(took)}`}`;
    },
    measure() {
      if (!canMeasure()) return;
      const { top_p, run } = app.store.get();
      say(`Asked for a real run of ${app.data.runs[run].title} at top-p ${budget(top_p)}.`);
      options.onRelease(releaseOf(app));
    },
  };
}

/** What a release asks for: the run on show, at the budget on show. */
export function releaseOf({ data, store }) {
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

/** Seconds that a run like `run` took, with its dense side unless there is one; null where it was not timed. */
function secondsOf(run, hasDense) {
  if (!run) return null;
  const { svg2_seconds, dense_seconds, total_seconds: whole = {} } = run.result;
  const sides = hasDense ? [svg2_seconds] : [svg2_seconds, dense_seconds];
  if (!sides.every(isNumber)) return null;
  const around = [whole.encode, whole.decode].filter(isNumber);
  return [...sides, ...around].reduce((sum, s) => sum + s, 0);
}
