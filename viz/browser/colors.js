export const RED = [178, 24, 43];
export const BLUE = [33, 102, 172];
export const GREEN = [0, 104, 116];
export const rgb = (text) => text.match(/[\d.]+/g).slice(0, 3).map(Number);
function luminance(color) { // relative luminance, WCAG 2
  const [r, g, b] = color.map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

export const isDark = (element) => luminance(rgb(getComputedStyle(element).color || "rgb(0, 0, 0)")) > 0.4; // its text is bright
export const groundOf = (dark) => (dark ? [17, 17, 17] : [255, 255, 255]);
export const inkOn = (color) => (luminance(color) > 0.179 ? "#000" : "#fff"); // the higher contrast
export const blend = (ground, hue, share) =>
  ground.map((c, i) => Math.round(c + (hue[i] - c) * Math.min(1, Math.abs(share))));
export function tint(share, dark) { // red above zero, blue below
  const fill = blend(groundOf(dark), share > 0 ? RED : BLUE, share);
  return { fill: `rgb(${fill})`, ink: inkOn(fill) };
}

export const largest = (v) => v.reduce((most, one) => Math.max(most, Math.abs(one)), 1e-6);
