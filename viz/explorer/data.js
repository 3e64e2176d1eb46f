// The payload, decoded: typed arrays from base64, records on demand.

import { budget, isNumber, percent } from "./dom.js";

const READERS = {
  uint8: Uint8Array,
  uint16: Uint16Array,
  int32: Int32Array,
  float32: Float32Array,
};

export function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** An array of the payload: {dtype, shape, data}. float16 stays as bit patterns. */
export function arrayOf(packed) {
  const Reader = packed.dtype === "float16" ? Uint16Array : READERS[packed.dtype];
  if (!Reader) throw new Error(`The payload has an array of unknown type ${packed.dtype}.`);
  return new Reader(bytesOf(packed.data).buffer);
}

let halfTable = null;

/** The number that a float16 bit pattern stands for. */
function halves() {
  if (halfTable) return halfTable;
  halfTable = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits += 1) {
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    let value;
    if (exponent === 31) value = fraction ? NaN : Infinity;
    else if (exponent === 0) value = fraction * 2 ** -24;
    else value = (1 + fraction / 1024) * 2 ** (exponent - 15);
    halfTable[bits] = bits & 0x8000 ? -value : value;
  }
  return halfTable;
}

/** The numbers that an array of float16 patterns stands for. */
function numbersOf(bits) {
  const table = halves();
  const numbers = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i += 1) numbers[i] = table[bits[i]];
  return numbers;
}

function unpackBits(bytes, count) {
  const bits = new Uint8Array(count);
  for (let i = 0; i < count; i += 1) bits[i] = (bytes[i >> 3] >> (7 - (i & 7))) & 1;
  return bits;
}

function countsOf(labels, clusters) {
  const sizes = new Int32Array(clusters);
  for (let i = 0; i < labels.length; i += 1) sizes[labels[i]] += 1;
  return sizes;
}

/**
 * One recorded (run, step, layer, branch, head). `bits` are the float16 patterns of P, `P` the
 * numbers; `kept` is the selection as the method computed it; `textTokens` see all and are seen by all.
 * `gain` is the logarithm of each block's predicted error per key, `thresholds` what it must exceed
 * at each budget; both are null where no error was predicted.
 */
function decodeRecord(raw, index, textTokens) {
  const [Q, K] = raw.P.shape;
  const bits = arrayOf(raw.P);
  const qLabels = arrayOf(raw.q_labels);
  const kLabels = arrayOf(raw.k_labels);
  return {
    index,
    run: raw.run,
    step: raw.step,
    layer: raw.layer,
    branch: raw.branch,
    head: raw.head,
    Q,
    K,
    textTokens,
    bits,
    P: numbersOf(bits),
    gain: raw.gain ? numbersOf(arrayOf(raw.gain)) : null,
    thresholds: raw.thresholds ? arrayOf(raw.thresholds) : null,
    kept: unpackBits(arrayOf(raw.kept), Q * K),
    q: { labels: qLabels, sizes: countsOf(qLabels, Q), rgb: arrayOf(raw.q_rgb) },
    k: { labels: kLabels, sizes: countsOf(kLabels, K), rgb: arrayOf(raw.k_rgb) },
    kNear: arrayOf(raw.k_near),
    recall: raw.recall,
  };
}

const BY_PLACE = /\bin place of clusters\b/; // as the line of such a method says

/**
 * The methods of a payload by name, in the registry's order. One that the registry does not know goes
 * by its name, and nobody knows its rule; a payload without a registry is of the top-p rule alone.
 * `byPlace`: its groups of tokens are blocks of neighbours, whatever the tokens hold.
 */
function methodsOf({ methods, runs }) {
  const fallback = (name) => ({
    name,
    title: name,
    line: "",
    symbol: "circle",
    colour: null,
    rule: methods ? null : "top_p",
    byPlace: false,
  });
  const full = (m) => ({ ...fallback(m.name), ...m, byPlace: BY_PLACE.test(m.line ?? "") });
  const known = new Map((methods ?? []).map((m) => [m.name, full(m)]));
  for (const { method } of runs) if (!known.has(method)) known.set(method, fallback(method));
  return known;
}

/** What a run was asked to keep, "top-p 0.9" or "density 6 %"; empty where that is not known. */
export function askedOf({ density, top_p }) {
  if (isNumber(density)) return `density ${percent(density)}`;
  return isNumber(top_p) ? `top-p ${budget(top_p)}` : "";
}

/** "TITLE · top-p 0.9", with the clusters where the runs of a trace differ in them. */
function nameOf(run, differ) {
  const parts = [run.title];
  if (run.asked) parts.push(run.asked);
  if (differ) parts.push(run.clusters);
  return parts.join(" · ");
}

/** Everything that the views read. Records are decoded when first asked for. */
export function readPayload(payload) {
  if (!payload || payload.format !== "svg2-explorer") {
    throw new Error("This is not an explorer payload.");
  }
  if (!payload.runs.length) throw new Error("The trace holds no sparse run.");
  const decoded = new Map();
  let same = {}; // what other runs kept at the place that was last asked for
  const methods = methodsOf(payload);
  const runs = payload.runs.map((run, index) => ({
    index,
    method: run.method,
    title: methods.get(run.method).title,
    compensates: Boolean(methods.get(run.method).compensates ?? run.config.compensate),
    config: run.config,
    asked: askedOf(run.config),
    clusters: `${run.config.num_q_clusters ?? "?"}/${run.config.num_k_clusters ?? "?"}`,
    result: believed(run.result),
    video: bytesOf(run.mp4),
    psnrFrame: arrayOf(run.psnr_frame),
    call: arrayOf(run.call),
    heads: run.density.shape[1],
    density: arrayOf(run.density),
    ...recordedOf(payload.records.filter((r) => r.run === index)),
  }));
  const differ = new Set(runs.map((run) => run.clusters)).size > 1;
  for (const run of runs) run.name = nameOf(run, differ);
  return {
    request: payload.request,
    grid: payload.grid,
    tokens: payload.n_tokens,
    textTokens: payload.n_text,
    provenance: payload.provenance,
    mode: payload.mode,
    frameCount: payload.num_frames,
    latentFrames: payload.latent_frames,
    dense: { video: bytesOf(payload.dense.mp4) },
    methods,
    runs,
    index: payload.records.map(({ run, step, layer, branch, head }) => ({
      run,
      step,
      layer,
      branch,
      head,
    })),
    record(i) {
      if (!decoded.has(i)) decoded.set(i, decodeRecord(payload.records[i], i, payload.n_text));
      return decoded.get(i);
    },
    forget: (i) => decoded.delete(i),
    sameClusters(i) {
      if (same.index !== i) same = { index: i, found: sameClusters(payload.records, i) };
      return same.found;
    },
  };
}

/** A result without the speedups of a disturbed timing: nothing may count on them. */
function believed(result) {
  if (!result.is_disturbed) return result;
  return { ...result, speedup: undefined, attention_speedup: undefined };
}

/** Whether a run has records, and whether all of them hold predicted errors. */
function recordedOf(records) {
  return {
    recorded: records.length > 0,
    predicts: records.length > 0 && records.every((r) => r.gain && r.thresholds),
  };
}

/** The other runs that recorded the place of record `i` with the same clusters under the same numbers, and what they kept. */
function sameClusters(records, i) {
  const own = records[i];
  const isSame = (r) =>
    r !== own &&
    ["step", "layer", "branch", "head"].every((name) => r[name] === own[name]) &&
    ["q_labels", "k_labels"].every((name) => r[name].data === own[name].data) &&
    r.P.shape.every((n, axis) => n === own.P.shape[axis]);
  return records.filter(isSame).map((r) => ({
    run: r.run,
    kept: unpackBits(arrayOf(r.kept), r.P.shape[0] * r.P.shape[1]),
  }));
}

/**
 * Share of all query–key pairs of a run that were computed, dense steps, stand-ins and routing
 * included: what the page means by "computed" wherever it speaks of a whole run.
 */
export function computedShare({ density, density_run: overRun = density, compute_density: computed }) {
  if (![density, overRun, computed].every(isNumber) || density >= 1) return overRun;
  const sparseCalls = (1 - overRun) / (1 - density);
  return overRun + sparseCalls * (computed - density);
}

/** How many of the first steps of a run were dense, as they ran: a video to start from takes fewer steps than were asked for. */
export function denseSteps({ call }) {
  let steps = Infinity;
  for (let i = 0; i < call.length; i += 3) steps = Math.min(steps, call[i]);
  return steps;
}

/** A payload from bytes, gzipped or not. */
export async function parsePayload(bytes) {
  const zipped = bytes[0] === 0x1f && bytes[1] === 0x8b;
  const stream = new Blob([bytes]).stream();
  const text = await new Response(
    zipped ? stream.pipeThrough(new DecompressionStream("gzip")) : stream,
  ).text();
  return JSON.parse(text);
}
