// Clusters on frames: each token coloured by its cluster, over the pixels that it stands for.

import { choice, clamp, el, fit, isNumber, onFrame, percent, put } from "../dom.js";
import { pictureAt } from "../frames.js";
import { term } from "../words.js";
import { makeClusterNote, overlayMeaning } from "./clusternote.js";
import { makeDensityMap } from "./densitymap.js";
import { clusterColours, drawFrame, lighting } from "./lighting.js";

const TILE_PX = 150; // until the page is laid out
const PICTURE_PX = 480; // of a tile in a saved picture
const PLACE = ["run", "step", "layer", "head", "branch"];
const DRAWN_ON = ["hover", "cluster", "pair", "side", "lit", "opacity", ...PLACE];
const EXPLAINED_ON = ["hover", "cluster", "side", "lit", "top_p", ...PLACE];

export function makeClusters(app) {
  const tiles = Array.from({ length: app.data.grid[0] }, (_, t) => makeTile(app, t));
  const controls = makeControls(app);
  const note = makeClusterNote(app);
  const meaning = el("p", { class: "tilenote small" });
  const map = makeDensityMap(app);
  const introduction = el("p", {});
  const node = el(
    "section",
    { class: "view", "aria-labelledby": "clusters-title" },
    el(
      "div",
      { class: "side" },
      el("h3", { id: "clusters-title" }, "Clusters on frames"),
      introduction,
      controls.nodes,
      note.node,
    ),
    el("div", { class: "main" }, tileGroup(app, tiles), meaning, map.node),
  );
  const drawClips = onFrame(() => drawTiles(app, tiles));
  return {
    node,
    drawClips,
    picture: () => pictureOf(app, tiles),
    others: [{ name: "density", label: "density map", picture: map.picture }],
    draw() {
      drawClips();
      map.draw();
    },
    update(state, changed) {
      const has = (names) => names.some((name) => changed.has(name));
      if (changed.has("run")) put(introduction, ...introductionOf(app));
      map.update(state, changed);
      controls.update(state);
      if (has(EXPLAINED_ON)) put(meaning, overlayMeaning(state));
      note.update(state, changed);
      if (has(DRAWN_ON) || (state.cluster !== null && changed.has("top_p"))) drawClips();
      for (const tile of tiles) {
        tile.node.classList.toggle("now", state.frame >= tile.from && state.frame < tile.to);
      }
    },
  };
}

function pictureOf(app, tiles) {
  const { side } = app.store.get();
  return {
    title: side === "q" ? "Clusters of queries" : "Clusters of keys",
    parts: tiles.map((tile) => ({
      canvas: drawTiles(app, [tile], PICTURE_PX)[0],
      label: tile.node.querySelector("figcaption").textContent,
    })),
    columns: Math.min(tiles.length, 5),
    cell: 240,
    place: app.viewName(),
  };
}

/** What the groups of tokens are, by the method on show. */
function introductionOf(app) {
  const { byPlace, title, line } = app.method();
  const rest = [
    ". Near ",
    term("centroid", "centroids"),
    " have near colours. Each picture stands for a ",
    term("latent frame"),
    " of the clip. Hover lights one cluster, a click pins it.",
  ];
  if (byPlace)
    return [
      `${title}: ${line}. So each group of `,
      term("token", "tokens"),
      " that the page calls a cluster is one block of neighbours, whatever it shows",
      ...rest,
    ];
  return [
    "In each head, ",
    term("k-means"),
    " groups ",
    term("token", "tokens"),
    " whose queries (or keys) are alike, wherever they lie in space and time, into a ",
    term("cluster"),
    ...rest,
  ];
}

/** Queries or keys, the overlay's opacity, and the pinned cluster by number. */
function makeControls(app) {
  const { store } = app;
  const sides = choice(
    "Queries or keys",
    [
      ["q", "Queries"],
      ["k", "Keys"],
    ],
    (side) => store.set({ side, cluster: null, hover: null }),
  );
  const opacity = el("input", {
    type: "range",
    min: 0,
    max: 100,
    step: 5,
    oninput: () => store.set({ opacity: Number(opacity.value) / 100 }),
  });
  const number = el("input", {
    type: "number",
    min: 1,
    step: 1,
    class: "number",
    placeholder: "none",
    onchange: () => {
      const wanted = Math.round(Number(number.value));
      const most = store.get().side === "q" ? app.record().Q : app.record().K;
      store.set({ cluster: number.value === "" ? null : clamp(wanted, 1, most) - 1, hover: null });
    },
  });
  return {
    nodes: [
      sides.node,
      el("label", { class: "slider" }, "Overlay", opacity),
      el("label", { class: "slider" }, "Pinned cluster", number),
    ],
    update(state) {
      sides.show(state.side);
      opacity.value = Math.round(100 * state.opacity);
      opacity.setAttribute("aria-valuetext", percent(state.opacity, 0));
      number.value = isNumber(state.cluster) ? String(state.cluster + 1) : "";
    },
  };
}

/** One latent frame: its canvas, and the video frames from..to that it stands for. */
function makeTile(app, t) {
  const [from, to] = app.data.latentFrames[t];
  const name = to - from > 1 ? `frames ${from + 1}–${to}` : `frame ${from + 1}`;
  const canvas = el("canvas", {
    role: "img",
    "aria-label": `Clusters on latent frame ${t + 1}, video ${name}`,
  });
  const node = el("figure", { class: "tile" }, canvas, el("figcaption", {}, name));
  const tile = { t, node, canvas, from, to };
  listen(app, tile);
  return tile;
}

/** The pointer on a tile: hover lights the cluster under it, a click pins or unpins it. */
function listen(app, tile) {
  const { store } = app;
  const { canvas, from, to } = tile;
  canvas.addEventListener("pointermove", (event) => {
    const at = clusterUnder(app, store.get().side, tile, event);
    const { hover } = store.get();
    if (hover?.cluster !== at.cluster || hover?.side !== at.side) store.set({ hover: at });
  });
  canvas.addEventListener("pointerleave", () => store.set({ hover: null }));
  canvas.addEventListener("click", (event) => {
    const { cluster, frame, side } = store.get();
    const at = clusterUnder(app, side, tile, event);
    store.set({
      cluster: cluster === at.cluster ? null : at.cluster,
      pair: null,
      hover: null,
      playing: false,
      frame: frame >= from && frame < to ? frame : from,
    });
  });
}

function clusterUnder(app, side, { t, canvas }, event) {
  const [, Y, X] = app.data.grid;
  const box = canvas.getBoundingClientRect();
  const x = clamp(Math.floor(((event.clientX - box.left) / box.width) * X), 0, X - 1);
  const y = clamp(Math.floor(((event.clientY - box.top) / box.height) * Y), 0, Y - 1);
  return { side, cluster: app.record()[side].labels[(t * Y + y) * X + x] };
}

function tileGroup({ data }, tiles) {
  const [T] = data.grid;
  return el(
    "div",
    {
      class: "tiles",
      tabindex: 0,
      role: "group",
      "aria-label":
        "Latent frames with their clusters. Left and right step the frame, up and down the layer, n and p go from cluster to cluster.",
      "data-keys": "layers",
      style: `--columns: ${Math.min(T, 7, Math.max(4, Math.ceil(T / 2)))}`,
    },
    tiles.map((tile) => tile.node),
  );
}

/** Draw the tiles, on canvases of their own where `width` is given. Returns the canvases. */
function drawTiles(app, tiles, width = null) {
  const state = app.store.get();
  const record = app.record();
  const { grid } = app.data;
  const [, Y, X] = grid;
  const { opacity } = state;
  const light = lighting(state, record, app.kept());
  const colours = clusterColours(light, record, opacity, app.colours().accentRgb);
  const scene = { record, light, colours, marked: app.marked(state), opacity, grid };
  const clip = app.clips.sparse(state.run);
  return tiles.map(({ t, canvas: own, from, to }) => {
    const canvas = width ? el("canvas") : own;
    const pixels = width ?? (own.parentElement.clientWidth || TILE_PX) * devicePixelRatio;
    const cell = Math.max(2, Math.round(pixels / X));
    const context = fit(canvas, X * cell, Y * cell);
    drawFrame(context, pictureAt(clip, (from + to - 1) >> 1), { ...scene, cell }, t);
    return canvas;
  });
}
