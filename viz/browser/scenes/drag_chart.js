// A chart whose vertical line one drags.

import { chart, valueUnder } from "../chart.js";
import { make } from "../elements.js";
import { onDrag } from "./slider.js";

const NARROWEST = 280, WIDEST = 640; // pixels

/**
 * A chart that is drawn again as often as wished. A slider beside it does the same for the keyboard.
 *
 * @param {Element} parent
 * @param {(value: number) => void} action Told the value on the x axis under the pointer.
 * @returns {{root: HTMLElement, draw: (contents: any) => void}} The contents are those of `chart`.
 */
export function dragChart(parent, action) {
  const root = make("div", { class: "drag-chart" }, parent);
  let axis = null;
  onDrag(root, ({ target }) => (target.closest("svg") ? true : null), (event) => {
    const svg = root.querySelector("svg");
    if (svg && axis) action(valueUnder(svg, axis, event.clientX));
  });
  function draw(contents) {
    axis = contents.x;
    root.replaceChildren();
    const width = Math.max(NARROWEST, Math.min(WIDEST, root.clientWidth || WIDEST));
    chart(root, { ...contents, width, height: contents.height ?? 210 });
  }
  return { root, draw };
}
