// A model for the page without a kernel: it answers what the workbench asks of a kernel, as Workbench does in Python.

import { allocate, refuse } from "./allocate.js";
import { ANSWERS } from "./panels/kinds.js";

/** @import { Rule, Sizes } from "./allocate.js" */
/** @import { About, Content, Current, Model, Traits } from "./traits.js" */
/** @import { Reading } from "./panels/readings.js" */

/**
 * What a page was written with: the traits, the rule of its allocation, and the readings of all modules.
 *
 * @typedef {Traits & {rule: Rule, readings?: Partial<Reading>[]}} Data
 */

/** @typedef {{modules: number[]}} Modules */
/** @typedef {Partial<Rule> & Modules & {rank: number}} Wish The arguments of any request. */
/** @typedef {string | null} Gesture */

const WRITTEN = "What stands here shows the allocation that the page was written with: it does not follow changes.";
const REFUSED = "The budget, the limits and the ranks set by hand do not allow this.";
const BY_EXPERT = "Experts have ranks of their own here, and this page cannot change them: open the workbench.";

/**
 * The allocation as a line of Python.
 *
 * @type {(rule: Rule, about: About) => string}
 */
export function allocationCode(rule, about) {
  /** @type {(k: number | string) => string} */
  const quote = (k) => `'${about.names[Number(k)]}'`;
  const edits = Object.entries(rule.edits);
  const temperature = Number.isInteger(rule.temperature) ? rule.temperature.toFixed(1) : rule.temperature;
  /** @type {Record<string, string | number>} */
  const options = { ...rule.code, rank: rule.rank, temperature };
  if (rule.temperature === 1) delete options.temperature;
  if (rule.changed) options.exclude_modules = `[${rule.excluded.map(quote).join(", ")}]`;
  if (!rule.excluded.length) delete options.exclude_modules;
  const given = Object.entries(options).map(([name, value]) => `${name}=${value}`);
  const call = `tlora.allocate(${["calibration.sensitivity", ...given].join(", ")})`;
  if (!edits.length) return call;
  return `${call}.edit({${edits.map(([k, rank]) => `${quote(k)}: ${rank}`).join(", ")}})`;
}

/**
 * A rule with the ranks of modules set by hand, given back, or with the modules left out.
 *
 * @type {(rule: Rule, modules: number[], to?: {rank?: number | null, out?: boolean}) => Rule}
 */
function decide(rule, modules, { rank = null, out = false } = {}) {
  const edits = Object.fromEntries(Object.entries(rule.edits).filter(([k]) => !modules.includes(Number(k))));
  if (rank) { for (const k of modules) edits[k] = rank; }
  const kept = rule.excluded.filter((k) => !modules.includes(k));
  const excluded = kept.concat(out ? modules : []).sort((a, b) => a - b);
  const changed = rule.changed || out || excluded.length < rule.excluded.length;
  return { ...rule, edits, excluded, changed };
}

/** @type {(rule: Rule, about: Sizes) => boolean} */
function isRefused(rule, about) {
  try {
    allocate(rule, about);
    return false;
  } catch (error) {
    if (error instanceof RangeError) return true;
    throw error;
  }
}

/**
 * The possible rank of modules that is nearest to one, on the side of the present rank.
 *
 * @type {(rule: Rule, about: Sizes, modules: number[], present: number, rank: number) => number}
 */
function nearestRank(rule, about, modules, present, rank) {
  const step = Math.sign(present - rank);
  for (let nearest = rank;; nearest += step) {
    if (!isRefused(decide(rule, modules, { rank: nearest }), about)) return nearest;
    if (nearest === present) refuse();
  }
}

/** What is shown, and the rules before and after it, with the answers to requests. */
class OfflineWorkbench {
  /** @type {Rule[]} */
  past = [];
  /** @type {Rule[]} */
  future = [];
  /** @type {Gesture} */
  gesture = null;

  /**
   * @param {Data} data
   * @param {About} about
   * @param {(current: Current) => void} tell
   */
  constructor(data, about, tell) {
    this.data = data;
    this.about = about;
    this.rule = data.rule;
    this.current = data.current;
    this.tell = tell;
  }

  /** @type {(rule: Rule, message?: string) => void} */
  show(rule, message = "") {
    const { data, about } = this, { controls } = data.current, found = allocate(rule, about);
    const tables = Object.entries(data.current.parts).map(([name, parts]) => [
      name,
      [{ kind: "text", text: WRITTEN }, ...parts],
    ]);
    this.rule = rule;
    const temperature = controls.temperature === null ? null : rule.temperature;
    this.current = {
      ...data.current,
      ...found,
      message,
      code: allocationCode(rule, about),
      undo: this.past.length,
      redo: this.future.length,
      controls: { ...controls, rank: rule.rank, temperature },
      parts: Object.fromEntries(tables),
    };
    this.tell(this.current);
  }

  /**
   * Goes to a rule; within one gesture the step to undo grows.
   *
   * @type {(rule: Rule, gesture?: Gesture, message?: string) => void}
   */
  move(rule, gesture = null, message = "") {
    if (this.data.current.experts) refuse(); // how experts share a rank is known in Python alone
    allocate(rule, this.about);
    if (gesture === null || gesture !== this.gesture) this.past.push(this.rule);
    this.gesture = gesture;
    this.future.length = 0;
    this.show(rule, message);
  }

  /** @type {(from: Rule[], to: Rule[]) => void} */
  back(from, to) {
    const rule = from.pop();
    if (!rule) return;
    to.push(this.rule);
    this.gesture = null;
    this.show(rule);
  }

  /** @type {(options: Partial<Rule>, gesture?: Gesture) => void} */
  set(options, gesture) {
    this.move({ ...this.rule, ...options }, gesture);
  }

  /** @type {(wish: Modules & {rank: number}, gesture?: Gesture) => void} */
  set_rank({ modules, rank }, gesture) {
    const wished = decide(this.rule, modules, { rank });
    if (!isRefused(wished, this.about)) return this.move(wished, gesture);
    const present = this.current.ranks[modules[0]] || 1;
    const nearest = nearestRank(this.rule, this.about, modules, present, rank);
    const message = `Rank ${rank} does not fit the budget and the limits: ${nearest} is the nearest that does.`;
    this.move(decide(this.rule, modules, { rank: nearest }), gesture, message);
  }

  /** @type {(wish: Modules) => void} */
  release({ modules }) {
    this.move(decide(this.rule, modules));
  }

  /** @type {(wish: Modules) => void} */
  leave_out({ modules }) {
    this.move(decide(this.rule, modules, { out: true }));
  }

  undo() {
    this.back(this.past, this.future);
  }

  redo() {
    this.back(this.future, this.past);
  }
}

/**
 * The model of a page.
 *
 * @type {(data: Data) => Model}
 */
export function offline(data) {
  const about = { ...data.about, page: true };
  /** @type {Traits} */
  const values = { ...data, about };
  /** @type {Record<string, ((content: Content) => void)[]>} */
  const listeners = {};
  /** @type {(name: string, content?: Content) => void} */
  const tell = (name, content = {}) => (listeners[name] ?? []).forEach((listener) => listener(content));
  /** @type {Model["set"]} */
  function change(name, value) {
    values[name] = value;
    tell(`change:${name}`);
  }
  const workbench = new OfflineWorkbench(data, about, (current) => {
    values.resampled = [];
    change("current", current);
  });
  /** @type {(call: string, args: object) => void} */
  function answerPanel(call, args) {
    const answers = ANSWERS[call](args, data);
    Object.assign(values, answers);
    for (const name of Object.keys(answers)) tell(`change:${name}`);
  }
  /** @type {(call: string, args: Wish, gesture: Gesture) => void} */
  function answer(call, args, gesture) {
    if (call in ANSWERS) return answerPanel(call, args);
    workbench[/** @type {"set" | "set_rank" | "release" | "leave_out" | "undo" | "redo"} */ (call)](args, gesture);
  }
  return {
    get: (name) => values[name],
    set: change,
    save_changes: () => {},
    on: (name, listener) => {
      (listeners[name] ??= []).push(listener);
    },
    send: ({ call, args, gesture = null, id }) => {
      try {
        answer(call, /** @type {Wish} */ (args), gesture);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        workbench.show(workbench.rule, data.current.experts ? BY_EXPERT : REFUSED);
      }
      tell("msg:custom", { answer: id });
    },
  };
}
