// A race as it goes: each side's picture and clock, and how far one is ahead.

import { el, put, seconds, times } from "../dom.js";

const HOW =
  "The two take turns, a step each. A bar is the time that its side has taken so far: shorter is faster. The pictures are the middle latent frame, decoded alone.";

/** One side: its picture, its step, and its time as a bar that is full when the slower one is done. */
function makeSide() {
  const picture = el("img", { class: "livepreview", alt: "" });
  const name = el("strong", {});
  const place = el("span", { class: "small" });
  const fill = el("i", {});
  const node = el(
    "figure",
    { class: "liveside" },
    picture,
    el("figcaption", {}, name, place, el("div", { class: "livebar" }, fill)),
  );
  return {
    node,
    update(side, whole) {
      put(name, side.name);
      put(place, `${side.stage}, ${seconds(side.seconds)}`);
      fill.style.width = `${whole > 0 ? Math.min(100, (100 * side.seconds) / whole) : 0}%`;
      if (side.preview) {
        picture.src = side.preview;
        picture.alt = `Preview of the clip of: ${side.name}`;
      }
      picture.hidden = !picture.hasAttribute("src");
    },
    clear: () => picture.removeAttribute("src"),
  };
}

/** What a side takes in all, at its pace so far. */
const wholeSeconds = ({ seconds: passed, step, num_steps: all }) =>
  step > 0 && all > 0 ? (passed * Math.max(all, step)) / step : passed;

/** Both sides of a race. `update(sides)` takes the dense one first, or null. */
export function makeSides() {
  const both = [makeSide(), makeSide()];
  const gap = el("p", { class: "livegap" });
  const note = el("p", { class: "livenote small" }, HOW);
  const node = el("div", { class: "livesides", hidden: true }, ...both.map((s) => s.node), gap, note);
  return {
    node,
    update(sides) {
      node.hidden = !sides;
      if (!sides) {
        both.forEach((side) => side.clear());
        put(gap);
        return;
      }
      const whole = Math.max(...sides.map(wholeSeconds));
      both.forEach((side, i) => side.update(sides[i], whole));
      const [dense, sparse] = sides;
      if (!dense.step || dense.step !== sparse.step) return; // the last gap stays
      const ahead = dense.seconds - sparse.seconds;
      const word = ahead >= 0 ? "ahead" : "behind";
      put(
        gap,
        `After step ${dense.step}: ${seconds(Math.abs(ahead))} ${word}, ${times(dense.seconds / sparse.seconds)} so far`,
      );
    },
  };
}
