// Dense and sparse, or two sparse runs, in step: one clock, two canvases.

import { choice, clamp, decibel, el, fit, onFrame, put, seconds } from "../dom.js";
import { paint, pictureAt } from "../frames.js";
import { term } from "../words.js";
import { reusedNote } from "./timebars.js";
import { makeMiniMasks } from "./minimasks.js";
import { makeOutline } from "./outline.js";
import { makePsnrLine } from "./psnrline.js";
import { makeTransport } from "./transport.js";

const GAIN = 8;
const BLINK_MS = 500;
const TITLES = { wipe: "Wipe", difference: "Difference", blink: "In turns" };
const HAS_CLIP_RIGHT = ["side", "difference"]; // in the other modes their difference stands there
const MODES = [
  ["side", "Side by side"],
  ["wipe", "Wipe", "Drag over the clip: one run left of the line, the other right of it"],
  ["difference", `Difference ×${GAIN}`, "Absolute difference of the two frames, enlarged"],
  ["blink", "Blink", "The two take turns, twice a second"],
];

export function makeCompare(app) {
  const { store } = app;
  const modes = choice("How to compare", MODES, (mode) => store.set({ compare: mode }));
  const words = makeIntroduction(app);
  const beside = makeBeside(app);
  const stage = makeStage(app);
  const psnrLine = makePsnrLine(app);
  const transport = makeTransport(app);
  const trouble = el("p", { class: "notice", hidden: true });
  const outline = app.hasRecords ? makeOutline(app, () => draw()) : null;
  const minis = app.hasRecords ? makeMiniMasks(app) : null;
  const draw = onFrame(() => drawStage(app, stage, outline));
  return {
    node: el(
      "section",
      { class: "view clipsfirst", "aria-labelledby": "compare-title" },
      el("div", { class: "side" }, words.node, beside?.node, modes.node, minis?.node, psnrLine.node),
      el("div", { class: "main" }, stage.node, stage.wipeRow, transport.node, outline?.node, trouble),
    ),
    draw() {
      draw();
      minis?.draw();
    },
    close() {
      outline?.close();
      minis?.close();
    },
    drawClips: draw,
    picture: () => pictureOf(app, stage, outline),
    files: ["GIF", "WebP"],
    tick: () => store.get().compare === "blink" && draw(),
    failClips(text) {
      trouble.hidden = false;
      put(trouble, text);
    },
    update(state, changed) {
      psnrLine.update(state, changed);
      transport.update(state);
      outline?.update(state, changed);
      minis?.update(state, changed);
      if (["run", "against", "compare"].some((n) => changed.has(n))) {
        modes.show(state.compare);
        beside?.show(state);
        words.show(state);
        showCaptions(stage, state.compare, sidesOf(app));
      }
      if (changed.has("wipe")) stage.wipe.value = Math.round(state.wipe * 100);
      if (["run", "against", "frame", "compare", "wipe"].some((n) => changed.has(n))) draw();
    },
  };
}

/** What the two clips have in common, and what sets them apart. */
function makeIntroduction({ data }) {
  const text = el("p", {});
  const pairs = ["every pair of a query and a key ", term("token"), " was computed"];
  const few = [" that matter most, block by block, between ", term("cluster", "clusters"), " of tokens that are alike"];
  return {
    node: [el("h3", { id: "compare-title" }, "Compare"), text],
    show({ run, against }) {
      if (against === null) {
        put(text, "Both clips start from the same noise. On the left ", pairs, "; on the right only those", few, ".");
        return;
      }
      const drift = (index) => decibel(data.runs[index].result.psnr_db);
      put(
        text,
        "Two sparse runs from the same noise: each computed only the pairs",
        few,
        `. Against the dense clip the left one has ${drift(against)}, the right one ${drift(run)}.`,
      );
    },
  };
}

/** Both canvases with their captions, and the wipe line's slider. */
function makeStage(app) {
  const { store } = app;
  const { width = 256, height = 256 } = app.data.request; // holds the place until the clips are there
  const shape = { width, height };
  const left = el("canvas", { ...shape, role: "img", "aria-label": "Dense clip" });
  const right = el("canvas", { ...shape, role: "img", "aria-label": "Sparse clip" });
  const leftName = el("figcaption", {});
  const rightName = el("figcaption", {});
  const leftEnd = el("span", {});
  const rightEnd = el("span", {});
  const wipe = el("input", {
    type: "range",
    min: 0,
    max: 100,
    step: 1,
    "aria-label": "Position of the wipe line, percent from the left",
    oninput: () => store.set({ wipe: Number(wipe.value) / 100 }),
  });
  left.addEventListener("pointermove", (event) => {
    if (store.get().compare !== "wipe") return;
    const box = left.getBoundingClientRect();
    store.set({ wipe: clamp((event.clientX - box.left) / box.width, 0, 1) });
  });
  return {
    node: el(
      "div",
      { class: "stage" },
      el("figure", { class: "dense" }, leftName, left),
      el("figure", { class: "sparse" }, rightName, right),
    ),
    left,
    right,
    leftName,
    rightName,
    leftEnd,
    rightEnd,
    wipe,
    wipeRow: el(
      "div",
      { class: "wiperow" },
      leftEnd,
      wipe,
      rightEnd,
    ),
  };
}

/** A choice of what stands on the left; null where there is one sparse run. */
function makeBeside({ data, store }) {
  if (data.runs.length < 2) return null;
  const select = el("select", {
    "aria-label": "Clip on the left",
    onchange: () => store.set({ against: select.value === "" ? null : Number(select.value) }),
  });
  return {
    node: el("label", { class: "beside" }, el("span", { class: "label" }, "On the left"), select),
    show({ run, against }) {
      const others = data.runs.filter((other) => other.index !== run);
      put(
        select,
        el("option", { value: "" }, "Dense"),
        others.map(({ index, name }) => el("option", { value: String(index) }, name)),
      );
      select.value = against === null ? "" : String(against);
    },
  };
}

/** Name, clip and seconds of what stands on the left and on the right. */
function sidesOf({ data, clips, store }) {
  const { run, against } = store.get();
  const sparse = (index) => {
    const { name, result } = data.runs[index];
    return { name, short: name, label: `Clip of ${name}`, clip: clips.sparse(index), seconds: result.svg2_seconds };
  };
  const { result } = data.runs[run];
  const dense = {
    ...{ name: "Dense", short: "dense", label: "Dense clip", clip: clips.dense },
    ...{ seconds: result.dense_seconds, note: reusedNote(result) },
  };
  return { left: against === null ? dense : sparse(against), right: sparse(run) };
}

/** Caption and accessible name of the left canvas in a mode, and of what stands beside it. */
function textsOf(mode, { left, right }) {
  const clip = [right.name, right.label];
  const apart = [
    `|${left.short} − ${right.name}| × ${GAIN}, from the encoded clips`,
    `Difference of the clips of ${left.short} and ${right.name}, ${GAIN} times enlarged`,
  ];
  const wipe = [`${left.name} | ${right.name}`, `Wipe: ${left.label} left of the line, ${right.name} right of it`];
  return {
    side: [[left.name, left.label], clip],
    wipe: [wipe, apart],
    difference: [apart, clip],
    blink: [[left.name, `${left.label} and ${right.name} in turns`], apart],
  }[mode];
}

function pictureOf(app, stage, outline) {
  const { frame, compare } = app.store.get();
  const sides = sidesOf(app);
  const both = `${sides.left.name} and ${sides.right.name}`;
  const shown = (side) => ({ canvas: stage[side], label: stage[`${side}Name`].firstChild?.textContent });
  const outlined = HAS_CLIP_RIGHT.includes(compare) && outline?.name();
  return {
    title: compare === "side" ? both : `${TITLES[compare]}: ${both}`,
    parts: [shown("left"), shown("right")],
    columns: 2,
    cell: 480,
    place: [`frame ${frame + 1} of ${app.data.frameCount}`, outlined].filter(Boolean).join(", "),
  };
}

function showCaptions(stage, mode, sides) {
  const isSide = mode === "side";
  const took = (side) =>
    Number.isFinite(side.seconds) ? el("span", { class: "took" }, seconds(side.seconds), side.note ?? "") : null;
  const [[caption, label], [rightCaption, rightLabel]] = textsOf(mode, sides);
  put(stage.leftName, caption, isSide ? took(sides.left) : null);
  put(stage.rightName, rightCaption, HAS_CLIP_RIGHT.includes(mode) ? took(sides.right) : null);
  const hasDense = sides.left.short === "dense"; // names of runs are too long for the ends of a slider
  put(stage.leftEnd, hasDense ? "dense" : "");
  put(stage.rightEnd, hasDense ? "sparse" : "");
  stage.left.setAttribute("aria-label", label);
  stage.right.setAttribute("aria-label", rightLabel);
  stage.wipeRow.hidden = mode !== "wipe";
}

function drawStage(app, stage, outline) {
  const { compare, frame, wipe } = app.store.get();
  const { left, right } = sidesOf(app);
  const a = pictureAt(left.clip, frame);
  const b = pictureAt(right.clip, frame);
  if (!a || !b) return;
  const context = sized(stage.left, left.clip);
  const beside = sized(stage.right, right.clip);
  if (HAS_CLIP_RIGHT.includes(compare)) {
    paint(beside, b);
    outline?.draw(beside, frame);
  } else paint(beside, difference(a, b));
  if (compare === "side") paint(context, a);
  else if (compare === "difference") paint(context, difference(a, b));
  else if (compare === "blink") {
    const isRight = Math.floor(performance.now() / BLINK_MS) % 2 === 1;
    paint(context, isRight ? b : a);
    put(stage.leftName, isRight ? right.name : left.name);
  } else paintWipe(context, a, b, wipe);
}

/** The canvas's context, with small clips enlarged by whole pixels to what the page shows. */
function sized(canvas, clip) {
  const pixels = canvas.getBoundingClientRect().width * devicePixelRatio || 256;
  const picture = pictureAt(clip, 0);
  if (!picture) return null;
  const whole = picture.width < 512 ? Math.max(1, Math.ceil(pixels / picture.width)) : 1;
  return fit(canvas, picture.width * whole, picture.height * whole);
}

/** Absolute difference of two pictures, `GAIN` times enlarged, on a canvas of their size. */
function difference(a, b) {
  const canvas = new OffscreenCanvas(a.width, a.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(a, 0, 0);
  const left = context.getImageData(0, 0, a.width, a.height);
  context.drawImage(b, 0, 0, a.width, a.height);
  const right = context.getImageData(0, 0, a.width, a.height);
  for (let i = 0; i < left.data.length; i += 1) {
    if (i % 4 !== 3) left.data[i] = GAIN * Math.abs(left.data[i] - right.data[i]);
  }
  context.putImageData(left, 0, 0);
  return canvas;
}

/** One picture left of the line, the other right of it. */
function paintWipe(context, left, right, share) {
  const { width, height } = context.canvas;
  const at = Math.round(share * width);
  paint(context, right);
  context.save();
  context.beginPath();
  context.rect(0, 0, at, height);
  context.clip();
  paint(context, left);
  context.restore();
  context.fillStyle = "#fff";
  context.fillRect(at - 1, 0, 2, height);
}
