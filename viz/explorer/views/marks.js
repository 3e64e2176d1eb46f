// The mark of each method on a chart: a symbol of its own, and a colour that both themes can show.

import { legible } from "../contrast.js";

const LEAST_CONTRAST = 3.3; // with `paper`; on the page's ground at least 3 is left

const PATHS = {
  circle: (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  diamond: (x, y, r) =>
    `M${x} ${y - 1.3 * r}L${x + 1.3 * r} ${y}L${x} ${y + 1.3 * r}L${x - 1.3 * r} ${y}z`,
  square: (x, y, r) => `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
  triangle: (x, y, r) => `M${x} ${y - 1.2 * r}L${x + 1.2 * r} ${y + r}H${x - 1.2 * r}z`,
  cross: (x, y, r) => `M${x - r} ${y - r}L${x + r} ${y + r}M${x + r} ${y - r}L${x - r} ${y + r}`,
  star: (x, y, r) =>
    `M${x} ${y - r}V${y + r}M${x - r} ${y}H${x + r}M${x - 0.7 * r} ${y - 0.7 * r}l${1.4 * r} ${1.4 * r}m0 ${-1.4 * r}l${-1.4 * r} ${1.4 * r}`,
};
const SYMBOLS = Object.keys(PATHS);

/** Path of a symbol around (x, y); `r` is about half its width. */
export const symbolPath = (symbol, x, y, r) => PATHS[symbol](x, y, r);

/**
 * Title, symbol and colour of each named method. Methods differ without their colours too: a symbol
 * that an earlier method has taken is replaced by a free one.
 */
export function marksOf(data, names, palette) {
  const marks = new Map();
  const taken = new Set();
  for (const name of names) {
    const { title, symbol, colour } = data.methods.get(name);
    const isFree = PATHS[symbol] && !taken.has(symbol);
    const own = isFree ? symbol : (SYMBOLS.find((s) => !taken.has(s)) ?? "star");
    taken.add(own);
    marks.set(name, { title, symbol: own, colour: legible(colour, palette, LEAST_CONTRAST) });
  }
  return marks;
}
