// Contrast of a colour with the page's ground, as WCAG 2 defines it.

const STEPS = 20;

/** [red, green, blue] from 0 to 255 of "#rrggbb", or null. */
function rgbOf(hex) {
  const found = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(hex ?? "");
  return found && found.slice(1).map((part) => parseInt(part, 16));
}

/** Relative luminance, 0 to 1. */
function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Contrast of two colours, 1 to 21. */
export function contrastOf(a, b) {
  const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
}

/**
 * `colour`, mixed with as little `ink` as gives it a contrast of `least` with `paper`. All three are
 * "#rrggbb"; the answer is `ink` where one is not.
 */
export function legible(colour, { ink, paper }, least) {
  const [from, to, ground] = [rgbOf(colour), rgbOf(ink), rgbOf(paper)];
  if (!from || !to || !ground) return ink;
  for (let i = 0; i <= STEPS; i += 1) {
    const mixed = from.map((value, c) => Math.round(value + ((to[c] - value) * i) / STEPS));
    if (contrastOf(mixed, ground) >= least) return `rgb(${mixed.join(" ")})`;
  }
  return ink;
}
