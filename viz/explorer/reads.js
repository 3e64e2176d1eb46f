// Which clusters attend to which: the numbers behind a lit cluster and its note.

import { rank } from "./select.js";

export const otherSide = (side) => (side === "q" ? "k" : "q");

/** The number of clusters that hold a token. */
export const countUsed = (sizes) => sizes.reduce((n, size) => n + (size > 0), 0);

/**
 * Attention mass that a cluster shares with each cluster of the other side, 0 where it is skipped.
 * A query cluster: its own mass on each key cluster. A key cluster: each query cluster's mass on it.
 */
export function massPerPartner(record, kept, side, cluster) {
  const { Q, K } = record;
  const { occupied, order, mass } = rank(record);
  const found = new Float64Array(side === "q" ? K : Q);
  for (let q = 0; q < Q; q += 1) {
    if (side === "q" && q !== cluster) continue;
    for (let j = 0; j < occupied; j += 1) {
      const k = order[q * occupied + j];
      if (!kept[q * K + k]) continue;
      if (side === "q") found[k] = mass[q * occupied + j];
      else if (k === cluster) found[q] = mass[q * occupied + j];
    }
  }
  return found;
}

/** Share of all queries' attention mass on a key cluster, kept or not (estimate). */
export function massOnKeys(record, cluster) {
  const { Q, q } = record;
  const { occupied, order, mass } = rank(record);
  let sum = 0;
  for (let row = 0; row < Q; row += 1) {
    for (let j = 0; j < occupied; j += 1) {
      const at = row * occupied + j;
      if (order[at] === cluster) sum += q.sizes[row] * mass[at];
    }
  }
  return sum / q.labels.length;
}

/** The `count` query clusters whose mass overlaps most with that of `cluster`; an overlap of 1 is equal mass. */
export function similarReaders(record, cluster, count) {
  const { Q, K } = record;
  const { occupied, order, mass } = rank(record);
  const own = new Float64Array(K);
  for (let j = 0; j < occupied; j += 1) {
    own[order[cluster * occupied + j]] = mass[cluster * occupied + j];
  }
  const found = [];
  for (let q = 0; q < Q; q += 1) {
    if (q === cluster || !record.q.sizes[q]) continue;
    let overlap = 0;
    for (let j = 0; j < occupied; j += 1) {
      const at = q * occupied + j;
      overlap += Math.min(mass[at], own[order[at]]);
    }
    found.push({ cluster: q, overlap });
  }
  return found.sort((a, b) => b.overlap - a.overlap).slice(0, count);
}

/** The number of latent frames that hold a token of the cluster. */
export function countFrames({ labels }, cluster, tokensPerFrame) {
  const frames = new Set();
  labels.forEach((label, i) => label === cluster && frames.add(Math.floor(i / tokensPerFrame)));
  return frames.size;
}
