// Colors of values, as [red, green, blue] from 0 to 255, on a bright or a dark page.

/** @typedef {number[]} Color */

export const RED = [178, 24, 43], BLUE = [33, 102, 172], GREEN = [0, 104, 116];

/** @type {(text: string) => Color} */
const rgb = (text) => (text.match(/[\d.]+/g) ?? []).slice(0, 3).map(Number);

/**
 * Relative luminance, from WCAG 2.
 *
 * @type {(color: Color) => number}
 */
function luminance(color) {
  /** @type {(c: number) => number} */
  const linear = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const [r, g, b] = color.map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/**
 * Whether the page of an element is dark: its text is bright.
 *
 * @type {(element: Element) => boolean}
 */
export const isDark = (element) => luminance(rgb(getComputedStyle(element).color || "rgb(0, 0, 0)")) > 0.4;

/** @type {(dark: boolean) => Color} */
export const groundOf = (dark) => (dark ? [17, 17, 17] : [255, 255, 255]);

/**
 * The color of a cell without a value.
 *
 * @type {(dark: boolean) => Color}
 */
export const unknown = (dark) => (dark ? [58, 58, 58] : [220, 220, 220]);

/**
 * Black or white, whichever has the higher contrast on a color.
 *
 * @type {(color: Color) => string}
 */
export const inkOn = (color) => (luminance(color) > 0.179 ? "#000" : "#fff");

/**
 * A color between the ground and a hue, by a share of which the sign does not count.
 *
 * @type {(ground: Color, hue: Color, share: number) => Color}
 */
export const blend = (ground, hue, share) =>
  ground.map((c, i) => Math.round(c + (hue[i] - c) * Math.min(1, Math.abs(share))));

/**
 * Fill and ink of a share from -1 to 1: red above zero, blue below.
 *
 * @type {(share: number, dark: boolean) => {fill: string, ink: string}}
 */
export function tint(share, dark) {
  const fill = blend(groundOf(dark), share > 0 ? RED : BLUE, share);
  return { fill: `rgb(${fill})`, ink: inkOn(fill) };
}

/**
 * The largest absolute value, or next to nothing if all are zero: what shares are shares of.
 *
 * @type {(values: number[]) => number}
 */
export const largest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6);
