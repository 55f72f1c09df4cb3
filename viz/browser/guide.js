// The first minute and the keys, until the reader closes it; browsers remember that.

import { make } from "./elements.js";

const SEEN = "tlora-guide";
const START = [
  "Click the reddest cell: it has more rank than a uniform allocation gives it. The text beside the map says why.",
  "Drag it down. The others share what it gives up; the tab Change shows who gains, and Undo takes it back.",
];
const RANK = "Move the rank: what all modules share grows or shrinks with it.";
const TRAIN = "Press Train both: two short trainings on the same batches say which allocation is better, " +
  "with the answers of both.";
const KEYS = [
  ["arrows", "move"],
  ["Shift+arrows", "select more"],
  ["+ and \u2212, or Alt+\u2191 and \u2193", "change the rank"],
  ["Delete", "give the rank back to the score"],
  ["X", "leave the module out"],
  ["Ctrl+Z, Ctrl+Shift+Z", "undo, redo"],
  ["Ctrl+Space, Shift+Space", "select a layer, a projection"],
  ["Escape", "select one"],
];

/**
 * Draws it, open for a reader who has not closed it before if `drags`: if there is a map to drag on.
 *
 * @type {(root: HTMLElement, page: boolean, drags: boolean) => void}
 */
export function guide(root, page, drags) {
  const box = make("details", { class: "help" }, root);
  make("summary", {}, box, "Help: the first minute, and keys");
  const list = make("ol", {}, box);
  for (const step of [...START, page ? RANK : TRAIN]) make("li", {}, list, step);
  const row = make("p", {}, box, "On the map: ");
  KEYS.forEach(([key, does], i) => {
    make("kbd", {}, row, key);
    row.append(` ${does}${i < KEYS.length - 1 ? ", " : "."} `);
  });
  make("p", {}, box, "Point at a word, or go to it with Tab: its sentence of the glossary is shown.");
  box.open = drags && !stored();
  box.addEventListener("toggle", () => store(box.open ? "" : "closed"));
}

function stored() {
  try {
    return localStorage.getItem(SEEN);
  } catch {
    return null; // a page without storage
  }
}

/** @type {(value: string) => void} */
function store(value) {
  try {
    localStorage.setItem(SEEN, value);
  } catch { /* a page without storage */ }
}
