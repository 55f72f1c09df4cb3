// The panel "Answers": the totals, and a table of both answers to each request, to be sorted, filtered and opened.

import { largest } from "../../colors.js";
import { button, group, onArrows } from "../../controls.js";
import { focusIn, make, put } from "../../elements.js";
import { explained } from "../../explain.js";
import { nats } from "../../text.js";
import { drawRequestForm, drawTakeApart } from "../explaining.js";
import { followKernel } from "../follow_kernel.js";
import { drawConversation, drawMark, drawShare } from "./conversation.js";
import { chosenRows, COLUMNS, filterCounts, FILTERS, rowName, withKnown } from "./rows.js";

/** @import { Ask, Model } from "../../traits.js" */
/** @import { Context } from "../panels.js" */
/** @import { Opening } from "./conversation.js" */
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

/** @typedef {{sentence: string, rows: Row[], live?: boolean, choice?: Choice}} Part */

/**
 * The panel while it is drawn. `waiting` has the buttons of open rows follow the kernel, by row; `rows` are those of the
 * table and of the reader.
 *
 * @typedef {{rows: Row[], choice: Choice, filters: HTMLElement, heads: Map<string, Element>, body: Element,
 *   foot: Element, most: number, waiting: Map<number, () => void>, opening: Opening}} Panel
 */

/** @type {(parent: Element, part: Part, context: Pick<Context, "about" | "model" | "ask">) => void} */
export function answerTablePart(parent, part, { about, model, ask }) {
  const choice = (part.choice ??= { filter: "all", column: null, descending: false, isWhole: false, open: new Set() });
  if (!about.stages) make("p", { class: "finding" }, parent, part.sentence); // else it is that of the stage
  const filters = group(make("div", { class: "bar" }, parent), "Rows");
  onArrows(filters);
  const table = make("table", { role: ROLES.table, "aria-label": "Answers" }, parent);
  const head = make("tr", { role: ROLES.row }, make("thead", { role: ROLES.group }, table));
  const body = make("tbody", { role: ROLES.group }, table),
    foot = make("div", { class: "key", role: "status" }, parent);
  const rows = withKnown(part.rows, model?.get("explained")?.rows ?? []), waiting = new Map();
  const most = largest(rows.map(({ gain }) => gain));
  const take = model && part.live ? takeRow(waiting, model, ask) : null;
  /** @type {Panel} */
  const panel = { rows, choice, filters, heads: new Map(), body, foot, most, waiting, opening: { about, take } };
  drawFilters(panel);
  drawHeads(panel, head);
  drawRows(panel);
  if (model && part.live) followModel(panel, part, model, drawRequestForm(parent, model, ask));
}

/**
 * Draws what takes an open row apart.
 *
 * @type {(waiting: Panel["waiting"], model: Model, ask: Ask | null) => (parent: Element, row: number) => void}
 */
const takeRow = (waiting, model, ask) => (parent, row) => void waiting.set(row, drawTakeApart(parent, row, model, ask));

/**
 * Has the rows follow the kernel: one that was taken apart is opened.
 *
 * @type {(panel: Panel, part: Part, model: Model, followForm: () => void) => void}
 */
function followModel(panel, part, model, followForm) {
  const { choice, body } = panel;
  function followRows() {
    const known = model.get("explained")?.rows ?? [], last = known.at(-1);
    panel.rows = withKnown(part.rows, known);
    panel.most = largest(panel.rows.map(({ gain }) => gain));
    if (last && last.row < 0) Object.assign(choice, { filter: "all", column: null }); // the reader's own is on top
    if (last) choice.open.add(last.row);
    const hadFocus = body.contains(focusIn(body));
    drawFilters(panel);
    drawRows(panel);
    if (hadFocus && last) /** @type {HTMLElement | null} */ (body.querySelector(`[data-row="${last.row}"]`))?.focus();
  }
  followKernel(body, model, {
    "change:explained": followRows,
    "change:explaining": () => {
      for (const follow of panel.waiting.values()) follow();
      followForm();
    },
  });
}

/** @type {(panel: Panel) => void} */
function drawFilters(panel) {
  const { rows, choice, filters } = panel;
  filters.replaceChildren();
  const buttons = filterCounts(rows).map(([name, count]) => {
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
  const { rows, choice, heads, body, foot } = panel, found = chosenRows(rows, choice);
  const shown = choice.isWhole ? found : found.slice(0, LISTED), hidden = found.length - shown.length;
  for (const [column, cell] of heads) {
    put(cell, "aria-sort", column !== choice.column ? "none" : choice.descending ? "descending" : "ascending");
  }
  body.replaceChildren();
  panel.waiting.clear();
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
function drawRow({ choice, body, most, waiting, opening }, row) {
  const line = make("tr", { role: ROLES.row, class: "answers-row" }, body);
  /** @type {(column: string, tag?: string, role?: string) => HTMLElement} */
  const cell = (column, tag = "td", role = ROLES.cell) =>
    make(tag, { role, class: classOf(column), "data-label": column }, line);
  cell("row").textContent = rowName(row.row);
  const name = cell("request", "th", ROLES.name);
  name.setAttribute("scope", "row");
  const opener = make("button", { type: "button", "data-row": row.row }, name);
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
    waiting.delete(row.row);
    opened = isOpen ? drawOpened(line, row, opening) : null;
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

/** @type {(line: Element, row: Row, opening: Opening) => Element} */
function drawOpened(line, row, opening) {
  const opened = make("tr", { role: ROLES.row, class: "opened" });
  line.after(opened);
  drawConversation(make("td", { role: ROLES.cell, colspan: Object.keys(COLUMNS).length }, opened), row, opening);
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
