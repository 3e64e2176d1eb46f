// The mask pair in small, beside the clips: scattered pairs, and the same sorted into blocks.

import { el, percent, put } from "../dom.js";
import { makeMaskPlot } from "./maskplot.js";

const DELAY_MS = 120; // the large masks come first
const BINS = 128;
const SHOWN_ON = ["run", "step", "layer", "branch", "head", "top_p", "tint"];

/** Both small masks; a click on one goes to the large ones. */
export function makeMiniMasks(app) {
  const toMasks = () => {
    const root = node.closest(".lab");
    root.querySelector("[data-view=masks]")?.scrollIntoView({ behavior: app.still ? "auto" : "smooth" });
  };
  const plots = [0, 1].map((sort) =>
    makeMaskPlot(app, {
      orderOf: () => ({ sort, block: null }),
      onHover: () => {},
      onPick: toMasks,
      maxBins: BINS,
      isPlain: true,
    }),
  );
  const caption = el("p", { class: "small" });
  const node = el(
    "div",
    { class: "minimasks" },
    ["in token order", "sorted by cluster"].map((name, i) =>
      el(
        "figure",
        {},
        el("button", { type: "button", "aria-label": `To the mask ${name}`, onclick: toMasks }, plots[i].node),
        el("figcaption", { class: "small" }, name),
      ),
    ),
    caption,
  );
  let timer = 0;
  const draw = () => plots.forEach((plot) => plot.draw());
  return {
    node,
    draw,
    update(state, changed) {
      if (!SHOWN_ON.some((name) => changed.has(name))) return;
      clearTimeout(timer);
      timer = setTimeout(() => {
        draw();
        const { layer, head } = app.store.get();
        put(
          caption,
          `What one head computes (layer ${layer + 1}, head ${head + 1}${app.isMeasured() ? "" : `, ${app.budgetName()}`}): ${percent(app.stats().density)} of the pairs.`,
        );
      }, DELAY_MS);
    },
    close: () => clearTimeout(timer),
  };
}
