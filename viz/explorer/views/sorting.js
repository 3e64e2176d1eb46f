// From token order to the order sorted by cluster: a slider, and a button that plays the change.

import { clamp, el, percent, write } from "../dom.js";

const SORTING_MS = 1600;
const START_MS = 250; // a moment to see the first order

export function makeSorting({ store }) {
  const sorting = {
    store,
    turn: 0, // a new turn ends the animation of an older one
    still: matchMedia("(prefers-reduced-motion: reduce)"),
    slider: el("input", {
      type: "range",
      min: 0,
      max: 1,
      step: 0.01,
      "aria-label": "From token order to sorted by cluster",
      oninput: () => {
        sorting.turn += 1;
        store.set({ sort: Number(sorting.slider.value), zoom: false });
      },
    }),
    button: el("button", { type: "button", class: "plainbutton", onclick: () => play(sorting) }),
  };
  const { slider, button } = sorting;
  return {
    nodes: [
      button,
      el("label", { class: "sortslider" }, el("span", {}, "tokens"), slider, el("span", {}, "clusters")),
    ],
    play: () => play(sorting),
    close() {
      sorting.turn += 1;
    },
    update({ sort }) {
      write(button, buttonText(sorting, sort));
      slider.value = String(sort);
      slider.setAttribute("aria-valuetext", `${percent(sort, 0)} of the way to sorted by cluster`);
    },
  };
}

function buttonText({ still }, sort) {
  if (!still.matches) return "Play the sorting";
  return sort < 1 ? "Sort by cluster" : "Back to token order";
}

/** Move from token order to sorted; under reduced motion, go to the other end in one step. */
function play(sorting) {
  const { store, slider, still } = sorting;
  sorting.turn += 1;
  if (still.matches) {
    store.set({ zoom: false, sort: store.get().sort < 1 ? 1 : 0 });
    return;
  }
  const { turn } = sorting;
  let began = null;
  store.set({ zoom: false, sort: 0, hover: null });
  const frame = (now) => {
    if (turn !== sorting.turn || !slider.isConnected) return;
    began ??= now + START_MS;
    const t = clamp((now - began) / SORTING_MS, 0, 1);
    store.set({ sort: t < 1 ? Math.round(1000 * t * t * (3 - 2 * t)) / 1000 : 1 });
    if (t < 1) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}
