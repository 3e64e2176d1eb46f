// What the method would keep at another budget, by recorded errors or by top-p over recorded masses: equal to
// `selection_at` of svg2/trace/records.py to the last bit.

/** Budgets that the slider can stand on: 1/200 … 200/200. */
export const TICKS = 200;

/**
 * Each row's key clusters from heaviest to lightest with the mass before each one, in float64.
 *
 * float16 patterns of non-negative numbers sort as the numbers do, so (pattern, index) in one
 * uint32 gives the stable order without a comparison function. Sums of float16 are exact in
 * float64, so a row's sum does not depend on the order of summation.
 */
export function rank(record) {
  if (record.ranked) return record.ranked;
  const { Q, K, bits, P } = record;
  const sizes = record.k.sizes;
  let occupied = 0;
  for (let k = 0; k < K; k += 1) if (sizes[k] > 0) occupied += 1;
  const order = new Uint16Array(Q * occupied);
  const before = new Float64Array(Q * occupied);
  const mass = new Float64Array(Q * occupied);
  const keys = new Uint32Array(occupied);
  for (let q = 0; q < Q; q += 1) {
    let sum = 0;
    let n = 0;
    for (let k = 0; k < K; k += 1) {
      if (!sizes[k]) continue;
      sum += P[q * K + k];
      const pattern = bits[q * K + k] === 0x8000 ? 0 : bits[q * K + k];
      keys[n] = (0xffff - pattern) * 65536 + k;
      n += 1;
    }
    sum = Math.max(sum, 2.2250738585072014e-308);
    keys.sort();
    let total = 0;
    for (let j = 0; j < occupied; j += 1) {
      const k = keys[j] & 0xffff;
      const m = P[q * K + k] / sum;
      total += m;
      order[q * occupied + j] = k;
      before[q * occupied + j] = total - m;
      mass[q * occupied + j] = m;
    }
  }
  record.ranked = { occupied, order, before, mass };
  return record.ranked;
}

/** The number of key clusters that every row keeps whatever they hold. */
export function leastKept(record, minKeepRatio) {
  return Math.max(1, Math.ceil(minKeepRatio * record.K - 1e-9)); // 0.07 of 100 is 7, not 8
}

/** The number of key clusters, up to `most`, that a query cluster needs to reach a budget by mass, heaviest first. */
export function neededAt(record, q, topP, most = Infinity) {
  const { occupied, before } = rank(record);
  if (topP === 1) return Math.min(occupied, most);
  let needed = 1;
  while (needed < Math.min(occupied, most) && before[q * occupied + needed] < topP) needed += 1;
  return needed;
}

/** The tick nearest to a budget; of two equally near ones the even, as Python rounds. */
function tickOf(topP) {
  const exact = topP * TICKS;
  const low = Math.floor(exact);
  const up = exact - low > 0.5 || (exact - low === 0.5 && low % 2 === 1);
  return Math.max(1, low + (up ? 1 : 0));
}

/** What the predicted error of a block has to exceed at a budget, as a logarithm per key. */
export const thresholdAt = ({ thresholds }, topP) => thresholds[tickOf(topP)];

/** What the method would keep at another budget: Uint8 [Q·K]. */
export function selectionAt(record, topP, minKeepRatio) {
  if (record.gain && topP < 1) return selectionByError(record, thresholdAt(record, topP));
  return selectionByMass(record, topP, minKeepRatio);
}

/** The blocks whose error is above the threshold, and the heaviest of each row. */
function selectionByError(record, threshold) {
  const { Q, K, k, gain } = record;
  const { occupied, order } = rank(record);
  const kept = new Uint8Array(Q * K);
  for (let q = 0; q < Q; q += 1) {
    for (let j = 0; j < K; j += 1) {
      if (k.sizes[j] > 0 && gain[q * K + j] > threshold) kept[q * K + j] = 1;
    }
    kept[q * K + order[q * occupied]] = 1;
  }
  return kept;
}

function selectionByMass(record, topP, minKeepRatio) {
  const { Q, K } = record;
  const { occupied, order, before } = rank(record);
  const least = leastKept(record, minKeepRatio);
  const kept = new Uint8Array(Q * K);
  const limit = topP === 1 ? Infinity : topP;
  for (let q = 0; q < Q; q += 1) {
    const from = q * occupied;
    for (let at = from; at < from + occupied; at += 1) {
      if (before[at] < limit || at - from < least) kept[q * K + order[at]] = 1;
    }
  }
  return kept;
}

/** The share of all pairs that is kept where `pairs` of the video's are: prompt tokens in the same attention see all and are seen by all. */
function densityOf({ q, textTokens }, pairs) {
  const video = q.labels.length;
  const all = video + textTokens;
  return (pairs + textTokens * (2 * video + textTokens)) / (all * all);
}

/**
 * `density`, the kept share of all token pairs, and `videoDensity`, that of the video's alone; the
 * kept share of the estimated attention mass (mean over queries).
 */
export function measure(record, kept) {
  const { Q, K } = record;
  const { occupied, order, mass } = rank(record);
  const tokens = record.q.labels.length;
  let pairs = 0;
  let keptMass = 0;
  for (let q = 0; q < Q; q += 1) {
    let keys = 0;
    let share = 0;
    for (let j = 0; j < occupied; j += 1) {
      const k = order[q * occupied + j];
      if (!kept[q * K + k]) continue;
      keys += record.k.sizes[k];
      share += mass[q * occupied + j];
    }
    pairs += record.q.sizes[q] * keys;
    keptMass += record.q.sizes[q] * share;
  }
  return {
    density: densityOf(record, pairs),
    videoDensity: pairs / (tokens * tokens),
    keptMass: keptMass / tokens,
  };
}

/**
 * Density, kept mass and what is missed at every tick in one pass: entry i belongs to budget i / TICKS.
 * `missed` is a sum of squares over all queries: of the predicted errors of skipped blocks, or, where a
 * record has none, of the mass that a query cluster skips.
 */
export function curve(record, minKeepRatio) {
  const { Q, K } = record;
  const { occupied, order, mass } = rank(record);
  const firstTick = record.gain ? firstTickByError(record) : firstTickByMass(record, minKeepRatio);
  const tokens = record.q.labels.length;
  const density = new Float64Array(TICKS + 1);
  const keptMass = new Float64Array(TICKS + 1);
  const missed = new Float64Array(TICKS + 1);
  for (let q = 0; q < Q; q += 1) {
    const queries = record.q.sizes[q];
    if (!queries) continue;
    let skipped = 1; // of the mass, so far down the row; by mass it is kept in that order
    missed[0] += record.gain ? 0 : queries;
    for (let j = 0; j < occupied; j += 1) {
      const at = q * occupied + j;
      const tick = firstTick(q, j);
      const keys = record.k.sizes[order[at]];
      density[tick] += queries * keys;
      keptMass[tick] += queries * mass[at];
      if (record.gain) {
        const error = Math.exp(record.gain[q * K + order[at]]) * keys;
        missed[0] += queries * error * error;
        missed[tick] -= queries * error * error;
      } else {
        const left = Math.max(0, skipped - mass[at]);
        missed[tick] += queries * (left * left - skipped * skipped);
        skipped = left;
      }
    }
  }
  for (let i = 1; i <= TICKS; i += 1) {
    density[i] += density[i - 1];
    keptMass[i] += keptMass[i - 1];
    missed[i] += missed[i - 1];
  }
  for (let i = 0; i <= TICKS; i += 1) {
    density[i] = densityOf(record, density[i]);
    keptMass[i] /= tokens;
  }
  return { density, keptMass, missed };
}

/** The first tick at which the j-th heaviest block of row q is kept, by top-p. */
function firstTickByMass(record, minKeepRatio) {
  const { occupied, before } = rank(record);
  const least = leastKept(record, minKeepRatio);
  return (q, j) => {
    if (j < least) return 0;
    const at = q * occupied + j;
    let tick = Math.min(TICKS, Math.max(0, Math.floor(before[at] * TICKS)));
    while (tick < TICKS && !(before[at] < tick / TICKS)) tick += 1;
    return tick;
  };
}

/** The same by error: thresholds only fall as the budget grows. */
function firstTickByError(record) {
  const { K, gain, thresholds } = record;
  const { occupied, order } = rank(record);
  return (q, j) => {
    if (j === 0) return 0;
    const own = gain[q * K + order[q * occupied + j]];
    let [low, high] = [1, TICKS];
    while (low < high) {
      const mid = (low + high) >> 1;
      if (own > thresholds[mid]) high = mid;
      else low = mid + 1;
    }
    return low;
  };
}

/** The block {q, k} that is given, with what is null filled in: there the block of most mass. */
export function heaviestBlock(record, { q, k }) {
  const { occupied, order, mass } = rank(record);
  let best = null;
  let heaviest = -1;
  for (let row = q ?? 0; row < (q === null ? record.Q : q + 1); row += 1) {
    for (let j = 0; j < occupied; j += 1) {
      const column = order[row * occupied + j];
      const weight = record.q.sizes[row] * mass[row * occupied + j];
      if ((k === null || column === k) && weight > heaviest) {
        heaviest = weight;
        best = { q: row, k: column };
      }
    }
  }
  return best ?? { q: q ?? 0, k: k ?? 0 };
}
