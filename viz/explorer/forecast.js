// What a run at another budget would give, as the measured runs of its method and the recorded calls tell.

import { computedShare } from "./data.js";
import { isNumber } from "./dom.js";
import { TICKS } from "./select.js";

// Decibels of PSNR per decibel of what is missed, where there is no second run to tell. Of pairs of
// runs of one clip that were made at two budgets it was 0.55 to 0.8 in clips of 17 frames, 0.05 to 0.87 in three of 33.
const SLOPE = 0.75;
// Chosen to hold nine in ten of the runs of held-out prompts, each foretold from one other: assets/bench/forecast.json.
const LEAST_DB = 1.5;
const DB_PER_DB = 0.45;
// Beyond the measured runs no more is foretold than this far from the nearest.
const FARTHEST_DB = 15;
// Of the speedup, for nine in ten of those; known only where the runs' own times were paired or scaled.
const OFF_SPEED = 0.08;
const NOTHING = 1e-9; // of all that could be missed

const lerp = (a, b, t) => a + (b - a) * t;
const decibels = (squares) => 10 * Math.log10(Math.max(squares, 1e-30));

/**
 * The forecast at a budget, or null where nothing can be said: `density`, `compute_density`, `computed`,
 * `speedup`, `attention_speedup` and `psnr_db`, and `off_db` and `off_speed`, how far off PSNR (in decibels)
 * and speedup (as a share; null where that is not known) may be. `runs` are the measured runs
 * of one method with the same clusters, `curves` what `makeSummaries` found of one of them.
 */
export function forecastAt(top_p, runs, curves) {
  const known = runs
    .filter(({ config, result }) => isNumber(config.top_p) && !isNumber(config.density) && isNumber(result.psnr_db))
    .map((run) => referenceOf(run, curves))
    .filter(({ density }) => isNumber(density))
    .sort((a, b) => a.missed - b.missed);
  if (!known.length) return null;
  const at = Math.round(top_p * TICKS);
  if (curves.missed[at] <= NOTHING * curves.missed[0]) return null; // as good as dense, and no decibels tell
  const missed = decibels(curves.missed[at]);
  const nearest = known.reduce((a, b) => (Math.abs(b.missed - missed) <= Math.abs(a.missed - missed) ? b : a));
  const below = known.filter((one) => one.missed <= missed).at(-1);
  const above = known.find((one) => one.missed > missed);
  if (!(below && above) && Math.abs(nearest.missed - missed) > FARTHEST_DB) return null;
  const share = below && above ? (missed - below.missed) / (above.missed - below.missed) : null;
  const between = (of) => (share === null ? null : lerp(of(below), of(above), share));
  const density = curves.density[at] * (between((one) => one.drift) ?? nearest.drift);
  return {
    density,
    ...timesAt(density, nearest),
    psnr_db: between((one) => one.psnr_db) ?? nearest.psnr_db - SLOPE * (missed - nearest.missed),
    off_db: LEAST_DB + DB_PER_DB * Math.abs(missed - nearest.missed),
  };
}

/** A measured run beside what the recorded calls say of its budget; they are some calls of many, so `drift` makes up for the rest. */
function referenceOf({ config, result }, curves) {
  const at = Math.round(config.top_p * TICKS);
  return {
    result,
    missed: decibels(curves.missed[at]),
    density: result.density,
    drift: result.density / curves.density[at],
    psnr_db: result.psnr_db,
  };
}

/** What of the whole run would be computed where its sparse calls compute this much: its dense steps stay. */
function computedAt(compute_density, { density, density_run: overRun }) {
  if (![compute_density, density, overRun].every(isNumber) || density >= 1) return null;
  return computedShare({ density, density_run: overRun, compute_density });
}

/** Compute and speedups where the attention kernel's time goes with what it computes, and all else stays. */
function timesAt(density, { result: r }) {
  const stage = r.stage_seconds ?? {};
  const compute_density = isNumber(r.compute_density) ? r.compute_density + density - r.density : null;
  const told = { compute_density, computed: computedAt(compute_density, r) };
  const measured = [r.dense_seconds, r.svg2_seconds, r.speedup, r.attention_speedup, stage.attention, compute_density];
  if (!measured.every(isNumber) || !(r.compute_density > 0)) return told;
  const more = stage.attention * (compute_density / r.compute_density - 1);
  const attention = r.svg2_attention_seconds;
  return {
    ...told,
    off_speed: r.order === "in turns" || r.is_scaled ? OFF_SPEED : null,
    speedup: (r.speedup * r.svg2_seconds) / (r.svg2_seconds + more),
    attention_speedup: isNumber(attention) ? (r.attention_speedup * attention) / (attention + more) : null,
  };
}
