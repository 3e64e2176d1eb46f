// Exact density of the N×N mask without an N×N array.
//
// A mask that is constant on (query cluster, key cluster) pairs has, over any partition of the
// tokens into bins, the density (A·M·Cᵀ) / areas, where A [bins, Q] and C [bins, K] count tokens
// of each cluster in each bin and M [Q, K] is what is kept. That holds for any order of the
// tokens, so the orders between the original and the sorted one are as exact as both ends.

/** Start of each cluster once the tokens are sorted by label. */
export function offsetsOf(sizes) {
  const offsets = new Int32Array(sizes.length + 1);
  for (let c = 0; c < sizes.length; c += 1) offsets[c + 1] = offsets[c] + sizes[c];
  return offsets;
}

/** Place of each token in the stable sort by label. */
export function sortedPlaces({ labels, sizes }) {
  const next = offsetsOf(sizes);
  const place = new Int32Array(labels.length);
  for (let i = 0; i < labels.length; i += 1) {
    place[i] = next[labels[i]];
    next[labels[i]] += 1;
  }
  return place;
}

/**
 * Place of each token on the way from the original order (0) to the sorted one (1). In between
 * two tokens may share a place; the ends are whole permutations.
 */
export function placesAt(side, sort) {
  if (sort >= 1) return sortedPlaces(side);
  const place = new Int32Array(side.labels.length);
  const sorted = sort > 0 ? sortedPlaces(side) : null;
  for (let i = 0; i < place.length; i += 1) {
    place[i] = sorted ? Math.round(i + sort * (sorted[i] - i)) : i;
  }
  return place;
}

/** First place of each of `bins` nearly equal runs of places from..to; the last entry is `to`. */
function binEdges(from, to, bins) {
  const edges = new Int32Array(bins + 1);
  for (let i = 0; i <= bins; i += 1) edges[i] = from + Math.floor((i * (to - from)) / bins);
  return edges;
}

/**
 * One axis of a mask: tokens at their places, cut into bins from edge to edge. Counts of each
 * cluster in each bin are sparse rows: cluster c has entries start[c]..start[c+1].
 */
function makeAxis({ labels, sizes }, place, edges) {
  const bins = edges.length - 1;
  const clusters = sizes.length;
  const first = edges[0];
  const binOfPlace = new Int32Array(edges[bins] - first);
  for (let b = 0; b < bins; b += 1) {
    binOfPlace.fill(b, edges[b] - first, edges[b + 1] - first);
  }
  const dense = new Int32Array(clusters * bins);
  const length = new Float64Array(bins);
  for (let i = 0; i < labels.length; i += 1) {
    const b = binOfPlace[place[i] - first];
    if (b === undefined) continue; // outside of what is in view
    dense[labels[i] * bins + b] += 1;
    length[b] += 1;
  }
  const start = new Int32Array(clusters + 1);
  for (let c = 0; c < clusters; c += 1) {
    let entries = 0;
    for (let b = 0; b < bins; b += 1) if (dense[c * bins + b]) entries += 1;
    start[c + 1] = start[c] + entries;
  }
  const bin = new Int32Array(start[clusters]);
  const count = new Float64Array(start[clusters]);
  let e = 0;
  for (let c = 0; c < clusters; c += 1) {
    for (let b = 0; b < bins; b += 1) {
      const n = dense[c * bins + b];
      if (!n) continue;
      bin[e] = b;
      count[e] = n;
      e += 1;
    }
  }
  return { bins, start, bin, count, length };
}

/**
 * Bins of a record's mask: `sort` from 0, original order, to 1, sorted by cluster; `view` bounds
 * the places in view as {rows: [from, to], columns: [from, to]}.
 */
export function makeBins(record, most, sort, view = null) {
  const tokens = record.q.labels.length;
  const axis = (side, [from, to]) =>
    makeAxis(side, placesAt(side, sort), binEdges(from, to, Math.min(most, to - from)));
  return {
    rows: axis(record.q, view?.rows ?? [0, tokens]),
    columns: axis(record.k, view?.columns ?? [0, tokens]),
  };
}

/**
 * A function from a selection to the kept token pairs of each (query bin, key bin), row by row. In
 * place of 0 and 1 it may hold weights up to 255, which the pairs then count with.
 * What a query cluster keeps of each key bin is carried over, so that a tick pays for what changed.
 */
function pairCounter({ rows, columns }, { Q, K }) {
  const width = columns.bins;
  const reads = new Float32Array(Q * width); // counts, exact up to 2^24
  const last = new Uint8Array(Q * K);
  return (kept) => {
    const pairs = new Float32Array(rows.bins * width);
    for (let q = 0; q < Q; q += 1) {
      const [from, to] = [rows.start[q], rows.start[q + 1]];
      if (from === to) continue;
      const base = q * width;
      for (let at = q * K; at < (q + 1) * K; at += 1) {
        if (kept[at] === last[at]) continue;
        const change = kept[at] - last[at];
        last[at] = kept[at];
        const k = at - q * K;
        for (let e = columns.start[k]; e < columns.start[k + 1]; e += 1) {
          reads[base + columns.bin[e]] += change * columns.count[e];
        }
      }
      for (let e = from; e < to; e += 1) {
        const row = rows.bin[e] * width;
        const weight = rows.count[e];
        for (let j = 0; j < width; j += 1) pairs[row + j] += weight * reads[base + j];
      }
    }
    return pairs;
  };
}

/** A function from a selection to the kept fraction, or mean weight, of each (query bin, key bin). */
export function blockDensity(shape, record) {
  const count = pairCounter(shape, record);
  const { rows, columns } = shape;
  const inverse = (lengths) => lengths.map((n) => (n ? 1 / n : 0)); // no tokens, no pairs
  const [perRow, perColumn] = [inverse(rows.length), inverse(columns.length)];
  return (kept) => {
    const pairs = count(kept);
    for (let i = 0; i < rows.bins; i += 1) {
      for (let j = 0; j < columns.bins; j += 1) {
        pairs[i * columns.bins + j] *= perRow[i] * perColumn[j];
      }
    }
    return pairs;
  };
}

function bitCount(word) {
  let n = word - ((word >>> 1) & 0x55555555);
  n = (n & 0x33333333) + ((n >>> 2) & 0x33333333);
  return (((n + (n >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
}

/** Which clusters each tile holds and which tiles each cluster is in, the latter as bit sets. */
function tilesOf({ labels, sizes }, tile, permuted) {
  const place = placesAt({ labels, sizes }, permuted ? 1 : 0);
  const tiles = Math.ceil(labels.length / tile);
  const words = (tiles + 31) >> 5;
  const bits = new Int32Array(sizes.length * words);
  for (let i = 0; i < labels.length; i += 1) {
    const t = Math.floor(place[i] / tile);
    bits[labels[i] * words + (t >> 5)] |= 1 << (t & 31);
  }
  return { tiles, words, bits };
}

/**
 * What a kernel of square tiles has to compute for a selection: `touched` of `total` tiles hold
 * a kept pair, `share` is that ratio, `waste` the part of the pairs in them that is not kept.
 */
export function tilesTouched(record, kept, tile, permuted) {
  const tokens = record.q.labels.length;
  const { Q, K } = record;
  const q = tilesOf(record.q, tile, permuted);
  const k = tilesOf(record.k, tile, permuted);
  const rows = new Int32Array(q.tiles * k.words);
  const reads = new Int32Array(k.words);
  let keptPairs = 0;
  for (let c = 0; c < Q; c += 1) {
    if (!record.q.sizes[c]) continue;
    reads.fill(0);
    let keys = 0;
    for (let j = 0; j < K; j += 1) {
      if (!kept[c * K + j]) continue;
      keys += record.k.sizes[j];
      for (let w = 0; w < k.words; w += 1) reads[w] |= k.bits[j * k.words + w];
    }
    keptPairs += keys * record.q.sizes[c];
    for (let t = 0; t < q.tiles; t += 1) {
      if (!((q.bits[c * q.words + (t >> 5)] >>> (t & 31)) & 1)) continue;
      for (let w = 0; w < k.words; w += 1) rows[t * k.words + w] |= reads[w];
    }
  }
  const lastTile = tokens - (k.tiles - 1) * tile; // the last one may be smaller
  let touched = 0;
  let pairs = 0;
  for (let t = 0; t < q.tiles; t += 1) {
    let found = 0;
    for (let w = 0; w < k.words; w += 1) found += bitCount(rows[t * k.words + w]);
    const holdsLast = (rows[(t + 1) * k.words - 1] >>> ((k.tiles - 1) & 31)) & 1;
    touched += found;
    const height = t === q.tiles - 1 ? tokens - t * tile : tile;
    pairs += height * (found * tile - (holdsLast ? tile - lastTile : 0));
  }
  return {
    touched,
    total: q.tiles * k.tiles,
    share: touched / (q.tiles * k.tiles),
    waste: pairs ? 1 - keptPairs / pairs : 0,
  };
}
