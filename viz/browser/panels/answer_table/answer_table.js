// The panel "Answers": the totals, and a table of both answers to each request, to be sorted, filtered and opened.

import { largest } from "../../colors.js";
import { button, group, onArrows } from "../../controls.js";
import { make, put } from "../../elements.js";
import { explained } from "../../explain.js";
import { nats } from "../../text.js";
import { drawConversation, drawMark, drawShare } from "./conversation.js";
import { chosenRows, COLUMNS, filterCounts, FILTERS } from "./rows.js";

/** @import { Context } from "../panels.js" */
/** @import { Row } from "./rows.js" */

const LISTED = 8; // rows that are shown at first
const LONGEST = 160; // characters of a text in a cell
/** Roles of a table, which browsers forget when the rows are drawn as cards on a narrow screen. */
const ROLES = { table: "table", group: "rowgroup", row: "row", head: "columnheader", name: "rowheader", cell: "cell" };

/**
 * What the reader chose: it outlives the panel. Without a column the rows are in the order to read them; `open` are the
 * numbers of those that are open.
 *
 * @typedef {{filter: string, column: string | null, descending: boolean, isWhole: boolean, open: Set<number>}} Choice
 */

/** @typedef {{sentence: string, rows: Row[], choice?: Choice}} Part */

/** @typedef {{part: Part, choice: Choice, heads: Map<string, Element>, body: Element, foot: Element, most: number}} Panel */

/** @type {(parent: Element, part: Part, context: Pick<Context, "model">) => void} */
export function answerTablePart(parent, part, { model }) {
  const choice = (part.choice ??= { filter: "all", column: null, descending: false, isWhole: false, open: new Set() });
  if (!model) make("p", { class: "finding" }, parent, part.sentence); // else it is that of the stage
  const filters = group(make("div", { class: "bar" }, parent), "Rows");
  const table = make("table", { role: ROLES.table, "aria-label": "Answers" }, parent);
  const head = make("tr", { role: ROLES.row }, make("thead", { role: ROLES.group }, table));
  const body = make("tbody", { role: ROLES.group }, table),
    foot = make("div", { class: "key", role: "status" }, parent);
  const most = largest(part.rows.map(({ gain }) => gain));
  /** @type {Panel} */
  const panel = { part, choice, heads: new Map(), body, foot, most };
  drawFilters(panel, filters);
  drawHeads(panel, head);
  drawRows(panel);
}

/** @type {(panel: Panel, filters: HTMLElement) => void} */
function drawFilters(panel, filters) {
  const { part, choice } = panel;
  const buttons = filterCounts(part.rows).map(([name, count]) => {
    const filter = button(filters, `${name} ${count}`, FILTERS[name].sentence, () => {
      Object.assign(choice, { filter: name, isWhole: false });
      press();
      drawRows(panel);
    });
    filter.disabled = !count;
    return { name, filter };
  });
  const press = () => buttons.forEach(({ name, filter }) => put(filter, "aria-pressed", name === choice.filter));
  press();
  onArrows(filters);
}

/** @type {(panel: Panel, head: Element) => void} */
function drawHeads(panel, head) {
  const { choice } = panel;
  for (const column of Object.keys(COLUMNS)) {
    const cell = make("th", { role: ROLES.head, scope: "col", class: classOf(column) }, head);
    const sort = button(cell, column, "", () => {
      const descending = choice.column === column && !choice.descending;
      Object.assign(choice, { column, descending });
      drawRows(panel);
    });
    explained(sort, column);
    panel.heads.set(column, cell);
  }
}

/** @type {(column: string) => string} */
const classOf = (column) => column.split(",")[0];

/** @type {(panel: Panel) => void} */
function drawRows(panel) {
  const { part, choice, heads, body, foot } = panel, found = chosenRows(part.rows, choice);
  const shown = choice.isWhole ? found : found.slice(0, LISTED), hidden = found.length - shown.length;
  for (const [column, cell] of heads) {
    put(cell, "aria-sort", column !== choice.column ? "none" : choice.descending ? "descending" : "ascending");
  }
  body.replaceChildren();
  for (const row of shown) drawRow(panel, row);
  foot.replaceChildren(`${shown.length} of ${found.length} rows`);
  if (!hidden) return;
  button(foot, `Show ${hidden} more`, "", () => {
    choice.isWhole = true;
    drawRows(panel);
    /** @type {HTMLElement | null} */ (body.querySelectorAll("th button")[LISTED])?.focus();
  });
}

/** @type {(panel: Panel, row: Row) => void} */
function drawRow({ choice, body, most }, row) {
  const line = make("tr", { role: ROLES.row, class: "answers-row" }, body);
  /** @type {(column: string, tag?: string, role?: string) => HTMLElement} */
  const cell = (column, tag = "td", role = ROLES.cell) =>
    make(tag, { role, class: classOf(column), "data-label": column }, line);
  cell("row").textContent = String(row.row);
  const name = cell("request", "th", ROLES.name);
  name.setAttribute("scope", "row");
  const opener = make("button", { type: "button" }, name);
  make("span", { class: "clamped" }, opener, shortened(row.request, true));
  drawAnswer(cell("base"), row.base, row.base_right);
  drawAnswer(cell("adapter"), row.adapter, row.adapter_right);
  drawAnswer(cell("reference"), row.reference ?? "", null);
  cell("changed").textContent = row.changed ? "yes" : "no";
  const gain = cell("gain, nats");
  make("span", {}, gain, nats(row.gain));
  drawShare(gain, row.gain / most);
  /** @type {Element | null} */
  let opened = null;
  function follow() {
    const isOpen = choice.open.has(row.row);
    put(opener, "aria-expanded", isOpen);
    line.classList.toggle("open", isOpen);
    opened?.remove();
    opened = isOpen ? drawOpened(line, row) : null;
  }
  line.addEventListener("click", () => {
    if (!choice.open.delete(row.row)) choice.open.add(row.row);
    follow();
  });
  follow();
}

/** @type {(parent: Element, text: string, right: boolean | null) => void} */
function drawAnswer(parent, text, right) {
  drawMark(parent, right);
  make("span", { class: "clamped" }, parent, shortened(text));
}

/** @type {(line: Element, row: Row) => Element} */
function drawOpened(line, row) {
  const opened = make("tr", { role: ROLES.row, class: "opened" });
  line.after(opened);
  drawConversation(make("td", { role: ROLES.cell, colspan: Object.keys(COLUMNS).length }, opened), row);
  return opened;
}

/**
 * A text that is long without its end, or without its beginning: of a conversation the last turn is the request.
 *
 * @type {(text: string, end?: boolean) => string}
 */
function shortened(text, end = false) {
  if (text.length <= LONGEST) return text;
  return end ? `\u2026${text.slice(1 - LONGEST)}` : `${text.slice(0, LONGEST - 1)}\u2026`;
}
