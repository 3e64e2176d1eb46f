// Files from the server: tried again where that can help, with words on how it goes.

const WAITS_MS = [1000, 3000, 8000];
const MEGABYTE = 1e6;

/** Why a file can't be had, in a sentence; `isGone` where trying again can't help. */
export class FetchError extends Error {
  constructor(text, isGone) {
    super(text);
    this.isGone = isGone;
  }
}

/** The server's answer to one request. */
async function ask(src) {
  const answer = await fetch(src).catch(() => null);
  if (!answer) throw new FetchError("The server does not answer.", false);
  if (answer.ok) return answer;
  if (answer.status === 404) throw new FetchError("This trace is no longer open on the server.", true);
  const words = answer.status === 422 ? await answer.text() : `The server answered with error ${answer.status}.`;
  throw new FetchError(words, answer.status < 500);
}

/** Bytes at an address. Where the line or the server fails they are asked for again, and `say(text)` says so. */
export async function bytesAt(src, say = () => {}) {
  for (const wait of [...WAITS_MS, null]) {
    try {
      const answer = await ask(src);
      return new Uint8Array(await answer.arrayBuffer().catch(() => broken()));
    } catch (error) {
      if (error.isGone || wait === null) throw error;
      say(`${error.message} Trying again in ${wait / 1000} s.`);
      await new Promise((done) => setTimeout(done, wait));
    }
  }
  return null;
}

function broken() {
  throw new FetchError("The line broke while the trace came in.", false);
}

/** A file of the trace at `src` that the server makes when asked; `say(text)` is called with how far it is. */
export async function fetchFile(src, name, say) {
  const kind = name.split(".").at(-1);
  const folder = src.replace(/[^/]+$/, "");
  const at = name.startsWith("compare-") ? folder.replace(/\blab\/([\w-]+\/)$/, "motion/$1") : folder;
  say(`Making the ${kind}…`);
  const answer = await ask(at + name);
  const all = Number(answer.headers.get("Content-Length"));
  const parts = [];
  let got = 0;
  const reader = answer.body.getReader();
  for (;;) {
    const { done, value } = await reader.read().catch(() => broken());
    if (done) break;
    parts.push(value);
    got += value.length;
    say(`${(got / MEGABYTE).toFixed(1)}${all ? ` of ${(all / MEGABYTE).toFixed(1)}` : ""} MB`);
  }
  return new Blob(parts);
}
