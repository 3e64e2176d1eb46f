// A lecture: one view at a time in large type, by arrow keys, Page Up and Page Down, or two buttons.

import { el, write } from "./dom.js";

const BACK = ["ArrowLeft", "PageUp"];
const ON = ["ArrowRight", "PageDown"];
const OWN_KEYS = "select, input, textarea, .board, .headboard"; // arrow keys mean something else there

/**
 * Show one of the `slides`, {name, title}, and go from one to the next. `show(name)` is called with the one to
 * show. Returns the bar's node and `close()`.
 */
export function makePresentation(slides, start, show) {
  let at = Math.max(0, slides.findIndex(({ name }) => name === start));
  const button = (label, sign, by) =>
    el("button", { type: "button", class: "plainbutton", "aria-label": label, onclick: () => go(at + by) }, sign);
  const back = button("Previous view", "‹", -1);
  const on = button("Next view", "›", 1);
  const where = el("span", { "aria-live": "polite" });
  function go(to) {
    if (to < 0 || to >= slides.length) return;
    at = to;
    write(where, `${at + 1} of ${slides.length}: ${slides[at].title}`);
    back.disabled = at === 0;
    on.disabled = at === slides.length - 1;
    const address = new URL(location.href);
    address.searchParams.set("view", slides[at].name);
    history.replaceState(history.state, "", address);
    show(slides[at].name);
    scrollTo(0, 0);
  }
  function onKey(event) {
    const by = ON.includes(event.key) ? 1 : BACK.includes(event.key) ? -1 : 0;
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    const isPage = event.key.startsWith("Page");
    if (!isPage && event.composedPath().some((node) => node.matches?.(OWN_KEYS))) return;
    event.preventDefault();
    event.stopPropagation();
    go(at + by);
  }
  document.addEventListener("keydown", onKey, true);
  go(at);
  return {
    node: el("nav", { class: "slides", "aria-label": "Views" }, back, where, on),
    close: () => document.removeEventListener("keydown", onKey, true),
  };
}
