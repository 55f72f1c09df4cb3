// Above the map: the rank and the history, the menu of the rule and the budget, and the tabs of what the map shows.

import { button, copyable, fold, group, labeled, onArrows } from "../controls.js";
import { make, put, write } from "../elements.js";
import { explained } from "../explain.js";
import { fillTable } from "../table.js";
import { costs } from "./sentences.js";
import { currentTab, isOffered } from "./values.js";

/** @import { Attributes } from "../elements.js" */
/** @import { Bench } from "./workbench.js" */

/** @typedef {"input" | "select"} Tag */

/**
 * A control: its field, for a slider the text of its value, and whether the slider is held.
 *
 * @typedef {{input: HTMLInputElement | HTMLSelectElement, output: HTMLOutputElement | null, isHeld: boolean}} Control
 */

/**
 * Draws the controls, and has them send what is set.
 *
 * @param {Bench} bench
 * @param {HTMLElement} bar
 * @returns {() => void} What has them follow the allocation.
 */
export function drawControls(bench, bar) {
  const { about, page, requests } = bench;
  const rank = drawControl(bench, bar, "rank", "Nominal rank", "input", {
    type: "range",
    min: 1,
    max: about.most,
    step: 1,
  });
  const steps = group(bar, "History");
  const undo = button(steps, "Undo", "Take the last change back (Ctrl+Z)", () => requests.ask("undo"));
  const redo = button(steps, "Redo", "Repeat it (Ctrl+Shift+Z)", () => requests.ask("redo"));
  if (!page) button(steps, "Keep", "Count changes from here on", () => requests.ask("keep"));
  const followRule = drawRule(bench, fold(bar, "Rule and budget"));
  return () => {
    follow(rank, bench.current.controls.rank);
    undo.disabled = !bench.current.undo;
    redo.disabled = !bench.current.redo;
    followRule();
  };
}

/**
 * Draws the options, what the allocation costs and its line of Python; a page without a kernel has the temperature
 * alone of the options.
 *
 * @param {Bench} bench
 * @param {HTMLElement} box
 * @returns {() => void} What has them follow the allocation.
 */
function drawRule(bench, box) {
  const { about, page, requests } = bench, bar = make("div", { class: "bar" }, box);
  /** @type {Record<string, Control>} */
  const controls = {};
  /** @type {(name: string, label: string, tag: Tag, attributes: Attributes, options?: string[]) => void} */
  const add = (name, label, tag, attributes, options) => {
    controls[name] = drawControl(bench, bar, name, label, tag, attributes, options);
  };
  add("temperature", "Temperature", "input", { type: "range", min: 0, max: 1, step: 1 / about.steps });
  if (!page) {
    add("budget", "Budget", "select", {}, ["ranks", "parameters"]);
    add("scaling", "Scaling", "select", {}, ["nominal", "allocated"]);
    add("min_rank", "min_rank", "input", { type: "number", min: 0, max: about.most });
    add("max_rank", "max_rank", "input", { type: "number", min: 1, max: about.most });
    const presets = group(bar, "Presets");
    for (const [name, meaning] of Object.entries(about.presets)) {
      button(presets, name, String(meaning), () => requests.ask("preset", { name }));
    }
  }
  const table = make("table", {}, make("div", { class: "scroll" }, box));
  const line = copyable(make("div", { class: "copied" }, box));
  return () => {
    const { current } = bench;
    for (const [name, control] of Object.entries(controls)) follow(control, current.controls[name]);
    const head = ["", "kept", "new", "new, of kept", `LoRA, rank ${current.rank}`];
    table.replaceChildren();
    fillTable(table, { head, rows: costs(bench), term: (name) => name.replace(/^LoRA.*/, "lora") });
    write(line, current.code);
  };
}

/** @type {(control: Control, value: string | number | null) => void} */
function follow({ input, output, isHeld }, value) {
  if (isHeld) return;
  input.disabled = value === null;
  input.value = String(value ?? "");
  if (output) output.textContent = String(value ?? "");
}

/**
 * One control; while a slider is held, it follows the hand rather than the answers of the kernel.
 *
 * @type {(bench: Bench, bar: Element, name: string, label: string, tag: "input" | "select", attributes:
 *   Attributes, options?: string[]) => Control}
 */
function drawControl({ requests, tell }, bar, name, label, tag, attributes, options = []) {
  const box = explained(labeled(bar, label)), input = make(tag, attributes, box);
  const isRange = attributes.type === "range", isNumber = attributes.type === "number";
  for (const option of options) make("option", {}, input, option);
  /** @type {Control} */
  const control = { input, output: isRange ? make("output", {}, box) : null, isHeld: false };
  let gesture = requests.gesture();
  input.addEventListener(isNumber || tag === "select" ? "change" : "input", () => {
    if (isNumber && (input.value === "" || !input.validity.valid)) return tell();
    control.isHeld = isRange;
    if (control.output) control.output.textContent = input.value;
    const value = tag === "select" ? input.value : Number(input.value);
    requests.ask("set", { [name]: value }, `control ${gesture}`);
  });
  input.addEventListener("change", () => {
    gesture = requests.gesture();
    control.isHeld = false;
    if (requests.isIdle) tell(); // what was refused while it was held
  });
  input.addEventListener("blur", () => {
    control.isHeld = false;
  });
  return control;
}

/**
 * Draws the tabs; on a page nothing trains.
 *
 * @type {(bench: Bench) => void}
 */
export function drawTabs(bench) {
  const { about, page, model, tablist } = bench;
  /** @type {(name: string) => void} */
  function show(name) {
    model.set("tab", name);
    model.save_changes();
    bench.paint();
  }
  for (const tab of about.tabs) {
    if (page && tab.trained) continue;
    const element = make("button", { type: "button", role: "tab", "data-tab": tab.name }, tablist, tab.title);
    explained(element, tab.of === "ranks" ? "rank" : tab.name === "overlap" ? "overlap" : tab.title);
    element.addEventListener("click", () => show(tab.name));
  }
  onArrows(tablist, (target) => show(target.dataset.tab ?? ""));
}

/**
 * Marks the tab that is shown.
 *
 * @type {(bench: Bench) => void}
 */
export function markTab(bench) {
  const { name } = currentTab(bench);
  for (const tab of bench.tablist.querySelectorAll("button")) {
    put(tab, "aria-selected", tab.dataset.tab === name);
    put(tab, "tabindex", tab.dataset.tab === name ? 0 : -1);
  }
}

/**
 * Hides the tabs of what has not been trained.
 *
 * @type {(bench: Bench) => void}
 */
export function offerTabs(bench) {
  for (const button of bench.tablist.querySelectorAll("button")) {
    const tab = bench.about.tabs.find(({ name }) => name === button.dataset.tab);
    button.hidden = !tab || !isOffered(bench, tab);
  }
}
