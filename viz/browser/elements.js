// Elements of HTML and SVG, which every other file draws with.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = ["svg", "g", "rect", "path", "line", "circle"];

/** @typedef {Record<string, string | number | boolean>} Attributes */
/** @typedef {"svg" | "g" | "rect" | "path" | "line" | "circle" | "text"} Drawn */

/**
 * An HTML or an SVG element, by its tag.
 *
 * @template {string} T
 * @typedef {T extends Drawn ? SVGElementTagNameMap[T]
 *   : T extends keyof HTMLElementTagNameMap ? HTMLElementTagNameMap[T] : HTMLElement} Made
 */

/**
 * A new element at the end of its parent. Names that HTML has too, such as title, are SVG's with the attribute `svg`.
 *
 * @template {string} T
 * @param {T} tag
 * @param {Attributes} attributes
 * @param {Element | null} parent
 * @param {string | number | null} text
 * @returns {Made<T>}
 */
export function make(tag, attributes = {}, parent = null, text = null) {
  const isSvg = DRAWN.includes(tag) || attributes.svg;
  const element = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (name !== "svg") element.setAttribute(name, String(value));
  if (text !== null) element.textContent = String(text);
  if (parent) parent.appendChild(element);
  return /** @type {Made<T>} */ (element);
}

/**
 * Sets an attribute unless it has that value already: the browser would draw the element again.
 *
 * @type {(element: Element, name: string, value: string | number | boolean) => void}
 */
export function put(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}

/**
 * Sets the text of an element unless it has it already.
 *
 * @type {(element: Element, text: string) => void}
 */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * What has the focus, in the document or the shadow root of an element.
 *
 * @type {(element: Element) => Element | null}
 */
export const focusIn = (element) => /** @type {Document | ShadowRoot} */ (element.getRootNode()).activeElement ?? null;

/**
 * Has the browser save a file.
 *
 * @type {(name: string, blob: Blob) => void}
 */
export function download(name, blob) {
  const link = make("a", { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
