// Elements of HTML and SVG, which every other file draws with.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = ["svg", "g", "rect", "path", "line", "circle"];

/**
 * A new element at the end of its parent. Names that HTML has too, such as text, are SVG's with the attribute `svg`.
 *
 * @param {string} tag
 * @param {Record<string, any>} attributes
 * @param {Element | null} parent
 * @param {string | number | null} text
 * @returns {any} An HTML or an SVG element, by its tag.
 */
export function make(tag, attributes = {}, parent = null, text = null) {
  const isSvg = DRAWN.includes(tag) || attributes.svg;
  const element = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (name !== "svg") element.setAttribute(name, value);
  if (text !== null) element.textContent = String(text);
  if (parent) parent.appendChild(element);
  return element;
}

/** Sets an attribute unless it has that value already: the browser would draw the element again. */
export function put(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Sets the text of an element unless it has it already. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Has the browser save a file. */
export function download(name, blob) {
  const link = make("a", { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
