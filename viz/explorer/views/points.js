// The data of the trade-off chart: measured runs as points, and where they lie.

import { computedShare, denseSteps } from "../data.js";
import { decibel, isNumber, LETTER, percent, plural, times } from "../dom.js";

/** What the horizontal axis can show. */
export const AXES = {
  compute: {
    name: "Pairs computed",
    of: (p) => p.computed,
    text: (v) => percent(v, 0),
    title: "computed, of all pairs of the run",
    isShare: true,
  },
  density: {
    name: "Density",
    of: (p) => p.density,
    text: (v) => percent(v, 0),
    title: "density: token pairs kept, in sparse calls alone",
    isShare: true,
  },
  attention: {
    name: "Attention time",
    of: (p) => p.attention_speedup,
    text: (v) => times(v),
    title: "attention speedup",
  },
  speedup: {
    name: "End-to-end",
    of: (p) => p.speedup,
    text: (v) => times(v),
    title: "end-to-end speedup",
  },
};

/** Pixels around the plot. */
export const PAD = { left: 52, right: 26, top: 34, bottom: 44 };

/** What the chart shows of a run. */
export function pointOf(run) {
  return {
    run: run.index,
    method: run.method,
    name: run.name.replaceAll(" · ", ", "),
    budget: run.config.density ?? run.config.top_p ?? 0,
    clusters: run.clusters,
    asked: run.asked.replace(/^top-p /, "p "),
    density: run.result.density,
    computed: computedShare(run.result),
    psnr_db: run.result.psnr_db,
    speedup: run.result.speedup,
    attention_speedup: run.result.attention_speedup,
  };
}

/** The speedup of a forecast, as a range where it is known how far off it may be; empty where none is foretold. */
export function foretoldPace({ speedup, off_speed }) {
  if (!isNumber(speedup)) return "";
  if (!isNumber(off_speed)) return `about ${times(speedup)}`;
  return `${(speedup * (1 - off_speed)).toFixed(1)} to ${(speedup * (1 + off_speed)).toFixed(1)}×`;
}

/** With how many clusters and dense steps each method of a trace ran, in a sentence; empty where all ran alike. */
export function settingsOf({ runs }) {
  const of = (run) => {
    const steps = denseSteps(run);
    return `${run.clusters} clusters, ${Number.isFinite(steps) ? plural(steps, "dense step") : "all steps dense"}`;
  };
  const found = new Map();
  for (const run of runs) found.set(run.title, new Set(found.get(run.title)).add(of(run)));
  if (new Set([...found.values()].flatMap((own) => [...own])).size < 2) return "";
  return [...found].map(([title, own]) => `${title}: ${[...own].join(" or ")}`).join("; ");
}

/** The PSNR of a forecast, with how far off it may be. */
export const foretold = ({ psnr_db, off_db }) => `${psnr_db.toFixed(0)} ± ${off_db.toFixed(0)} dB`;

/** A point in a sentence. */
export function describe(p) {
  return `${p.name}: ${decibel(p.psnr_db)}, ${percent(p.computed)} computed, density ${percent(p.density)}, attention ${times(p.attention_speedup)}, end-to-end ${times(p.speedup)}.`;
}

/**
 * The runs that were measured on an axis, their methods, and the ranges of both axes. A line joins the runs
 * of a method in order of their budget. A PSNR of
 * null, of clips that are identical, has a mark at the top and no place on a line.
 */
export function chartData(data, axisName) {
  const axis = AXES[axisName];
  const known = data.runs.map(pointOf).filter((p) => isNumber(axis.of(p)));
  const points = known.filter((p) => isNumber(p.psnr_db) || p.psnr_db === null);
  const methods = [...new Set(known.map((p) => p.method))];
  const finite = points.filter((p) => p.psnr_db !== null).sort((a, b) => a.budget - b.budget);
  const values = known.map(axis.of);
  const psnr = finite.map((p) => p.psnr_db);
  return {
    axis,
    points,
    methods,
    lines: methods.map((method) => ({ method, points: finite.filter((p) => p.method === method) })),
    rangeX: axis.isShare
      ? [0, 1]
      : [Math.min(1, ...values) - 0.1, Math.max(1.5, ...values) + 0.1],
    rangeY: [Math.floor(Math.min(...psnr, 30) - 2), Math.ceil(Math.max(...psnr, 34) + 3)],
  };
}

/** Where values of both axes lie on a chart of `width` pixels, with `below` more of them under the axis. */
export function makeScale({ axis, rangeX: [x0, x1], rangeY: [y0, y1] }, width, below = 0) {
  const height = Math.max(220, Math.min(340, width * 0.5)) + below;
  const right = width - PAD.right;
  const bottom = height - PAD.bottom - below;
  return {
    axis,
    width,
    height,
    right,
    bottom,
    x: (v) => PAD.left + ((v - x0) / (x1 - x0)) * (right - PAD.left),
    y: (v) => (v === null ? PAD.top : PAD.top + ((y1 - v) / (y1 - y0)) * (bottom - PAD.top)),
    xTicks: niceTicks(x0, x1, width < 420 ? 4 : 6),
    yTicks: niceTicks(y0, y1, 5),
  };
}

const [NAME_HEIGHT, MARK_WIDTH] = [14, 16]; // pixels

/** What a point is called on the chart. */
const nameOf = (p) => [p.asked, p.psnr_db === null && "identical"].filter(Boolean).join(", ");

/** Where a name can stand around its mark, the best first: the offset of its anchor, and which end that is. */
const ROUND = [
  [12, 4, "start"],
  [-12, 4, "end"],
  [0, -12, "middle"],
  [0, 21, "middle"],
  [10, -9, "start"],
  [10, 18, "start"],
  [-10, -9, "end"],
  [-10, 18, "end"],
];

/**
 * Name of each point and its place: {name, x, y, anchor}. It stands where it covers the least of other marks and
 * of the names before it.
 */
export function namesOf(points, { axis, x, y, width }) {
  const half = MARK_WIDTH / 2;
  const taken = points.map((p) => {
    const [at, up] = [x(axis.of(p)), y(p.psnr_db)];
    return [at - half, up - half, at + half, up + half];
  });
  return points.map((p) => {
    const name = nameOf(p);
    const long = LETTER * name.length;
    const found = ROUND.map(([right, down, anchor]) => {
      const place = { name, x: x(axis.of(p)) + right, y: y(p.psnr_db) + down, anchor };
      const start = place.x - { start: 0, middle: long / 2, end: long }[anchor];
      const box = [start, place.y - NAME_HEIGHT + 3, start + long, place.y + 3];
      const outside = Math.max(0, PAD.left - box[0]) + Math.max(0, box[2] - width);
      const covered = taken.reduce((sum, other) => sum + common(box, other), outside * NAME_HEIGHT);
      return { place, box, covered };
    });
    const best = found.reduce((a, b) => (b.covered < a.covered ? b : a));
    taken.push(best.box);
    return best.place;
  });
}

/** Area that two boxes [left, top, right, bottom] have in common. */
function common([l, t, r, b], [l2, t2, r2, b2]) {
  return Math.max(0, Math.min(r, r2) - Math.max(l, l2)) * Math.max(0, Math.min(b, b2) - Math.max(t, t2));
}

/** Round steps for an axis: about `count` of them between two numbers. */
export function niceTicks(low, high, count) {
  const span = Math.max(high - low, 1e-9);
  const raw = span / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const ticks = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + 1e-9; v += step) ticks.push(v);
  return ticks;
}
