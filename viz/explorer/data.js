// The payload, decoded: typed arrays from base64, records on demand.

import { budget, isNumber } from "./dom.js";

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
 */
function decodeRecord(raw, index, textTokens) {
  const [Q, K] = raw.P.shape;
  const bits = arrayOf(raw.P);
  const table = halves();
  const P = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i += 1) P[i] = table[bits[i]];
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
    P,
    kept: unpackBits(arrayOf(raw.kept), Q * K),
    q: { labels: qLabels, sizes: countsOf(qLabels, Q), rgb: arrayOf(raw.q_rgb) },
    k: { labels: kLabels, sizes: countsOf(kLabels, K), rgb: arrayOf(raw.k_rgb) },
    kNear: arrayOf(raw.k_near),
    recall: raw.recall,
  };
}

/**
 * The methods of a payload by name, in the registry's order. One that the registry does not know goes
 * by its name, and nobody knows its rule; a payload without a registry is of the top-p rule alone.
 */
function methodsOf({ methods, runs }) {
  const fallback = (name) => ({
    name,
    title: name,
    line: "",
    symbol: "circle",
    colour: null,
    rule: methods ? null : "top_p",
  });
  const known = new Map((methods ?? []).map((m) => [m.name, { ...fallback(m.name), ...m }]));
  for (const { method } of runs) if (!known.has(method)) known.set(method, fallback(method));
  return known;
}

/** "TITLE · top-p 0.9", with the clusters where the runs of a trace differ in them. */
function nameOf(run, differ) {
  const parts = [run.title];
  if (isNumber(run.config.top_p)) parts.push(`top-p ${budget(run.config.top_p)}`);
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
  const methods = methodsOf(payload);
  const runs = payload.runs.map((run, index) => ({
    index,
    method: run.method,
    title: methods.get(run.method).title,
    compensates: Boolean(methods.get(run.method).compensates ?? run.config.compensate),
    config: run.config,
    clusters: `${run.config.num_q_clusters ?? "?"}/${run.config.num_k_clusters ?? "?"}`,
    result: run.result,
    video: bytesOf(run.mp4),
    psnrFrame: arrayOf(run.psnr_frame),
    call: arrayOf(run.call),
    heads: run.density.shape[1],
    density: arrayOf(run.density),
    recorded: payload.records.some((r) => r.run === index),
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
  };
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
