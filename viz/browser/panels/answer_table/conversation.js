// A row that is open: the request and the answers as a conversation, and what each token gained.

import { isDark, largest } from "../../colors.js";
import { make } from "../../elements.js";
import { coloredToken } from "../../strip.js";
import { nats } from "../../text.js";

/** @import { About } from "../../traits.js" */
/** @import { Apart, Row } from "./rows.js" */

/** @typedef {{about: Pick<About, "panels">, take: ((parent: Element, row: number) => void) | null}} Opening */

const SIGNS = { right: "\u2713", wrong: "\u2717" };

/**
 * Marks an answer as right or wrong; without a mark it draws nothing.
 *
 * @type {(parent: Element, right: boolean | null) => void}
 */
export function drawMark(parent, right) {
  if (right === null) return;
  const word = right ? "right" : "wrong";
  make("span", { class: `mark ${word}`, role: "img", "aria-label": word, title: word }, parent, SIGNS[word]);
}

/**
 * Draws the conversation of a row. `context` is that of the panel, with what takes a row apart if a kernel does.
 *
 * @type {(parent: Element, row: Row, context: Opening) => void}
 */
export function drawConversation(parent, row, { about, take }) {
  const box = make("div", { class: "conversation" }, parent), turns = make("div", { class: "turns" }, box);
  drawTurn(turns, "request", row.request, null);
  drawTurn(turns, "base", row.base, row.base_right);
  drawTurn(turns, "adapter", row.adapter, row.adapter_right);
  if (row.reference !== null) drawTurn(turns, "reference", row.reference, null);
  const gained = make("div", { class: "gained" }, box);
  if (row.apart) drawApart(gained, row, row.apart, about);
  else if (take) offerToTake(gained, row, take);
  else sayHow(gained, row);
}

/** @type {(parent: Element, speaker: string, text: string, right: boolean | null) => void} */
function drawTurn(parent, speaker, text, right) {
  const turn = make("div", { class: `turn ${speaker}` }, parent),
    name = make("div", { class: "speaker" }, turn, speaker);
  drawMark(name, right);
  make("div", { class: "said" }, turn, text || "(nothing)");
}

/** @type {(parent: Element, row: Row, apart: Apart, about: Opening["about"]) => void} */
function drawApart(parent, { reference, gain }, { tokens, modules }, about) {
  const whose = reference === null ? "the adapter's answer" : "the reference";
  make("p", {}, parent, `What each token of ${whose} gained, ${nats(gain)} nats together:`);
  const chips = make("div", { class: "chips" }, parent), most = largest(tokens.map(([, gain]) => gain));
  for (const [token, gain] of tokens) {
    const chip = make("span", { class: "chip" }, chips);
    coloredToken(chip, token, gain / most, isDark(parent));
    make("span", { class: "nats" }, chip, nats(gain));
  }
  make("p", {}, parent, "The modules that contributed most of it, nats:");
  const table = make("table", { class: "modules" }, parent), longest = largest(modules.map(([, value]) => value));
  for (const [place, value] of modules) {
    const line = make("tr", {}, table);
    make("th", { scope: "row" }, line, place);
    make("td", {}, line, nats(value));
    drawShare(make("td", { class: "bars" }, line), value / longest);
  }
  if (!about.panels.some(({ name }) => name === "attribution")) return;
  make("p", { class: "note" }, parent, "What leaving a module out costs is another number: panel Attribution.");
}

/**
 * A bar of a share from -1 to 1.
 *
 * @type {(parent: Element, share: number) => void}
 */
export function drawShare(parent, share) {
  const look = { class: share < 0 ? "share less" : "share more", style: `width: ${100 * Math.abs(share)}%` };
  make("span", look, make("span", { class: "shares", "aria-hidden": "true" }, parent));
}

/** @type {(parent: Element, row: Row, take: (parent: Element, row: number) => void) => void} */
function offerToTake(parent, { row, reference }, take) {
  const whose = reference === null ? "the adapter's answer" : "the reference";
  make("p", {}, parent, `What each token of ${whose} gained, and by which modules, is not known yet.`);
  take(parent, row);
}

/** @type {(parent: Element, row: Row) => void} */
function sayHow(parent, { row }) {
  const line = make("p", { class: "note" }, parent, "To see what each token gained, and by which modules, add ");
  make("code", {}, line, `--rows ${row}`);
  line.append(" to ");
  make("code", {}, line, "tlora explain --data");
  line.append(", or ");
  make("code", {}, line, `explain=[${row}]`);
  line.append(" to ");
  make("code", {}, line, "tlora.compare_answers");
  line.append(".");
}
