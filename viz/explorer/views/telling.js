// The cluster that shows best what clusters are: the one that looks most like a thing.

const LEAST_TOKENS = 3; // of a cluster in a frame, to say that it is there
const LEAST_COMPARED = 40; // tokens that each is compared with
const PAIRS = 1e6; // that are compared, about
const ALIKE = 35; // of 255, in each colour
const LEAST_VIVID = 0.1; // of what is grey

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

/**
 * How much each token of the dense clip looks like a thing's: vivid, and unlike the others. Null until the clip
 * is decoded.
 */
function vividness({ data: { grid, latentFrames }, clips: { dense } }) {
  if (!dense.pictures.every(Boolean)) return null;
  const [T, Y, X] = grid;
  const colours = new Uint8ClampedArray(4 * T * Y * X);
  const context = new OffscreenCanvas(X, Y).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  latentFrames.forEach(([from, to], t) => {
    context.drawImage(dense.pictures[Math.floor((from + to - 1) / 2)], 0, 0, X, Y);
    colours.set(context.getImageData(0, 0, X, Y).data, 4 * t * Y * X);
  });
  const tokens = T * Y * X;
  const compared = Math.min(tokens, Math.max(LEAST_COMPARED, Math.floor(PAIRS / tokens)));
  return Float32Array.from({ length: tokens }, (_, i) => {
    const [r, g, b] = [colours[4 * i], colours[4 * i + 1], colours[4 * i + 2]];
    let alike = 0;
    for (let n = 0; n < compared; n += 1) {
      const j = 4 * Math.floor((n * tokens) / compared);
      const far = (r - colours[j]) ** 2 + (g - colours[j + 1]) ** 2 + (b - colours[j + 2]) ** 2;
      alike += Math.exp(-far / (2 * ALIKE * ALIKE));
    }
    const saturation = (Math.max(r, g, b) - Math.min(r, g, b)) / 255;
    return (LEAST_VIVID + saturation) ** 2 / ((alike + 1) / compared);
  });
}

/** The mean of a number per token over each query cluster. */
function meansOf({ q: { labels, sizes } }, values) {
  const sums = new Float64Array(sizes.length);
  labels.forEach((c, i) => {
    sums[c] += values[i];
  });
  return sums.map((sum, c) => sum / Math.max(sizes[c], 1));
}

/** The query cluster of the call on show that looks most like a thing. */
function tellingCluster({ data }, record, vivid) {
  const means = vivid && meansOf(record, vivid);
  const scores = journeys(record, data.grid).map(({ thing }, q) => {
    const share = record.q.sizes[q] / data.tokens; // neither the background nor a speck
    return share > 0.005 && share < 0.15 ? thing * (means ? means[q] : 1) : 0;
  });
  return scores.indexOf(Math.max(...scores));
}

/** The cluster that the page speaks of by itself: of each call on show one, and one more once the clip is decoded. */
export function makeChooser(app) {
  let vivid = null;
  let chosen = { record: null, sawClip: false, cluster: null };
  return () => {
    const record = app.record();
    vivid ??= vividness(app);
    const sawClip = vivid !== null;
    if (chosen.record !== record || chosen.sawClip !== sawClip)
      chosen = { record, sawClip, cluster: tellingCluster(app, record, vivid) };
    return { side: "q", cluster: chosen.cluster, pair: null };
  };
}
