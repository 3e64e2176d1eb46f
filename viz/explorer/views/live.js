// A run as it is made: stage, step, time left, a preview of the latent, density step by step.

import { el, percent, put, svg } from "../dom.js";
import { makeSides } from "./livesides.js";

const BARS = { width: 220, height: 44 };

/** Density of each step so far, as bars from the left; a dense step is full. */
function bars(density, steps) {
  const count = Math.max(steps, density.length, 1);
  const width = BARS.width / count;
  return svg(
    "svg",
    {
      class: "bars",
      viewBox: `0 0 ${BARS.width} ${BARS.height}`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    },
    density.map((d, i) =>
      svg("rect", {
        x: i * width + 0.5,
        width: Math.max(width - 1, 0.5),
        y: (1 - d) * BARS.height,
        height: d * BARS.height,
      }),
    ),
  );
}

/**
 * The panel of a live run. `update(live)` takes what `explorer_value` says of it, or null;
 * `onCancel` is called when the visitor stops it.
 */
export function makeLive(onCancel) {
  const text = el("p", { class: "livetext", role: "status" });
  const fill = el("i", {});
  const bar = el(
    "div",
    { class: "livebar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 },
    fill,
  );
  const picture = el("img", { class: "livepreview", alt: "" });
  const pictureNote = el("figcaption", { class: "small" });
  const figure = el("figure", { class: "livefigure" }, picture, pictureNote);
  const sides = makeSides();
  const density = el("div", { class: "livedensity" });
  const cancel = el("button", { type: "button", class: "plainbutton", onclick: onCancel }, "Cancel");
  const node = el(
    "section",
    { class: "live", "aria-label": "Run in progress", hidden: true },
    figure,
    el("div", { class: "livemain" }, text, bar, sides.node, density, onCancel ? cancel : null),
  );
  return {
    node,
    update(live) {
      node.hidden = !live;
      sides.update(live?.sides ?? null);
      if (!live) {
        picture.removeAttribute("src");
        put(density);
        return;
      }
      put(text, live.text);
      bar.setAttribute("aria-label", live.text);
      if (live.done !== undefined) {
        const share = Math.round(100 * live.done);
        bar.setAttribute("aria-valuenow", String(share));
        fill.style.width = `${share}%`;
      }
      cancel.disabled = Boolean(live.stopping);
      if (live.preview) {
        picture.src = live.preview;
        picture.alt = "Preview of the video as it is denoised";
        put(pictureNote, `The middle latent frame after step ${live.step}, decoded alone`);
      } else if (live.stage && live.stage !== "denoise") picture.removeAttribute("src");
      figure.hidden = Boolean(live.sides) || !picture.hasAttribute("src");
      const values = live.density ?? [];
      if (values.length) {
        put(
          density,
          bars(values, live.num_steps ?? 0),
          el(
            "p",
            { class: "small" },
            `Density by step, now ${percent(values[values.length - 1])}; a dense step is 100 %.`,
          ),
        );
      } else if (live.stage !== "denoise" || live.step === 0) put(density);
    },
  };
}
