// What a run gained and what it cost: three honest ratios kept apart, and where the time went.

import { computedShare, denseSteps } from "../data.js";
import { decibel, el, isNumber, percent, plain, plural, put, seconds, seen, times } from "../dom.js";
import { svgImage } from "../picture.js";
import { term } from "../words.js";
import { makeTimeBars, reusedNote, sharesOf } from "./timebars.js";

const KERNELS = { reference: "PyTorch", fused: "Triton" };

export function makeGain(app) {
  const introduction = el("p", {});
  const kernel = el("p", { class: "small" });
  const memory = el("p", { class: "small memory" });
  const numbers = el("dl", { class: "metrics" });
  const bars = makeTimeBars();
  const sentence = el("p", { class: "small" });
  const draw = () => bars.draw(app.data.runs[app.store.get().run]);
  return {
    node: el(
      "section",
      { class: "view", "aria-labelledby": "gain-title" },
      el(
        "div",
        { class: "side" },
        el("h3", { id: "gain-title" }, "What it gained"),
        introduction,
        kernel,
        memory,
      ),
      el("div", { class: "main" }, numbers, el("div", { class: "timebars" }, bars.chart, sentence)),
    ),
    draw,
    chart: bars.chart,
    async picture() {
      if (!bars.isDrawn()) return null;
      const parts = [{ canvas: await svgImage(bars.chart) }];
      return { title: "Where the time went", parts, columns: 1, cell: 800 };
    },
    update(state, changed) {
      if (!changed.has("run")) return;
      const run = app.data.runs[state.run];
      put(introduction, howTimed(run.result), sharedDense(app.data, run.result));
      put(kernel, ranOn(run.result, app.data.provenance));
      put(memory, memoryNote(run.result));
      put(numbers, ...metrics(run));
      put(sentence, whereTimeWent(run));
      draw();
    },
  };
}

/** How the two times came about, and so how far they can be believed. */
function howTimed({ order, dense_reused: reused, is_scaled: scaled, is_disturbed: disturbed }) {
  if (disturbed)
    return "Dense and sparse took turns, step by step, and yet the work that both share took more than a tenth longer in one of them: something else was using this machine. Their times are no measure; measure again.";
  if (order === "in turns")
    return "Dense and sparse took turns, step by step, so both met the same machine. The speedup counts sparse steps by the median of their paired ratios; the first one, which clusters from scratch, counts as it was.";
  const scale = scaled
    ? " The speedup is scaled by the work that both share, so that the machine's pace in between does not count."
    : "";
  if (reused) return `The dense run was timed earlier.${scale}`;
  return scaled
    ? `The sparse run followed the dense one.${scale}`
    : "Each was run once, the sparse run after the dense one, so what else the machine did in between counts too.";
}

/** Said where the dense seconds of several runs are those of one dense run. */
function sharedDense({ runs }, { order, is_scaled: scaled, dense_seconds: seconds }) {
  const others = runs.filter(({ result }) => result.order !== "in turns" && result.dense_seconds === seconds);
  if (scaled || order === "in turns" || others.length < 2) return "";
  return ` All ${others.length} runs here are held against one dense run, so that what slowed or sped it shows in each.`;
}

function ranOn({ backend, device: ownDevice }, provenance) {
  const impl = (typeof backend === "string" ? backend : backend?.attention) ?? provenance.impl;
  const device = ownDevice ?? provenance.device;
  const kernel = impl ? (KERNELS[impl] ?? String(impl)) : "an unknown kernel";
  return device ? `Attention ran in ${kernel} on ${device}.` : `Attention ran in ${kernel}.`;
}

/** The two loops' times, and how far the ratio of single steps spreads. */
function loopNote(r) {
  if (!isNumber(r.dense_seconds) || !isNumber(r.svg2_seconds)) return "denoising loop";
  const earlier = r.dense_reused ? "; dense timed earlier" : "";
  const spread = r.speedup_quartiles
    ? `; half of the steps after the first sparse one at ${r.speedup_quartiles.map(times).join(" to ")}`
    : "";
  return `denoising loop, ${seconds(r.dense_seconds)} → ${seconds(r.svg2_seconds)}${earlier}${spread}`;
}

/** A button that makes the run on show again; hidden unless its timing was disturbed. */
export function againButton(app) {
  const node = el(
    "button",
    { type: "button", class: "plainbutton", hidden: true, onclick: () => app.measureAgain() },
    "Measure again",
  );
  return {
    node,
    update(run) {
      node.hidden = !run.result.is_disturbed || !app.runsOnRelease();
    },
  };
}

function metric(name, value, note) {
  return el(
    "div",
    { class: "metric" },
    el("dt", {}, name),
    el("dd", {}, value),
    el("dd", { class: "note" }, note),
  );
}

function metrics({ result: r }) {
  return [
    metric(
      term("end-to-end", "End-to-end speedup"),
      r.is_disturbed ? "disturbed" : times(r.speedup),
      loopNote(r),
    ),
    metric(
      term("attention speedup", "Attention speedup"),
      r.is_disturbed ? "disturbed" : times(r.attention_speedup),
      "time in self-attention",
    ),
    metric(
      term("computed", "Computed"),
      percent(computedShare(r)),
      "of all query–key pairs, dense steps, stand-ins and routing included",
    ),
    metric(term("psnr", "PSNR"), decibel(r.psnr_db), ["against dense, raw frames", seen(r.psnr_db)].filter(Boolean).join(": ")),
    metric(term("ssim", "SSIM"), plain(r.ssim), "against dense, 1 is equal"),
    metric(term("density", "Density"), percent(r.density), "token pairs kept in sparse calls"),
  ];
}

function gibibytes(bytes) {
  return isNumber(bytes) ? `${(bytes / 2 ** 30).toFixed(2)} GiB` : "not measured";
}

/** The peaks of both sides. On a CPU both are of the whole process. */
function memoryNote({ peak_memory_bytes: sparse, dense_peak_memory_bytes: dense, device }) {
  const whose = String(device).startsWith("cuda") ? "on the GPU" : "of this process";
  return `Peak memory: ${gibibytes(sparse)} ${whose}; dense ${gibibytes(dense)}.`;
}

/** How much more memory the sparse run took, as a part of a sentence; empty where it took no more. */
export function memoryCost({ peak_memory_bytes: sparse, dense_peak_memory_bytes: dense }) {
  if (!isNumber(sparse) || !isNumber(dense) || sparse < 1.05 * dense) return "";
  return `, and ${gibibytes(sparse - dense)} more memory at the peak`;
}

const first = (n, one) => (n === 1 ? `the first ${one}` : `the first ${plural(n, one)}`);
const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** What of a run stays dense by its settings, as the start of a sentence; empty where nothing does. */
function staysDense(run) {
  const { config } = run;
  const warmSteps = denseSteps(run);
  if (warmSteps === Infinity) return "Every call stays dense";
  const layers = config.dense_layers ?? 0;
  const parts = [
    warmSteps > 0 && first(warmSteps, "step"),
    layers > 0 && first(layers, "layer"),
  ].filter(Boolean);
  if (!parts.length) return "";
  const isOne = parts.length === 1 && warmSteps + layers === 1;
  return `${capital(parts.join(" and "))} ${isOne ? "stays" : "stay"} dense`;
}

/** Said where the work that both sides share did not take the same time. */
function paceNote({ is_scaled: scaled }, { dense, sparse }) {
  const more = sparse.rest / dense.rest - 1;
  if (scaled || !(sparse.rest > 0 && Math.abs(more) > 0.05)) return "";
  return ` The rest is the same work in both; why it took ${percent(Math.abs(more), 0)} ${more > 0 ? "longer" : "less"} in the sparse run was not measured.`;
}

/** Where the time went, in words: why the loop gains less than the work does. Empty where it was not timed. */
export function whereTimeWent(run) {
  const found = sharesOf(run);
  if (!found) return "";
  const { dense, sparse } = found;
  const { compute_density, speedup } = run.result;
  const dwarfed = isNumber(compute_density) && isNumber(speedup) && speedup < 1 / compute_density;
  const stays = staysDense(run);
  return [
    `Attention is ${percent(run.result.attention_share, 0)} of the dense loop, and only that can shrink. `,
    stays ? `${stays} (${seconds(sparse.warm)} of attention); clustering` : "Clustering",
    `, sorting and selecting take ${seconds(sparse.clustering)}.`,
    dwarfed ? " So time gains less than work." : "",
    sparse.attention > 1.1 * compute_density * dense.attention ? " Blocks also take longer per pair than dense attention does." : "",
    paceNote(run.result, found),
  ].join("");
}
