// Elements, numbers and words. Text enters the page only as text nodes, so a prompt cannot be markup.

const SVG_NS = "http://www.w3.org/2000/svg";

function fill(node, attrs, children) {
  for (const [name, value] of Object.entries(attrs)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.setAttribute("class", value);
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

/** Pixels, about, that a letter of a chart's names takes. */
export const LETTER = 6.9;

/** An HTML element. Attributes named `on…` are listeners; strings among the children become text. */
export function el(tag, attrs = {}, ...children) {
  return fill(document.createElement(tag), attrs, children);
}

/** The same for SVG. */
export function svg(tag, attrs = {}, ...children) {
  return fill(document.createElementNS(SVG_NS, tag), attrs, children);
}

/** Replace what a node holds. */
export function put(node, ...children) {
  node.replaceChildren();
  return fill(node, {}, children);
}

/** Make a node say `text`, and leave it alone where it does: a tick then costs no layout. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A group of buttons of which one is pressed. Returns the node and `show(value)`. */
export function choice(label, options, onPick) {
  const buttons = options.map(([value, text, hint]) =>
    el("button", { type: "button", title: hint, onclick: () => onPick(value) }, text),
  );
  const node = el("div", { class: "choice", role: "group", "aria-label": label }, buttons);
  const show = (current) => {
    options.forEach(([value], i) => {
      buttons[i].setAttribute("aria-pressed", String(value === current));
    });
  };
  return { node, show, buttons };
}

export const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

/** 0.384 -> "38.4 %", without a trailing ".0". */
export function percent(x, digits = 1) {
  if (!isNumber(x)) return "not measured";
  return `${(100 * x).toFixed(digits).replace(/\.0+$/, "")} %`;
}

/** 1.4213 -> "1.42×". */
export function times(x) {
  return isNumber(x) ? `${x.toFixed(x < 10 ? 2 : 1)}×` : "not measured";
}

/** PSNR: null in a result means that both clips are identical, a missing one was not measured. */
export function decibel(x) {
  if (x === null || x === Infinity) return "identical";
  return isNumber(x) ? `${x.toFixed(1)} dB` : "not measured";
}

/** What one sees of a PSNR, in words; about, for it depends on the clip. Empty where it was not measured. */
export function seen(x) {
  if (x === null || x === Infinity) return "no difference";
  if (!isNumber(x)) return "";
  const words = ["differs in many details", "differs plainly", "seen when compared", "hard to see"];
  return words[[25, 30, 35].filter((least) => x >= least - 2.5).length];
}

export function plain(x, digits = 3) {
  return isNumber(x) ? x.toFixed(digits).replace(/^0\./, ".") : "not measured";
}

export function seconds(x) {
  if (!isNumber(x)) return "not measured";
  return x < 10 ? `${x.toFixed(1)} s` : `${Math.round(x)} s`;
}

/** "0.9", "0.925": a budget as people write it. */
export function budget(x) {
  return isNumber(x) ? String(Number(x.toFixed(4))) : "?";
}

export function plural(n, one, many = `${one}s`) {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}

export const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

/** Size a canvas to `width`×`height` device pixels only if that changes it (resizing clears it). */
export function fit(canvas, width, height) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  return canvas.getContext("2d");
}

/** One call of `draw` per animation frame, however often it is asked for. */
export function onFrame(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
}
