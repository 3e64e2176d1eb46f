// What was run, what it gave, and on what: three honest ratios kept apart.

import {
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
} from "../dom.js";
import { term } from "../words.js";

const KERNELS = { reference: "PyTorch", fused: "Triton" };

/** Hardware, versions, commit and date of a run: its own, or else the trace's. */
export function sourceOf(run, provenance) {
  return run.result.hardware ? run.result : provenance;
}

/** Where and when a run was measured. */
function measuredOn(run, provenance) {
  const from = sourceOf(run, provenance);
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
  const warm = stage.dense_attention; // null where it could not be told apart
  const needed = [r.dense_seconds, r.svg2_seconds, r.attention_share, stage.attention, warm];
  if (!needed.every(isNumber)) return null;
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
  warm: "attention that stays dense",
  clustering: "clustering, sorting, selecting",
  rest: "the rest of the model",
};

const first = (n, one) => (n === 1 ? `the first ${one}` : `the first ${plural(n, one)}`);
const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** What of a run stays dense by its settings, as the start of a sentence; empty where nothing does. */
function staysDense({ call, config }) {
  let warmSteps = Infinity; // as they ran: a video to start from takes fewer steps than were asked for
  for (let i = 0; i < call.length; i += 3) warmSteps = Math.min(warmSteps, call[i]);
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

/** The time of one run as a bar of its parts; `longest` seconds fill the width. */
function timeBar(name, parts, total, longest, note = "") {
  const all = Object.entries(parts);
  const described = all.map(([key, s]) => `${CONCERNS[key]} ${seconds(s)}`).join(", ");
  return el(
    "div",
    { class: "timebar", role: "img", "aria-label": `${name}, ${seconds(total)}${note}: ${described}` },
    el("span", { class: "label" }, `${name} ${seconds(total)}${note}`),
    el("span", { class: "track" }, all.map(([key, s]) => barPart(key, s, s / longest))),
  );
}

/** One part of a bar, with as much text as its share of the width has room for. */
function barPart(key, s, share) {
  const name = key === "warm" ? "still dense" : key;
  const short = share > 0.05 ? seconds(s) : null;
  return el(
    "span",
    {
      class: `part ${key}${share < 0.2 ? " brief" : ""}`,
      style: `width:${(100 * share).toFixed(2)}%`,
      title: `${CONCERNS[key]}: ${seconds(s)}`,
    },
    share > 0.15 ? `${name} ${seconds(s)}` : short,
  );
}

/** Where the time went, as two bars and a sentence: why the loop gains less than the work does. */
function timeBars(run) {
  const found = shares(run);
  if (!found) return [];
  const { dense, sparse } = found;
  const { dense_seconds, svg2_seconds } = run.result;
  const longest = Math.max(dense_seconds, svg2_seconds);
  const { compute_density, speedup } = run.result;
  const dwarfed = isNumber(compute_density) && isNumber(speedup) && speedup < 1 / compute_density;
  const stays = staysDense(run);
  return [
    timeBar("Dense", dense, dense_seconds, longest, reusedNote(run.result)),
    timeBar(run.title, sparse, svg2_seconds, longest),
    el(
      "p",
      { class: "small" },
      `Attention is ${percent(run.result.attention_share, 0)} of the dense loop, and only that can shrink. `,
      stays ? `${stays} (${seconds(sparse.warm)} of attention); clustering` : "Clustering",
      `, sorting and selecting take ${seconds(sparse.clustering)}.`,
      dwarfed ? " So time gains less than work." : "",
    ),
  ];
}

/** Said after a dense time that was not measured with this run. */
export function reusedNote(result) {
  return result.dense_reused ? ", timed earlier" : "";
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
    data.runs.map((run) => [run.index, run.name]),
    (index) => app.selectRun(index),
  );
  const node = el(
    "header",
    { class: "head" },
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
