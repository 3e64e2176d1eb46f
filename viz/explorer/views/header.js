// What was run and on what, and in one sentence what it gave.

import { computedShare } from "../data.js";
import { choice, decibel, el, isNumber, percent, put, times } from "../dom.js";
import { save } from "../picture.js";
import { againButton } from "./gain.js";

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

/** How much was computed, what that gained, what it cost; only what was measured. */
function headline(result) {
  const { speedup, is_disturbed: disturbed, psnr_db } = result;
  const computed = computedShare(result);
  const parts = [];
  const part = (text, rest) => parts.push(parts.length ? ", " : "", el("em", {}, text), rest);
  if (isNumber(computed)) part(percent(computed, computed < 0.1 ? 1 : 0), " of the attention computed");
  if (disturbed) part("timing disturbed", "");
  else if (isNumber(speedup)) part(...pace(speedup));
  const identical = psnr_db === null;
  part(decibel(psnr_db), identical ? " to the dense clip" : " against the dense clip");
  return ["Same prompt, same seed: ", ...parts, "."];
}

/** What "64/150" stands for. */
const clustersOf = ({ config: { num_q_clusters: queries, num_k_clusters: keys } }) =>
  isNumber(queries) && isNumber(keys) ? `${queries} query clusters and ${keys} key clusters per head` : null;

/** A speedup in words: the number, and what it is. */
function pace(speedup) {
  if (speedup >= 1.005) return [times(speedup), " as fast"];
  if (speedup > 0.995) return ["as fast", " as dense"];
  return [percent(1 / speedup - 1, 0), " slower here"];
}

/** A button that fetches clips, pictures, numbers and an offline page as one file, and says how far it is. */
function zipButton(app) {
  if (!app.fetchFile) return null;
  const said = el("span", { class: "small", role: "status" });
  const button = el("button", { type: "button", class: "plainbutton", onclick: fetchZip }, "Download all (zip)");
  async function fetchZip() {
    button.disabled = true;
    try {
      const file = `export-${app.store.get().run + 1}.zip`;
      save(await app.fetchFile(file, (text) => put(said, text)), `svg2-${file}`);
      put(said, "");
    } catch (error) {
      put(said, error.message);
    }
    button.disabled = false;
  }
  return el("span", { class: "zip" }, button, said);
}

export function makeHeader(app) {
  const { data } = app;
  const { request, provenance } = data;
  const title = el("h2", { class: "headline" });
  const facts = [
    request.model && `model ${request.model}`,
    isNumber(request.seed) && `seed ${request.seed}`,
    isNumber(request.width) && `${data.frameCount} frames of ${request.width}×${request.height}`,
    isNumber(request.num_inference_steps) && `${request.num_inference_steps} steps`,
    `${data.tokens.toLocaleString("en")} tokens`,
  ].filter(Boolean);
  const measured = el("span", {});
  const which = el("span", { class: "label" });
  const again = againButton(app);
  const shownLink = el("input", { class: "linktext", readonly: true, "aria-label": "Link to this view", hidden: true });
  const copied = el("span", { class: "small", role: "status" });
  async function copy() {
    const { copied: done, text } = await app.copyLink();
    put(copied, done ? app.linkCopied() : "Copy it from here:");
    shownLink.hidden = done;
    shownLink.value = text;
    if (!done) shownLink.select();
  }
  const runs = choice(
    "Run",
    data.runs.map((run) => [run.index, run.name, clustersOf(run)]),
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
      ? el("div", { class: "runs" }, which, runs.node)
      : null,
    el(
      "div",
      { class: "headbuttons" },
      el(
        "button",
        { type: "button", class: "mainbutton", onclick: () => app.startTour() },
        "Take the tour",
      ),
      again.node,
      el("button", { type: "button", class: "plainbutton", onclick: copy }, "Copy link to this view"),
      zipButton(app),
      copied,
      shownLink,
    ),
  );
  return {
    node,
    update(state, changed) {
      if (!changed.has("run")) return;
      const run = data.runs[state.run];
      put(measured, `measured once on ${measuredOn(run, provenance).join(" · ")}`);
      put(title, ...headline(run.result));
      again.update(run);
      runs.show(state.run);
      put(which, `Measured run ${state.run + 1} of ${data.runs.length}`);
      const chosen = runs.node.querySelector("[aria-pressed=true]");
      if (chosen) {
        runs.node.scrollLeft = chosen.offsetLeft - runs.node.offsetLeft - 24;
        const bottom = chosen.offsetTop - runs.node.offsetTop + chosen.offsetHeight;
        runs.node.scrollTop = bottom - runs.node.clientHeight; // no less than 0
      }
    },
  };
}
