import { make } from "./elements.js";
import { explained } from "./explain.js";

// A table with a caption: the columns in `text` hold words, the others numbers; a folded one is opened by the reader.
export function drawTable(parent, { caption, head, rows, text = [0], folded = false }) {
  const box = folded
    ? make("details", {}, parent)
    : make("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": caption }, parent);
  if (folded) make("summary", {}, box, caption);
  const table = make(
    "table",
    {},
    folded ? make("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": caption }, box) : box,
  );
  if (!folded) make("caption", {}, table, caption);
  const kind = (i) => ({ class: text.includes(i) ? "words" : "count" });
  if (head.length) {
    const tr = make("tr", {}, make("thead", {}, table));
    head.forEach((name, i) => explained(make(name ? "th" : "td", name ? { scope: "col", ...kind(i) } : {}, tr, name)));
  }
  const body = make("tbody", {}, table);
  for (const row of rows) {
    const tr = make("tr", {}, body);
    row.forEach((
      cell,
      i,
    ) => (i ? make("td", kind(i), tr, cell) : explained(make("th", { scope: "row", ...kind(i) }, tr, cell))));
  }
}
