// What Python sends of three modules in two layers.

/** @import { Rule } from "../allocate.js" */
/** @import { About, Current, Stage, Tab } from "../traits.js" */

/** @type {Tab[]} */
const TABS = [
  { name: "rank", title: "Rank", unit: "directions", stage: "allocation", kind: "ratio", of: "ranks" },
  { name: "change", title: "Change", unit: "ranks", stage: "allocation", kind: "change", of: "change" },
  {
    name: "sensitivity",
    title: "Sensitivity",
    unit: "of all scores",
    stage: "allocation",
    kind: "percent",
    values: [0.1, 0.2, 0.7],
  },
  { name: "kept", title: "Update, kept", unit: "of the weight", stage: "allocation", kind: "percent", trained: "kept" },
];
/** @type {Stage[]} */
const STAGES = [
  { name: "data", title: "Data", map: false, number: "16", note: "samples", sentence: "16 samples.", code: "" },
  { name: "spectra", title: "Spectra", map: true, number: "", note: "", sentence: "", code: "viz.Workbench(spectrum)" },
  { name: "allocation", title: "Allocation", map: true, number: "", note: "", sentence: "", code: "" },
  {
    name: "answers",
    title: "Answers",
    map: false,
    number: "4 of 5",
    note: "right",
    sentence: "4 of 5.",
    code: "attribute",
  },
];
/** @type {About} */
export const ABOUT = {
  title: "task on model",
  names: ["m.0.q", "m.0.v", "m.1.q"],
  rows: ["q", "v"],
  columns: [0, 1],
  row: [0, 1, 0],
  column: [0, 0, 1],
  outs: [8, 4, 8],
  experts: [1, 1, 1],
  ins: [8, 8, 8],
  stages: STAGES,
  tabs: TABS,
  panels: [
    {
      name: "data",
      title: "Data",
      stage: "data",
      about: "Where it comes from. More.",
      parts: [{ kind: "text", text: "words" }],
    },
    { name: "allocation", title: "Allocation", stage: "allocation", about: "", parts: [] },
  ],
  spectra: [],
  by_rank: {},
  presets: { uniform: "The same for all." },
  most: 8,
  steps: 4,
  training: { steps: 3, seconds: null, learning_rate: 0.002 },
  session: "1 kB",
};
/** @type {Current} */
export const CURRENT = {
  rank: 2,
  ranks: [2, 1, 3],
  kept: [2, 2, 2],
  most: [8, 4, 8],
  reasons: ["score", "floor", "by hand"],
  ideals: [2, 0.4, 3],
  scalings: [1, 1, 1],
  middles: { rank: 2, scaling: 1 },
  controls: { budget: "ranks", scaling: "nominal", rank: 2, temperature: 1, min_rank: 1, max_rank: 8 },
  race: {
    arms: {
      kept: { code: "kept = 1", headline: "k", parameters: 40, ranks: [2, 2, 2] },
      new: { code: "new = 1", headline: "n", parameters: 44, ranks: [2, 1, 3] },
    },
    difference: "new adds 1 rank",
    obstacle: "",
    raced: null,
    is_live: false,
  },
  code: "tlora.allocate(...)",
  undo: 1,
  redo: 0,
  parts: { allocation: [{ kind: "table", caption: "Ranks by projection", head: ["", "rank"], rows: [["q", 5]] }] },
};

/** @type {Rule} */
export const RULE = {
  rank: 2,
  edits: {},
  excluded: [],
  scores: [1, 1, 4],
  temperature: 1,
  budget: "ranks",
  floors: [1, 1, 1],
  ceilings: [4, 4, 4],
  scaling: "nominal",
  adapt_ranks: true,
  adapt_scales: false,
  alpha: null,
  code: {},
  changed: false,
};
