// The explorer: one selection, and the views that read and write it.

import { budget, decibel, el, isNumber, plural, put } from "./dom.js";
import { bytesOf, parsePayload, readPayload } from "./data.js";
import { blockDensity, makeBins, tilesTouched } from "./blocks.js";
import { missing, readLink, writeLink } from "./link.js";
import { makeLive } from "./views/live.js";
import { TICKS, curve, heaviestBlock, measure, selectionAt } from "./select.js";
import { makeStore, nearestPlace, openingRun, recordAt, recordedRun } from "./state.js";
import { makeClip } from "./frames.js";
import { makeHeader, sourceOf } from "./views/header.js";
import { makeCompare } from "./views/compare.js";
import { makeDensityMap, makePlaceBar } from "./views/place.js";
import { makeClusters } from "./views/clusters.js";
import { makeMasks } from "./views/masks.js";
import { makeTour } from "./views/tour.js";
import { makeTradeoff } from "./views/tradeoff.js";
import { makeGlossary } from "./words.js";

const RELEASE_DELAY_MS = 400; // arrow keys on the slider make one release, not twenty
const LINK_DELAY_MS = 400; // browsers refuse an address that changes too often
const NARROW_PX = 860;
const OPEN_CLIPS = 2; // decoded clips of real models take tens of MB each
const PLACE = ["step", "layer", "branch", "head"];
const SELECTION = ["run", ...PLACE, "frame", "cluster", "pair", "side", "top_p"];
const LOOKS = ["lit", "opacity", "compare", "wipe", "axis", "sort", "zoom"];

const KEYS =
  "Keys: ← → frame, space play, [ ] step, ↑ ↓ layer (on the frames), h head, q k queries or keys, n p next or previous cluster, Esc unpin. On the sorted mask: arrows go from block to block, Enter zooms.";

function hexToRgb(text) {
  const n = parseInt(text.trim().slice(1), 16);
  return [(n >> 16) & 255, (n >> 8) & 255, n & 255];
}

/** Where a run's numbers come from: hardware, versions, commit, and what was recorded. */
function origin({ provenance, tokens, index }, run) {
  const from = sourceOf(run, provenance);
  const versions = Object.entries(from.versions ?? {}).filter(([, v]) => v);
  const parts = [
    `${run.name}: measured on ${from.hardware ?? "unknown hardware"}`,
    ...versions.map(([name, v]) => `${name} ${v}`),
    from.commit ? `commit ${String(from.commit).slice(0, 12)}` : "commit not recorded",
    from.date,
    `${plural(index.length, "recorded call")} of ${plural(tokens, "token")}`,
  ];
  return `${parts.filter(Boolean).join(" · ")}.`;
}

/** Everything that lives as long as one payload does. */
function openWorkspace(data, { root, options, extras, kept: wanted }) {
  const source = (run) => recordedRun(data, run);
  const run = Math.min(wanted.run ?? openingRun(data), data.runs.length - 1);
  const place = source(run) < 0 ? {} : nearestPlace(data, wanted, source(run));
  const hasRecords = source(run) >= 0;
  if (hasRecords) data.record(recordAt(data, place, source(run))); // fails before anything is made
  const measuredOf = (r) => data.runs[Math.max(0, source(r))].config.top_p;
  const side = wanted.side ?? "q";
  const pins = pinsOf(data, place, source(run), side, wanted);
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const initial = {
    run,
    step: place.step,
    layer: place.layer,
    branch: place.branch,
    head: place.head,
    frame: Math.min(wanted.frame ?? 0, data.frameCount - 1),
    ...pins,
    side,
    top_p: wanted.top_p ?? (hasRecords ? measuredOf(run) : (data.runs[run].config.top_p ?? 1)),
    hover: null,
    lit: "attended",
    opacity: 0.6,
    compare: "side",
    wipe: 0.5,
    axis: "density",
    sort: 1,
    zoom: false,
    speed: 0.5,
    playing: false,
    tour: null,
  };
  for (const name of LOOKS) initial[name] = wanted[name] ?? initial[name];
  const store = makeStore(initial, follow);

  let views = [];
  const sparseClips = new Map(); // the latest used last
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
      const clip = sparseClips.get(index) ?? makeOne(data.runs[index].video);
      sparseClips.delete(index);
      sparseClips.set(index, clip);
      for (const [oldest, old] of sparseClips) {
        if (sparseClips.size <= OPEN_CLIPS) break;
        old.close();
        sparseClips.delete(oldest);
      }
      return clip;
    },
  };

  let memo = {};
  const recordIndex = () => recordAt(data, store.get(), source(store.get().run));
  const minKeep = () => data.runs[source(store.get().run)].config.min_keep_ratio ?? 0;

  const app = {
    standalone: Boolean(options.standalone),
    hasRecords,
    still,
    data,
    store,
    clips,
    copyLink: options.copyLink,
    /** Start the tour at its first step. */
    startTour: () => views.tour.show(0),
    /** What is pointed at, or else pinned: every view marks the same clusters. */
    marked(state) {
      if (state.hover) return [state.hover];
      if (state.cluster === null) return [];
      const other = state.side === "q" ? "k" : "q";
      const pinned = { side: state.side, cluster: state.cluster };
      return state.pair === null ? [pinned] : [pinned, { side: other, cluster: state.pair }];
    },
    /** The pinned block of the mask; where only a cluster is pinned, its heaviest one. */
    block() {
      const { side: pinnedSide, cluster, pair } = store.get();
      return heaviestBlock(
        app.record(),
        pinnedSide === "q" ? { q: cluster, k: pair } : { q: pair, k: cluster },
      );
    },
    source: () => source(store.get().run),
    record: () => data.record(recordIndex()),
    measuredBudget: () => measuredOf(store.get().run),
    runsOnRelease: () => Boolean(extras.can_run && options.onRelease),
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

  // Letting go of the slider asks for a run at that budget, or moves to the nearest one there is.
  let releaseTimer = 0;
  function release() {
    clearTimeout(releaseTimer);
    releaseTimer = setTimeout(() => {
      if (closed) return;
      const { top_p, run: index } = store.get();
      if (app.isMeasured()) {
        views.masks.say(null);
        return;
      }
      const { method, clusters } = data.runs[index];
      const near = data.runs
        .filter((r) => r.method === method && r.clusters === clusters && isNumber(r.config.top_p))
        .sort((a, b) => Math.abs(a.config.top_p - top_p) - Math.abs(b.config.top_p - top_p))[0];
      const told = (r) => `${r.name}, ${decibel(r.result.psnr_db)}`;
      if (near && Math.abs(near.config.top_p - top_p) < 0.5 / TICKS) {
        app.selectRun(near.index);
        views.masks.say(`Measured already: ${told(near)}.`);
      } else if (app.runsOnRelease()) {
        views.masks.say(`Asked for a real run of ${method} at top-p ${budget(top_p)}.`);
        options.onRelease({ top_p, method, run: index });
      } else if (near) {
        app.selectRun(near.index);
        app.selectBudget(near.config.top_p);
        views.masks.say(
          `No model is loaded for this trace, so top-p ${budget(top_p)} stays a what-if. Moved to the nearest measured run: ${told(near)}.`,
        );
      }
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
  views.tour = makeTour(app, goTo);
  const all = Object.values(views);
  const foot = el("p", {});
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
    el("footer", { class: "foot small" }, foot, el("p", {}, KEYS)),
  );

  /**
   * Bring a view into sight, mark it and put the tour's card beside it; null marks none. Where the
   * page is narrow the card would cover what it speaks of: it then stands in the page, above `near`.
   */
  function goTo(name, card, near) {
    for (const view of root.querySelectorAll(".pointed")) view.classList.remove("pointed");
    const view = name && root.querySelector(`[data-view=${name}]`);
    if (!view) return;
    view.classList.add("pointed");
    const isNarrow = root.clientWidth < NARROW_PX;
    card.classList.toggle("inline", isNarrow);
    const body = root.querySelector(".body");
    if (isNarrow) view.querySelector(near).before(card);
    else if (card.parentNode !== body) body.append(card);
    (isNarrow ? card : view).scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
  }

  let linkTimer = 0;
  function remember() {
    clearTimeout(linkTimer);
    linkTimer = setTimeout(() => !closed && options.onState?.(), LINK_DELAY_MS);
  }

  put(foot, origin(data, data.runs[run]));
  const redraw = () => {
    all.forEach((view) => view.draw?.());
    app.densityMap?.draw();
  };
  store.listen((state, changed) => {
    all.forEach((view) => view.update?.(state, changed));
    if (changed.has("run")) {
      clips.sparse(state.run);
      put(foot, origin(data, data.runs[state.run]));
      setTimeout(summarise, 0);
    }
    if (changed.has("playing") || changed.has("compare")) wake();
    const isPlaying = state.playing && [...changed].every((n) => n === "frame");
    if (!isPlaying && !(changed.size === 1 && changed.has("hover"))) remember();
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
  if (initial.compare === "blink") wake();
  if (wanted.playing ?? (!still && wanted.frame === undefined)) store.set({ playing: true });
  if (isNumber(wanted.tour) && wanted.tour < views.tour.length) {
    views.tour.show(wanted.tour, wanted.run !== undefined); // a whole link is shown as it was
  }

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
    const walk = (by) => {
      const { side: which, cluster } = store.get();
      const { sizes } = app.record()[which];
      const bySize = [...sizes.keys()].filter((c) => sizes[c]).sort((a, b) => sizes[b] - sizes[a]);
      const at = cluster === null ? (by > 0 ? -1 : 0) : bySize.indexOf(cluster);
      store.set({
        cluster: bySize[(at + by + bySize.length) % bySize.length],
        hover: null,
      });
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
      n: hasRecords && (() => walk(1)),
      p: hasRecords && (() => walk(-1)),
      Escape: () => store.set({ cluster: null, hover: null, zoom: false }),
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
    liveSlot: views.masks?.liveSlot,
    /** What came of a release: a sentence beside the slider, or null. */
    answer: views.masks?.say,
    close() {
      closed = true;
      all.forEach((view) => view.close?.());
      clearTimeout(releaseTimer);
      clearTimeout(linkTimer);
      resize.disconnect();
      keyTarget.removeEventListener("keydown", onKey);
      clips.dense.close();
      sparseClips.forEach((clip) => clip.close());
    },
  };
}

/** A change of the cluster drops the block and the zoom that belonged to the old one. */
function follow(state, patch) {
  const moved = ["cluster", "side"].some((n) => n in patch && patch[n] !== state[n]);
  return moved && !("pair" in patch) ? { pair: null, zoom: false, ...patch } : patch;
}

/** The pinned cluster and block, where the place that was wanted is there and has them. */
function pinsOf(data, place, run, side, wanted) {
  const none = { cluster: null, pair: null };
  const same = PLACE.every((n) => wanted[n] === undefined || place[n] === wanted[n]);
  if (!isNumber(wanted.cluster) || !same || run < 0) return none;
  const { Q, K } = data.record(recordAt(data, place, run));
  const [own, other] = side === "q" ? [Q, K] : [K, Q];
  if (wanted.cluster >= own) return none;
  const hasPair = isNumber(wanted.pair) && wanted.pair < other;
  return { cluster: wanted.cluster, pair: hasPair ? wanted.pair : null };
}

/**
 * What of the selection outlives its payload. A run that came in for the same request is shown at
 * its own budget; another request starts at its first run; the place in the model stays.
 */
function carriedOver(app, data) {
  const state = app.store.get();
  const names = [...SELECTION, ...LOOKS, "playing"];
  const kept = Object.fromEntries(names.map((n) => [n, state[n]]));
  const same = JSON.stringify(app.data.request) === JSON.stringify(data.request);
  const told = (run) => JSON.stringify([run.method, run.config, run.result]);
  // the page holds so many runs at most: one that comes in may put another out
  const grown =
    data.runs.length > app.data.runs.length ||
    told(data.runs.at(-1)) !== told(app.data.runs.at(-1));
  if (!same) kept.run = openingRun(data);
  else if (grown) kept.run = data.runs.length - 1;
  const asked = (run) => run && JSON.stringify([run.method, run.config]);
  if (!same || asked(app.data.runs[state.run]) !== asked(data.runs[kept.run]))
    kept.top_p = undefined;
  return kept;
}

/**
 * Put the explorer into an element. Returns what the page around it may call:
 * `load(payload)`, `loadBase64(text)`, `receive(value)` (see `explorer_value` in page.py), `selection()`, `select(patch)`.
 *
 * Options: `css` (the style sheet), `standalone` (the page is nothing but the explorer: keys and the
 * system's colour scheme are its own), `onRelease({top_p, method, run, trace})`, `onCancel()`, `onOpen({trace})`.
 */
export function mount(host, options) {
  const shadow = host.shadowRoot ?? host.attachShadow({ mode: "open" });
  const panel = makeLive(options.onCancel);
  const topSlot = el("div", { class: "liveslot top" }, panel.node);
  const notice = el("p", { class: "notice", role: "alert", hidden: true });
  const body = el("div", { class: "body" }, el("p", { class: "wait" }, "Opening the trace…"));
  const root = el("div", { class: "lab" }, topSlot, notice, body);
  put(shadow, el("style", {}, options.css), root);
  makeGlossary(root);
  const query = new URLSearchParams(location.search);
  const isEmbedded = query.get("embed") === "1";
  if (isEmbedded) root.dataset.embed = query.get("view") ?? "all";
  const extras = {};
  let workspace = null;
  let shownSrc = null; // asked for last
  let openSrc = null; // on show
  let ticket = 0;
  let link = readLink(location.hash);

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

  function address() {
    const state = workspace.app.store.get();
    const text = writeLink({ ...state, frame: state.playing ? null : state.frame }, traceOf(shownSrc));
    return `${location.href.split("#")[0]}#${text}`;
  }
  const mine = {
    ...options,
    onRelease: options.onRelease && ((asked) => options.onRelease({ ...asked, trace: traceOf(openSrc) })),
    onState: () => workspace && history.replaceState(history.state, "", address()),
    async copyLink() {
      const text = address();
      try {
        await navigator.clipboard.writeText(text);
        return { copied: true, text };
      } catch {
        return { copied: false, text }; // not allowed here: the page shows it instead
      }
    },
  };

  /** Another workspace in the place of this one, which stays where the other can't be opened. */
  function show(data, kept) {
    const before = [...body.childNodes];
    let next;
    try {
      next = openWorkspace(data, { root, options: mine, extras, kept });
    } catch (error) {
      body.replaceChildren(...before);
      throw error;
    }
    workspace?.close();
    workspace = next;
  }

  let told = ""; // by the page around, about a release
  /** Say why a budget is not run, beside the slider where there is one. */
  function tell(text) {
    told = text;
    if (workspace?.answer) workspace.answer(text);
    else say(notice, text);
  }

  /** It stays while the run that it speaks of goes on. */
  function untell({ live }) {
    if (!told || (live && !live.release)) return;
    told = "";
    workspace?.answer?.(null);
    say(notice, null);
  }

  /** Open what the link asks for, and say what of it this trace does not hold. */
  function followLink(data) {
    const { wanted, problems } = link;
    const found = [...problems];
    show(data, wanted);
    const state = workspace.app.store.get();
    const lacks = missing(data, wanted, workspace.app.hasRecords ? state : null);
    if (isNumber(wanted.cluster) && state.cluster === null && !lacks.length)
      lacks.push(`cluster ${wanted.cluster + 1}`);
    if (lacks.length) found.push(`this trace does not hold ${lacks.join(", ")}`);
    if (found.length) say(notice, `In this page's link, ${found.join("; ")}. The nearest is shown.`);
    link = null;
  }

  function load(payload) {
    const data = readPayload(payload);
    say(notice, null);
    if (link) return followLink(data);
    return show(data, workspace ? carriedOver(workspace.app, data) : {});
  }

  async function open(bytesOrPromise, src = null) {
    ticket += 1;
    const mineNow = ticket;
    try {
      const bytes = await bytesOrPromise;
      const payload = await parsePayload(bytes);
      if (mineNow === ticket) {
        load(payload);
        openSrc = src;
      }
      return true;
    } catch (error) {
      if (mineNow === ticket)
        say(notice, "The trace could not be opened. What was shown before stays.");
      return false;
    }
  }

  async function fetched(src) {
    const answer = await fetch(src);
    if (!answer.ok) throw new Error(`${src} answered ${answer.status}.`);
    return new Uint8Array(await answer.arrayBuffer());
  }

  /** The trace that a link names lies beside the others, or it is gone. */
  async function openLinked(value) {
    const name = link.trace;
    const src = value.src.replace(/[^/]+\/payload$/, `${name}/payload`);
    shownSrc = src;
    const answer = await fetch(src).catch(() => null);
    if (answer?.ok) {
      options.onOpen?.({ trace: name });
      await open(answer.arrayBuffer().then((buffer) => new Uint8Array(buffer)), src);
      return;
    }
    shownSrc = value.src;
    link = { trace: null, wanted: {}, problems: [] };
    await open(fetched(value.src), value.src);
    say(notice, "The trace of this link is no longer open here, so another one is shown.");
  }

  window.addEventListener("hashchange", () => {
    if (!workspace) return;
    link = readLink(location.hash);
    say(notice, null);
    if (isTraceName(link.trace) && shownSrc && link.trace !== traceOf(shownSrc))
      openLinked({ src: shownSrc });
    else followLink(workspace.app.data);
  });

  return {
    load,
    loadBase64: (text) => open(bytesOf(text.trim())),
    receive(value) {
      if (!value) return;
      extras.can_run = value.can_run;
      const slot = (value.live?.release && workspace?.liveSlot) || topSlot;
      if (!value.notice && panel.node.parentNode !== slot) slot.append(panel.node);
      if (value.live || !value.notice) panel.update(value.live ?? null); // a notice ends no run
      if (value.live?.release) workspace?.answer?.(null);
      if (!value.notice) untell(value);
      if (value.src && value.src !== shownSrc) {
        if (link && isTraceName(link.trace) && link.trace !== traceOf(value.src)) {
          if (traceOf(shownSrc) !== link.trace) openLinked(value);
          return;
        }
        shownSrc = value.src;
        open(fetched(value.src), value.src).then(() => value.notice && tell(value.notice));
      } else if (value.notice) tell(value.notice);
    },
    selection() {
      const state = workspace.app.store.get();
      return Object.fromEntries([...SELECTION, ...LOOKS, "tour"].map((n) => [n, state[n]]));
    },
    select: (patch) => workspace.app.store.set(patch),
    link: address,
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

const isTraceName = (name) => /^[\w-]{1,64}$/.test(name ?? "");

/** The name of a trace in its address, `lab/NAME/payload`; null where it has none. */
function traceOf(src) {
  return src?.match(/([\w-]{1,64})\/payload$/)?.[1] ?? null;
}
