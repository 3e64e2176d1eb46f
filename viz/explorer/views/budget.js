// The budget: its slider, what it keeps in numbers, and whether that was measured.

import { budget, decibel, el, isNumber, percent, plural, put, times, write } from "../dom.js";
import { TICKS } from "../select.js";
import { term } from "../words.js";
import { LEAST_TICK, makeBudgetCurve } from "./budgetcurve.js";
import { foretold, foretoldPace } from "./points.js";

export function makeBudget(app) {
  const slider = makeSlider(app);
  const panel = {
    slider,
    value: el("output", { class: "budgetvalue", for: "budget" }),
    curve: makeBudgetCurve(app, slider),
    badge: el("span", {}),
    kind: el("span", {}),
    back: el("button", {
      type: "button",
      class: "quiet",
      onclick: () => app.selectBudget(app.measuredBudget()),
    }),
    measure: el("button", { type: "button", class: "mainbutton", onclick: () => app.measure() }),
    answer: el("p", { class: "answer", role: "status", hidden: true }),
    liveSlot: el("div", { class: "liveslot" }),
    facts: makeFacts(),
    floor: el("p", { class: "small", hidden: true }),
  };
  return {
    nodes: panelNodes(app, panel),
    liveSlot: panel.liveSlot,
    picture: panel.curve.picture,
    /** Show the answer to a release of the slider in a sentence; null hides it. */
    say(text) {
      panel.answer.hidden = !text;
      put(panel.answer, text ?? "");
    },
    readout: (state) => showReadout(panel, readoutOf(app, state)),
    update(state) {
      const density = percent(app.stats().density);
      panel.slider.value = String(state.top_p);
      panel.slider.setAttribute("aria-valuetext", `${askedAt(app, state)}, density ${density}`);
      showReadout(panel, readoutOf(app, state));
      panel.curve.update(state);
    },
  };
}

function makeSlider(app) {
  const slider = el("input", {
    type: "range",
    id: "budget",
    class: "budget",
    min: LEAST_TICK / TICKS,
    max: 1,
    step: 1 / TICKS,
    oninput: () => app.selectBudget(Number(slider.value)),
    onchange: () => app.release(),
    onkeydown: (event) => event.key === "Enter" && app.measure(),
  });
  return slider;
}

/** The budget on show in words: that of the run, or the top-p on the slider. */
const askedAt = (app, { top_p }) =>
  app.isMeasured() ? app.measuredName() : `top-p ${budget(top_p)}`;

/** The elements that the readout's numbers are written to. */
function makeFacts() {
  const plain = () => el("span", {});
  const small = () => el("span", { class: "note" });
  return {
    density: plain(),
    mass: plain(),
    massNote: small(),
    recall: plain(),
    recallNote: small(),
    all: plain(),
    allNote: small(),
    outcomeName: plain(),
    outcome: plain(),
    outcomeNote: small(),
  };
}

function panelNodes(app, { floor, value, curve, badge, kind, back, measure, answer, liveSlot, facts }) {
  return [
    el("div", { class: "budgetrow" }, el("label", { for: "budget" }, "Budget top-p"), value),
    curve.node,
    el(
      "p",
      { class: "legend small" },
      el("span", { class: "key first" }, "density of this call"),
      el("span", { class: "key second" }, "kept mass"),
    ),
    el(
      "p",
      { class: "small" },
      app.runsOnRelease()
        ? "A budget that was not run can be measured: Enter or the button starts a real run, which can be cancelled."
        : "Let go of the slider to move to the nearest measured run.",
    ),
    el("p", { class: "kind" }, badge, kind),
    floor,
    el("div", { class: "offer" }, measure, back),
    answer,
    liveSlot,
    el(
      "dl",
      { class: "readout" },
      el("dt", {}, term("density", "Density, this call")),
      el("dd", {}, facts.density),
      el("dt", {}, term("kept mass", "Kept mass")),
      el("dd", {}, facts.mass, facts.massNote),
      el("dt", {}, term("recall", "Recall")),
      el("dd", {}, facts.recall, facts.recallNote),
      el("dt", {}, "Mean density"),
      el("dd", {}, facts.all, facts.allNote),
      el("dt", {}, facts.outcomeName),
      el("dd", {}, facts.outcome, facts.outcomeNote),
    ),
  ];
}

/** What the readout says of a state. `all` is the mean over the recorded calls. */
function readoutOf(app, state) {
  const { top_p } = state;
  return {
    asked: askedAt(app, state).replace(/^top-p /, ""), // the field's name says it
    measuredName: app.measuredName().replace(/^top-p /, ""),
    rule: app.method().rule,
    isMeasured: app.isMeasured(),
    canRedo: app.canRedo(),
    isOwnMask: app.isOwnMask(),
    ...app.stats(),
    recall: app.record().recall,
    all: app.meanDensity(top_p),
    told: app.forecast(top_p),
    offer: app.offer(),
    floor: app.floor(),
    result: app.data.runs[state.run].result,
  };
}

function showReadout({ facts, floor, value, badge, kind, back, measure }, numbers) {
  const { isMeasured, isOwnMask, all } = numbers;
  write(facts.density, percent(numbers.density));
  write(facts.mass, percent(numbers.keptMass));
  write(
    facts.massNote,
    numbers.rule === "error" ? "seen at the query centroid" : "estimate from centroids",
  );
  write(facts.recall, isOwnMask ? percent(numbers.recall) : "not measured");
  write(
    facts.recallNote,
    isOwnMask ? "true attention mass, 64 random queries" : "only at the measured budget",
  );
  write(facts.all, all.value === null ? "computing…" : percent(all.value));
  write(facts.allNote, `of ${plural(all.count, "recorded call")}`);
  showOutcome(facts, numbers);
  write(value, numbers.asked);
  write(badge, badgeOf(numbers));
  badge.className = isMeasured ? "badge solid" : "badge hollow";
  write(kind, kindOf(numbers));
  floor.hidden = !numbers.floor?.binds;
  write(floor, floorText(numbers.floor));
  measure.hidden = !numbers.offer;
  write(measure, numbers.offer ?? "Measure");
  back.hidden = isMeasured;
  write(back, `Back to the measured ${numbers.measuredName}`);
}

/** Where top-p does not decide alone: rows that would have enough with less than they always keep. */
function floorText(floor) {
  if (!floor?.binds) return "";
  const { least, share, top_p, binds, rows } = floor;
  return `Each query cluster keeps at least its ${least} heaviest key clusters (${percent(share)}). In ${binds} of ${rows} that is more than top-p ${budget(top_p)} asks for.`;
}

/** PSNR and speedup of a whole run at this budget: measured, foretold or neither. */
function showOutcome({ outcomeName, outcome, outcomeNote }, { isMeasured, told, result }) {
  write(outcomeName, isMeasured ? "PSNR, whole run" : "PSNR, foretold");
  if (isMeasured) {
    write(outcome, decibel(result.psnr_db));
    write(outcomeNote, isNumber(result.speedup) ? `${times(result.speedup)} end to end` : "");
    return;
  }
  write(outcome, told ? foretold(told) : "not known");
  const pace = told ? foretoldPace(told) : "";
  write(outcomeNote, pace ? `${pace} end to end` : "until it is run");
}

function badgeOf({ isMeasured, canRedo }) {
  if (isMeasured) return "measured";
  return canRedo ? "what-if" : "not run";
}

/** Where the selection on show comes from. */
function kindOf({ isMeasured, canRedo, measuredName }) {
  if (isMeasured) return " The selection the method made in this run.";
  return canRedo
    ? " Selected from the recorded queries and keys; in a real run later steps would change."
    : ` The mask and the numbers are those of the measured ${measuredName}.`;
}
