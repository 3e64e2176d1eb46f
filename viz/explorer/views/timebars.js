// Where the seconds of both loops went: a bar of parts for each, on one scale, as a chart that stands alone.

import { isNumber, LETTER, put, svg } from "../dom.js";
import { niceTicks } from "./points.js";

const PARTS = {
  attention: "attention",
  warm: "attention that stays dense",
  clustering: "clustering, sorting, selecting",
  rest: "the rest of the model",
};
const BAR = 24;
const ROW = 54; // a name and its bar
const LEAST_WIDTH = 280;
const KEY = 14;

/** Seconds to a tenth, whatever their size: the parts of a bar are to add up. */
const tenths = (s) => (isNumber(s) ? `${s.toFixed(1)} s` : "not measured");

/** Seconds of both denoising loops by what they went to, largest concern first; null where they can't be told apart. */
export function sharesOf(run) {
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

/** Said after a dense time that was not measured with this run. */
export function reusedNote(result) {
  return result.dense_reused ? ", timed earlier" : "";
}

/** The chart, empty until `draw(run)`; `isDrawn()` says whether the run's parts are known. */
export function makeTimeBars() {
  const chart = svg("svg", { class: "timechart", role: "group", "aria-label": "Where the time went" });
  let isDrawn = false;
  return {
    chart,
    isDrawn: () => isDrawn,
    draw(run) {
      const found = sharesOf(run);
      isDrawn = Boolean(found);
      chart.style.display = found ? "" : "none";
      put(chart, ...(found ? drawing(chart, run, found) : []));
    },
  };
}

function drawing(chart, run, { dense, sparse }) {
  const width = Math.max(LEAST_WIDTH, chart.parentElement?.clientWidth || 640);
  const { dense_seconds, svg2_seconds } = run.result;
  const longest = Math.max(dense_seconds, svg2_seconds);
  const scale = width / longest;
  const bars = [
    bar(`Dense, ${tenths(dense_seconds)}${reusedNote(run.result)}`, dense, scale, 0),
    bar(`${run.title}, ${tenths(svg2_seconds)}`, sparse, scale, ROW),
  ];
  const bottom = 2 * ROW + 4;
  const kinds = Object.keys(PARTS).filter((key) => dense[key] || sparse[key]);
  const keys = legend(kinds, width, bottom + 30);
  chart.setAttribute("viewBox", `0 0 ${width} ${keys.bottom}`);
  chart.style.height = `${keys.bottom}px`;
  return [stripes(), ...bars, ...axis(longest, scale, bottom, width), ...keys.nodes];
}

/** The filling of what stays dense: no colour of its own. */
const stripes = () =>
  svg(
    "defs",
    {},
    svg(
      "pattern",
      { id: "warm", width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      svg("rect", { class: "stripe", width: 4, height: 8 }),
    ),
  );

/** One run's seconds in parts, each with as much text as it has room for. */
function bar(name, parts, scale, top) {
  const described = Object.entries(parts).map(([key, s]) => `${PARTS[key]} ${tenths(s)}`);
  let x = 0;
  const nodes = Object.entries(parts).map(([key, s]) => {
    const from = x;
    x += s * scale;
    return part(key, s, from, s * scale, top + 22);
  });
  return svg(
    "g",
    { class: "timebar", role: "img", "aria-label": `${name}: ${described.join(", ")}` },
    svg("text", { class: "barname", x: 0, y: top + 14 }, name),
    nodes,
  );
}

function part(key, s, x, width, y) {
  const names = { attention: "attention", warm: "still dense", clustering: "clustering", rest: "the rest" };
  const long = `${names[key]} ${tenths(s)}`;
  const text = [long, tenths(s)].find((one) => one.length * LETTER + 8 < width) ?? "";
  return svg(
    "g",
    { class: `part ${key}` },
    svg("title", {}, `${PARTS[key]}: ${tenths(s)}`),
    svg("rect", { x, y, width: Math.max(width - 2, 0.5), height: BAR }),
    text && svg("text", { x: x + 5, y: y + 16 }, text),
  );
}

/** Seconds below the bars. */
function axis(longest, scale, y, width) {
  return [
    svg("line", { class: "axis", x1: 0, x2: width, y1: y, y2: y }),
    ...niceTicks(0, longest, 5).flatMap((s) => {
      const x = Math.min(s * scale, width);
      const anchor = s === 0 ? "start" : x > width - 24 ? "end" : "middle";
      return [
        svg("line", { class: "axis", x1: x, x2: x, y1: y, y2: y + 4 }),
        svg("text", { class: "tick", x, y: y + 17, "text-anchor": anchor }, `${Number(s.toFixed(2))} s`),
      ];
    }),
  ];
}

/** What each filling means, in as many rows as it takes. */
function legend(kinds, width, top) {
  let [x, y] = [0, top];
  const nodes = kinds.map((key) => {
    const name = PARTS[key];
    const takes = KEY + 6 + name.length * LETTER + 16;
    if (x && x + takes > width) [x, y] = [0, y + 20];
    const node = svg(
      "g",
      { class: `key ${key}` },
      svg("rect", { x, y, width: KEY, height: KEY }),
      svg("text", { class: "tick", x: x + KEY + 6, y: y + 11 }, name),
    );
    x += takes;
    return node;
  });
  return { nodes, bottom: y + 20 };
}
