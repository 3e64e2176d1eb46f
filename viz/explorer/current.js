// What the state selects: the record on show, the mask at its budget, and the ways to move on.

import { budget, isNumber } from "./dom.js";
import { curve, heaviestBlock, leastKept, measure, neededAt, selectionAt, TICKS } from "./select.js";
import { measuredBudget, nearestPlace, PLACE, placesOf, recordAt, recordedRun } from "./state.js";

/** What the views read of the state. */
export function makeCurrent(data, store) {
  let memo = {}; // the mask on show, until the record or the budget changes
  const source = () => recordedRun(data, store.get().run);
  const current = {
    /** The run whose records are shown; -1 where the trace holds none. */
    source,
    recordIndex: () => recordAt(data, store.get(), source()),
    record: () => data.record(current.recordIndex()),
    /** The call on show in words. */
    placeName() {
      const { step, layer, head } = store.get();
      return `step ${step + 1}, layer ${layer + 1}, head ${head + 1}`;
    },
    /** What is pinned and zoomed to, in words; empty where nothing is. */
    pinName() {
      const { cluster, pair, side, zoom } = store.get();
      const names = { q: "query cluster", k: "key cluster" };
      if (zoom || pair !== null) {
        const { q, k } = current.block();
        return `${zoom ? "zoomed to" : "pinned"} the block of query cluster ${q + 1} and key cluster ${k + 1}`;
      }
      return cluster === null ? "" : `pinned ${names[side]} ${cluster + 1}`;
    },
    /** The budget on show in words: what the run was asked to keep, or the what-if. */
    budgetName() {
      const { top_p } = store.get();
      if (current.isMeasured()) return current.measuredName();
      return `${current.canRedo() ? "what-if" : "not run:"} top-p ${budget(top_p)}`;
    },
    /** Call, budget and pin, as a picture says them. */
    viewName: () => [current.placeName(), current.budgetName(), current.pinName()].filter(Boolean).join(", "),
    measuredBudget: () => measuredBudget(data, store.get().run),
    isMeasured: () => store.get().top_p === current.measuredBudget(),
    /** The run whose selection is shown. */
    shownRun: () => data.runs[source() < 0 ? store.get().run : source()],
    /** The method whose selection is shown. */
    method: () => data.methods.get(current.shownRun().method),
    /** What the run on show was asked to keep, "top-p 0.9" or "density 6 %". */
    measuredName: () => current.shownRun().asked || `top-p ${budget(current.measuredBudget())}`,
    /** Whether the browser can repeat the selection of the run on show at another budget. */
    canRedo() {
      const { config, predicts } = current.shownRun();
      const { rule } = current.method();
      if (isNumber(config.density)) return false; // top-p means nothing there
      return rule === "top_p" || (rule === "error" && predicts);
    },
    /** Whether the mask on show is the one that the method computed. */
    isOwnMask: () => current.isMeasured() || !current.canRedo(),
    /** The selection on show: the method's own at the measured budget, else by the same rule from P. */
    kept() {
      const record = current.record();
      const { top_p } = store.get();
      if (memo.record !== record || memo.top_p !== top_p) {
        const mask = current.isOwnMask()
          ? record.kept
          : selectionAt(record, top_p, current.minKeepRatio());
        memo = { record, top_p, mask, stats: measure(record, mask) };
      }
      return memo.mask;
    },
    /** What colours the mask; without predicted errors it is no error. */
    tint() {
      const { tint } = store.get();
      return tint === "error" && !current.record().gain ? "kept" : tint;
    },
    stats() {
      current.kept();
      return memo.stats;
    },
    floor: () => floorOf(current, store.get()),
    minKeepRatio: () => data.runs[source()].config.min_keep_ratio ?? 0,
    curve: (record) => curve(record, current.minKeepRatio()),
    /** What is pointed at, or else pinned: every view marks the same clusters. */
    marked({ hover, side, cluster, pair }) {
      if (hover) return [hover];
      if (cluster === null) return [];
      const pinned = { side, cluster };
      return pair === null ? [pinned] : [pinned, { side: side === "q" ? "k" : "q", cluster: pair }];
    },
    /** The pinned block of the mask; where only a cluster is pinned, its heaviest one. */
    block() {
      const { side, cluster, pair } = store.get();
      return heaviestBlock(
        current.record(),
        side === "q" ? { q: cluster, k: pair } : { q: pair, k: cluster },
      );
    },
  };
  return current;
}

/**
 * What every query cluster keeps whatever top-p asks for: `least` key clusters, a `share` of them; null
 * where that is the heaviest alone, or top-p is not the rule. `binds` of `rows` have enough mass with fewer.
 */
function floorOf(current, state) {
  const { config } = current.shownRun();
  const record = current.record();
  const share = current.minKeepRatio();
  const least = leastKept(record, share);
  if (current.method().rule !== "top_p" || isNumber(config.density) || least < 2) return null;
  const top_p = current.isOwnMask() ? current.measuredBudget() : state.top_p;
  const rows = [...record.q.sizes.keys()].filter((q) => record.q.sizes[q] > 0);
  const binds = rows.filter((q) => neededAt(record, q, top_p, least) < least).length;
  return { least, share, top_p, binds, rows: rows.length };
}

/** Changes of the state that are more than one value. */
export function makeMoves(data, store, current) {
  const { source } = current;
  const recorded = (name) => placesOf(data, source(), name, store.get()).recorded;
  const moves = {
    selectRun(index) {
      const state = store.get();
      const from = recordedRun(data, index);
      if (from === source()) return store.set({ run: index });
      return store.set({
        ...nearestPlace(data, state, from),
        run: index,
        cluster: null,
        hover: null,
        top_p: measuredBudget(data, index),
      });
    },
    /** What is asked from outside: of a run and a place the nearest that was recorded, all else as it is. */
    select(patch) {
      const asked = { ...store.get(), ...patch };
      const from = recordedRun(data, asked.run);
      const place = from < 0 ? {} : nearestPlace(data, asked, from);
      store.set({ ...patch, ...place, run: asked.run });
    },
    selectPlace(patch) {
      const state = store.get();
      const next = nearestPlace(data, { ...state, ...patch }, source());
      const sameHead = ["layer", "branch", "head"].every((n) => next[n] === state[n]);
      store.set({
        ...Object.fromEntries(PLACE.map((n) => [n, next[n]])),
        hover: null,
        cluster: sameHead ? state.cluster : null, // labels live on from step to step, not from head to head
      });
    },
    /** Go to the next recorded step, layer, head or branch; at the end stay. */
    movePlace(name, by) {
      const values = recorded(name);
      const next = values[values.indexOf(store.get()[name]) + by];
      if (next !== undefined) moves.selectPlace({ [name]: next });
    },
    /** Go to the next recorded head; from the last to the first. */
    nextHead() {
      const heads = recorded("head");
      moves.selectPlace({ head: heads[(heads.indexOf(store.get().head) + 1) % heads.length] });
    },
    selectBudget(p) {
      const measured = current.measuredBudget();
      store.set({ top_p: Math.abs(p - measured) < 0.5 / TICKS ? measured : p });
    },
    stepFrame(by) {
      const { frame } = store.get();
      store.set({ playing: false, frame: (frame + by + data.frameCount) % data.frameCount });
    },
  };
  return moves;
}

/**
 * Density of every recorded call of a run at every budget, one record at a time so that the page
 * stays quick; `onDone` is called when all are known.
 */
export function makeSummaries(data, current, onDone) {
  const known = new Map();
  let totals = {};
  let timer = 0;
  const own = () => data.index.flatMap((r, i) => (r.run === current.source() ? [i] : []));

  function step() {
    const next = own().find((i) => !known.has(i));
    if (next === undefined) return onDone();
    const record = data.record(next);
    const redone = current.canRedo() ? current.curve(record) : null;
    known.set(next, {
      kept: measure(record, record.kept).density,
      density: redone?.density ?? null,
      missed: redone?.missed ?? null,
    });
    if (next !== current.recordIndex()) data.forget(next);
    return start(0);
  }
  function start(delayMs) {
    clearTimeout(timer);
    timer = setTimeout(step, delayMs);
  }
  return {
    start,
    /** Mean density of the recorded calls at a budget, null until it is known, and their number. */
    meanDensity(top_p) {
      const all = own();
      const found = all.map((i) => known.get(i)).filter(Boolean);
      if (!all.length || found.length < all.length) return { value: null, count: all.length };
      const at = Math.round(top_p * TICKS);
      const of = ({ kept, density }) => (current.isOwnMask() ? kept : density[at]);
      return { value: found.reduce((sum, one) => sum + of(one), 0) / all.length, count: all.length };
    },
    /** Density, as a mean, and what is missed, as a sum, of the recorded calls at every budget; null until both are known. */
    curves() {
      const all = own();
      if (!all.length || !current.canRedo() || !all.every((i) => known.get(i)?.missed)) return null;
      if (totals.source !== current.source()) {
        const add = (name) =>
          Float64Array.from({ length: TICKS + 1 }, (_, i) =>
            all.reduce((sum, at) => sum + known.get(at)[name][i], 0),
          );
        totals = {
          source: current.source(),
          density: add("density").map((sum) => sum / all.length),
          missed: add("missed"),
        };
      }
      return totals;
    },
    close: () => clearTimeout(timer),
  };
}
