// What a run gained and what it cost: three honest ratios kept apart, and where the time went.

import { decibel, el, isNumber, percent, plain, plural, put, seconds, times } from "../dom.js";
import { term } from "../words.js";

const KERNELS = { reference: "PyTorch", fused: "Triton" };

export function makeGain(app) {
  const introduction = el("p", {});
  const kernel = el("p", { class: "small" });
  const numbers = el("dl", { class: "metrics" });
  const bars = el("div", { class: "timebars" });
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
      ),
      el("div", { class: "main" }, numbers, bars),
    ),
    picture: () => pictureOf(bars),
    update(state, changed) {
      if (!changed.has("run")) return;
      const run = app.data.runs[state.run];
      put(introduction, howTimed(run.result));
      put(kernel, ranOn(run.result, app.data.provenance));
      put(numbers, ...metrics(run));
      put(bars, ...timeBars(run));
    },
  };
}

/** The bars as they stand on the page. */
function pictureOf(bars) {
  if (!bars.childElementCount) return null;
  const box = bars.getBoundingClientRect();
  const draw = (context, x, y, width) => {
    const scale = width / box.width;
    for (const node of bars.querySelectorAll(".label, .part")) {
      const { left, top, width: w, height: h } = node.getBoundingClientRect();
      const at = [x + (left - box.left) * scale, y + (top - box.top) * scale, w * scale - 2, h * scale];
      const style = getComputedStyle(node);
      // Its stripes are no colour; as a picture it is plain.
      context.fillStyle = node.classList.contains("warm") ? style.borderColor : style.backgroundColor;
      context.fillRect(...at);
      context.font = `${13 * scale}px ${style.fontFamily}`;
      context.fillStyle = style.color;
      if (style.fontSize !== "0px") context.fillText(node.textContent, at[0] + 4, at[1] + h * scale * 0.68);
    }
  };
  const last = [...bars.querySelectorAll(".timebar")].at(-1).getBoundingClientRect();
  const height = ((last.bottom - box.top) * 800) / box.width;
  return { title: "Where the time went", parts: [{ draw, height }], columns: 1, cell: 800 };
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
  return `The sparse run followed the dense one.${scale}`;
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
    ? `; steps ${r.speedup_quartiles.map((x) => x.toFixed(2)).join(" to ")}`
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

/**
 * Share of all query–key pairs of a run that were computed, dense steps, stand-ins and routing
 * included: what the page means by "computed" wherever it speaks of a whole run.
 */
export function computedShare({ density, density_run: overRun = density, compute_density: computed }) {
  if (![density, overRun, computed].every(isNumber) || density >= 1) return overRun;
  const sparseCalls = (1 - overRun) / (1 - density);
  return overRun + sparseCalls * (computed - density);
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
    metric(term("psnr", "PSNR"), decibel(r.psnr_db), "against dense, raw frames"),
    metric(term("ssim", "SSIM"), plain(r.ssim), "against dense, 1 is equal"),
    metric(term("density", "Density"), percent(r.density), "token pairs kept in sparse calls"),
    metric("Peak memory", gibibytes(r.peak_memory_bytes), memoryNote(r)),
  ];
}

function gibibytes(bytes) {
  return isNumber(bytes) ? `${(bytes / 2 ** 30).toFixed(2)} GiB` : "not measured";
}

/** The dense side's peak beside it. On a CPU both are of the whole process. */
function memoryNote({ dense_peak_memory_bytes: dense, device }) {
  const whose = String(device).startsWith("cuda") ? "on the GPU" : "of this process";
  return `${whose}; dense ${gibibytes(dense)}`;
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
