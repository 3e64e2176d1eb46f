// The explorer in its host element: opens traces, follows links and the theme, and answers the page around.

import { blockDensity, makeBins, tilesTouched } from "./blocks.js";
import { bytesOf, parsePayload, readPayload } from "./data.js";
import { el, isNumber, put } from "./dom.js";
import { bytesAt, FetchError, fetchFile } from "./fetching.js";
import { forecastAt } from "./forecast.js";
import { makeRunNotice, watchLine } from "./line.js";
import { missing, readLink, writeLink } from "./link.js";
import { linesOf } from "./picture.js";
import { curve, measure, selectionAt } from "./select.js";
import { carriedOver, LOOKS, SELECTION } from "./state.js";
import { makeLive } from "./views/live.js";
import { makeGlossary } from "./words.js";
import { openWorkspace } from "./workspace.js";

/**
 * Put the explorer into an element. Returns what the page around it may call:
 * `load(payload)`, `loadBase64(text)`, `receive(value)` (see `explorer_value` in explorer_page.py),
 * `selection()`, `select(patch)`, `selectBudget(top_p)`, `link()`.
 *
 * Options: `css` (the style sheet), `standalone` (the page is nothing but the explorer: keys and the
 * system's colour scheme are its own), `onRelease({top_p, method, run, trace, again})`, `onCancel()`,
 * `onOpen({trace})`, `onBudget(top_p)` (the budget on show has changed), `onAgain()` (a run that a reload ended is wanted again).
 */
export function mount(host, options) {
  const page = {
    ...makeShell(host, options),
    options,
    extras: {}, // what the page around says of releases
    workspace: null,
    askedSrc: null, // the address that was asked for last
    openSrc: null, // the one on show
    ticket: 0, // of the last payload that was asked for: an older one that comes late is dropped
    link: readLink(location.hash), // until a trace has answered it
    told: "", // by the page around, about a release
  };
  followTheme(page);
  if (!options.standalone) page.banners.prepend(watchLine(() => page.openSrc).node);
  window.addEventListener("hashchange", () => onHash(page));
  return {
    load: (payload) => load(page, payload),
    loadBase64: (text) => open(page, bytesOf(text.trim())),
    receive: (value) => receive(page, value),
    selection() {
      const state = page.workspace.app.store.get();
      return Object.fromEntries([...SELECTION, ...LOOKS, "tour"].map((n) => [n, state[n]]));
    },
    select: (patch) => page.workspace.app.select(patch),
    selectBudget: (top_p) => page.workspace?.app.selectBudget(top_p),
    link: () => address(page),
    /** What is drawn, as numbers, and which frames are decoded: for tests and for reading out. */
    inspect() {
      const { app } = page.workspace;
      const { dense, sparse } = app.clips;
      const { run, against } = app.store.get();
      const clips = [against === null ? dense : sparse(against), sparse(run)];
      return {
        runs: app.data.runs.map(({ name, config, result }) => ({ name, config, result })),
        curves: app.curves(),
        decoded: clips.map((clip) => clip.pictures.map(Boolean)),
        methods: [...app.data.methods.values()],
        ...(app.hasRecords && {
          kept: app.kept(),
          ...app.stats(),
          measured: app.isMeasured(),
          record: app.record(),
          pictureLines: linesOf(app, app.viewName()),
        }),
      };
    },
    math: { selectionAt, measure, curve, forecastAt, blockDensity, makeBins, tilesTouched },
  };
}

/** The elements that stay while traces come and go. */
function makeShell(host, options) {
  const shadow = host.shadowRoot ?? host.attachShadow({ mode: "open" });
  const panel = makeLive(options.onCancel);
  const topSlot = el("div", { class: "liveslot top" }, panel.node);
  const notice = el("p", { class: "notice", role: "alert", hidden: true });
  const body = el("div", { class: "body" }, el("p", { class: "wait" }, "Opening the trace…"));
  const ended = makeRunNotice(options.onAgain);
  const banners = el("div", { class: "banners" }, ended.node);
  const root = el("div", { class: "lab" }, banners, topSlot, notice, body);
  put(shadow, el("style", {}, options.css), root);
  makeGlossary(root);
  const query = new URLSearchParams(location.search);
  const isPresented = query.get("present") === "1";
  const isEmbedded = isPresented || query.get("embed") === "1";
  if (isEmbedded) root.dataset.embed = "";
  if (isPresented) root.dataset.present = "";
  return { root, banners, panel, ended, topSlot, notice, body, slide: isEmbedded ? query.get("view") : null, isPresented };
}

/** The page's theme where it sets one, else the system's where the explorer is the whole page. */
function followTheme(page) {
  const { root, options } = page;
  const system = matchMedia("(prefers-color-scheme: dark)");
  function apply() {
    const explicit = document.documentElement.dataset.theme;
    const isDark = explicit
      ? explicit === "dark"
      : document.body.classList.contains("dark") || (options.standalone && system.matches);
    const name = isDark ? "dark" : "light";
    if (root.dataset.theme === name) return;
    root.dataset.theme = name;
    page.workspace?.redraw();
  }
  apply();
  system.addEventListener("change", apply);
  const watcher = new MutationObserver(apply);
  watcher.observe(document.body, { attributes: true, attributeFilter: ["class"] });
  watcher.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
}

function showNotice({ notice }, text, button = null) {
  notice.hidden = !text;
  put(notice, text ?? "", button);
}

/** The address of what is on show, with the view that is in sight unless another is named. */
function address({ workspace, askedSrc }, view = workspace.viewInSight()) {
  const state = workspace.app.store.get();
  const text = writeLink({ ...state, frame: state.playing ? null : state.frame }, traceOf(askedSrc), view);
  return `${location.href.split("#")[0]}#${text}`;
}

/** The link to what is on show, and whether the clipboard took it. */
async function copyLink(page, view) {
  const text = address(page, view);
  try {
    await navigator.clipboard.writeText(text);
    return { copied: true, text };
  } catch {
    return { copied: false, text }; // not allowed here: the page shows it instead
  }
}

function workspaceOptions(page) {
  const { onRelease, onBudget, standalone } = page.options;
  return {
    standalone,
    onBudget,
    slide: page.slide,
    isPresented: page.isPresented,
    onRelease: onRelease && ((asked) => onRelease({ ...asked, trace: traceOf(page.openSrc) })),
    onState: () => page.workspace && history.replaceState(history.state, "", address(page)),
    copyLink: (view) => copyLink(page, view),
    fetchFile: standalone ? null : (name, say) => fetchFile(page.openSrc, name, say),
  };
}

/** Another workspace in the place of this one, which stays where the other can't be opened. */
function show(page, data, wanted) {
  const { body, root, extras } = page;
  const before = [...body.childNodes];
  let next;
  try {
    next = openWorkspace(data, { root, options: workspaceOptions(page), extras, wanted });
  } catch (error) {
    body.replaceChildren(...before);
    throw error;
  }
  page.workspace?.close();
  if (page.workspace) next.shareBudget(); // the first trace leaves what the page around opened with
  page.workspace = next;
}

/** Open what the link asks for, and say what of it this trace does not hold. */
function followLink(page, data) {
  const { wanted, problems, view } = page.link;
  const found = [...problems];
  show(page, data, wanted);
  page.workspace.bringIntoSight(view);
  const { app } = page.workspace;
  const state = app.store.get();
  const lacks = missing(data, wanted, app.hasRecords ? state : null);
  if (isNumber(wanted.cluster) && state.cluster === null && !lacks.length)
    lacks.push(`cluster ${wanted.cluster + 1}`);
  if (lacks.length) found.push(`this trace does not hold ${lacks.join(", ")}`);
  if (found.length)
    showNotice(page, `In this page's link, ${found.join("; ")}. The nearest is shown.`);
  page.link = null;
}

function load(page, payload) {
  const data = readPayload(payload);
  showNotice(page, null);
  if (page.link) return followLink(page, data);
  const { app } = page.workspace ?? {};
  return show(page, data, app ? carriedOver(app.store.get(), app.data, data) : {});
}

/** Open a payload from its bytes. Returns whether it could be opened; `retry()` is offered where they did not come. */
async function open(page, bytesOrPromise, src = null, retry = null) {
  page.ticket += 1;
  const { ticket } = page;
  try {
    const payload = await parsePayload(await bytesOrPromise);
    if (ticket === page.ticket) {
      load(page, payload);
      page.openSrc = src;
    }
    return true;
  } catch (error) {
    if (ticket === page.ticket) showFailure(page, error, retry);
    return false;
  }
}

/** Open what lies at an address. */
const openAt = (page, src) => open(page, fetched(page, src), src, () => openAt(page, src));

/** Bytes at an address, with words on each further try. */
const fetched = (page, src) => bytesAt(src, (text) => page.askedSrc === src && showNotice(page, text));

function showFailure(page, error, retry) {
  const stays = page.workspace ? " What was shown before stays. " : " ";
  const text = error instanceof FetchError ? error.message : "The trace could not be opened.";
  const again = retry && el("button", { type: "button", class: "plainbutton", onclick: retry }, "Try again");
  showNotice(page, `${text}${stays}`, again);
  if (!page.workspace) put(page.body, el("p", { class: "wait" }, "No trace is open."));
}

/** Open the trace that the link names, which lies beside the one at `src`; where it is gone, that one. */
async function openLinked(page, src) {
  const name = page.link.trace;
  const linked = src.replace(/[^/]+\/payload$/, `${name}/payload`);
  page.askedSrc = linked;
  try {
    const bytes = await fetched(page, linked);
    page.options.onOpen?.({ trace: name });
    await open(page, bytes, linked);
    return;
  } catch (error) {
    if (!error.isGone) {
      showFailure(page, error, () => openLinked(page, src));
      return;
    }
  }
  page.askedSrc = src;
  page.link = { trace: null, wanted: {}, problems: [] };
  await openAt(page, src);
  showNotice(page, "The trace of this link is no longer open here, so another one is shown.");
}

function onHash(page) {
  if (!page.workspace) return;
  page.link = readLink(location.hash);
  showNotice(page, null);
  if (isElsewhere(page.link, page.askedSrc) && page.askedSrc) openLinked(page, page.askedSrc);
  else followLink(page, page.workspace.app.data);
}

/** Take what the page around says: the trace to show, a run in progress, a notice about a release. */
function receive(page, value) {
  if (!value) return;
  Object.assign(page.extras, { can_run: value.can_run, has_dense: value.has_dense });
  showLive(page, value);
  if (value.live || !value.notice) page.ended.follow(value.live ?? null);
  if (!value.notice) clearNotice(page, value);
  if (!value.src || value.src === page.askedSrc) {
    if (value.notice) tell(page, value.notice);
  } else if (page.link && isElsewhere(page.link, value.src)) {
    if (traceOf(page.askedSrc) !== page.link.trace) openLinked(page, value.src);
  } else {
    page.askedSrc = value.src;
    openAt(page, value.src).then(() => value.notice && tell(page, value.notice));
  }
}

/** The panel of a run in progress: beside the slider where a release started it, else on top. */
function showLive({ panel, workspace, topSlot }, { live, notice }) {
  const slot = (live?.release && workspace?.liveSlot) || topSlot;
  if (!notice && panel.node.parentNode !== slot) slot.append(panel.node);
  if (live || !notice) panel.update(live ?? null); // a notice ends no run
  if (live?.release) workspace?.say(null);
}

/** Say why a budget is not run: beside the slider where there is one. */
function tell(page, text) {
  page.told = text;
  if (!page.workspace?.say(text)) showNotice(page, text);
}

/** Take back what `tell` said, unless the run that it speaks of goes on. */
function clearNotice(page, { live }) {
  if (!page.told || (live && !live.release)) return;
  page.told = "";
  page.workspace?.say(null);
  showNotice(page, null);
}

/** Whether a link names another trace than the one at `src`. */
function isElsewhere({ trace }, src) {
  return /^[\w-]{1,64}$/.test(trace ?? "") && trace !== traceOf(src);
}

/** The name of a trace in its address, `lab/NAME/payload`; null where it has none. */
function traceOf(src) {
  return src?.match(/([\w-]{1,64})\/payload$/)?.[1] ?? null;
}
