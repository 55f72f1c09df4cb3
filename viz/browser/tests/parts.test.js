import assert from "node:assert/strict";
import { place, send } from "./dom.js";
import { choose, drawBar, onArrows } from "../controls.js";
import { make } from "../elements.js";
import { describe, explained } from "../explain.js";
import { drawStrip } from "../strip.js";
import { drawTable } from "../table.js";

Deno.test("a table has headers of rows and columns, and explains those that the glossary knows", () => {
  const parent = place();
  drawTable(parent, { caption: "c", head: ["", "rank", "nothing known"], rows: [["loss", 1, 2]], text: [0, 2] });
  const headers = [...parent.querySelectorAll("th")];
  assert.deepEqual(headers.map((th) => th.getAttribute("scope")), ["col", "col", "row"]);
  assert.deepEqual(headers.map((th) => th.hasAttribute("aria-description")), [true, false, true]);
  assert.deepEqual([...parent.querySelectorAll("td")].map((td) => td.className), ["", "count", "words"]);
  assert.equal(parent.querySelector("caption").textContent, "c");
});

Deno.test("a folded table has its caption as the summary", () => {
  const parent = place();
  drawTable(parent, { caption: "c", head: [], rows: [], folded: true });
  assert.equal(parent.querySelector("details > summary").textContent, "c");
  assert.equal(parent.querySelector("caption"), null);
});

Deno.test("a strip shows line ends, faint and narrow tokens, and text between", () => {
  const parent = place();
  const tokens = [{ text: "a\n", share: 1, ends: true }, "\u2026", { text: "<s>", share: 0, narrow: true, title: "t" }];
  drawStrip(parent, tokens, false);
  const [first, second] = parent.querySelectorAll(".token");
  assert.equal(first.textContent, "a\u23ce");
  assert.match(first.getAttribute("style") ?? "", /rgb\(178,24,43\)/);
  assert.equal(second.className, "token narrow");
  assert.equal(second.textContent, "");
  assert.equal(parent.querySelectorAll("br").length, 1);
});

Deno.test("arrows go around the buttons that are seen", () => {
  const row = make("div", {}, place());
  /** @type {(string | null)[]} */
  const chosen = [];
  const [a, b, c] = ["a", "b", "c"].map((name) => make("button", {}, row, name));
  b.hidden = true;
  onArrows(row, (button) => chosen.push(button.textContent));
  send(a, "keydown", { key: "ArrowRight" });
  send(c, "keydown", { key: "ArrowRight" });
  send(a, "keydown", { key: "ArrowLeft" });
  send(a, "keydown", { key: "x" });
  assert.deepEqual(chosen, ["c", "a", "c"]);
});

Deno.test("a list gives the value that is chosen", () => {
  /** @type {string[]} */
  const chosen = [];
  const select = choose(place(), "l", [[0, "a"], [1, "b"]], 1, (value) => chosen.push(value));
  assert.equal(select.value, "1");
  select.value = "0";
  send(select, "change");
  assert.deepEqual(chosen, ["0"]);
});

Deno.test("what is explained can be reached by Tab", () => {
  assert.equal(explained(make("span", {}, null, "Rank")).getAttribute("tabindex"), "0");
  assert.equal(describe(make("button"), "s").hasAttribute("tabindex"), false);
  assert.equal(describe(make("span"), "").hasAttribute("aria-description"), false);
});

Deno.test("of one item no share is known until it is done", () => {
  const parent = place();
  drawBar(parent, { words: "w", done: 0, total: 1 });
  assert.equal(parent.querySelector("progress").hasAttribute("value"), false);
  drawBar(parent, { words: "w", done: 1, total: 3 });
  assert.match(parent.textContent ?? "", /w: 1 of 3$/);
});
