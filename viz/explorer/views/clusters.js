// Clusters on frames: each token coloured by its cluster, over the pixels that it stands for.

import { choice, clamp, el, fit, isNumber, onFrame, percent, plural, put } from "../dom.js";
import { paint, pictureAt } from "../frames.js";
import { rank } from "../select.js";
import { term } from "../words.js";

const NAMES = { q: "Query", k: "Key" };
const SHOWN_READS = 5;
const SHOWN_NEAR = 3;
const VEIL = [8, 9, 12]; // over what is not lit

/** Share of a query cluster's mass on each key cluster that it keeps, or who reads a key cluster: one number per other cluster. */
function reads(record, kept, side, cluster) {
  const { Q, K } = record;
  const { occupied, order, mass } = rank(record);
  const weights = new Float64Array(side === "q" ? K : Q);
  for (let q = 0; q < Q; q += 1) {
    if (side === "q" && q !== cluster) continue;
    for (let j = 0; j < occupied; j += 1) {
      const k = order[q * occupied + j];
      if (!kept[q * K + k]) continue;
      if (side === "q") weights[k] = mass[q * occupied + j];
      else if (k === cluster) weights[q] = mass[q * occupied + j];
    }
  }
  return weights;
}

/** Share of all queries' attention mass on a key cluster, kept or not (estimate). */
function massOn(record, cluster) {
  const { Q, q } = record;
  const { occupied, order, mass } = rank(record);
  let sum = 0;
  for (let row = 0; row < Q; row += 1) {
    for (let j = 0; j < occupied; j += 1) {
      const at = row * occupied + j;
      if (order[at] === cluster) sum += q.sizes[row] * mass[at];
    }
  }
  return sum / q.labels.length;
}

/** Query clusters whose mass lies on the same keys: overlap with `cluster`, 1 is equal. */
function readAlike(record, cluster) {
  const { Q, K } = record;
  const { occupied, order, mass } = rank(record);
  const own = new Float64Array(K);
  for (let j = 0; j < occupied; j += 1) {
    own[order[cluster * occupied + j]] = mass[cluster * occupied + j];
  }
  const found = [];
  for (let q = 0; q < Q; q += 1) {
    if (q === cluster || !record.q.sizes[q]) continue;
    let overlap = 0;
    for (let j = 0; j < occupied; j += 1) {
      const at = q * occupied + j;
      overlap += Math.min(mass[at], own[order[at]]);
    }
    found.push({ cluster: q, overlap });
  }
  return found.sort((a, b) => b.overlap - a.overlap).slice(0, SHOWN_NEAR);
}

/** What is lit: the members of one cluster, or the other side's clusters by weight. */
function lighting(state, record, kept) {
  const focus =
    state.hover ?? (state.cluster === null ? null : { side: state.side, cluster: state.cluster });
  if (!focus) return { side: state.side, focus: null, weights: null };
  if (state.hover || state.lit === "members") return { side: focus.side, focus, weights: null };
  const other = focus.side === "q" ? "k" : "q";
  const weights = reads(record, kept, focus.side, focus.cluster);
  const perToken = weights.map((w, c) =>
    record[other].sizes[c] ? w / record[other].sizes[c] : 0,
  );
  const heaviest = Math.max(...perToken, 1e-30);
  return { side: other, focus, weights: perToken.map((w) => Math.sqrt(w / heaviest)) };
}

/** One RGBA word per cluster (bytes in memory order, as ImageData has them). */
function paintOf(light, record, opacity, accent) {
  const { rgb, sizes } = record[light.side];
  const paint = new Uint8ClampedArray(4 * sizes.length);
  for (let c = 0; c < sizes.length; c += 1) {
    let colour = rgb.subarray(3 * c, 3 * c + 3);
    let alpha = 255 * opacity;
    if (light.weights) {
      const weight = light.weights[c];
      colour = weight > 0 ? accent : VEIL;
      alpha = weight > 0 ? 40 + 190 * weight : 185;
    } else if (light.focus) {
      const member = c === light.focus.cluster;
      if (!member) colour = VEIL;
      alpha = member ? Math.max(alpha, 150) : 165;
    }
    paint.set(colour, 4 * c);
    paint[4 * c + 3] = Math.round(alpha);
  }
  return new Uint32Array(paint.buffer);
}

function drawFrame(context, picture, t, cell, grid, record, light, opacity) {
  const [, Y, X] = grid;
  const { labels } = record[light.side];
  const base = t * Y * X;
  const { width, height } = context.canvas;
  if (picture) paint(context, picture);
  else context.clearRect(0, 0, width, height);

  const image = new ImageData(X, Y);
  const words = new Uint32Array(image.data.buffer);
  for (let i = 0; i < words.length; i += 1) words[i] = light.paint[labels[base + i]];
  const overlay = new OffscreenCanvas(X, Y);
  overlay.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(overlay, 0, 0, width, height);

  const border = (differs) => {
    context.beginPath();
    for (let y = 0; y < Y; y += 1) {
      for (let x = 0; x < X; x += 1) {
        const i = base + y * X + x;
        if (x + 1 < X && differs(i, i + 1)) {
          context.moveTo((x + 1) * cell, y * cell);
          context.lineTo((x + 1) * cell, (y + 1) * cell);
        }
        if (y + 1 < Y && differs(i, i + X)) {
          context.moveTo(x * cell, (y + 1) * cell);
          context.lineTo((x + 1) * cell, (y + 1) * cell);
        }
      }
    }
    context.stroke();
  };
  if (!light.focus && cell >= 5) {
    context.lineWidth = 1;
    context.strokeStyle = `rgba(0, 0, 0, ${0.6 * opacity})`;
    border((i, j) => labels[i] !== labels[j]);
  }
  if (light.focus) {
    for (const [n, { side, cluster }] of light.marked.entries()) {
      const own = record[side].labels;
      context.setLineDash(n ? [5, 4] : []); // the other half of a pinned block is dashed
      for (const [style, widthPx] of [
        ["rgba(0, 0, 0, .75)", 4],
        ["#fff", 2],
      ]) {
        context.lineWidth = widthPx * Math.max(1, devicePixelRatio * 0.75);
        context.strokeStyle = style;
        border((i, j) => (own[i] === cluster) !== (own[j] === cluster));
      }
    }
    context.setLineDash([]);
  }
}

export function makeClusters(app) {
  const { data, store, clips } = app;
  const [T, Y, X] = data.grid;
  const sides = choice(
    "Queries or keys",
    [
      ["q", "Queries"],
      ["k", "Keys"],
    ],
    (side) => store.set({ side, cluster: null, hover: null }),
  );
  const lit = choice(
    "What a pinned cluster lights",
    [
      ["attended", "What it attends to"],
      ["members", "Its own tokens"],
    ],
    (value) => store.set({ lit: value }),
  );
  const opacity = el("input", {
    type: "range",
    min: 0,
    max: 100,
    step: 5,
    oninput: () => store.set({ opacity: Number(opacity.value) / 100 }),
  });
  const number = el("input", {
    type: "number",
    min: 1,
    step: 1,
    class: "number",
    placeholder: "none",
    onchange: () => {
      const wanted = Math.round(Number(number.value));
      const { side } = store.get();
      const most = side === "q" ? app.record().Q : app.record().K;
      store.set({ cluster: number.value === "" ? null : clamp(wanted, 1, most) - 1, hover: null });
    },
  });
  const note = el("div", { class: "clusternote", "aria-live": "polite" });

  const tiles = Array.from({ length: T }, (_, t) => {
    const [from, to] = data.latentFrames[t];
    const name = to - from > 1 ? `frames ${from + 1}–${to}` : `frame ${from + 1}`;
    const canvas = el("canvas", {
      role: "img",
      "aria-label": `Clusters on latent frame ${t + 1}, video ${name}`,
    });
    const cluster = (event) => {
      const box = canvas.getBoundingClientRect();
      const x = clamp(Math.floor(((event.clientX - box.left) / box.width) * X), 0, X - 1);
      const y = clamp(Math.floor(((event.clientY - box.top) / box.height) * Y), 0, Y - 1);
      const { side } = store.get();
      return { side, cluster: app.record()[side].labels[t * Y * X + y * X + x] };
    };
    canvas.addEventListener("pointermove", (event) => {
      const at = cluster(event);
      const { hover } = store.get();
      if (hover?.cluster !== at.cluster || hover?.side !== at.side) store.set({ hover: at });
    });
    canvas.addEventListener("pointerleave", () => store.set({ hover: null }));
    canvas.addEventListener("click", (event) => {
      const at = cluster(event);
      const same = store.get().cluster === at.cluster;
      store.set({
        cluster: same ? null : at.cluster,
        pair: null,
        hover: null,
        playing: false,
        frame: store.get().frame >= from && store.get().frame < to ? store.get().frame : from,
      });
    });
    const node = el("figure", { class: "tile" }, canvas, el("figcaption", {}, name));
    return { node, canvas, from, to };
  });
  const grid = el(
    "div",
    {
      class: "tiles",
      tabindex: 0,
      role: "group",
      "aria-label":
        "Latent frames with their clusters. Left and right step the frame, up and down the layer, n and p go from cluster to cluster.",
      "data-keys": "layers",
      style: `--columns: ${Math.min(T, 7, Math.max(4, Math.ceil(T / 2)))}`,
    },
    tiles.map((tile) => tile.node),
  );
  const map = app.densityMap;
  const tileNote = el("p", { class: "tilenote small" });
  const node = el(
    "section",
    { class: "view", "data-view": "clusters", "aria-labelledby": "clusters-title" },
    el(
      "div",
      { class: "side" },
      el("h3", { id: "clusters-title" }, "Clusters on frames"),
      el(
        "p",
        {},
        "In each head, ",
        term("k-means"),
        " groups ",
        term("token", "tokens"),
        " whose queries (or keys) are alike, wherever they lie in space and time, into a ",
        term("cluster"),
        ". Near ",
        term("centroid", "centroids"),
        " have near colours. Each picture stands for a ",
        term("latent frame"),
        " of the clip. Hover lights one cluster, a click pins it.",
      ),
      sides.node,
      el("label", { class: "slider" }, "Overlay", opacity),
      el("label", { class: "slider" }, "Pinned cluster", number),
      note,
    ),
    el("div", { class: "main" }, grid, tileNote, map.node),
  );

  const draw = onFrame(() => {
    const state = store.get();
    const record = app.record();
    const light = lighting(state, record, app.kept());
    const clip = clips.sparse(state.run);
    light.marked = app.marked(state);
    light.paint = paintOf(light, record, state.opacity, app.colours().accentRgb);
    for (let t = 0; t < T; t += 1) {
      const { canvas, from, to } = tiles[t];
      const pixels = (canvas.parentElement.clientWidth || 150) * devicePixelRatio;
      const cell = Math.max(2, Math.round(pixels / X));
      const context = fit(canvas, X * cell, Y * cell);
      const picture = pictureAt(clip, (from + to - 1) >> 1);
      drawFrame(context, picture, t, cell, data.grid, record, light, state.opacity);
    }
  });

  const swatch = (record, side, c) =>
    el("i", {
      class: "swatch",
      style: `background: rgb(${record[side].rgb.slice(3 * c, 3 * c + 3).join(" ")})`,
    });

  const chip = (record, side, c, text) =>
    el(
      "button",
      {
        type: "button",
        class: "chip",
        "aria-label": `${text}: pin ${NAMES[side].toLowerCase()} cluster ${c + 1}`,
        onclick: () => store.set({ side, cluster: c, hover: null }),
        onpointerenter: () => store.set({ hover: { side, cluster: c, fromNote: true } }),
        onpointerleave: () => store.set({ hover: null }),
      },
      swatch(record, side, c),
      text,
    );

  /** What the overlay means just now. */
  function legend(focus, state) {
    if (!focus)
      return "Each square is one token: a small patch of pixels over the video frames named below it.";
    if (state.hover || state.lit === "members")
      return "Lit: the tokens of this cluster, in every frame. The rest is dimmed.";
    return focus.side === "q"
      ? "Outlined: the pinned query cluster (dashed: the key cluster of a pinned block). Lit: the key clusters it keeps, stronger where a token gets more of its mass. Dark: skipped."
      : "Outlined: the pinned key cluster. Lit: the query clusters that keep it, by weight. Dark: those that skip it.";
  }

  /** Write the note anew, and leave the keyboard's focus where it was in it, or on its first button. */
  function describe(state) {
    const focused = note.getRootNode().activeElement;
    const inside = note.contains(focused);
    write(state);
    if (inside) (note.contains(focused) ? focused : note.querySelector("button"))?.focus();
  }

  function write(state) {
    const record = app.record();
    const lighted =
      state.hover ??
      (state.cluster === null ? null : { side: state.side, cluster: state.cluster });
    put(tileNote, legend(lighted, state));
    if (state.hover?.fromNote) return; // the chip under the pointer has to stay where it is
    const focus = lighted;
    if (!focus) {
      const used = (sizes) => sizes.reduce((n, s) => n + (s > 0), 0);
      put(
        note,
        el(
          "p",
          { class: "small" },
          `${plural(used(record.q.sizes), "query cluster")} and ${plural(used(record.k.sizes), "key cluster")} for ${plural(data.tokens, "token")} in this head.`,
        ),
      );
      return;
    }
    const { side, cluster } = focus;
    const size = record[side].sizes[cluster];
    const frames = new Set();
    record[side].labels.forEach(
      (label, i) => label === cluster && frames.add(Math.floor(i / (Y * X))),
    );
    const weights = reads(record, app.kept(), side, cluster);
    const partners = Array.from(weights.keys()).filter((c) => weights[c] > 0);
    const other = side === "q" ? "k" : "q";
    const used = (sizes) => sizes.reduce((n, size) => n + (size > 0), 0);
    const facts =
      side === "q"
        ? `Keeps ${partners.length} of ${used(record.k.sizes)} key clusters, which hold ${percent(weights.reduce((a, b) => a + b, 0))} of its attention mass (estimate).`
        : `Kept by ${partners.length} of ${used(record.q.sizes)} query clusters. ${percent(massOn(record, cluster))} of all attention mass falls on it (estimate).`;
    partners.sort((a, b) => weights[b] - weights[a]);
    const pinned = !state.hover;
    put(
      note,
      el(
        "p",
        {},
        swatch(record, side, cluster),
        el("strong", {}, `${NAMES[side]} cluster ${cluster + 1}`),
        state.hover ? "" : " (pinned)",
      ),
      el(
        "p",
        { class: "small" },
        `${plural(size, "token")} (${percent(size / data.tokens)}) in ${frames.size} of ${plural(T, "latent frame")}. ${facts}`,
      ),
      pinned ? lit.node : null,
      pinned && partners.length
        ? el(
            "p",
            { class: "chips" },
            el("span", { class: "label" }, side === "q" ? "Reads most from" : "Read most by"),
            partners
              .slice(0, SHOWN_READS)
              .map((c) => chip(record, other, c, `${c + 1} · ${percent(weights[c])}`)),
          )
        : null,
      pinned && side === "q"
        ? el(
            "p",
            { class: "chips" },
            el("span", { class: "label" }, "Attend most alike, overlap of mass"),
            readAlike(record, cluster).map((near) =>
              chip(record, "q", near.cluster, `${near.cluster + 1} · ${percent(near.overlap, 0)}`),
            ),
          )
        : null,
      pinned && side === "k"
        ? el(
            "p",
            { class: "chips" },
            el("span", { class: "label" }, "Nearest centroids"),
            [...new Set(record.kNear.slice(4 * cluster, 4 * cluster + 4))]
              .filter((c) => c !== cluster)
              .map((c) => chip(record, "k", c, String(c + 1))),
          )
        : null,
      pinned
        ? el(
            "button",
            { type: "button", class: "quiet", onclick: () => store.set({ cluster: null }) },
            "Unpin",
          )
        : null,
    );
  }

  return {
    node,
    draw,
    update(state, changed) {
      map.update(state, changed);
      sides.show(state.side);
      lit.show(state.lit);
      put(lit.buttons[0], state.side === "q" ? "What it attends to" : "Who attends to it");
      opacity.value = Math.round(100 * state.opacity);
      opacity.setAttribute("aria-valuetext", percent(state.opacity, 0));
      number.value = isNumber(state.cluster) ? String(state.cluster + 1) : "";
      if (
        [
          "hover",
          "cluster",
          "side",
          "lit",
          "run",
          "step",
          "layer",
          "head",
          "branch",
          "top_p",
        ].some((n) => changed.has(n))
      ) {
        describe(state);
      }
      const reads = state.cluster !== null && changed.has("top_p");
      if (
        reads ||
        [
          "hover",
          "cluster",
          "pair",
          "side",
          "lit",
          "run",
          "step",
          "layer",
          "head",
          "branch",
          "opacity",
        ].some((n) => changed.has(n))
      )
        draw();
      tiles.forEach((tile) =>
        tile.node.classList.toggle("now", state.frame >= tile.from && state.frame < tile.to),
      );
    },
  };
}
