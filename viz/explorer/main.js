// The explorer: one selection, and the views that read and write it.

import { budget, decibel, el, plural, put } from "./dom.js";
import { bytesOf, parsePayload, readPayload } from "./data.js";
import { blockDensity, makeBins, tilesTouched } from "./blocks.js";
import { TICKS, curve, measure, selectionAt } from "./select.js";
import { makeStore, nearestPlace, recordAt, recordedRun } from "./state.js";
import { makeClip } from "./frames.js";
import { makeHeader, runName } from "./header.js";
import { makeCompare } from "./compare.js";
import { makeDensityMap, makePlaceBar } from "./place.js";
import { makeClusters } from "./clusters.js";
import { makeMasks } from "./masks.js";
import { makeTradeoff } from "./tradeoff.js";

const RELEASE_DELAY_MS = 400; // arrow keys on the slider make one release, not twenty
const PLACE = ["step", "layer", "branch", "head"];
const SELECTION = ["run", ...PLACE, "frame", "cluster", "side", "top_p"];

const KEYS =
  "Keys: ← → frame, space play, [ ] step, ↑ ↓ layer (on the frames), h head, q k queries or keys, Esc unpin.";

function hexToRgb(text) {
  const n = parseInt(text.trim().slice(1), 16);
  return [(n >> 16) & 255, (n >> 8) & 255, n & 255];
}

/** Where the numbers come from: hardware, versions, commit, and what was recorded. */
function origin({ provenance, tokens, index }) {
  const versions = Object.entries(provenance.versions ?? {}).map(([name, v]) => `${name} ${v}`);
  const parts = [
    `Measured on ${provenance.hardware ?? "unknown hardware"}`,
    ...versions,
    provenance.commit ? `commit ${String(provenance.commit).slice(0, 12)}` : "commit not recorded",
    provenance.date,
    `${plural(index.length, "recorded call")} of ${plural(tokens, "token")}`,
  ];
  return `${parts.filter(Boolean).join(" · ")}.`;
}

/** Everything that lives as long as one payload does. */
function openWorkspace(data, { root, options, extras, kept: wanted }) {
  const source = (run) => recordedRun(data, run);
  const run = Math.min(wanted.run ?? 0, data.runs.length - 1);
  const place = source(run) < 0 ? {} : nearestPlace(data, wanted, source(run));
  const hasRecords = source(run) >= 0;
  const measuredOf = (r) => data.runs[Math.max(0, source(r))].config.top_p;
  const samePlace = hasRecords && PLACE.every((n) => place[n] === wanted[n]);
  const store = makeStore({
    run,
    step: place.step,
    layer: place.layer,
    branch: place.branch,
    head: place.head,
    frame: Math.min(wanted.frame ?? 0, data.frameCount - 1),
    cluster: samePlace ? (wanted.cluster ?? null) : null,
    side: wanted.side ?? "q",
    top_p: wanted.top_p ?? measuredOf(run),
    hover: null,
    lit: "attended",
    opacity: 0.6,
    compare: "side",
    wipe: 0.5,
    speed: 0.5,
    playing: false,
  });

  let views = [];
  const sparseClips = new Map();
  const readyFrames = () => {
    views.compare.draw();
    views.clusters?.draw();
  };
  const failed = () =>
    views.compare.fail(
      "This browser can't play the clips (H.264). Clusters and masks still work.",
    );
  const makeOne = (bytes) => makeClip(bytes, data.frameCount, readyFrames, failed);
  const clips = {
    dense: makeOne(data.dense.video),
    sparse(index) {
      if (!sparseClips.has(index)) sparseClips.set(index, makeOne(data.runs[index].video));
      return sparseClips.get(index);
    },
  };

  let memo = {};
  const recordIndex = () => recordAt(data, store.get(), source(store.get().run));
  const minKeep = () => data.runs[source(store.get().run)].config.min_keep_ratio ?? 0;

  const app = {
    standalone: Boolean(options.standalone),
    data,
    store,
    clips,
    source: () => source(store.get().run),
    record: () => data.record(recordIndex()),
    measuredBudget: () => measuredOf(store.get().run),
    isMeasured: () => store.get().top_p === app.measuredBudget(),
    /** The selection on show: the method's own at the measured budget, else by the same rule from P. */
    kept() {
      const record = app.record();
      const { top_p } = store.get();
      if (memo.record !== record || memo.top_p !== top_p) {
        const mask = app.isMeasured() ? record.kept : selectionAt(record, top_p, minKeep());
        memo = { record, top_p, mask, stats: measure(record, mask) };
      }
      return memo.mask;
    },
    stats() {
      app.kept();
      return memo.stats;
    },
    curve: (record) => curve(record, minKeep()),
    meanDensity(top_p) {
      const all = data.index.flatMap((r, i) => (r.run === app.source() ? [i] : []));
      const known = all.filter((i) => summaries.has(i));
      if (!all.length || known.length < all.length) return { value: null, count: all.length };
      const at = Math.round(top_p * TICKS);
      const of = (i) => (app.isMeasured() ? summaries.get(i).kept : summaries.get(i).density[at]);
      return { value: all.reduce((sum, i) => sum + of(i), 0) / all.length, count: all.length };
    },
    extraPoints: () => extras.points ?? [],
    colours,
    selectRun(index) {
      const state = store.get();
      const moved = source(index) !== source(state.run);
      if (!moved) return store.set({ run: index });
      return store.set({
        ...nearestPlace(data, state, source(index)),
        run: index,
        cluster: null,
        hover: null,
        top_p: measuredOf(index),
      });
    },
    selectPlace(patch) {
      const state = store.get();
      const next = nearestPlace(data, { ...state, ...patch }, app.source());
      const sameHead = ["layer", "branch", "head"].every((n) => next[n] === state[n]);
      store.set({
        ...Object.fromEntries(PLACE.map((n) => [n, next[n]])),
        hover: null,
        cluster: sameHead ? state.cluster : null, // labels live on from step to step, not from head to head
      });
    },
    selectBudget(p) {
      const measured = app.measuredBudget();
      store.set({ top_p: Math.abs(p - measured) < 0.5 / TICKS ? measured : p });
    },
    release,
  };

  // Colours follow the theme and are read once for each.
  let palette = null;
  function colours() {
    if (palette?.theme === root.dataset.theme) return palette;
    const style = getComputedStyle(root);
    const read = (name) => style.getPropertyValue(name).trim();
    palette = {
      theme: root.dataset.theme,
      ink: read("--ink"),
      paper: read("--paper"),
      line: read("--line"),
      accent: read("--accent"),
      accentRgb: hexToRgb(read("--accent")),
      maskRgb: hexToRgb(read("--skipped")),
    };
    return palette;
  }

  // Density of every recorded call at every budget, one record at a time so that the page stays quick.
  const summaries = new Map();
  let closed = false;
  function summarise() {
    if (closed) return;
    const current = app.source();
    const next = data.index.findIndex((r, i) => r.run === current && !summaries.has(i));
    if (next < 0) {
      if (hasRecords) views.masks.readout(store.get());
      views.tradeoff.draw();
      return;
    }
    const record = data.record(next);
    const { density } = curve(record, minKeep());
    summaries.set(next, { density, kept: measure(record, record.kept).density });
    if (next !== recordIndex()) data.forget(next);
    setTimeout(summarise, 0);
  }

  let releaseTimer = 0;
  function release() {
    clearTimeout(releaseTimer);
    releaseTimer = setTimeout(() => {
      const { top_p, run: index } = store.get();
      if (app.isMeasured()) return views.masks.say(null);
      const { method } = data.runs[index];
      if (extras.can_run && options.onRelease) {
        views.masks.say(`Asked for a real run of ${method} at top-p ${budget(top_p)}.`);
        return options.onRelease({ top_p, method });
      }
      const near = [...data.runs].sort(
        (a, b) => Math.abs(a.config.top_p - top_p) - Math.abs(b.config.top_p - top_p),
      )[0];
      return views.masks.say(
        `No model is loaded here, so this budget stays a what-if. Nearest measured run: ${runName(near)}, ${decibel(near.result.psnr_db)}.`,
      );
    }, RELEASE_DELAY_MS);
  }

  app.densityMap = hasRecords ? makeDensityMap(app) : null;
  views = { header: makeHeader(app), compare: makeCompare(app) };
  if (hasRecords) {
    views.place = makePlaceBar(app);
    views.clusters = makeClusters(app);
    views.masks = makeMasks(app);
  }
  views.tradeoff = makeTradeoff(app);
  const all = Object.values(views);
  put(
    root.querySelector(".body"),
    ...all.map((view) => view.node),
    hasRecords
      ? null
      : el(
          "p",
          { class: "notice" },
          "This trace holds no recorded clusters, so there are no maps or masks to show.",
        ),
    el("footer", { class: "foot small" }, el("p", {}, origin(data)), el("p", {}, KEYS)),
  );

  const redraw = () => all.forEach((view) => view.draw?.());
  store.listen((state, changed) => {
    all.forEach((view) => view.update?.(state, changed));
    if (changed.has("run")) {
      clips.sparse(state.run);
      setTimeout(summarise, 0);
    }
    if (changed.has("playing") || changed.has("compare")) wake();
    if (SELECTION.some((n) => changed.has(n))) {
      options.onSelect?.(Object.fromEntries(SELECTION.map((n) => [n, state[n]])));
    }
  });
  const everything = new Set(Object.keys(store.get()));
  all.forEach((view) => view.update?.(store.get(), everything));
  setTimeout(summarise, 50);
  const resize = new ResizeObserver(redraw);
  resize.observe(root);

  // One clock for both clips.
  let last = null;
  let due = 0;
  function tick(now) {
    if (closed) return;
    const state = store.get();
    if (state.compare === "blink") views.compare.draw();
    if (state.playing) {
      due += last === null ? 0 : ((now - last) / 1000) * state.speed;
      const seconds = clips.dense.frameSeconds;
      const steps = Math.floor(due / seconds);
      due -= steps * seconds;
      if (steps) store.set({ frame: (state.frame + steps) % data.frameCount });
    }
    last = state.playing ? now : null;
    if (state.playing || state.compare === "blink") requestAnimationFrame(tick);
    else awake = false;
  }
  let awake = false;
  function wake() {
    if (awake) return;
    awake = true;
    last = null;
    requestAnimationFrame(tick);
  }
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (wanted.playing ?? !still) store.set({ playing: true });

  function onKey(event) {
    const target = event.composedPath()[0];
    const tag = target.tagName ?? "";
    if (event.ctrlKey || event.metaKey || event.altKey || tag === "SELECT" || tag === "TEXTAREA")
      return;
    if (tag === "INPUT") return;
    const onFrames = target.closest?.("[data-keys=layers]");
    const head = () => {
      const heads = [
        ...new Set(data.index.filter((r) => r.run === app.source()).map((r) => r.head)),
      ].sort((a, b) => a - b);
      app.selectPlace({ head: heads[(heads.indexOf(store.get().head) + 1) % heads.length] });
    };
    const actions = {
      ArrowLeft: () => views.compare.step(-1),
      ArrowRight: () => views.compare.step(1),
      ArrowUp: onFrames && (() => views.place.move("layer", -1)),
      ArrowDown: onFrames && (() => views.place.move("layer", 1)),
      " ":
        tag !== "BUTTON" &&
        target.getAttribute?.("role") !== "button" &&
        (() => store.set({ playing: !store.get().playing })),
      "[": hasRecords && (() => views.place.move("step", -1)),
      "]": hasRecords && (() => views.place.move("step", 1)),
      h: hasRecords && head,
      q: hasRecords && (() => store.set({ side: "q", cluster: null, hover: null })),
      k: hasRecords && (() => store.set({ side: "k", cluster: null, hover: null })),
      Escape: () => store.set({ cluster: null, hover: null }),
    };
    const act = actions[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
  const keyTarget = options.standalone ? document : root;
  keyTarget.addEventListener("keydown", onKey);

  return {
    app,
    redraw() {
      palette = null;
      redraw();
    },
    points: () => views.tradeoff.draw(),
    close() {
      closed = true;
      clearTimeout(releaseTimer);
      resize.disconnect();
      keyTarget.removeEventListener("keydown", onKey);
      clips.dense.close();
      sparseClips.forEach((clip) => clip.close());
    },
  };
}

/**
 * What of the selection outlives its payload. A run that came in for the same request is shown at
 * its own budget; another request starts at its first run; the place in the model stays.
 */
function carriedOver(app, data) {
  const state = app.store.get();
  const kept = Object.fromEntries([...SELECTION, "playing"].map((n) => [n, state[n]]));
  const same = JSON.stringify(app.data.request) === JSON.stringify(data.request);
  const grown = data.runs.length > app.data.runs.length;
  if (!same) kept.run = 0;
  else if (grown) kept.run = data.runs.length - 1;
  const name = (run) => run && runName(run);
  if (!same || name(app.data.runs[state.run]) !== name(data.runs[kept.run]))
    kept.top_p = undefined;
  return kept;
}

/**
 * Put the explorer into an element. Returns what the page around it may call:
 * `load(payload)`, `loadBase64(text)`, `receive(value)` (see `explorer_value` in page.py), `selection()`, `select(patch)`.
 *
 * Options: `css` (the style sheet), `standalone` (the page is nothing but the explorer: keys and the
 * system's colour scheme are its own), `onRelease({top_p, method})`, `onSelect(selection)`.
 */
export function mount(host, options) {
  const shadow = host.shadowRoot ?? host.attachShadow({ mode: "open" });
  const live = el("p", { class: "live", role: "status", hidden: true });
  const notice = el("p", { class: "notice", role: "alert", hidden: true });
  const root = el(
    "div",
    { class: "lab" },
    live,
    notice,
    el("div", { class: "body" }, el("p", { class: "wait" }, "Opening the trace…")),
  );
  put(shadow, el("style", {}, options.css), root);
  const extras = {};
  let workspace = null;
  let shownSrc = null;
  let ticket = 0;

  const system = matchMedia("(prefers-color-scheme: dark)");
  function theme() {
    const explicit = document.documentElement.dataset.theme;
    const dark = explicit
      ? explicit === "dark"
      : document.body.classList.contains("dark") || (options.standalone && system.matches);
    const name = dark ? "dark" : "light";
    if (root.dataset.theme === name) return;
    root.dataset.theme = name;
    workspace?.redraw();
  }
  theme();
  system.addEventListener("change", theme);
  const watcher = new MutationObserver(theme);
  watcher.observe(document.body, { attributes: true, attributeFilter: ["class"] });
  watcher.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });

  const say = (node, text) => {
    node.hidden = !text;
    put(node, text ?? "");
  };

  function load(payload) {
    const data = readPayload(payload);
    const kept = workspace ? carriedOver(workspace.app, data) : {};
    workspace?.close();
    workspace = null;
    workspace = openWorkspace(data, { root, options, extras, kept });
    say(notice, null);
  }

  async function open(bytesOrPromise) {
    ticket += 1;
    const mine = ticket;
    try {
      const bytes = await bytesOrPromise;
      const payload = await parsePayload(bytes);
      if (mine === ticket) load(payload);
    } catch (error) {
      console.warn(error);
      if (mine === ticket)
        say(notice, "The trace could not be opened. What was shown before stays.");
    }
  }

  async function fetched(src) {
    const answer = await fetch(src);
    if (!answer.ok) throw new Error(`${src} answered ${answer.status}.`);
    return new Uint8Array(await answer.arrayBuffer());
  }

  return {
    load,
    loadBase64: (text) => open(bytesOf(text.trim())),
    receive(value) {
      if (!value) return;
      Object.assign(extras, { can_run: value.can_run, points: value.points });
      say(live, value.live);
      if (value.src && value.src !== shownSrc) {
        shownSrc = value.src;
        open(fetched(value.src)).then(() => value.notice && say(notice, value.notice));
      } else {
        say(notice, value.notice);
        workspace?.points();
      }
    },
    selection() {
      const state = workspace.app.store.get();
      return Object.fromEntries(SELECTION.map((n) => [n, state[n]]));
    },
    select: (patch) => workspace.app.store.set(patch),
    /** What is drawn, as numbers: for tests and for reading out. */
    inspect() {
      const { app } = workspace;
      return {
        kept: app.kept(),
        ...app.stats(),
        measured: app.isMeasured(),
        record: app.record(),
      };
    },
    math: { selectionAt, measure, curve, blockDensity, makeBins, tilesTouched },
  };
}
