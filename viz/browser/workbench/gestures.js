// The map under the pointer and the keys.

import { make } from "../elements.js";
import { labelMembers, membersOf, MOVES, neighbor, STEPS } from "../grid.js";
import { placeOf } from "../modules.js";
import { brief } from "./sentences.js";

/** @import { Bench } from "./workbench.js" */

const PULL = 4; // pixels that one drags for a rank

/**
 * Selects modules, one of them the last, which has the focus.
 *
 * @type {(bench: Bench, modules: number[], last?: number) => void}
 */
function select(bench, modules, last = modules.at(-1)) {
  if (last === undefined) return; // something stays selected
  bench.focus = last;
  bench.model.set("selected", [...modules.filter((k) => k !== last), last]);
  bench.model.save_changes();
  bench.paint();
}

/** @type {(bench: Bench) => number[]} */
const selectedOf = (bench) => bench.model.get("selected");

/**
 * The module under the pointer, or null: while the pointer is captured, it is no target itself.
 *
 * @type {(bench: Bench, event: MouseEvent) => number | null}
 */
function moduleAt({ el, svg }, event) {
  const root = /** @type {Document | ShadowRoot} */ (el.getRootNode());
  const cell = root.elementFromPoint(event.clientX, event.clientY)?.closest(".cell");
  return cell && svg.contains(cell) ? Number(cell.getAttribute("data-k")) : null;
}

/**
 * Has the map follow the pointer: point to read, click to select, drag to change ranks.
 *
 * @type {(bench: Bench) => void}
 */
export function followPointer(bench) {
  const { svg, tip, requests } = bench;
  const hide = () => {
    tip.style.display = "none";
  };
  svg.addEventListener("pointerdown", (event) => press(bench, event));
  svg.addEventListener("pointermove", (event) => {
    if (bench.drag) return drag(bench, bench.drag, event);
    const k = moduleAt(bench, event);
    if (k === null) hide();
    else inform(bench, k, event.clientX, event.clientY);
  });
  svg.addEventListener("pointerleave", hide);
  function release() {
    const { drag } = bench;
    if (drag && drag.last === drag.rank && selectedOf(bench).length > 1) select(bench, [drag.k]); // a mere click
    bench.drag = null;
    requests.rest();
  }
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, release);
  svg.addEventListener("dblclick", (event) => {
    const k = moduleAt(bench, event);
    if (k !== null) requests.ask("release", { modules: [k] });
  });
}

/** @type {(bench: Bench, event: PointerEvent) => void} */
function press(bench, event) {
  const { about, svg, cells, current, requests } = bench, members = labelMembers(about, event);
  if (members) return select(bench, members);
  const k = moduleAt(bench, event);
  if (k === null || event.button) return;
  event.preventDefault(); // no selection of text
  cells[k].g.focus({ preventScroll: true });
  const before = selectedOf(bench);
  if (event.shiftKey) return select(bench, membersOf(about, "row", about.row[k]), k);
  if (event.ctrlKey || event.metaKey) {
    return select(bench, before.includes(k) ? before.filter((module) => module !== k) : [...before, k]);
  }
  select(bench, before.includes(k) ? before : [k], k);
  const rank = current.ranks[k];
  bench.drag = { k, y: event.clientY, rank, last: rank, gesture: `drag ${requests.gesture()}` };
  svg.setPointerCapture(event.pointerId);
  bench.tip.style.display = "none";
}

/** @type {(bench: Bench, drag: NonNullable<Bench["drag"]>, event: PointerEvent) => void} */
function drag(bench, drag, event) {
  const { about, requests } = bench, by = Math.round((drag.y - event.clientY) / PULL);
  const rank = by ? Math.max(1, Math.min(about.most, drag.rank + by)) : drag.rank;
  if (rank === drag.last) return;
  drag.last = rank;
  requests.ask("set_rank", { modules: selectedOf(bench), rank }, drag.gesture);
}

/**
 * Shows the rank of a module beside the pointer.
 *
 * @type {(bench: Bench, k: number, x: number, y: number) => void}
 */
function inform(bench, k, x, y) {
  const { about, root, tip } = bench, box = root.getBoundingClientRect();
  tip.replaceChildren();
  make("b", {}, tip, placeOf(about, k));
  make("div", {}, tip, brief(bench, k));
  tip.style.display = "block";
  tip.style.left = `${Math.max(0, Math.min(x - box.left + 14, box.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y - box.top + 16}px`;
}

/** @type {(target: EventTarget | null) => boolean} */
const isNumber = (target) => /** @type {HTMLInputElement} */ (target).type === "number";

/**
 * Has the map and the workbench follow the keys.
 *
 * @type {(bench: Bench) => void}
 */
export function followKeys(bench) {
  const { root, svg, requests } = bench;
  svg.addEventListener("keydown", (event) => {
    if (act(bench, event)) event.preventDefault();
  });
  root.addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && "zy".includes(key) && !isNumber(event.target)) {
      requests.ask(key === "y" || event.shiftKey ? "redo" : "undo");
      event.preventDefault();
    }
    event.stopPropagation(); // keys of the notebook are not meant
  });
}

/**
 * Does what a key on the map means; returns whether it means anything.
 *
 * @type {(bench: Bench, event: KeyboardEvent) => boolean}
 */
function act(bench, event) {
  const { about, current, focus, requests } = bench, modules = selectedOf(bench), { key } = event;
  const move = MOVES[key], step = STEPS[key] ?? (event.altKey && move ? -move[1] : 0);
  if (step) requests.ask("set_rank", { modules, rank: Math.max(1, current.ranks[focus] + step) });
  else if (move && !event.altKey) walk(bench, move, event.shiftKey);
  else if (key === " " && (event.shiftKey || event.ctrlKey)) {
    const which = event.shiftKey ? "row" : "column";
    select(bench, membersOf(about, which, about[which][focus]), focus);
  } else if (key === "Escape") select(bench, [focus]);
  else if (["Delete", "Backspace"].includes(key)) requests.ask("release", { modules });
  else if (key === "x") requests.ask("leave_out", { modules });
  else return false;
  return true;
}

/** @type {(bench: Bench, move: [number, number], extends_: boolean) => void} */
function walk(bench, move, extends_) {
  const k = neighbor(bench.about, bench.focus, move);
  if (k < 0) return;
  select(bench, extends_ ? [...new Set([...selectedOf(bench), k])] : [k], k);
  bench.cells[k].g.focus();
}
