// What was run, what it gave, and on what: three honest ratios kept apart.

import {
  budget,
  choice,
  decibel,
  el,
  isNumber,
  percent,
  plain,
  plural,
  put,
  seconds,
  times,
} from "./dom.js";
import { term } from "./words.js";

const KERNELS = { reference: "PyTorch", fused: "Triton" };

/** Where and when a run was measured. */
function measuredOn(run, provenance) {
  const from = run.result.hardware ? run.result : provenance;
  return [
    from.hardware ?? from.device ?? "unknown hardware",
    typeof from.date === "string" && from.date.slice(0, 10),
    from.commit && `commit ${String(from.commit).slice(0, 8)}`,
  ].filter(Boolean);
}

/** What was skipped, what that gained, what it cost; only what was measured. */
function headline({ density, density_run: overRun = density, speedup, psnr_db }) {
  const parts = [];
  const part = (text, rest) => parts.push(parts.length ? ", " : "", el("em", {}, text), rest);
  if (isNumber(overRun)) part(percent(1 - overRun, 0), " of token pairs skipped");
  if (isNumber(speedup)) part(times(speedup), speedup >= 1.005 ? " as fast" : " the speed");
  const identical = psnr_db === null;
  part(decibel(psnr_db), identical ? " to the dense clip" : " against the dense clip");
  return ["Same prompt, same seed: ", ...parts, "."];
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

function metrics(run, data) {
  const r = run.result;
  const backend = r.backend ?? {};
  const impl = (typeof backend === "string" ? backend : backend.attention) ?? data.provenance.impl;
  const device = r.device ?? data.provenance.device;
  const loop =
    isNumber(r.dense_seconds) && isNumber(r.svg2_seconds)
      ? `denoising loop, ${seconds(r.dense_seconds)} → ${seconds(r.svg2_seconds)}${r.dense_reused ? "; dense timed earlier" : ""}`
      : "denoising loop";
  const kept = isNumber(r.density_run)
    ? `token pairs kept in sparse calls; ${percent(r.density_run)} over the whole run`
    : "token pairs kept in sparse calls";
  return [
    metric(term("end-to-end", "End-to-end speedup"), times(r.speedup), loop),
    metric(
      term("attention speedup", "Attention speedup"),
      times(r.attention_speedup),
      "time in self-attention",
    ),
    metric(
      term("FLOP ratio"),
      isNumber(r.compute_density) ? times(1 / r.compute_density) : "not measured",
      isNumber(r.compute_density)
        ? `work in sparse calls: 1 / ${percent(r.compute_density)}`
        : "work in sparse calls",
    ),
    metric(term("psnr", "PSNR"), decibel(r.psnr_db), "against dense, raw frames"),
    metric(term("ssim", "SSIM"), plain(r.ssim), "against dense, 1 is equal"),
    metric(term("density", "Density"), percent(r.density), kept),
    metric(
      "Kernel",
      impl ? (KERNELS[impl] ?? String(impl)) : "not recorded",
      device ? `ran on ${device}` : "device not recorded",
    ),
  ];
}

/** The seconds of one denoising loop by what they went to, largest concern first. */
function shares(run) {
  const r = run.result;
  const stage = r.stage_seconds ?? {};
  const needed = [r.dense_seconds, r.svg2_seconds, r.attention_share, stage.attention];
  if (!needed.every(isNumber)) return null;
  const warm = stage.dense_attention ?? 0;
  const clustering = (stage.kmeans ?? 0) + (stage.permute ?? 0) + (stage.select ?? 0);
  const dense = r.attention_share * r.dense_seconds;
  return {
    dense: { attention: dense, rest: Math.max(r.dense_seconds - dense, 0) },
    sparse: {
      attention: stage.attention,
      warm,
      clustering,
      rest: Math.max(r.svg2_seconds - stage.attention - warm - clustering, 0),
    },
  };
}

const CONCERNS = {
  attention: "attention",
  warm: "attention of dense steps",
  clustering: "clustering, sorting, selecting",
  rest: "the rest of the model",
};

/** Where the time went, as two bars and a sentence: why the loop gains less than the work does. */
function timeBars(run) {
  const found = shares(run);
  if (!found) return [];
  const { dense, sparse } = found;
  const longest = Math.max(run.result.dense_seconds, run.result.svg2_seconds);
  const bar = (name, parts, total) =>
    el(
      "div",
      { class: "timebar", role: "img", "aria-label": `${name}, ${seconds(total)}: ${Object.entries(parts).map(([key, s]) => `${CONCERNS[key]} ${seconds(s)}`).join(", ")}` },
      el("span", { class: "label" }, `${name} ${seconds(total)}`),
      el(
        "span",
        { class: "track" },
        Object.entries(parts).map(([key, s]) =>
          el(
            "span",
            { class: `part ${key}`, style: `width:${((100 * s) / longest).toFixed(2)}%` },
            s / longest > 0.1 ? `${key === "warm" ? "dense steps" : key} ${seconds(s)}` : "",
          ),
        ),
      ),
    );
  const warmSteps = Math.ceil(
    (run.config.warmup_fraction ?? 0) * (run.result.num_inference_steps ?? 0) - 1e-9,
  );
  return [
    bar("Dense", dense, run.result.dense_seconds),
    bar(run.method, sparse, run.result.svg2_seconds),
    el(
      "p",
      { class: "small" },
      `Attention is ${percent(run.result.attention_share, 0)} of the dense loop, and only that shrinks. `,
      warmSteps > 0
        ? `The first ${plural(warmSteps, "step")} stay dense (${seconds(sparse.warm)} of attention); clustering`
        : "Clustering",
      `, sorting and selecting take ${seconds(sparse.clustering)}. So time gains less than work.`,
    ),
  ];
}

/** "svg2 · top-p 0.9"; only the method where the run has no budget. */
export function runName(run) {
  const { top_p } = run.config;
  return isNumber(top_p) ? `${run.method} · top-p ${budget(top_p)}` : run.method;
}

export function makeHeader(app) {
  const { data } = app;
  const { request, provenance } = data;
  const title = el("h2", { class: "headline" });
  const numbers = el("dl", { class: "metrics" });
  const timesNode = el("div", { class: "timebars" });
  const facts = [
    request.model && `model ${request.model}`,
    isNumber(request.seed) && `seed ${request.seed}`,
    isNumber(request.width) && `${data.frameCount} frames of ${request.width}×${request.height}`,
    isNumber(request.num_inference_steps) && `${request.num_inference_steps} steps`,
    `${data.tokens.toLocaleString("en")} tokens`,
  ].filter(Boolean);
  const measured = el("span", {});
  const shownLink = el("input", { class: "linktext", readonly: true, "aria-label": "Link to this view", hidden: true });
  const copied = el("span", { class: "small", role: "status" });
  async function copy() {
    const { copied: done, text } = await app.copyLink();
    put(copied, done ? "Link copied" : "Copy it from here:");
    shownLink.hidden = done;
    shownLink.value = text;
    if (!done) shownLink.select();
  }
  const runs = choice(
    "Run",
    data.runs.map((run) => [run.index, runName(run)]),
    (index) => app.selectRun(index),
  );
  const node = el(
    "header",
    { class: "head", "data-view": "head" },
    app.standalone ? el("h1", { class: "brand" }, "SVG2 Lab") : null,
    el(
      "p",
      { class: "eyebrow" },
      el("span", { class: "mode" }, data.mode),
      measured,
    ),
    title,
    el(
      "p",
      { class: "prompt" },
      el("q", {}, request.prompt ?? ""),
      el("span", {}, facts.join(" · ")),
    ),
    data.runs.length > 1
      ? el("div", { class: "runs" }, el("span", { class: "label" }, "Measured run"), runs.node)
      : null,
    numbers,
    timesNode,
    el(
      "div",
      { class: "headbuttons" },
      el(
        "button",
        { type: "button", class: "mainbutton", onclick: () => app.startTour() },
        "Take the tour",
      ),
      el("button", { type: "button", class: "plainbutton", onclick: copy }, "Copy link to this view"),
      copied,
      shownLink,
    ),
  );
  return {
    node,
    update(state, changed) {
      if (!changed.has("run")) return;
      const run = data.runs[state.run];
      put(measured, `measured on ${measuredOn(run, provenance).join(" · ")}`);
      put(title, ...headline(run.result));
      put(numbers, ...metrics(run, data));
      put(timesNode, ...timeBars(run));
      runs.show(state.run);
    },
  };
}
