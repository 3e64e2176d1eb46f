// Dense and sparse in step: one clock, two canvases.

import { choice, clamp, el, fit, onFrame, put, seconds } from "../dom.js";
import { paint, pictureAt } from "../frames.js";
import { term } from "../words.js";
import { reusedNote } from "./gain.js";
import { makeMiniMasks } from "./minimasks.js";
import { makeOutline } from "./outline.js";
import { makePsnrLine } from "./psnrline.js";
import { makeTransport } from "./transport.js";

const GAIN = 8;
const BLINK_MS = 500;
const MODES = [
  ["side", "Side by side"],
  ["wipe", "Wipe", "Drag over the clip: dense left of the line, sparse right of it"],
  ["difference", `Difference ×${GAIN}`, "Absolute difference of the two frames, enlarged"],
  ["blink", "Blink", "The two take turns, twice a second"],
];

export function makeCompare(app) {
  const { store } = app;
  const modes = choice("How to compare", MODES, (mode) => store.set({ compare: mode }));
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
      el("div", { class: "side" }, introduction(), modes.node, minis?.node, psnrLine.node),
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
    picture: () => pictureOf(app, stage),
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
      if (changed.has("run") || changed.has("compare")) {
        modes.show(state.compare);
        showCaptions(stage, state.compare, app.data.runs[state.run]);
      }
      if (changed.has("wipe")) stage.wipe.value = Math.round(state.wipe * 100);
      if (["run", "frame", "compare", "wipe"].some((n) => changed.has(n))) draw();
    },
  };
}

function introduction() {
  return [
    el("h3", { id: "compare-title" }, "Compare"),
    el(
      "p",
      {},
      "Both clips start from the same noise. On the left every pair of a query and a key ",
      term("token"),
      " was computed; on the right only those that matter most, block by block, between ",
      term("cluster", "clusters"),
      " of tokens that are alike.",
    ),
  ];
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
  const rightFigure = el("figure", { class: "sparse" }, rightName, right);
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
      rightFigure,
    ),
    left,
    right,
    leftName,
    rightName,
    rightFigure,
    wipe,
    wipeRow: el(
      "div",
      { class: "wiperow" },
      el("span", {}, "dense"),
      wipe,
      el("span", {}, "sparse"),
    ),
  };
}

/** Caption and accessible name of the left canvas in a mode. */
function leftTexts(mode, name) {
  return {
    side: ["Dense", "Dense clip"],
    wipe: [`Dense | ${name}`, `Wipe: dense clip left of the line, ${name} right of it`],
    difference: [
      `|dense − ${name}| × ${GAIN}, from the encoded clips`,
      `Difference of the dense clip and ${name}, ${GAIN} times enlarged`,
    ],
    blink: ["Dense", `Dense clip and ${name} in turns`],
  }[mode];
}

function pictureOf({ data, store }, stage) {
  const { frame, compare } = store.get();
  const figures = compare === "side" ? ["left", "right"] : ["left"];
  return {
    title: compare === "side" ? "Dense and sparse" : leftTexts(compare, data.runs[store.get().run].name)[1],
    parts: figures.map((side) => ({ canvas: stage[side], label: stage[`${side}Name`].firstChild?.textContent })),
    columns: figures.length,
    cell: 480,
    place: `frame ${frame + 1} of ${data.frameCount}`,
  };
}

function showCaptions(stage, mode, { name, result }) {
  const isSide = mode === "side";
  const took = (s, note = "") =>
    Number.isFinite(s) ? el("span", { class: "took" }, seconds(s), note) : null;
  const [caption, label] = leftTexts(mode, name);
  put(stage.leftName, caption, isSide ? took(result.dense_seconds, reusedNote(result)) : null);
  put(stage.rightName, name, took(result.svg2_seconds));
  stage.left.setAttribute("aria-label", label);
  stage.rightFigure.hidden = !isSide;
  stage.node.classList.toggle("single", !isSide);
  stage.wipeRow.hidden = mode !== "wipe";
}

function drawStage(app, stage, outline) {
  const { compare, frame, run, wipe } = app.store.get();
  const { dense } = app.clips;
  const sparse = app.clips.sparse(run);
  const a = pictureAt(dense, frame);
  const b = pictureAt(sparse, frame);
  if (!a || !b) return;
  const context = sized(stage.left, dense);
  if (compare === "side") {
    paint(context, a);
    const right = sized(stage.right, sparse);
    paint(right, b);
    outline?.draw(right, frame);
  } else if (compare === "difference") {
    paint(context, difference(a, b));
  } else if (compare === "blink") {
    const isSparse = Math.floor(performance.now() / BLINK_MS) % 2 === 1;
    paint(context, isSparse ? b : a);
    put(stage.leftName, isSparse ? app.data.runs[run].name : "Dense");
  } else {
    paintWipe(context, a, b, wipe);
  }
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

/** The dense picture left of the line, the sparse one right of it. */
function paintWipe(context, dense, sparse, share) {
  const { width, height } = context.canvas;
  const at = Math.round(share * width);
  paint(context, sparse);
  context.save();
  context.beginPath();
  context.rect(0, 0, at, height);
  context.clip();
  paint(context, dense);
  context.restore();
  context.fillStyle = "#fff";
  context.fillRect(at - 1, 0, 2, height);
}
