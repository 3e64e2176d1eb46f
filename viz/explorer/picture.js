// A view as a picture for a slide: what it has drawn, under a title and over lines that say of what.

import { computedShare } from "./data.js";
import { decibel, el, isNumber, percent, svg, times } from "./dom.js";

const SCALE = 2; // for screens of today, and for print
const GAP = 16;
const MARGIN = 28;
const TITLE_PX = 26;
const LABEL_PX = 15;
const LINE_PX = 14;
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const TITLE_STYLE = `650 ${TITLE_PX}px`;
const LABEL_STYLE = `600 ${LABEL_PX}px`;
const LINE_STYLE = `400 ${LINE_PX}px`;
const STYLED = [
  ...["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "paint-order"],
  ...["font-family", "font-size", "font-weight", "text-anchor"],
];

/** What a picture says below: prompt, model, run, place and origin. `place` is left out where it is null. */
export function linesOf({ data, store }, place) {
  const { request, provenance } = data;
  const run = data.runs[store.get().run];
  const { result } = run;
  const from = result.hardware ? result : provenance;
  const computed = computedShare(result);
  const gained = [
    isNumber(computed) && `${percent(computed)} of all pairs computed`,
    isNumber(result.speedup) && `${times(result.speedup)} end to end, timed once`,
    `${decibel(result.psnr_db)} against dense`,
  ];
  const shape = [
    request.model && `model ${request.model}`,
    isNumber(request.seed) && `seed ${request.seed}`,
    isNumber(request.width) && `${data.frameCount} frames of ${request.width}×${request.height}`,
    isNumber(request.num_inference_steps) && `${request.num_inference_steps} steps`,
  ];
  const origin = [
    from.hardware ?? "unknown hardware",
    typeof from.date === "string" && from.date.slice(0, 10),
    from.commit && `commit ${String(from.commit).slice(0, 8)}`,
    "SVG2 Lab",
  ];
  const join = (parts) => parts.filter(Boolean).join(" · ");
  return [
    join([request.prompt && `“${request.prompt}”`, ...shape]),
    join([run.name, ...gained]),
    join([place, ...origin]),
  ];
}

/**
 * A canvas with a title, the parts in rows and the lines. A part is {canvas, label}, or with `draw(context,
 * x, y, width)` and `height` in place of the canvas. `cell` is the width of each in CSS pixels.
 */
export function compose({ title, parts, columns, cell, lines, colours }) {
  const width = Math.max(640, 2 * MARGIN + columns * cell + (columns - 1) * GAP);
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const cut = (words, style, room) => {
    context.font = `${style} ${FONT}`;
    return wrapped(context, words, room);
  };
  const heads = cut(title, TITLE_STYLE, width - 2 * MARGIN);
  const text = lines.flatMap((line) => cut(line, LINE_STYLE, width - 2 * MARGIN));
  const labels = new Map(parts.map((p) => [p, p.label ? cut(p.label, LABEL_STYLE, cell) : []]));
  const rows = [];
  for (let i = 0; i < parts.length; i += columns) rows.push(parts.slice(i, i + columns));
  const heightOf = (part) => part.height ?? (cell * part.canvas.height) / part.canvas.width;
  // Clips of a row begin at one height, under the longest label.
  const labelHeight = (row) => {
    const count = Math.max(...row.map((p) => labels.get(p).length));
    return count ? count * (LABEL_PX + 4) + 6 : 0;
  };
  const rowHeight = (row) => labelHeight(row) + Math.max(...row.map(heightOf));
  const body = rows.reduce((sum, row) => sum + rowHeight(row) + GAP, 0);
  const top = MARGIN + TITLE_PX + (heads.length - 1) * (TITLE_PX + 4) + GAP;
  const height = top + body + text.length * (LINE_PX + 6) + MARGIN;
  canvas.width = Math.round(SCALE * width);
  canvas.height = Math.round(SCALE * height);
  context.scale(SCALE, SCALE);
  context.fillStyle = colours.paper;
  context.fillRect(0, 0, width, height);
  const write = (words, x, y, style, colour = colours.ink) => {
    context.font = `${style} ${FONT}`;
    context.fillStyle = colour;
    context.fillText(words, x, y);
  };
  heads.forEach((head, i) => write(head, MARGIN, MARGIN + TITLE_PX * 0.8 + i * (TITLE_PX + 4), TITLE_STYLE));
  let y = top;
  for (const row of rows) {
    row.forEach((part, i) => {
      const x = MARGIN + i * (cell + GAP);
      labels.get(part).forEach((label, n) => write(label, x, y + LABEL_PX + n * (LABEL_PX + 4), LABEL_STYLE));
      const under = y + labelHeight(row);
      if (part.draw) part.draw(context, x, under, cell);
      else drawWhole(context, part.canvas, x, under, cell, heightOf(part));
    });
    y += rowHeight(row) + GAP;
  }
  for (const line of text) {
    y += LINE_PX + 6;
    write(line, MARGIN, y - 6, LINE_STYLE, colours.soft);
  }
  return canvas;
}

/** A small picture is enlarged by whole pixels and then scaled smoothly: at no size does it make a moiré. */
function drawWhole(context, source, x, y, width, height) {
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(enlarged(source, SCALE * width), x, y, width, height);
}

/** The picture with each pixel as a square of whole pixels, at least `least` of them wide. */
export function enlarged(source, least) {
  const whole = Math.ceil(least / source.width);
  if (whole <= 1) return source;
  const canvas = document.createElement("canvas");
  canvas.width = whole * source.width;
  canvas.height = whole * source.height;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** A line cut into lines that fit. */
function wrapped(context, line, width) {
  const found = [];
  let now = "";
  for (const word of line.split(" ")) {
    const longer = now ? `${now} ${word}` : word;
    if (now && context.measureText(longer).width > width) {
      found.push(now);
      now = word;
    } else now = longer;
  }
  return [...found, now];
}

/** A copy of an SVG element with the styles that it has on the page, and its size. */
function styledCopy(node) {
  const copy = node.cloneNode(true);
  const [, , width, height] = node.getAttribute("viewBox").split(" ").map(Number);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  const sources = [node, ...node.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((element, i) => {
    const style = getComputedStyle(sources[i]);
    const own = STYLED.map((name) => `${name}:${style.getPropertyValue(name)}`).join(";");
    element.setAttribute("style", own);
    for (const name of ["tabindex", "role", "class"]) element.removeAttribute(name);
  });
  return { copy, width, height };
}

/** An SVG chart as a file that stands alone: under its title and over the lines, as `compose` has them. */
export function svgSheet(node, { title, lines, colours }) {
  const { copy, width: own, height } = styledCopy(node);
  const width = Math.max(640, own + 2 * MARGIN);
  const context = document.createElement("canvas").getContext("2d");
  context.font = `${LINE_PX}px ${FONT}`;
  const text = lines.flatMap((line) => wrapped(context, line, width - 2 * MARGIN));
  const top = MARGIN + TITLE_PX + GAP;
  const write = (words, y, size, weight, fill) =>
    svg("text", { x: MARGIN, y, fill, "font-size": size, "font-weight": weight, "font-family": FONT }, words);
  copy.setAttribute("x", MARGIN);
  copy.setAttribute("y", top);
  const total = top + height + GAP + text.length * (LINE_PX + 6) + MARGIN;
  const sheet = svg(
    "svg",
    { xmlns: "http://www.w3.org/2000/svg", width, height: total, viewBox: `0 0 ${width} ${total}` },
    svg("rect", { width, height: total, fill: colours.paper }),
    write(title, MARGIN + TITLE_PX * 0.8, TITLE_PX, 650, colours.ink),
    copy,
    text.map((line, i) => write(line, top + height + GAP + (i + 1) * (LINE_PX + 6) - 6, LINE_PX, 400, colours.soft)),
  );
  return new XMLSerializer().serializeToString(sheet);
}

/** The same as an image that can be drawn, `SCALE` times as large. */
export async function svgImage(node) {
  const image = new Image();
  const text = new XMLSerializer().serializeToString(styledCopy(node).copy);
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = SCALE * image.width;
  canvas.height = SCALE * image.height;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/**
 * Buttons that save or copy a view's picture. `picture()` gives (or promises) what `compose` takes, without
 * lines and colours, and with the `place` that it shows; null where nothing is drawn. `chart` is an SVG
 * element that can be saved as such. `files` are kinds of file that the server makes of the run on show,
 * `others` further pictures of the view: {name, label, picture}.
 */
export function makeSave(app, name, { picture, chart, files = [], others = [] }) {
  const said = el("span", { class: "small", role: "status" });
  const say = (text) => {
    said.textContent = text;
  };
  const sheet = async (of = picture) => {
    const drawn = await of();
    if (!drawn) throw new Error("Nothing is drawn here.");
    const { place = null, ...what } = drawn;
    return { ...what, lines: linesOf(app, place), colours: app.colours() };
  };
  const make = async (of) => {
    const canvas = compose(await sheet(of));
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  };
  const button = (label, act) =>
    el("button", { type: "button", class: "quiet", onclick: () => act().catch((error) => say(error.message)) }, label);
  const png = button("Save picture", async () => save(await make(), `svg2-${name}.png`));
  const copy = button("Copy picture", async () => {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": make() })]);
    say("Copied");
  });
  const vector = chart
    ? button("Save SVG", async () =>
        save(new Blob([svgSheet(chart, await sheet())], { type: "image/svg+xml" }), `svg2-${name}.svg`),
      )
    : null;
  const further = others.map((other) =>
    button(`Save ${other.label}`, async () => save(await make(other.picture), `svg2-${other.name}.png`)),
  );
  const made = app.fetchFile
    ? files.map((kind) =>
        button(`Save ${kind}`, async () => {
          const { run, against } = app.store.get();
          const file = `${name}-${against === null ? "dense" : against + 1}-${run + 1}.${kind.toLowerCase()}`;
          save(await app.fetchFile(file, say), `svg2-${file}`);
          say("");
        }),
      )
    : [];
  const link = button("Copy link", async () => {
    const { copied, text } = await app.copyLink(name);
    say(copied ? app.linkCopied() : text);
  });
  return el("p", { class: "save" }, png, copy, vector, further, made, link, said);
}

/** Have the browser keep a file. */
export function save(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
