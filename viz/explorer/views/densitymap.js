// Density of every sparse call: one small map per head, layers down and steps across, mean over guidance branches.

import { el, fit, onFrame, percent, put } from "../dom.js";
import { nearestPlace, placesOf } from "../state.js";
import { term } from "../words.js";

const CELL_PX = 18; // at most
const ROOM_PX = 200; // until the page is laid out
const PICTURE_PX = 280; // of a map in a saved picture, with its axes
const PICTURE_CELL_PX = 24; // at most
const AXIS_PX = 24;
const PLACE = ["step", "layer", "head"];
const MOVES = {
  ArrowLeft: ["step", -1],
  ArrowRight: ["step", 1],
  ArrowUp: ["layer", -1],
  ArrowDown: ["layer", 1],
};

/** The maps. Recorded calls have a dot; a click or the arrow keys go there. */
export function makeDensityMap(app) {
  const map = {
    app,
    table: null,
    canvases: [],
    ringed: null, // the head that shows where we are
    heads: el("div", { class: "headmaps" }),
    scale: el("p", { class: "mapscale small" }),
    caption: el("p", { class: "small", "aria-live": "polite" }),
  };
  const board = el(
    "div",
    { class: "headboard", tabindex: 0, role: "group", onkeydown: (event) => onKey(app, event) },
    map.heads,
  );
  const draw = onFrame(() => map.table && map.canvases.forEach((_, head) => paintHead(map, head)));
  const drawMoved = onFrame(() => {
    const { head } = app.store.get();
    for (const h of new Set([map.ringed, head])) if (map.canvases[h]) paintHead(map, h);
    map.ringed = head;
  });
  return {
    node: el(
      "div",
      { class: "mapbox" },
      el("p", { class: "label" }, term("density", "Density"), " of every sparse call, by head, layer and step"),
      board,
      map.scale,
      map.caption,
    ),
    draw,
    picture: () => pictureOf(map),
    update(state, changed) {
      if (changed.has("run")) {
        fillMaps(map, board);
        draw();
      }
      if (PLACE.some((name) => changed.has(name))) drawMoved();
    },
  };
}

/** Make the maps of the run on show. */
function fillMaps(map, board) {
  map.table = tableOf(map.app.data, map.app.source());
  const { heads, low, high } = map.table;
  const made = Array.from({ length: heads }, (_, head) => makeHeadMap(map, head));
  map.canvases = made.map((one) => one.canvas);
  put(map.heads, ...made.map((one) => one.node));
  put(map.scale, ...scaleOf(map.table));
  board.setAttribute(
    "aria-label",
    `Density by head, layer and step, from ${percent(low)} to ${percent(high)}. Arrow keys go to the next recorded call.`,
  );
  showIdle(map);
}

/** What the colours and marks of the cells mean. */
function scaleOf({ low, high, mean }) {
  const key = (kind, text) => el("span", {}, el("span", { class: `cell ${kind}` }), text);
  return [
    el("span", {}, percent(low), el("span", { class: "ramp" }), `${percent(high)} of the pairs kept`),
    mean.some(Number.isNaN) ? key("", "dense") : null,
    key("dotted", "recorded"),
    key("here", "on show"),
  ];
}

/** Mean density over branches of each head, layer and step; NaN where no sparse call was. */
function tableOf(data, run) {
  const steps = placesOf(data, run, "step").all;
  const layers = placesOf(data, run, "layer").all;
  const { call, density, heads } = data.runs[run];
  const cells = layers.length * steps.length;
  const mean = new Float64Array(heads * cells);
  const count = new Int32Array(cells);
  for (let i = 0; i < call.length / 3; i += 1) {
    const at = layers.indexOf(call[3 * i + 1]) * steps.length + steps.indexOf(call[3 * i]);
    count[at] += 1;
    for (let h = 0; h < heads; h += 1) mean[h * cells + at] += density[i * heads + h];
  }
  let [low, high] = [1, 0];
  mean.forEach((sum, i) => {
    mean[i] = count[i % cells] ? sum / count[i % cells] : NaN;
    if (mean[i] < low) low = mean[i];
    if (mean[i] > high) high = mean[i];
  });
  const own = data.index.filter((r) => r.run === run);
  const recorded = new Set(own.map((r) => `${r.head} ${r.step} ${r.layer}`));
  return { steps, layers, heads, mean, low, high, recorded };
}

const valueAt = ({ mean, steps, layers }, head, y, x) =>
  mean[(head * layers.length + y) * steps.length + x];

const isRecorded = ({ recorded }, head, step, layer) => recorded.has(`${head} ${step} ${layer}`);

/** Mean over the sparse calls of a head. */
function meanOf({ mean, steps, layers }, head) {
  const cells = layers.length * steps.length;
  const known = [...mean.subarray(head * cells, (head + 1) * cells)].filter(Number.isFinite);
  return known.reduce((a, b) => a + b, 0) / Math.max(known.length, 1);
}

function paintHead({ app, table, canvases }, head) {
  const canvas = canvases[head];
  const scale = devicePixelRatio;
  const { steps, layers } = table;
  const room = (canvas.parentElement.clientWidth || ROOM_PX) * scale;
  const most = Math.round(CELL_PX * scale);
  const cell = Math.max(2, Math.min(Math.floor(room / steps.length), most));
  const context = fit(canvas, cell * steps.length, cell * layers.length);
  canvas.style.width = `${canvas.width / scale}px`;
  canvas.style.height = `${canvas.height / scale}px`;
  canvas.closest(".headmap").querySelector(".steps").style.width = canvas.style.width;
  context.clearRect(0, 0, canvas.width, canvas.height);
  paintCells({ context, cell, scale, colours: app.colours(), table }, head, app.store.get());
}

/** All calls of a head. */
function paintCells(brush, head, state) {
  const { cell, table } = brush;
  const { steps, layers } = table;
  layers.forEach((layer, y) => {
    steps.forEach((step, x) => {
      const isHere = step === state.step && layer === state.layer && head === state.head;
      const place = { left: x * cell, top: y * cell, value: valueAt(table, head, y, x) };
      paintCell(brush, { ...place, isDotted: isRecorded(table, head, step, layer), isHere });
    });
  });
}

/** The maps of all heads with their axes; what the colours mean is said in the line of the place. */
function pictureOf({ app, table }) {
  const { steps, layers, heads, low, high } = table;
  const colours = app.colours();
  const state = app.store.get();
  const cell = Math.max(1, Math.min(Math.floor((PICTURE_PX - AXIS_PX) / steps.length), PICTURE_CELL_PX));
  const size = { width: cell * steps.length, height: cell * layers.length };
  const part = (head) => ({
    label: `head ${head + 1} · ${percent(meanOf(table, head), 0)}`,
    height: size.height + AXIS_PX,
    draw(context, x, y) {
      context.save();
      context.translate(x + AXIS_PX, y);
      paintCells({ context, cell, scale: 1, colours, table }, head, state);
      nameAxes(context, table, size, colours.soft);
      context.restore();
    },
  });
  const range = `pale ${percent(low)} to strong ${percent(high)} of the pairs kept`;
  return {
    title: "Density of every sparse call",
    parts: Array.from({ length: heads }, (_, head) => part(head)),
    columns: Math.min(heads, 4),
    cell: PICTURE_PX,
    place: `${range}, dots: recorded, framed: ${nameOf(state)}`,
  };
}

/** First and last layer and step of a map that begins at 0, 0. */
function nameAxes(context, { steps, layers }, { width, height }, colour) {
  const write = (text, x, y, align) => {
    context.textAlign = align;
    context.fillText(text, x, y);
  };
  context.font = "400 12px system-ui, sans-serif";
  context.fillStyle = colour;
  write(layers[0] + 1, -6, 11, "right");
  if (layers.length > 1) write(layers.at(-1) + 1, -6, height - 2, "right");
  write(steps[0] + 1, 0, height + 14, "left");
  if (steps.length > 1) write(steps.at(-1) + 1, width, height + 14, "right");
  write("step", width / 2, height + 14, "center");
  context.rotate(-Math.PI / 2);
  write("layer", -height / 2, -8, "center");
}

/** One call: stronger colour keeps more; a dot where it is recorded, a frame where we are. */
function paintCell({ context, cell, scale, colours, table }, { left, top, value, isDotted, isHere }) {
  const { low, high } = table;
  const { accent, ink, paper, line } = colours;
  const side = cell - (cell > 4 ? 1 : 0);
  context.fillStyle = line;
  context.fillRect(left, top, side, side);
  if (Number.isFinite(value)) {
    context.fillStyle = accent;
    context.globalAlpha = 0.1 + 0.9 * ((value - low) / Math.max(high - low, 1e-9));
    context.fillRect(left, top, side, side);
    context.globalAlpha = 1;
  }
  context.strokeStyle = ink;
  if (isDotted) {
    context.fillStyle = paper;
    context.lineWidth = scale;
    context.beginPath();
    context.arc(left + side / 2, top + side / 2, Math.max(1, cell / 6), 0, 7);
    context.fill();
    context.stroke();
  }
  if (isHere) {
    context.lineWidth = 2 * scale;
    context.strokeRect(left + scale, top + scale, side - 2 * scale, side - 2 * scale);
  }
}

function showIdle({ caption }) {
  put(caption, "A click opens the nearest recorded call, arrow keys go from one to the next.");
}

/** The canvas of one head, which the pointer reads and moves. */
function makeHeadMap(map, head) {
  const { app, caption } = map;
  const canvas = el("canvas", { class: "densitymap", role: "img" });
  const mean = meanOf(map.table, head);
  canvas.setAttribute(
    "aria-label",
    `Density of head ${head + 1} by layer and step, ${percent(mean)} on average.`,
  );
  canvas.addEventListener("pointermove", (event) => {
    const at = callUnder(map.table, canvas, event);
    if (!at) return showIdle(map);
    const there = isRecorded(map.table, head, at.step, at.layer)
      ? "click to open"
      : `not recorded; a click opens the nearest, ${nameOf(nearestTo(app, head, at))}`;
    return put(
      caption,
      `Step ${at.step + 1}, layer ${at.layer + 1}, head ${head + 1}: ${percent(valueAt(map.table, head, at.y, at.x))} kept, ${there}.`,
    );
  });
  canvas.addEventListener("pointerleave", () => showIdle(map));
  canvas.addEventListener("click", (event) => {
    const at = callUnder(map.table, canvas, event);
    if (at) app.selectPlace({ head, step: at.step, layer: at.layer });
  });
  const name = `head ${head + 1} · ${percent(mean, 0)}`;
  const node = el(
    "figure",
    { class: "headmap" },
    el("div", { class: "layers", "aria-hidden": "true" }, ends(map.table.layers, "layer")),
    el("div", {}, canvas),
    el("div", { class: "steps", "aria-hidden": "true" }, ends(map.table.steps, "step")),
    el("figcaption", { class: "small" }, name),
  );
  return { node, canvas };
}

/** First and last number of an axis with its name between them. */
const ends = (values, word) => [
  el("span", {}, String(values[0] + 1)),
  el("span", { class: "word" }, word),
  values.length > 1 ? el("span", {}, String(values.at(-1) + 1)) : null,
];

/** The recorded call nearest to a cell. */
function nearestTo({ data, store, source }, head, { step, layer }) {
  return nearestPlace(data, { ...store.get(), head, step, layer }, source());
}

const nameOf = ({ step, layer, head }) => `step ${step + 1}, layer ${layer + 1}, head ${head + 1}`;

/** The call under the pointer, or null. */
function callUnder({ steps, layers }, canvas, event) {
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * steps.length);
  const y = Math.floor(((event.clientY - box.top) / box.height) * layers.length);
  const inside = x >= 0 && y >= 0 && x < steps.length && y < layers.length;
  return inside ? { x, y, step: steps[x], layer: layers[y] } : null;
}

/** Arrow keys: the next recorded step or layer; up from the first layer is the head before. */
function onKey(app, event) {
  const move = MOVES[event.key];
  if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  event.stopPropagation();
  const [name, by] = move;
  const state = app.store.get();
  const recorded = (which) => placesOf(app.data, app.source(), which, state).recorded;
  const line = recorded(name);
  const next = line[line.indexOf(state[name]) + by];
  if (next !== undefined) {
    app.selectPlace({ [name]: next });
    return;
  }
  const heads = recorded("head");
  const head = heads[heads.indexOf(state.head) + by];
  if (head !== undefined) app.selectPlace({ head, [name]: line.at(by < 0 ? -1 : 0) });
}
