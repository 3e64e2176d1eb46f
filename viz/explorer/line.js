// The line to the server: whether it still answers, and a run that a reload did not find again.

import { el, put } from "./dom.js";

const ASK_MS = 10_000;
const LOST_ASK_MS = 4_000;
const MAX_WAIT_MS = 8_000; // a busy server answers within it
const FOUND_MS = 4_000; // the server gives a run back that it still has
const RUN = "svg2-run"; // in the storage of the tab, which outlives a reload

const notice = () => el("p", { class: "notice", role: "alert", hidden: true });

/**
 * A notice that says when the server does not answer, and when it does again. `sourceOf()` is the address of
 * the trace on show, null where none came from a server.
 */
export function watchLine(sourceOf) {
  const node = notice();
  let lostAt = null;
  let timer = 0;
  const say = (text) => {
    node.hidden = !text;
    put(node, text);
  };
  async function look() {
    const src = sourceOf();
    if (src && document.visibilityState === "visible") {
      const signal = AbortSignal.timeout(MAX_WAIT_MS);
      const held = src.replace(/[^/]*$/, "held"); // asking for the trace itself would log a 404 once it is replaced
      const answer = await fetch(held, { cache: "no-store", signal }).catch(() => null);
      if (!answer || answer.status >= 500) {
        lostAt ??= new Date();
        say(
          `The server has not answered since ${lostAt.toLocaleTimeString()}. What is shown stays; a run that was under way may be lost. Trying again.`,
        );
      } else if (lostAt) {
        lostAt = null;
        const isGone = answer.ok && (await answer.json().catch(() => true)) === false;
        const gone = isGone ? " It no longer holds this trace, which stays until the page is reloaded." : "";
        say(`The server answers again.${gone} Reload the page to find a run that was under way.`);
      }
    }
    timer = setTimeout(look, lostAt ? LOST_ASK_MS : ASK_MS);
  }
  timer = setTimeout(look, ASK_MS);
  return { node, close: () => clearTimeout(timer) };
}

/**
 * A notice of a run that was under way before the page was reloaded and is not found again, with a button that
 * calls `onAgain()`. `follow(live)` takes what runs now, null where nothing does.
 */
export function makeRunNotice(onAgain) {
  const node = notice();
  const before = stored();
  let timer = 0;
  if (before) {
    const again =
      onAgain && !before.release
        ? el("button", { type: "button", class: "plainbutton", onclick: () => { node.hidden = true; onAgain(); } }, "Run it again")
        : null;
    const rest = before.release
      ? "Its budget can be measured again beside the slider."
      : "Its settings are in the form.";
    put(node, `A run was under way when this page was reloaded, and the server no longer has it. ${rest} `, again);
    timer = setTimeout(() => { node.hidden = false; }, FOUND_MS);
  }
  return {
    node,
    follow(live) {
      if (live) {
        clearTimeout(timer);
        node.hidden = true;
      }
      try {
        if (live) sessionStorage.setItem(RUN, JSON.stringify({ release: Boolean(live.release) }));
        else sessionStorage.removeItem(RUN);
      } catch {
        // without storage a reload says nothing
      }
    },
  };
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(RUN));
  } catch {
    return null;
  }
}
