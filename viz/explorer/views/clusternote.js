// The note beside the latent frames: numbers of the cluster in focus, and buttons for related clusters.

import { budget, choice, el, percent, plural, put } from "../dom.js";
import { countFrames, countUsed, massOnKeys, massPerPartner, otherSide, similarReaders } from "../reads.js";
import { neededAt } from "../select.js";
import { focusOf } from "./lighting.js";
import { verdictOf } from "./whyblock.js";

const NAMES = { q: "Query", k: "Key" };
const MAX_PARTNERS = 5;
const MAX_SIMILAR = 3;
const WRITTEN_ON = ["hover", "cluster", "pair", "side", "lit", "run", "step", "layer", "head", "branch", "top_p"];

/** What the overlay means for a state, in a sentence. */
export function overlayMeaning(state) {
  const focus = focusOf(state);
  if (!focus)
    return "The outlines follow a grid of tokens: small patches of pixels over the video frames named below each picture.";
  if (state.hover || state.lit === "members")
    return "Lit: the tokens of this cluster, in every frame. The rest is dimmed.";
  return focus.side === "q"
    ? "Outlined: the pinned query cluster (dashed: the key cluster of a pinned block). Lit: the key clusters it keeps, stronger where a token gets more of its mass. Dark: skipped."
    : "Outlined: the pinned key cluster. Lit: the query clusters that keep it, by weight. Dark: those that skip it.";
}

/** The note's node, and `update(state, changed)`. */
export function makeClusterNote(app) {
  const node = el("div", { class: "clusternote", "aria-live": "polite" });
  const lit = choice(
    "What a pinned cluster lights",
    [
      ["attended", "What it attends to"],
      ["members", "Its own tokens"],
    ],
    (value) => app.store.set({ lit: value }),
  );
  return {
    node,
    update(state, changed) {
      lit.show(state.lit);
      put(lit.buttons[0], state.side === "q" ? "What it attends to" : "Who attends to it");
      if (WRITTEN_ON.some((name) => changed.has(name))) rewrite(app, node, state, lit.node);
    },
  };
}

/** Write the note anew. The keyboard's focus stays where it was, or goes to the note's first button. */
function rewrite(app, node, state, litChoice) {
  if (state.hover?.fromNote) return; // the chip under the pointer has to stay where it is
  const focused = node.getRootNode().activeElement;
  const hadFocus = node.contains(focused);
  const focus = focusOf(state);
  put(node, ...(focus ? aboutCluster(app, state, focus, litChoice) : [aboutHead(app)]));
  if (hadFocus) (node.contains(focused) ? focused : node.querySelector("button"))?.focus();
}

function aboutHead(app) {
  const { q, k } = app.record();
  return el(
    "p",
    { class: "small" },
    `${plural(countUsed(q.sizes), "query cluster")} and ${plural(countUsed(k.sizes), "key cluster")} for ${plural(app.data.tokens, "token")} in this head.`,
  );
}

/** Numbers of one cluster; `partners` are the clusters of the other side that share mass with it, heaviest first. */
function clusterFacts(app, { side, cluster }) {
  const record = app.record();
  const [T, Y, X] = app.data.grid;
  const mass = massPerPartner(record, app.kept(), side, cluster);
  const partners = Array.from(mass.keys()).filter((c) => mass[c] > 0);
  const size = record[side].sizes[cluster];
  return {
    size,
    share: size / app.data.tokens,
    frames: countFrames(record[side], cluster, Y * X),
    allFrames: T,
    partners: partners.sort((a, b) => mass[b] - mass[a]),
    allPartners: countUsed(record[otherSide(side)].sizes),
    mass,
    totalMass: side === "q" ? mass.reduce((a, b) => a + b, 0) : massOnKeys(record, cluster),
  };
}

/** Why a query cluster keeps more than top-p asks for; empty where it does not. */
function floorText(app, cluster) {
  const floor = app.floor();
  const needed = floor && neededAt(app.record(), cluster, floor.top_p);
  if (!floor || needed >= floor.least) return "";
  return ` ${needed === 1 ? "One" : needed} of them would reach top-p ${budget(floor.top_p)}; the ${floor.least} heaviest (${percent(floor.share)}) are always kept.`;
}

function aboutCluster(app, state, focus, litChoice) {
  const { side, cluster } = focus;
  const facts = clusterFacts(app, focus);
  const pinned = !state.hover;
  const reading =
    side === "q"
      ? `Keeps ${facts.partners.length} of ${facts.allPartners} key clusters, which hold ${percent(facts.totalMass)} of its attention mass (estimate).${floorText(app, cluster)}`
      : `Kept by ${facts.partners.length} of ${facts.allPartners} query clusters. ${percent(facts.totalMass)} of all attention mass falls on it (estimate).`;
  const parts = [
    el(
      "p",
      {},
      swatch(app, side, cluster),
      el("strong", {}, `${NAMES[side]} cluster ${cluster + 1}`),
      pinned ? " (pinned)" : "",
    ),
    el(
      "p",
      { class: "small" },
      `${plural(facts.size, "token")} (${percent(facts.share)}) in ${facts.frames} of ${plural(facts.allFrames, "latent frame")}. ${reading}`,
    ),
  ];
  if (!pinned) return parts;
  return [
    ...parts,
    state.pair === null ? null : aboutBlock(app),
    litChoice,
    partnerChips(app, side, facts),
    side === "q" ? similarChips(app, cluster) : nearChips(app, cluster),
    el(
      "button",
      { type: "button", class: "quiet", onclick: () => app.store.set({ cluster: null }) },
      "Unpin",
    ),
  ];
}

/** The pinned block, in a sentence; the view of the masks says more. */
function aboutBlock(app) {
  const { q, k } = app.block();
  if (!app.record().q.sizes[q] || !app.record().k.sizes[k]) return null;
  return el(
    "p",
    { class: "small" },
    `Pinned block, query cluster ${q + 1} × key cluster ${k + 1}: ${verdictOf(app, { q, k })}`,
  );
}

function partnerChips(app, side, { partners, mass }) {
  if (!partners.length) return null;
  return chipRow(
    side === "q" ? "Reads most from" : "Read most by",
    partners
      .slice(0, MAX_PARTNERS)
      .map((c) => chip(app, otherSide(side), c, `${c + 1} · ${percent(mass[c])}`)),
  );
}

function similarChips(app, cluster) {
  return chipRow(
    "Most similar attention, overlap of mass",
    similarReaders(app.record(), cluster, MAX_SIMILAR).map((near) =>
      chip(app, "q", near.cluster, `${near.cluster + 1} · ${percent(near.overlap, 0)}`),
    ),
  );
}

function nearChips(app, cluster) {
  const near = new Set(app.record().kNear.slice(4 * cluster, 4 * cluster + 4));
  near.delete(cluster);
  return chipRow(
    "Nearest centroids",
    [...near].map((c) => chip(app, "k", c, String(c + 1))),
  );
}

function chipRow(label, chips) {
  return el("p", { class: "chips" }, el("span", { class: "label" }, label), chips);
}

/** A button that shows a cluster while the pointer is on it, and pins it. */
function chip(app, side, c, text) {
  const { store } = app;
  return el(
    "button",
    {
      type: "button",
      class: "chip",
      "aria-label": `${text}: pin ${NAMES[side].toLowerCase()} cluster ${c + 1}`,
      onclick: () => store.set({ side, cluster: c, hover: null }),
      onpointerenter: () => store.set({ hover: { side, cluster: c, fromNote: true } }),
      onpointerleave: () => store.set({ hover: null }),
    },
    swatch(app, side, c),
    text,
  );
}

function swatch(app, side, c) {
  const { rgb } = app.record()[side];
  return el("i", {
    class: "swatch",
    style: `background: rgb(${rgb.slice(3 * c, 3 * c + 3).join(" ")})`,
  });
}
