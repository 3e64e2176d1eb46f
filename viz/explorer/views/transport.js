// Play, pause, step and scrub: one transport for both clips.

import { el, put } from "../dom.js";

const SPEEDS = [
  ["1", "1×"],
  ["0.5", "½×"],
  ["0.25", "¼×"],
];

export function makeTransport(app) {
  const { data, store } = app;
  const play = el("button", {
    type: "button",
    class: "play",
    onclick: () => store.set({ playing: !store.get().playing }),
  });
  const scrub = el("input", {
    type: "range",
    min: 0,
    max: data.frameCount - 1,
    step: 1,
    "aria-label": "Frame",
    oninput: () => store.set({ frame: Number(scrub.value), playing: false }),
  });
  const count = el("output", { class: "count" });
  const speed = el(
    "select",
    { "aria-label": "Playback speed", onchange: () => store.set({ speed: Number(speed.value) }) },
    SPEEDS.map(([value, text]) => el("option", { value }, text)),
  );
  return {
    node: el(
      "div",
      { class: "transport" },
      play,
      el("button", { type: "button", "aria-label": "Previous frame", onclick: () => app.stepFrame(-1) }, "‹"),
      el("button", { type: "button", "aria-label": "Next frame", onclick: () => app.stepFrame(1) }, "›"),
      scrub,
      count,
      speed,
    ),
    update(state) {
      put(play, state.playing ? "❚❚" : "▶");
      play.setAttribute("aria-label", state.playing ? "Pause" : "Play");
      scrub.value = state.frame;
      scrub.setAttribute("aria-valuetext", `frame ${state.frame + 1} of ${data.frameCount}`);
      put(count, `${state.frame + 1} / ${data.frameCount}`);
      speed.value = String(state.speed);
    },
  };
}
