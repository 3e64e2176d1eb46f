// The cluster that shows best what clusters are: the one that looks most like a thing.

const LEAST_TOKENS = 3; // of a cluster in a frame, to say that it is there

/**
 * Of each query cluster: in how many latent frames it lies, and how well it looks like a thing:
 * compact in every frame, off the rim (where strips of background lie), and best on the move.
 */
export function journeys(record, [T, Y, X]) {
  const { labels, sizes } = record.q;
  const sums = new Float64Array(sizes.length * T * 4); // tokens, Σx, Σy, Σ(x²+y²)
  const rim = new Int32Array(sizes.length);
  labels.forEach((c, i) => {
    const at = 4 * (c * T + Math.floor(i / (Y * X)));
    const [column, row] = [i % X, Math.floor(i / X) % Y];
    if (!column || !row || column === X - 1 || row === Y - 1) rim[c] += 1;
    const [x, y] = [column / X, row / X];
    sums[at] += 1;
    sums[at + 1] += x;
    sums[at + 2] += y;
    sums[at + 3] += x * x + y * y;
  });
  return Array.from(sizes, (size, c) => {
    let [spread, compact] = [0, 0];
    const centres = [];
    for (let t = 0; t < T; t += 1) {
      const [n, x, y, square] = sums.subarray(4 * (c * T + t), 4 * (c * T + t) + 4);
      if (n < LEAST_TOKENS) continue;
      const variance = Math.max(square / n - (x / n) ** 2 - (y / n) ** 2, 1e-9);
      spread += Math.sqrt(variance);
      compact += Math.min(1, n / (2 * Math.PI * variance * X * X)); // a full disc has 1
      centres.push([x / n, y / n]);
    }
    const frames = centres.length;
    if (!frames) return { frames, thing: 0 };
    const mean = [0, 1].map((k) => centres.reduce((sum, at) => sum + at[k], 0) / frames);
    const reach = Math.sqrt(
      centres.reduce((sum, at) => sum + (at[0] - mean[0]) ** 2 + (at[1] - mean[1]) ** 2, 0) / frames,
    );
    const travel = reach / (spread / frames + 0.05);
    return { frames, thing: ((compact / T) * (1 - rim[c] / size)) ** 2 * (0.2 + travel) };
  });
}

/** How far the colour of each query cluster lies from the mean, over the usual distance: things are rare, and unlike the rest. */
function apart({ q: { sizes, rgb } }) {
  const tokens = sizes.reduce((sum, n) => sum + n, 0);
  const mean = [0, 1, 2].map((k) => sizes.reduce((sum, n, c) => sum + n * rgb[3 * c + k], 0) / tokens);
  const far = Array.from(sizes, (_, c) => Math.hypot(...mean.map((m, k) => rgb[3 * c + k] - m)));
  const usual = Math.sqrt(far.reduce((sum, d, c) => sum + sizes[c] * d * d, 0) / tokens);
  return far.map((d) => d / Math.max(usual, 1e-9));
}

/** The query cluster, of any recorded layer at this step and head, that looks most like a thing. */
function tellingCluster(app) {
  const { data, store } = app;
  const { step, head, branch } = store.get();
  let best = { layer: store.get().layer, cluster: 0, score: -1 };
  const read = new Set();
  data.index.forEach((place, i) => {
    const here = place.step === step && place.head === head && place.branch === branch;
    if (place.run !== app.source() || !here) return;
    const record = data.record(i);
    read.add(i);
    const far = apart(record);
    journeys(record, data.grid).forEach(({ thing }, q) => {
      const share = record.q.sizes[q] / data.tokens; // neither the background nor a speck
      const score = share > 0.005 && share < 0.15 ? thing * far[q] : 0;
      if (score > best.score) best = { layer: place.layer, cluster: q, score, record: i };
    });
  });
  for (const i of read) if (i !== best.record && i !== app.recordIndex()) data.forget(i);
  return best;
}

/** The cluster that the page speaks of by itself, looked for once per run and head. */
export function makeChooser(app) {
  let chosen = null;
  let chosenAt = "";
  return () => {
    const { step, head, branch } = app.store.get();
    const at = [app.source(), step, head, branch].join(" ");
    if (chosenAt !== at) chosen = tellingCluster(app);
    chosenAt = at;
    return { side: "q", layer: chosen.layer, cluster: chosen.cluster, pair: null };
  };
}
