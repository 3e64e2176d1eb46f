// Where in the run we look: step, layer, head, branch. What the trace does not hold is greyed and named.

import { budget, el, percent, put, write } from "../dom.js";
import { PLACE, placesOf } from "../state.js";
import { term } from "../words.js";

const BRANCHES = ["conditional", "unconditional", "both, batched"];
const SHOWN_ON = ["run", ...PLACE, "top_p"];

/** The bar that stays in sight: four pickers and the numbers of the call they point at. */
export function makePlaceBar(app) {
  const number = (v) => String(v + 1);
  const pickers = {
    step: makePicker(app, "step", "Step", number),
    layer: makePicker(app, "layer", "Layer", number),
    head: makePicker(app, "head", "Head", number, "head"),
    branch: makePicker(app, "branch", "Guidance", (v) => BRANCHES[v] ?? String(v), "guidance"),
  };
  const all = Object.values(pickers);
  const kept = el("strong", {});
  const summary = el(
    "p",
    { class: "summary", "aria-live": "polite" },
    kept,
    " of its pairs kept",
  );
  const notice = el("p", { class: "notice" });
  return {
    node: el(
      "div",
      { class: "placebar", role: "group", "aria-label": "Which attention call is shown" },
      all.map((picker) => picker.node),
      summary,
      notice,
    ),
    update(state, changed) {
      if (changed.has("run")) {
        all.forEach((picker) => picker.fill());
        const branches = placesOf(app.data, app.source(), "branch").all;
        pickers.branch.node.hidden = branches.length < 2;
      }
      if (["layer", "step", "branch"].some((n) => changed.has(n))) pickers.head.fill();
      if (!SHOWN_ON.some((name) => changed.has(name))) return;
      all.forEach((picker) => picker.show());
      write(kept, percent(app.stats().density));
      const text = noticeOf(app, state);
      notice.hidden = !text;
      write(notice, text);
    },
  };
}

/** In what the selection on show is another one than was asked for; empty where it is that one. */
function noticeOf(app, { run, top_p }) {
  const { runs } = app.data;
  const shown = runs[app.source()];
  const sentences = [];
  if (shown.index !== run)
    sentences.push(
      `The clusters of ${runs[run].name} were not recorded; these are of ${shown.name}.`,
    );
  if (!app.isMeasured() && !app.canRedo())
    sentences.push(
      `This page cannot repeat the selection of ${shown.title} at top-p ${budget(top_p)}: the mask is the measured one, of ${app.measuredName()}.`,
    );
  return sentences.join(" ");
}

/** One part of the place: a menu of its values, and buttons to the recorded ones beside it. */
function makePicker(app, name, title, text, word = null) {
  const select = el("select", {
    "aria-label": title,
    onchange: () => app.selectPlace({ [name]: Number(select.value) }),
  });
  const button = (label, sign, by) =>
    el(
      "button",
      { type: "button", "aria-label": label, onclick: () => app.movePlace(name, by) },
      sign,
    );
  const back = button(`Previous recorded ${name}`, "‹", -1);
  const on = button(`Next recorded ${name}`, "›", 1);
  const places = () => placesOf(app.data, app.source(), name, app.store.get());
  return {
    node: el(
      "div",
      { class: name === "branch" ? "picker wide" : "picker" },
      el("span", { class: "label" }, word ? term(word, title) : title),
      back,
      select,
      on,
    ),
    fill() {
      const { all, recorded } = places();
      const option = (v) => {
        const isRecorded = recorded.includes(v);
        const label = isRecorded ? text(v) : `${text(v)} (not recorded)`;
        return el("option", { value: String(v), disabled: !isRecorded }, label);
      };
      put(select, ...all.map(option));
    },
    show() {
      const { recorded } = places();
      const value = app.store.get()[name];
      const at = recorded.indexOf(value);
      select.value = String(value);
      back.disabled = at <= 0;
      on.disabled = at === recorded.length - 1;
    },
  };
}
