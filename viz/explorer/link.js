// The state of the page as a link: readable names after the #, counted from 1 as the page counts.

import { isNumber } from "./dom.js";

const CHOICES = {
  side: ["q", "k"],
  lit: ["attended", "members"],
  compare: ["side", "wipe", "difference", "blink"],
  axis: ["compute", "density", "attention", "speedup"],
  tint: ["kept", "mass", "error"],
};
// name in the link, name in the state, what it counts
const COUNTED = [
  ["step", "step", "step"],
  ["layer", "layer", "layer"],
  ["head", "head", "head"],
  ["branch", "branch", "branch"],
  ["frame", "frame", "frame"],
  ["cluster", "cluster", "cluster"],
  ["pair", "pair", "cluster"],
];
const SHARES = ["top_p", "wipe", "opacity", "sort"];

/** The state as the part of a link after the #; `view` is the view to bring into sight, null the top of the page. */
export function writeLink(state, trace, view = null) {
  const query = new URLSearchParams();
  if (trace) query.set("trace", trace);
  query.set("run", String(state.run + 1));
  for (const [name, from] of COUNTED) {
    if (isNumber(state[from])) query.set(name, String(state[from] + 1));
  }
  for (const name of Object.keys(CHOICES)) query.set(name, state[name]);
  for (const name of SHARES) query.set(name, String(Number(state[name].toPrecision(6))));
  if (state.against !== null) query.set("against", String(state.against + 1));
  if (state.zoom) query.set("zoom", "1");
  if (view) query.set("view", view);
  if (state.tour !== null) query.set("tour", String(state.tour + 1));
  return query.toString();
}

/**
 * What a link asks for: `trace` and `view` or null, `wanted` (a part of the state) and `problems`, one short
 * phrase for each part that can't be read.
 */
export function readLink(text) {
  const query = new URLSearchParams(text.replace(/^#/, ""));
  const wanted = {};
  const problems = [];
  const complain = (name) =>
    problems.push(`“${name}=${query.get(name).slice(0, 20)}” can't be read`);
  for (const [name, to] of [["run", "run"], ["against", "against"], ...COUNTED, ["tour", "tour"]]) {
    if (!query.has(name)) continue;
    const number = Number(query.get(name));
    if (Number.isInteger(number) && number >= 1 && number < 1e6) wanted[to] = number - 1;
    else complain(name);
  }
  for (const [name, values] of Object.entries(CHOICES)) {
    if (!query.has(name)) continue;
    if (values.includes(query.get(name))) wanted[name] = query.get(name);
    else complain(name);
  }
  for (const name of SHARES) {
    if (!query.has(name)) continue;
    const number = query.get(name) === "" ? NaN : Number(query.get(name));
    if ((name === "top_p" ? number > 0 : number >= 0) && number <= 1) wanted[name] = number;
    else complain(name);
  }
  if (query.has("zoom")) wanted.zoom = query.get("zoom") === "1";
  return { trace: query.get("trace"), view: query.get("view"), wanted, problems };
}

/**
 * The parts of a link that this trace does not hold, in words; all others can be shown exactly.
 * `place` is the nearest recorded one, null where nothing is recorded.
 */
export function missing(data, wanted, place) {
  const found = [];
  const say = (name, at) => found.push(`${name} ${at + 1}`);
  for (const name of ["run", "against"]) if (wanted[name] >= data.runs.length) say("run", wanted[name]);
  if (wanted.frame >= data.frameCount) say("frame", wanted.frame);
  for (const name of ["step", "layer", "branch", "head"]) {
    if (isNumber(wanted[name]) && place && place[name] !== wanted[name]) say(name, wanted[name]);
  }
  return found;
}
