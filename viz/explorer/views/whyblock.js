// "Why this block?": what one block of the mask holds and costs, and why it was kept or skipped, in words.

import { factsOf, reasonOf } from "../blockfacts.js";
import { budget, el, isNumber, percent, plural, put } from "../dom.js";
import { leastKept, thresholdAt } from "../select.js";
import { term } from "../words.js";

const BEYOND = 59_999; // thresholds past it stand for "all" and "none"
const IDLE =
  "Point at a block of a mask, or pin one, to read what it holds, what it costs, and why it was kept or skipped.";

/** The box's node, and `show(block)`; null explains what it is for. */
export function makeWhyBlock(app) {
  const list = el("ul", {});
  return {
    node: el("div", { class: "why small" }, el("h4", {}, "Why this block?"), list),
    show(block) {
      put(list, ...(block ? sentencesOf(app, block) : [IDLE]).map((one) => el("li", {}, one)));
    },
  };
}

/** What decides on the mask on show: `top_p` is null where the budget was a density. */
function askedOf(app) {
  const { config } = app.shownRun();
  const { top_p } = app.store.get();
  const onShow = app.isOwnMask() ? app.measuredBudget() : top_p;
  return {
    rule: app.method().rule,
    top_p: isNumber(config.density) ? null : onShow,
    minKeepRatio: app.minKeepRatio(),
  };
}

/** "Kept for its predicted error: …": whether a block is computed, and by which rule. */
export function verdictOf(app, block) {
  const facts = factsOf(app.record(), app.kept(), block);
  return verdict(app.record(), facts, askedOf(app));
}

function verdict(record, facts, asked) {
  const { isKept, before } = facts;
  const reason = reasonOf(record, facts, asked);
  const heavier = `the heavier blocks of its row hold ${percent(before)} of the mass`;
  const target = `top-p ${budget(asked.top_p)}`;
  const kept = {
    all: "Kept: at top-p 1 everything is.",
    heaviest: "Kept as the heaviest of its row: that one always is.",
    mass: `Kept for its mass: ${heavier}, which is not yet ${target}.`,
    least: `Kept as one of the ${leastKept(record, asked.minKeepRatio)} heaviest of its row: those always are.`,
    error: "Kept for its predicted error: the output would miss it.",
    "": "Kept.",
  };
  const skipped = {
    mass: `Skipped for its mass: ${heavier} already, and ${target} asks for no more.`,
    error: "Skipped: other blocks would be missed more, and the budget went to them.",
    "": "Skipped.",
  };
  return (isKept ? kept : skipped)[reason];
}

function sentencesOf(app, block) {
  const record = app.record();
  if (!record.q.sizes[block.q] || !record.k.sizes[block.k])
    return ["One of its clusters is empty: there is nothing to compute."];
  const facts = factsOf(record, app.kept(), block);
  const asked = askedOf(app);
  return [
    verdict(record, facts, asked),
    `Mass: ${share(facts.mass)} of what query cluster ${block.q + 1} attends to, ${ordinal(facts.massRank)} of its ${plural(facts.rowBlocks, "block")}.`,
    facts.error && [term("predicted error", "Predicted error"), ` per key: ${errorText(record, facts.error, asked)}`],
    `Cost: ${plural(facts.pairs, "query–key pair")}, ${share(facts.share)} of this head's.`,
    othersText(app, record, block),
  ].filter(Boolean);
}

function errorText(record, error, { rule, top_p }) {
  const place = `${ordinal(error.rank)} of the ${plural(error.blocks, "block")} of this head.`;
  if (error.isNone) return `none, ${place}`;
  return `${relative(record, error, rule === "error" ? top_p : null)}, ${place}`;
}

/** An error beside what the budget of the layer asked for; where that is not known, beside the least that was kept. */
function relative(record, { gain, leastKeptGain }, top_p) {
  if (top_p === null)
    return leastKeptGain === Infinity
      ? "not compared"
      : `${ratio(gain - leastKeptGain)} the least that was kept for it in this head`;
  const threshold = thresholdAt(record, top_p);
  if (top_p === 1 || threshold < -BEYOND) return "the budget has room for every block";
  if (threshold > BEYOND) return "the budget has room for the heaviest of each row alone";
  return `${ratio(gain - threshold)} what the budget asked for`;
}

/** e^x as people say it: "3.1×", "1/29 of". */
function ratio(x) {
  const value = Math.exp(x);
  if (value > 1000) return "more than 1,000×";
  if (value < 0.001) return "less than 1/1,000 of";
  if (value < 0.1) return `1/${Math.round(1 / value)} of`;
  return `${value < 10 ? Number(value.toPrecision(2)) : Math.round(value)}×`;
}

/** What other runs did with the block, where their clusters at this place are the same. */
function othersText(app, record, { q, k }) {
  const others = app.data.sameClusters(record.index);
  const names = (wanted) =>
    others
      .filter(({ kept }) => Boolean(kept[q * record.K + k]) === wanted)
      .map(({ run }) => app.data.runs[run].name)
      .join("; ");
  const parts = [
    [names(true), "keep it"],
    [names(false), "skip it"],
  ].filter(([who]) => who);
  if (!parts.length) return null;
  return `Runs with the same clusters here: ${parts.map(([who, what]) => `${who} ${what}`).join(", ")}.`;
}

function share(x) {
  return x > 0 && x < 0.0001 ? "less than 0.01 %" : percent(x, 2);
}

function ordinal(n) {
  const teen = n % 100 >= 11 && n % 100 <= 13;
  const end = (!teen && { 1: "st", 2: "nd", 3: "rd" }[n % 10]) || "th";
  return `${n.toLocaleString("en")}${end}`;
}
