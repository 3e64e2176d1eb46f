// The numbers behind one block of the mask: what it holds, what it costs, and why it was kept or skipped.

import { leastKept, rank } from "./select.js";

const NO_GAIN = -60000; // the logarithm of 0 in a trace

/**
 * Facts of the block {q, k} in a selection. Ranks count from 1; `before` is the mass of the heavier
 * blocks of its row, `share` its part of all pairs of the head; `error` is null where none was predicted.
 */
export function factsOf(record, kept, { q, k }) {
  const { K } = record;
  const { occupied, order, before } = rank(record);
  const row = order.subarray(q * occupied, (q + 1) * occupied);
  const j = row.indexOf(k);
  const tokens = record.q.labels.length;
  const pairs = record.q.sizes[q] * record.k.sizes[k];
  return {
    isKept: Boolean(kept[q * K + k]),
    mass: record.P[q * K + k],
    massRank: j + 1,
    before: before[q * occupied + j],
    rowBlocks: occupied,
    pairs,
    share: pairs / (tokens * tokens),
    error: record.gain ? errorFacts(record, kept, q * K + k) : null,
  };
}

/** The gain of a block, its rank among those of the head, and the least that was kept for its error. */
function errorFacts(record, kept, at) {
  const { Q, K, gain } = record;
  const { occupied, order } = rank(record);
  const own = gain[at];
  let above = 0;
  let blocks = 0;
  let leastKeptGain = Infinity;
  for (let q = 0; q < Q; q += 1) {
    if (!record.q.sizes[q]) continue;
    const heaviest = order[q * occupied];
    for (let k = 0; k < K; k += 1) {
      if (!record.k.sizes[k]) continue;
      const one = gain[q * K + k];
      blocks += 1;
      if (one > own) above += 1;
      if (k !== heaviest && kept[q * K + k] && one < leastKeptGain) leastKeptGain = one;
    }
  }
  return { gain: own, isNone: own <= NO_GAIN, rank: above + 1, blocks, leastKeptGain };
}

/**
 * Why a block was kept or skipped: "all", "heaviest", "mass", "least" (one of those that every row
 * keeps), "error", or "" where the rule is not known or rounding decided. `top_p` is null where the
 * budget was a density.
 */
export function reasonOf(record, { isKept, massRank, before }, { rule, top_p, minKeepRatio }) {
  if (top_p === 1) return isKept ? "all" : "";
  if (rule === "error" && record.gain) return isKept && massRank === 1 ? "heaviest" : "error";
  if (rule !== "top_p" || top_p === null) return "";
  if (!isKept) return before >= top_p ? "mass" : "";
  if (massRank === 1) return "heaviest";
  if (before < top_p) return "mass";
  return massRank <= leastKept(record, minKeepRatio) ? "least" : "";
}

const levels = new WeakMap();
const DECADES = Math.log(1000);
export const FULL_LEVEL = 255;

/**
 * How strong each block is, per key, as a level on a logarithmic scale: the largest of the head has
 * `FULL_LEVEL`, a thousandth of it 0. `by` is "mass" or "error".
 */
export function levelsOf(record, by) {
  if (!levels.has(record)) levels.set(record, {});
  const known = levels.get(record);
  known[by] ??= makeLevels(record, by === "error" ? (at) => record.gain[at] : massPerKey(record));
  return known[by];
}

const massPerKey =
  ({ P, K, k: { sizes } }) =>
  (at) =>
    Math.log(P[at] / Math.max(sizes[at % K], 1));

function makeLevels(record, valueAt) {
  const { Q, K } = record;
  const values = new Float32Array(Q * K);
  let top = -Infinity;
  for (let at = 0; at < Q * K; at += 1) {
    values[at] = valueAt(at);
    const isUsed = record.q.sizes[Math.floor(at / K)] > 0 && record.k.sizes[at % K] > 0;
    if (isUsed && values[at] > top) top = values[at];
  }
  const found = new Uint8ClampedArray(Q * K); // rounds and clamps
  for (let at = 0; at < Q * K; at += 1)
    found[at] = top === -Infinity ? 0 : FULL_LEVEL * (1 + (values[at] - top) / DECADES);
  return found;
}
