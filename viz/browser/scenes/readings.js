// Numbers beside a picture: a name, its formula, the value and a bar.

import { make, write } from "../elements.js";

/**
 * A list of shares that follow a picture.
 *
 * @param {Element} parent
 * @param {{name: string, formula: string, color: number}[]} entries
 * @returns {(shares: (number | null)[]) => void} Shows the shares; null hides an entry.
 */
export function shareReadings(parent, entries) {
  const list = make("dl", { class: "readings" }, parent);
  const drawn = entries.map(({ name, formula, color }) => {
    const row = make("div", { class: `reading c${color}` }, list);
    make("dt", {}, row, name);
    const value = make("dd", { class: "value" }, row), bar = make("dd", { class: "track" }, row);
    make("dd", { class: "formula" }, row, formula);
    return { row, value, fill: make("span", {}, bar) };
  });
  return (shares) => {
    drawn.forEach(({ row, value, fill }, i) => {
      row.hidden = shares[i] === null;
      if (shares[i] === null) return;
      write(value, `${(100 * shares[i]).toFixed(1)}\u00a0%`);
      fill.style.width = `${100 * shares[i]}%`;
    });
  };
}
