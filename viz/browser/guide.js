// Help: what the map shows, the first minute, and the keys.

import { make } from "./elements.js";

const MAP =
  "Each cell is a linear layer of the model, or one parameter of all experts of a layer, and its number the " +
  "rank of its adapter: how many directions of its input it can read. Red cells have more than a uniform allocation " +
  "would give them, blue ones less.";
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
 * Draws it; on a page without a kernel nothing trains.
 *
 * @type {(box: HTMLElement, page: boolean) => void}
 */
export function guide(box, page) {
  make("p", {}, box, MAP);
  const list = make("ol", {}, box);
  for (const step of [...START, page ? RANK : TRAIN]) make("li", {}, list, step);
  const row = make("p", {}, box, "On the map: ");
  KEYS.forEach(([key, does], i) => {
    make("kbd", {}, row, key);
    row.append(` ${does}${i < KEYS.length - 1 ? ", " : "."} `);
  });
  make("p", {}, box, "Point at a word, or go to it with Tab: its sentence of the glossary is shown.");
}
