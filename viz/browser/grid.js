import { blend, groundOf, inkOn, isDark } from "./colors.js";
import { make } from "./elements.js";

export const TALL = 22; // pixels of a cell
// Cells of modules, rows by columns; each cell is [row, column, share, text], shares from 0 to `most`.
export function cellGrid(parent, { title, rows, columns, cells, most, width = 560 }) {
  const left = 6.2 * Math.max(...rows.map((name) => Math.min(name.length, 22))) + 10,
    w = Math.min(26, (width - left) / columns.length),
    h = 17;
  const svg = make("svg", {
    class: "chart",
    role: "img",
    width: left + w * columns.length,
    height: h * rows.length + 18,
    "aria-label": title,
  }, parent);
  const ground = groundOf(isDark(parent));
  rows.forEach((name, j) =>
    make("text", { svg: true, class: "tick", x: left - 6, y: h * j + 12, "text-anchor": "end" }, svg, name.slice(-22))
  );
  const every = Math.ceil(18 / w);
  columns.forEach((name, i) => {
    if (i % every === 0) {
      make(
        "text",
        { svg: true, class: "tick", x: left + w * (i + 0.5), y: h * rows.length + 13, "text-anchor": "middle" },
        svg,
        name,
      );
    }
  });
  for (const [row, column, value, text] of cells) {
    const fill = blend(ground, [0, 104, 116], value === null || !most ? 0 : value / most);
    make("rect", {
      class: "grid",
      x: left + w * column + 0.5,
      y: h * row + 0.5,
      width: w - 1,
      height: h - 1,
      fill: `rgb(${fill})`,
    }, svg);
    if (text && w > 15) {
      make(
        "text",
        {
          svg: true,
          x: left + w * (column + 0.5),
          y: h * row + 12,
          "text-anchor": "middle",
          "font-size": 9,
          fill: inkOn(fill),
        },
        svg,
        text,
      );
    }
  }
  return svg;
}
