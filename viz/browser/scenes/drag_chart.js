// A chart whose vertical line one drags.

import { chart, valueUnder } from "../chart.js";
import { make } from "../elements.js";
import { onDrag } from "./slider.js";

/** @import { BoundedAxis, Contents } from "../chart.js" */
/** @typedef {{draw: (contents: Contents & {x: BoundedAxis}) => void}} DragChart */

const NARROWEST = 280, WIDEST = 640; // pixels

/**
 * A chart that is drawn again as often as wished. A slider beside it does the same for the keyboard.
 *
 * @param {Element} parent
 * @param {(value: number) => void} action Told the value on the x axis under the pointer.
 * @returns {DragChart}
 */
export function dragChart(parent, action) {
  const root = make("div", { class: "drag-chart" }, parent);
  /** @type {BoundedAxis | null} */
  let axis = null;
  onDrag(root, ({ target }) => (target instanceof Element && target.closest("svg") ? true : null), (event) => {
    const svg = root.querySelector("svg");
    if (svg && axis) action(valueUnder(svg, axis, event.clientX));
  });
  /** @type {DragChart["draw"]} */
  function draw(contents) {
    axis = contents.x;
    root.replaceChildren();
    const width = Math.max(NARROWEST, Math.min(WIDEST, root.clientWidth || WIDEST));
    chart(root, { ...contents, width, height: contents.height ?? 210 });
  }
  return { draw };
}
