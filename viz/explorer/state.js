// The one selection that every view reads and writes, and what a trace holds for it.

import { isNumber } from "./dom.js";

/** What names one attention call and head of a run. */
export const PLACE = ["step", "layer", "branch", "head"];
/** What is looked at. */
export const SELECTION = ["run", "against", ...PLACE, "frame", "cluster", "pair", "side", "top_p"];
/** How it is drawn. */
export const LOOKS = ["lit", "opacity", "compare", "wipe", "axis", "tint", "sort", "zoom"];

const DEFAULT_LOOKS = {
  lit: "attended",
  opacity: 0.6,
  compare: "side",
  wipe: 0.5,
  axis: "compute",
  tint: "kept",
  sort: 1,
  zoom: false,
};

/**
 * A store of one flat object. `set` tells every listener the state and which names changed;
 * `follow(state, patch)` may add to a patch what has to change with it.
 */
export function makeStore(initial, follow = (_, patch) => patch) {
  let state = { ...initial };
  const listeners = new Set();
  return {
    get: () => state,
    set(asked) {
      const patch = follow(state, asked);
      const changed = Object.keys(patch).filter((name) => patch[name] !== state[name]);
      if (!changed.length) return;
      state = { ...state, ...patch };
      for (const listener of [...listeners]) listener(state, new Set(changed));
    },
    listen(listener) {
      listeners.add(listener);
    },
  };
}

/** Index of the record at a place, or -1 where the trace holds none. */
export function recordAt(data, { step, layer, branch, head }, run) {
  return data.index.findIndex(
    (r) =>
      r.run === run &&
      r.step === step &&
      r.layer === layer &&
      r.branch === branch &&
      r.head === head,
  );
}

/** The run whose records are shown for `run`: itself, or else the first that has any (named on the page). */
export function recordedRun(data, run) {
  if (data.runs[run]?.recorded) return run;
  return data.runs.findIndex((r) => r.recorded);
}

/** The measured budget of the selection that is shown for `run`. */
export function measuredBudget(data, run) {
  const recorded = recordedRun(data, run);
  return data.runs[recorded < 0 ? run : recorded].config.top_p ?? 1;
}

// A clip this close to the dense one is hard to tell from it.
const CLOSE_DB = 33;

/**
 * The run that a trace opens with: of those that route by error the fastest that stays close to the
 * dense clip; without any, the usual budget, with compensation where it was run.
 */
export function openingRun({ runs, methods }) {
  const routed = runs.filter((r) => methods.get(r.method).rule === "error");
  const isClose = ({ result }) => result.psnr_db === null || result.psnr_db >= CLOSE_DB;
  const close = routed.filter(isClose);
  const fastest = (found) =>
    found.reduce((best, r) => ((r.result.speedup ?? 0) > (best.result.speedup ?? 0) ? r : best));
  if (close.length) return fastest(close).index;
  if (routed.length) return routed[0].index;
  const usual = runs.filter((r) => r.config.top_p === 0.9 && !isNumber(r.config.density));
  return (usual.find((r) => r.compensates) ?? usual[0] ?? runs[0]).index;
}

// The place where none is asked for: late clusters are things, those of the first layers are regions.
const LAST = 1e6;

/** The recorded place nearest to a wanted one: same step and layer before same head and branch. */
export function nearestPlace(data, wanted, run) {
  let best = null;
  let bestCost = Infinity;
  for (const place of data.index) {
    if (place.run !== run) continue;
    const cost =
      1000 * Math.abs(place.step - (wanted.step ?? LAST)) +
      100 * Math.abs(place.layer - (wanted.layer ?? LAST)) +
      10 * (place.branch === (wanted.branch ?? place.branch) ? 0 : 1) +
      Math.abs(place.head - (wanted.head ?? 0));
    if (cost < bestCost) {
      bestCost = cost;
      best = place;
    }
  }
  return best;
}

const unique = (values) => [...new Set(values)].sort((a, b) => a - b);

/**
 * All values that a part of `PLACE` takes in the sparse calls of a run, and those recorded there. Each
 * layer has recorded heads of its own: those of the call `at`.
 */
export function placesOf(data, run, name, at = null) {
  const own = data.index.filter((r) => r.run === run);
  const isThere = (r) => ["step", "layer", "branch"].every((n) => r[n] === at[n]);
  const found = name === "head" && at ? own.filter(isThere) : own;
  const recorded = unique(found.map((r) => r[name]));
  const { call, heads } = data.runs[run];
  if (name === "head") return { all: unique([...Array(heads).keys(), ...recorded]), recorded };
  const column = { step: 0, layer: 1, branch: 2 }[name];
  const seen = [];
  for (let i = column; i < call.length; i += 3) seen.push(call[i]);
  return { all: unique([...seen, ...recorded]), recorded };
}

/** The state that a trace opens in; `wanted` holds the parts that a link or the last trace asks for. */
export function openingState(data, wanted) {
  const run = Math.min(wanted.run ?? openingRun(data), data.runs.length - 1);
  const recorded = recordedRun(data, run);
  const place = recorded < 0 ? {} : nearestPlace(data, wanted, recorded);
  const side = wanted.side ?? "q";
  const state = {
    run,
    against: againstOf(data, wanted.against, run),
    ...Object.fromEntries(PLACE.map((name) => [name, place[name]])),
    frame: Math.min(wanted.frame ?? 0, data.frameCount - 1),
    ...pinsOf(data, place, recorded, side, wanted),
    side,
    top_p: wanted.top_p ?? measuredBudget(data, run),
    hover: null,
    speed: 0.5,
    playing: false,
    tour: null,
  };
  for (const name of LOOKS) state[name] = wanted[name] ?? DEFAULT_LOOKS[name];
  return state;
}

/** The run that is shown beside `run`; null is the dense one. */
function againstOf(data, wanted, run) {
  return isNumber(wanted) && wanted < data.runs.length && wanted !== run ? wanted : null;
}

/** The pinned cluster and block, where the place that was asked for is there and has them. */
function pinsOf(data, place, run, side, wanted) {
  const none = { cluster: null, pair: null };
  const same = PLACE.every((n) => wanted[n] === undefined || place[n] === wanted[n]);
  if (!isNumber(wanted.cluster) || !same || run < 0) return none;
  const { Q, K } = data.record(recordAt(data, place, run));
  const [own, other] = side === "q" ? [Q, K] : [K, Q];
  if (wanted.cluster >= own) return none;
  const hasPair = isNumber(wanted.pair) && wanted.pair < other;
  return { cluster: wanted.cluster, pair: hasPair ? wanted.pair : null };
}

/**
 * A change of the cluster drops the block and the zoom that belonged to the old one. A run is never
 * beside itself: dense takes its place.
 */
export function follow(state, asked) {
  const { run, against } = { ...state, ...asked };
  const patch = against === run ? { ...asked, against: null } : asked;
  const moved = ["cluster", "side"].some((n) => n in patch && patch[n] !== state[n]);
  return moved && !("pair" in patch) ? { pair: null, zoom: false, ...patch } : patch;
}

/**
 * What of a state outlives its trace `old`. A run that came in for the same request is shown at its
 * own budget; another request starts at its opening run; the place in the model stays.
 */
export function carriedOver(state, old, data) {
  const names = [...SELECTION, ...LOOKS, "playing"];
  const kept = Object.fromEntries(names.map((n) => [n, state[n]]));
  const same = JSON.stringify(old.request) === JSON.stringify(data.request);
  const whole = (run) => JSON.stringify([run.method, run.config, run.result]);
  // the page around holds a limited number of runs: a new one may replace an old one
  const grown =
    data.runs.length > old.runs.length || whole(data.runs.at(-1)) !== whole(old.runs.at(-1));
  if (!same) [kept.run, kept.against] = [openingRun(data), undefined];
  else if (grown) kept.run = data.runs.length - 1;
  const asked = (run) => run && JSON.stringify([run.method, run.config]);
  if (!same || asked(old.runs[state.run]) !== asked(data.runs[kept.run])) kept.top_p = undefined;
  return kept;
}
