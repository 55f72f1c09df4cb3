import { allocate, refuse } from "./allocate.js";

// The allocation as a line of Python.
function allocationCode(rule, about) {
  const quoted = (k) => `'${about.names[k]}'`,
    edits = Object.entries(rule.edits),
    values = {
      ...rule.code,
      rank: rule.rank,
      temperature: Number.isInteger(rule.temperature) ? rule.temperature.toFixed(1) : rule.temperature,
    };
  if (rule.temperature === 1) delete values.temperature;
  if (rule.changed) values.exclude_modules = `[${rule.excluded.map(quoted).join(", ")}]`;
  if (!rule.excluded.length) delete values.exclude_modules;
  const call = `tlora.allocate(${
    ["calibration.sensitivity", ...Object.entries(values).map(([name, value]) => `${name}=${value}`)].join(", ")
  })`;
  return call + (edits.length ? `.edit({${edits.map(([k, rank]) => `${quoted(k)}: ${rank}`).join(", ")}})` : "");
}

const WRITTEN = "These tables show the allocation that the page was written with: they do not follow changes.";
const REFUSED = "The budget, the limits and the ranks set by hand do not allow this.";
// A model for the page: it answers what the workbench asks of a kernel, as Workbench does.
export function offline(data) {
  const about = { ...data.about, page: true }, values = { ...data, about }, listeners = {}, past = [], future = [];
  const tell = (name, ...args) => (listeners[name] ?? []).forEach((listener) => listener(...args));
  let rule = data.rule, last = null;
  function show(now, message = "") {
    const found = allocate(now, about);
    rule = now;
    values.resampled = [];
    values.current = {
      ...data.current,
      ...found,
      message,
      code: allocationCode(rule, about),
      undo: past.length,
      redo: future.length,
      controls: {
        ...data.current.controls,
        rank: rule.rank,
        temperature: data.current.controls.temperature === null ? null : rule.temperature,
      },
      allocation: [{ kind: "text", text: WRITTEN }, ...data.current.allocation],
    };
    tell("change:current");
  }
  function move(now, gesture = null, message = "") { // within one gesture the step to undo grows
    allocate(now, about);
    if (gesture === null || gesture !== last) past.push(rule);
    last = gesture;
    future.length = 0;
    show(now, message);
  }
  function decide(modules, { rank = null, out = false } = {}) {
    const edits = Object.fromEntries(Object.entries(rule.edits).filter(([k]) => !modules.includes(Number(k))));
    if (rank) { for (const k of modules) edits[k] = rank; }
    const excluded = rule.excluded.filter((k) => !modules.includes(k)).concat(out ? modules : []).sort((a, b) => a - b);
    return { ...rule, edits, excluded, changed: rule.changed || out || excluded.length < rule.excluded.length };
  }
  function drag(modules, rank, gesture) { // to this rank, or the nearest that is possible on the side of the present one
    const present = values.current.ranks[modules[0]] || 1, step = Math.sign(rank - present);
    const isRefused = (one) => {
      try {
        allocate(decide(modules, { rank: one }), about);
      } catch (error) {
        if (error instanceof RangeError) return true;
        throw error;
      }
      return false;
    };
    if (!isRefused(rank)) return move(decide(modules, { rank }), gesture);
    let [low, high] = [0, Math.abs(rank - present)];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (isRefused(present + step * middle)) high = middle;
      else low = middle + 1;
    }
    if (!low) refuse();
    const nearest = present + step * (low - 1);
    move(
      decide(modules, { rank: nearest }),
      gesture,
      `Rank ${rank} does not fit the budget and the limits: ${nearest} is the nearest that does.`,
    );
  }
  function back(from, to) {
    if (!from.length) return;
    to.push(rule);
    last = null;
    show(from.pop());
  }
  const answers = {
    read: ({ module }) => {
      values.reading = data.readings[module];
      tell("change:reading");
    },
    set: (options, gesture) => move({ ...rule, ...options }, gesture),
    set_rank: ({ modules, rank }, gesture) => drag(modules, rank, gesture),
    release: ({ modules }) => move(decide(modules)),
    leave_out: ({ modules }) => move(decide(modules, { out: true })),
    undo: () => back(past, future),
    redo: () => back(future, past),
  };
  return {
    get: (name) => values[name],
    set: (name, value) => {
      values[name] = value;
      tell(`change:${name}`);
    },
    save_changes: () => {},
    on: (name, listener) => {
      (listeners[name] ??= []).push(listener);
    },
    send: ({ call, args, gesture = null, id }) => {
      try {
        answers[call](args, gesture);
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        show(rule, REFUSED);
      }
      tell("msg:custom", { answer: id });
    },
  };
}
