import { make } from "./elements.js";

// The first minute and the keys, until the reader closes it; browsers remember that.
export function guide(root, page, drags) {
  const seen = "tlora-guide", box = make("details", { class: "help" }, root);
  make("summary", {}, box, "Help: the first minute, and keys");
  const steps = [
    "Click the reddest cell: it has more rank than a uniform allocation gives it. The text beside the map says why.",
    "Drag it down. The others share what it gives up; the tab Change shows who gains, and Undo takes it back.",
    page
      ? "Move the rank: what all modules share grows or shrinks with it."
      : "Press Train both: two short trainings on the same batches say which allocation is better, with the answers of both.",
  ];
  const list = make("ol", {}, box);
  for (const step of steps) make("li", {}, list, step);
  const keys = [
    ["arrows", "move"],
    ["Shift+arrows", "select more"],
    ["+ and \u2212, or Alt+\u2191 and \u2193", "change the rank"],
    ["Delete", "give the rank back to the score"],
    ["X", "leave the module out"],
    ["Ctrl+Z, Ctrl+Shift+Z", "undo, redo"],
    ["Ctrl+Space, Shift+Space", "select a layer, a projection"],
    ["Escape", "select one"],
  ];
  const row = make("p", {}, box, "On the map: ");
  keys.forEach(([key, does], i) => {
    make("kbd", {}, row, key);
    row.append(` ${does}${i < keys.length - 1 ? ", " : "."} `);
  });
  make("p", {}, box, "Point at a word, or go to it with Tab: its sentence of the glossary is shown.");
  const closed = () => {
    try {
      return localStorage.getItem(seen);
    } catch {
      return null;
    }
  };
  box.open = drags && !closed();
  box.addEventListener("toggle", () => {
    try {
      localStorage.setItem(seen, box.open ? "" : "closed");
    } catch { /* a page without storage */ }
  });
}
