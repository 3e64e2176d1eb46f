// Exact density of the N×N mask without an N×N array.
//
// A mask that is constant on (query cluster, key cluster) pairs has, over any partition of the
// tokens into bins, the density (A·M·Cᵀ) / areas, where A [bins, Q] and C [bins, K] count tokens
// of each cluster in each bin and M [Q, K] is what is kept.

/** First token of each of `bins` nearly equal runs of `tokens` tokens; the last entry is `tokens`. */
export function binEdges(tokens, bins) {
  const edges = new Int32Array(bins + 1);
  for (let i = 0; i <= bins; i += 1) edges[i] = Math.floor((i * tokens) / bins);
  return edges;
}

/** Start of each cluster once the tokens are sorted by label. */
export function offsetsOf(sizes) {
  const offsets = new Int32Array(sizes.length + 1);
  for (let c = 0; c < sizes.length; c += 1) offsets[c + 1] = offsets[c] + sizes[c];
  return offsets;
}

/** Counts of each cluster in each bin as sparse rows: cluster c has entries start[c]..start[c+1]. */
export function binCounts(labels, sizes, edges, permuted) {
  const clusters = sizes.length;
  const bins = edges.length - 1;
  const start = new Int32Array(clusters + 1);
  const bin = [];
  const count = [];
  if (permuted) {
    const offsets = offsetsOf(sizes);
    let b = 0;
    for (let c = 0; c < clusters; c += 1) {
      while (b > 0 && edges[b] > offsets[c]) b -= 1;
      for (; b < bins && edges[b] < offsets[c + 1]; b += 1) {
        const inside = Math.min(edges[b + 1], offsets[c + 1]) - Math.max(edges[b], offsets[c]);
        if (inside > 0) {
          bin.push(b);
          count.push(inside);
        }
      }
      start[c + 1] = bin.length;
    }
  } else {
    const rows = Array.from({ length: clusters }, () => new Map());
    for (let b = 0; b < bins; b += 1) {
      for (let i = edges[b]; i < edges[b + 1]; i += 1) {
        const row = rows[labels[i]];
        row.set(b, (row.get(b) ?? 0) + 1);
      }
    }
    rows.forEach((row, c) => {
      for (const [b, n] of row) {
        bin.push(b);
        count.push(n);
      }
      start[c + 1] = bin.length;
    });
  }
  return { start, bin: Int32Array.from(bin), count: Float64Array.from(count) };
}

/** A and C of a record at a number of bins, in original or permuted order. */
export function makeBins(record, bins, permuted) {
  const edges = binEdges(record.q.labels.length, bins);
  return {
    bins,
    edges,
    A: binCounts(record.q.labels, record.q.sizes, edges, permuted),
    C: binCounts(record.k.labels, record.k.sizes, edges, permuted),
  };
}

/** Kept token pairs in each (query bin, key bin), row by row. */
export function keptPairs({ bins, A, C }, kept, Q, K) {
  const pairs = new Float64Array(bins * bins);
  const row = new Float64Array(bins);
  for (let q = 0; q < Q; q += 1) {
    if (A.start[q] === A.start[q + 1]) continue;
    row.fill(0);
    for (let k = 0; k < K; k += 1) {
      if (!kept[q * K + k]) continue;
      for (let e = C.start[k]; e < C.start[k + 1]; e += 1) row[C.bin[e]] += C.count[e];
    }
    for (let e = A.start[q]; e < A.start[q + 1]; e += 1) {
      const base = A.bin[e] * bins;
      const weight = A.count[e];
      for (let j = 0; j < bins; j += 1) pairs[base + j] += weight * row[j];
    }
  }
  return pairs;
}

/** Kept fraction of each (query bin, key bin). */
export function blockDensity(binned, kept, Q, K) {
  const pairs = keptPairs(binned, kept, Q, K);
  const { bins, edges } = binned;
  for (let i = 0; i < bins; i += 1) {
    const rows = edges[i + 1] - edges[i];
    for (let j = 0; j < bins; j += 1) {
      pairs[i * bins + j] /= rows * (edges[j + 1] - edges[j]);
    }
  }
  return pairs;
}

/** Share of tile×tile blocks that hold at least one kept pair. */
export function tilesTouched(record, kept, tile, permuted) {
  const tokens = record.q.labels.length;
  const bins = Math.ceil(tokens / tile);
  const edges = new Int32Array(bins + 1);
  for (let i = 0; i <= bins; i += 1) edges[i] = Math.min(tokens, i * tile);
  const pairs = keptPairs(
    {
      bins,
      A: binCounts(record.q.labels, record.q.sizes, edges, permuted),
      C: binCounts(record.k.labels, record.k.sizes, edges, permuted),
    },
    kept,
    record.Q,
    record.K,
  );
  let touched = 0;
  for (let i = 0; i < pairs.length; i += 1) if (pairs[i] > 0) touched += 1;
  return { touched, total: bins * bins, share: touched / (bins * bins) };
}
