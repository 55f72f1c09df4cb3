// Text as a strip of tokens, each on the color of its value, of *Side effects* and *Reads*. The answer of
// *Attribution*, whose tokens are cards with numbers below, is `panels/attribution/answer.js`.

import { BLUE, groundOf, RED, tint } from "./colors.js";
import { make } from "./elements.js";
import { drawColors } from "./ramp.js";
import { isSpecial, signedNumber, visible } from "./text.js";

/** @type {(text: string) => string} */
const tokenClass = (text) => `token${isSpecial(text) ? " special" : ""}`;

/**
 * A token without a color.
 *
 * @type {(parent: Element, text: string) => HTMLElement}
 */
export function plainToken(parent, text) {
  return make("span", { class: tokenClass(text) }, parent, visible(text));
}

/**
 * A token on the color of a share from -1 to 1.
 *
 * @type {(parent: Element, text: string, share: number, dark: boolean) => HTMLElement}
 */
export function coloredToken(parent, text, share, dark) {
  const { fill, ink } = tint(share, dark), style = `background: ${fill}; color: ${ink}`;
  return make("span", { class: tokenClass(text), style }, parent, visible(text));
}

/**
 * A token: `share` is its value from -1 to 1, `look` its classes; a narrow one is its color alone, and one that `ends`
 * its line has the next below.
 *
 * @typedef {{text: string, share: number, title?: string, look?: string[], narrow?: boolean, ends?: boolean}} Token
 */

/**
 * A strip of tokens, and of text between them.
 *
 * @param {Element} parent
 * @param {(string | Token)[]} tokens
 * @param {boolean} dark Whether the page is.
 */
export function drawStrip(parent, tokens, dark) {
  const strip = make("span", { class: "strip" }, parent);
  for (const token of tokens) {
    if (typeof token === "string") {
      strip.append(token);
      continue;
    }
    const drawn = coloredToken(strip, token.narrow ? "" : token.text, token.share, dark);
    if (token.title) drawn.title = token.title;
    drawn.classList.add(...token.look ?? [], ...(token.narrow ? ["narrow"] : []));
    if (token.ends) make("br", {}, strip);
  }
}

/**
 * The colors of values from -most to most.
 *
 * @type {(parent: Element, most: number, words: string, dark: boolean) => void}
 */
export function drawRamp(parent, most, words, dark) {
  const legend = make("div", { class: "legend" }, parent), ends = [signedNumber(-most), "0", signedNumber(most)];
  drawColors(legend, [BLUE, groundOf(dark), RED], ends, words);
}
