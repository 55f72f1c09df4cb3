// Pictures of the map, to download.

import { groundOf, isDark } from "../colors.js";
import { download, make } from "../elements.js";

/** @import { Bench } from "./workbench.js" */

const LOOK = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-family", "font-size"];

/**
 * The map as SVG text, with its style written out.
 *
 * @type {(bench: Bench) => string}
 */
function picture({ svg, root }) {
  const copy = /** @type {SVGSVGElement} */ (svg.cloneNode(true));
  const from = [svg, ...svg.querySelectorAll("*")];
  const to = [copy, .../** @type {NodeListOf<SVGElement>} */ (copy.querySelectorAll("*"))];
  from.forEach((element, i) => {
    const look = getComputedStyle(element);
    for (const name of LOOK) to[i].style.setProperty(name, look.getPropertyValue(name));
  });
  copy.prepend(make("rect", { width: "100%", height: "100%", fill: `rgb(${groundOf(isDark(root))})` }));
  return new XMLSerializer().serializeToString(copy);
}

/** @type {(bench: Bench) => void} */
export function downloadSvg(bench) {
  download("allocation.svg", new Blob([picture(bench)], { type: "image/svg+xml" }));
}

/** @type {(bench: Bench) => void} */
export function downloadPng(bench) {
  const image = new Image(), scale = 2, { clientWidth, clientHeight } = bench.svg;
  image.onload = () => {
    const canvas = make("canvas", { width: scale * clientWidth, height: scale * clientHeight });
    canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => blob && download("allocation.png", blob));
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(picture(bench));
}
