// Beside the map: the selected module, with its rank, the reason of it, its shares, the words it reads and its charts.

import { button, group } from "../controls.js";
import { make, write } from "../elements.js";
import { moduleCharts } from "../module_charts.js";
import { placeOf } from "../modules.js";
import { plainToken } from "../strip.js";
import { MINUS } from "../text.js";
import { factsOf, insteadOf, sharesOf, why } from "./sentences.js";

/** @import { Share } from "./sentences.js" */
/** @import { Bench } from "./workbench.js" */

const COMPARED =
  "Bars: those of scores and of the budget end at the largest share of a module, the others at 100\u00a0%.";
const READ = "Words its first direction reads";
const DOUBT = "Random directions read words, too: ";
const COMPARE = "compare them";

/**
 * Draws the card.
 *
 * @param {Bench} bench
 * @param {HTMLElement} side
 * @returns {() => void} What has it follow the selection and the allocation.
 */
export function drawCard(bench, side) {
  const { about, model } = bench, place = make("h2", {}, side), name = make("div", { class: "name" }, side);
  const said = make("div", { class: "said", "aria-live": "polite" }, side);
  const row = make("div", { class: "ranked" }, said), rank = make("b", {}, row), instead = make("span", {}, row);
  drawStepper(bench, row);
  const reason = make("p", {}, said), shares = make("div", { class: "shares" }, side);
  const words = make("div", { class: "strips" }, side);
  const charts = moduleCharts(about);
  side.appendChild(charts.root);
  return () => {
    const selected = model.get("selected"), k = selected.at(-1), rest = selected.length - 1;
    if (k === undefined) return;
    write(place, placeOf(about, k) + (rest ? `, and ${rest} more selected` : ""));
    write(name, about.names[k]);
    write(rank, String(bench.current.ranks[k]));
    write(instead, insteadOf(bench, k));
    write(reason, why(bench, k));
    drawShares(shares, sharesOf(bench, k));
    drawWords(bench, words, wordsOf(bench, k));
    const lines = [...factsOf(bench, k), COMPARED], counts = model.get("resampled")?.[k];
    charts.draw({ k, place: placeOf(about, k), rank: bench.current.ranks[k], counts, lines });
  };
}

/**
 * Buttons that give the selected modules one rank more or fewer than the module of the card has.
 *
 * @type {(bench: Bench, row: Element) => void}
 */
function drawStepper(bench, row) {
  const { model, requests } = bench, stepper = group(row, "Rank of the selected modules");
  /** @type {(sign: string, by: number, words: string) => void} */
  function step(sign, by, words) {
    button(stepper, sign, words, () => {
      const modules = model.get("selected"), rank = bench.current.ranks[modules.at(-1) ?? 0] + by;
      if (rank > 0) requests.ask("set_rank", { modules, rank });
    }, { "aria-label": words });
  }
  step(MINUS, -1, "One rank less");
  step("+", 1, "One rank more");
}

/** @type {(parent: Element, shares: Share[]) => void} */
function drawShares(parent, shares) {
  parent.replaceChildren();
  for (const { label, text, part, note = "", mean } of shares) {
    const row = make("div", { class: "share" }, parent);
    make("span", {}, row, label);
    make("b", {}, row, text);
    const track = make("div", { class: "track", "aria-hidden": "true" }, row);
    make("div", { style: `width: ${Math.round(100 * Math.min(1, part))}%` }, track);
    if (mean !== undefined) make("i", { style: `left: ${Math.round(100 * mean)}%` }, track);
    if (note) make("small", {}, row, note);
  }
}

/**
 * The words that the first direction of a module reads, which the panel Reads has of every module.
 *
 * @type {(bench: Bench, k: number) => string[]}
 */
function wordsOf({ about }, k) {
  const reads = about.panels.flatMap(({ parts }) => parts).find(({ kind }) => kind === "reads");
  return /** @type {string[][] | undefined} */ (reads?.words)?.[k] ?? [];
}

/** @type {(bench: Bench, parent: Element, words: string[]) => void} */
function drawWords({ model }, parent, words) {
  parent.replaceChildren();
  if (!words.length) return;
  make("div", { class: "key" }, parent, READ);
  const strip = make("div", { class: "strip" }, parent);
  for (const word of words) plainToken(strip, word);
  const compare = make("button", { type: "button", class: "link" }, make("small", {}, parent, DOUBT), COMPARE);
  compare.addEventListener("click", () => {
    model.set("panel", "reads");
    model.set("stage", "directions");
    model.save_changes();
  });
}
