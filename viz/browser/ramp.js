// What colors mean: a bar of them between the values at its ends.

import { make } from "./elements.js";

/** @import { Color } from "./colors.js" */

/**
 * Fills a legend: the colors, the values at their ends and in the middle, and what they are values of.
 *
 * @type {(legend: Element, colors: Color[], ends: string[], words: string) => void}
 */
export function drawColors(legend, colors, [low, middle, high], words) {
  const gradient = colors.map((color) => `rgb(${color})`);
  make("span", {}, legend, low);
  make("span", { class: "ramp", style: `background: linear-gradient(to right, ${gradient})` }, legend, middle);
  make("span", {}, legend, `${high} (${words})`);
}
