// The glossary: what each term of the method means, on hover, focus and click.

import { el, put } from "./dom.js";

const TIP = "glossary";

const WORDS = {
  token:
    "The smallest piece that attention works on: one patch of a latent frame. Every token has a query, a key and a value in every head.",
  cluster:
    "Tokens whose queries (or keys) are alike, as k-means groups them in one head of one layer. A cluster need not be one region: it may lie anywhere in space and time. In methods that go by place it is a block of neighbouring tokens.",
  centroid:
    "The mean of the queries (or keys) of a cluster. SVG2 estimates attention between clusters from their centroids, which is far cheaper than from all tokens.",
  "k-means":
    "The clustering: assign each token to its nearest centroid, move each centroid to the mean of its tokens, repeat. The centroids of one step start the next.",
  mask: "Which query–key pairs are computed. Rows are queries, columns are keys. What is skipped adds nothing, or, in methods with compensation, a stand-in takes its place.",
  "top-p":
    "The budget. Each query cluster keeps its heaviest key clusters until they hold this share of its estimated attention mass. At 1 everything is kept. Some settings also keep a least share of the key clusters in every row, which decides at small budgets. With routing by error top-p only sets how many pairs a layer may compute; the predicted errors say which.",
  permutation:
    "Tokens are sorted by cluster before attention and put back after it. The result is the same; the kept pairs come to lie together in blocks.",
  density:
    "The share of all query–key token pairs that is computed, over the calls that ran sparse. 100 % is dense attention.",
  computed:
    "The share of all query–key pairs of the run that were computed. It counts work, not time: kept pairs, what stands in for skipped clusters, the look ahead of routing, and steps that stay dense.",
  "kept mass":
    "The share of the attention weights (after softmax) that falls on what is kept, estimated from centroids. With routing by error it is what the query centroids see of all keys.",
  recall:
    "The true share of the attention weights that falls on what is kept, measured on 64 random queries.",
  tile: "Kernels compute attention in square tiles of token pairs. A tile with one kept pair costs as much as a full one; the rest of it is waste.",
  compensation:
    "In methods with compensation a skipped key cluster still adds a stand-in in place of its tokens.",
  "stand-in":
    "What a skipped block still adds: one key and one value in place of all its tokens, weighted by their number or, with routing by error, by the mass that the query centroid sees there.",
  "predicted error":
    "How much the output would miss if a block were skipped and its stand-in took its place, as seen at the query centroid; more where the block's tokens spread widely. Blocks are ranked by it per key, since each key costs the same.",
  routing:
    "Choosing by a look ahead. Each query centroid attends to all keys once, which shows the error of skipping each block. The layer's budget goes to the largest errors, whichever head they are in.",
  "warm-up":
    "The first denoising steps run dense, since they decide the layout of the video.",
  psnr: "Peak signal-to-noise ratio of the sparse clip against the dense one, in decibels, on raw frames. Higher is closer; each 6 dB halves the error. About 25 dB differ plainly, 30 dB are seen when compared, 35 dB are hard to see. It is no measure of beauty.",
  ssim: "Structural similarity of the sparse clip to the dense one: 1 is equal.",
  head: "Each layer runs several attentions side by side, its heads. Each has clusters and a mask of its own.",
  guidance:
    "Guided sampling runs the model twice a step: with the prompt (conditional) and without it (unconditional).",
  "end-to-end":
    "Time of the dense denoising loop over that of the sparse one. Clustering and sorting are counted. “What it gained” says how the two were timed.",
  "attention speedup":
    "Time of self-attention in the dense run over that in the sparse one, with clustering, sorting and selection on the sparse side.",
  "latent frame":
    "The video model works on compressed frames. One latent frame stands for one or more video frames.",
};

/** A word with its meaning; `text` is how it reads in the sentence. */
export function term(name, text = name) {
  if (!WORDS[name]) throw new Error(`The glossary has no ${name}.`);
  return el(
    "button",
    { type: "button", class: "term", "data-term": name },
    text,
  );
}

/** One note for all terms under `root`: it opens beside the word under the pointer or the focus. */
export function makeGlossary(root) {
  const tip = el("div", { class: "tip", id: TIP, role: "tooltip", hidden: true });
  let shown = null;
  const hide = () => {
    shown?.removeAttribute("aria-describedby");
    shown = null;
    tip.hidden = true;
  };
  const show = (word) => {
    if (shown === word) return;
    hide();
    shown = word;
    word.setAttribute("aria-describedby", TIP);
    put(tip, el("strong", {}, word.dataset.term), " ", WORDS[word.dataset.term]);
    tip.hidden = false;
    const at = word.getBoundingClientRect();
    const frame = root.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    const left = Math.min(Math.max(at.left, frame.left + 8), frame.right - own.width - 8);
    const above = at.bottom + own.height + 10 > innerHeight && at.top > own.height + 10;
    const scale = root.currentCSSZoom ?? 1; // boxes are measured as they are seen
    tip.style.left = `${(left - frame.left) / scale}px`;
    tip.style.top = `${((above ? at.top - own.height - 6 : at.bottom + 6) - frame.top) / scale}px`;
  };
  const wordOf = (event) => event.target.closest?.(".term");
  root.addEventListener("pointerover", (event) => {
    const word = wordOf(event);
    if (word) show(word);
    else if (shown && !tip.contains(event.target) && shown !== root.getRootNode().activeElement)
      hide();
  });
  root.addEventListener("pointerleave", hide);
  root.addEventListener("focusin", (event) => (wordOf(event) ? show(wordOf(event)) : hide()));
  root.addEventListener("focusout", hide);
  root.addEventListener("click", (event) => wordOf(event) && show(wordOf(event)));
  root.addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "Escape" || !shown) return;
      event.stopPropagation();
      hide();
    },
    true,
  );
  root.append(tip);
}
