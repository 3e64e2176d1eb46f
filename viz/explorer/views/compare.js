// Dense and sparse in step: one clock, two canvases.

import { choice, clamp, decibel, el, fit, onFrame, put, seconds, svg } from "../dom.js";
import { paint, pictureAt } from "../frames.js";
import { reusedNote } from "./header.js";
import { term } from "../words.js";

const GAIN = 8;
const LEAST_SPAN_DB = 3; // a flat line stays flat
const SPARK = { width: 600, height: 96, pad: 8 };

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

function sparkline(app) {
  const { data, store } = app;
  const line = svg("path", { class: "line" });
  const dots = svg("g", {});
  const cursor = svg("line", { class: "cursor", y1: 0, y2: SPARK.height });
  const chart = svg(
    "svg",
    {
      viewBox: `0 0 ${SPARK.width} ${SPARK.height}`,
      preserveAspectRatio: "none",
      class: "spark",
      "aria-hidden": "true",
      onclick: (event) => {
        const box = chart.getBoundingClientRect();
        const at = (event.clientX - box.left) / box.width;
        store.set({
          frame: clamp(Math.floor(at * data.frameCount), 0, data.frameCount - 1),
          playing: false,
        });
      },
    },
    line,
    dots,
    cursor,
  );
  const high = el("span", {});
  const low = el("span", {});
  const value = el("strong", {});
  const node = el(
    "div",
    { class: "sparkbox" },
    el("p", { class: "label" }, "PSNR of each frame ", value),
    el("div", { class: "plot" }, chart, el("div", { class: "range" }, high, low)),
  );
  const x = (frame) => ((frame + 0.5) / data.frameCount) * SPARK.width;
  return {
    node,
    update(state, changed) {
      const psnr = data.runs[state.run].psnrFrame;
      if (changed.has("run")) {
        const finite = Array.from(psnr).filter(Number.isFinite);
        const peak = finite.length ? Math.max(...finite) : 0;
        const least = finite.length ? Math.min(...finite) : 0;
        const span = Math.max(peak - least, LEAST_SPAN_DB);
        const top = (peak + least + span) / 2;
        const y = (v) => {
          const at = Number.isFinite(v) ? clamp((top - v) / span, 0, 1) : 0; // identical frames sit at the top
          return SPARK.pad + at * (SPARK.height - 2 * SPARK.pad);
        };
        line.setAttribute(
          "d",
          Array.from(psnr, (v, i) => `${i ? "L" : "M"}${x(i)} ${y(v)}`).join(""),
        );
        put(
          dots,
          ...(psnr.length <= 40
            ? Array.from(psnr, (v, i) => svg("path", { class: "dot", d: `M${x(i)} ${y(v)}h0` }))
            : []),
        );
        put(high, finite.length < psnr.length ? "identical" : `${top.toFixed(1)} dB`);
        put(low, finite.length ? `${(top - span).toFixed(1)} dB` : "");
      }
      cursor.setAttribute("x1", x(state.frame));
      cursor.setAttribute("x2", x(state.frame));
      put(value, decibel(psnr[state.frame]));
    },
  };
}

function transport(app) {
  const { data, store } = app;
  const last = data.frameCount - 1;
  const step = (by) => {
    const { frame } = store.get();
    store.set({ playing: false, frame: (frame + by + data.frameCount) % data.frameCount });
  };
  const play = el("button", {
    type: "button",
    class: "play",
    onclick: () => store.set({ playing: !store.get().playing }),
  });
  const scrub = el("input", {
    type: "range",
    min: 0,
    max: last,
    step: 1,
    "aria-label": "Frame",
    oninput: () => store.set({ frame: Number(scrub.value), playing: false }),
  });
  const count = el("output", { class: "count" });
  const speed = el(
    "select",
    { "aria-label": "Playback speed", onchange: () => store.set({ speed: Number(speed.value) }) },
    el("option", { value: "1" }, "1×"),
    el("option", { value: "0.5" }, "½×"),
    el("option", { value: "0.25" }, "¼×"),
  );
  const node = el(
    "div",
    { class: "transport" },
    play,
    el("button", { type: "button", "aria-label": "Previous frame", onclick: () => step(-1) }, "‹"),
    el("button", { type: "button", "aria-label": "Next frame", onclick: () => step(1) }, "›"),
    scrub,
    count,
    speed,
  );
  return {
    node,
    step,
    update(state) {
      put(play, state.playing ? "❚❚" : "▶");
      play.setAttribute("aria-label", state.playing ? "Pause" : "Play");
      scrub.value = state.frame;
      scrub.setAttribute("aria-valuetext", `frame ${state.frame + 1} of ${data.frameCount}`);
      put(count, `${state.frame + 1} / ${data.frameCount}`);
      speed.value = String(state.speed);
    },
  };
}

export function makeCompare(app) {
  const { data, store, clips } = app;
  const modes = choice(
    "How to compare",
    [
      ["side", "Side by side"],
      ["wipe", "Wipe", "Drag over the clip: dense left of the line, sparse right of it"],
      ["difference", `Difference ×${GAIN}`, "Absolute difference of the two frames, enlarged"],
      ["blink", "Blink", "The two take turns, twice a second"],
    ],
    (mode) => store.set({ compare: mode }),
  );
  const { width = 256, height = 256 } = data.request; // holds the place until the clips are there
  const shape = { width, height };
  const left = el("canvas", { ...shape, role: "img", "aria-label": "Dense clip" });
  const right = el("canvas", { ...shape, role: "img", "aria-label": "Sparse clip" });
  const leftName = el("figcaption", {});
  const rightName = el("figcaption", {});
  const rightFigure = el("figure", { class: "sparse" }, rightName, right);
  const stage = el(
    "div",
    { class: "stage" },
    el("figure", { class: "dense" }, leftName, left),
    rightFigure,
  );
  const wipe = el("input", {
    type: "range",
    min: 0,
    max: 100,
    step: 1,
    "aria-label": "Position of the wipe line, percent from the left",
    oninput: () => store.set({ wipe: Number(wipe.value) / 100 }),
  });
  const wipeRow = el(
    "div",
    { class: "wiperow" },
    el("span", {}, "dense"),
    wipe,
    el("span", {}, "sparse"),
  );
  left.addEventListener("pointermove", (event) => {
    if (store.get().compare !== "wipe") return;
    const box = left.getBoundingClientRect();
    store.set({ wipe: clamp((event.clientX - box.left) / box.width, 0, 1) });
  });
  const spark = sparkline(app);
  const controls = transport(app);
  const trouble = el("p", { class: "notice", hidden: true });
  const node = el(
    "section",
    { class: "view", "data-view": "compare", "aria-labelledby": "compare-title" },
    el(
      "div",
      { class: "side" },
      el("h3", { id: "compare-title" }, "Compare"),
      el(
        "p",
        {},
        "Both clips start from the same noise. The dense one computes every query–key pair; the sparse one, after a dense ",
        term("warm-up"),
        ", only those that ",
        term("top-p"),
        " keeps, and svg2-comp adds ",
        term("compensation"),
        " for the rest. ",
        term("psnr", "PSNR"),
        " and ",
        term("ssim", "SSIM"),
        " say how close it stays to dense, not how good either clip is.",
      ),
      modes.node,
      spark.node,
    ),
    el("div", { class: "main" }, stage, wipeRow, controls.node, trouble),
  );

  function size(canvas, clip) {
    const pixels = canvas.getBoundingClientRect().width * devicePixelRatio || 256;
    const picture = pictureAt(clip, 0);
    if (!picture) return null;
    const factor = Math.max(1, Math.ceil(pixels / picture.width));
    const whole = picture.width < 512 ? factor : 1;
    return fit(canvas, picture.width * whole, picture.height * whole);
  }

  const draw = onFrame(() => {
    const state = store.get();
    const sparse = clips.sparse(state.run);
    const a = pictureAt(clips.dense, state.frame);
    const b = pictureAt(sparse, state.frame);
    if (!a || !b) return;
    const context = size(left, clips.dense);
    if (state.compare === "side") {
      paint(context, a);
      paint(size(right, sparse), b);
    } else if (state.compare === "difference") {
      paint(context, difference(a, b));
    } else if (state.compare === "blink") {
      const second = Math.floor(performance.now() / 500) % 2 === 1;
      paint(context, second ? b : a);
      put(leftName, second ? rightTitle(state) : "Dense");
    } else {
      paint(context, b);
      const { width, height } = left;
      const at = Math.round(state.wipe * width);
      context.save();
      context.beginPath();
      context.rect(0, 0, at, height);
      context.clip();
      paint(context, a);
      context.restore();
      context.fillStyle = "#fff";
      context.fillRect(at - 1, 0, 2, height);
    }
  });

  const rightTitle = (state) => data.runs[state.run].name;

  function captions(state) {
    const name = rightTitle(state);
    const { result } = data.runs[state.run];
    const took = (s, note = "") =>
      Number.isFinite(s) ? el("span", { class: "took" }, seconds(s), note) : null;
    const titles = {
      side: "Dense",
      wipe: `Dense | ${name}`,
      difference: `|dense − ${name}| × ${GAIN}, from the encoded clips`,
      blink: "Dense",
    };
    put(
      leftName,
      titles[state.compare],
      state.compare === "side" ? took(result.dense_seconds, reusedNote(result)) : null,
    );
    put(rightName, name, took(result.svg2_seconds));
    left.setAttribute("aria-label", {
      side: "Dense clip",
      wipe: `Wipe: dense clip left of the line, ${name} right of it`,
      difference: `Difference of the dense clip and ${name}, ${GAIN} times enlarged`,
      blink: `Dense clip and ${name} in turns`,
    }[state.compare]);
    rightFigure.hidden = state.compare !== "side";
    stage.classList.toggle("single", state.compare !== "side");
    wipeRow.hidden = state.compare !== "wipe";
    modes.show(state.compare);
  }

  return {
    node,
    draw,
    step: controls.step,
    fail(message) {
      trouble.hidden = false;
      put(trouble, message);
    },
    update(state, changed) {
      spark.update(state, changed);
      controls.update(state);
      if (changed.has("run") || changed.has("compare")) captions(state);
      if (changed.has("wipe")) wipe.value = Math.round(state.wipe * 100);
      if (["run", "frame", "compare", "wipe"].some((n) => changed.has(n))) draw();
    },
  };
}
