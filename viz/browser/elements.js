export const SVG = "http://www.w3.org/2000/svg";
const DRAWN = ["svg", "g", "rect", "path", "line", "circle"];
export function make(tag, attributes = {}, parent = null, text = null) {
  const element = DRAWN.includes(tag) || attributes.svg
    ? document.createElementNS(SVG, tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (name !== "svg") element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.appendChild(element);
  return element;
}

export function put(element, name, value) { // an equal value is not written again: the browser would draw it again
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

export function onArrows(row, then = () => {}) { // the arrow keys go from button to button of a row
  row.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key],
      all = [...row.querySelectorAll("button")].filter((one) => !one.hidden);
    if (!step) return;
    const target = all[(all.indexOf(event.target) + step + all.length) % all.length];
    then(target);
    target.focus();
    event.preventDefault();
  });
}

export function download(name, blob) {
  const link = make("a", { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
