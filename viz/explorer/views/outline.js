// A cluster outlined on the sparse clip as it plays: the pinned one, or else the one that tells most.

import { el, plural, put } from "../dom.js";
import { drawOutlines, focusOf } from "./lighting.js";

const WAIT_MS = 300; // the first pictures come before
const WAITS = 40; // for the clip, which shows what is a thing

/** The outline, with its caption and switch. `whenFound()` is called when there is more to draw. */
export function makeOutline(app, whenFound) {
  const text = el("span", {});
  const box = el("input", {
    type: "checkbox",
    checked: true,
    onchange: () => {
      write();
      whenFound();
    },
  });
  const node = el("label", { class: "outlinenote small" }, box, text);
  let found = null;
  let timer = 0;
  /** What is outlined: a cluster of one side of the call on show. */
  const shown = () => focusOf(app.store.get()) ?? found;
  function look(waits) {
    const isDecoded = app.clips.dense.pictures.every(Boolean);
    if (!isDecoded && waits > 0) {
      timer = setTimeout(look, WAIT_MS, waits - 1);
      return;
    }
    found = app.tellingCluster();
    write();
    whenFound();
  }
  function write() {
    const now = shown();
    node.style.visibility = now ? "" : "hidden"; // its place stays, so that nothing below it jumps
    if (!now) return;
    const { side, cluster } = now;
    const { layer, head } = app.store.get();
    const record = app.record();
    const [T, Y, X] = app.data.grid;
    const frames = new Set();
    record[side].labels.forEach((c, i) => c === cluster && frames.add(Math.floor(i / (Y * X))));
    const name = side === "q" ? "query" : "key";
    put(
      text,
      `Outlined: ${name} cluster ${cluster + 1} of layer ${layer + 1}, head ${head + 1}: ${plural(record[side].sizes[cluster], "token")} in ${frames.size} of ${plural(T, "latent frame")}`,
    );
  }
  return {
    node,
    /** What is drawn, in words; empty where nothing is. */
    name: () => (box.checked && shown() ? text.textContent.replace(/^O/, "o") : ""),
    update(state, changed) {
      if (["run", "step", "layer", "head", "branch"].some((name) => changed.has(name))) {
        clearTimeout(timer);
        found = null; // its number means another cluster now
        write();
        timer = setTimeout(look, WAIT_MS, WAITS);
      } else if (["hover", "cluster", "side"].some((name) => changed.has(name))) {
        write();
        whenFound();
      }
    },
    /** Draw it over the picture of a video frame. */
    draw(context, frame) {
      const now = box.checked && shown();
      if (!now) return;
      const t = app.data.latentFrames.findIndex(([from, to]) => frame >= from && frame < to);
      if (t < 0) return;
      const { grid } = app.data;
      const cell = context.canvas.width / grid[2];
      drawOutlines(context, { record: app.record(), marked: [now], grid, cell }, t);
    },
    close: () => clearTimeout(timer),
  };
}
