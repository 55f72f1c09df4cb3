// What Python sends, as types: the traits of the widgets, and the same values as JSON in a page.

/** @import { Modules } from "./grid.js" */
/** @import { Row } from "./panels/answer_table/rows.js" */
/** @import { Answer, Sample } from "./panels/attribution/contributions.js" */
/** @import { Reading } from "./panels/readings.js" */

/**
 * A number for each module, or null if it has none.
 *
 * @typedef {(number | null)[]} Values
 */

/**
 * A tab of the map: `values` of the modules, `curves` of each over the rank, or the name of what changes: `of` the
 * allocation, or of the arm that is `trained`. With `run` it is about the ranks of the run. Its `stage` has it.
 *
 * @typedef {object} Tab
 * @property {string} name
 * @property {string} title
 * @property {string} unit
 * @property {string} stage
 * @property {"percent" | "ratio" | "change" | "number" | "signed"} kind
 * @property {Values} [values]
 * @property {Values} [low]
 * @property {Values} [high]
 * @property {Values[]} [curves]
 * @property {"ranks" | "change" | "scalings"} [of]
 * @property {string} [trained]
 * @property {boolean} [run]
 */

/**
 * Shares of directions by curve: the directions `at` which they are drawn, `each` of them, their `sums`, and how many
 * directions are `needed` for 90, 95 and 99 percent. A curve of experts is their mean, and its `ends` are the least and
 * the largest of their sums; of a linear layer there are none.
 *
 * @typedef {{at: number[][], each: number[][], sums: number[][], needed: Values[], ends: number[][][]}} Curves
 */

/**
 * The spectra of one kind of subspace: `index` is the curve of each module.
 *
 * @typedef {{label: string, meaning: string, index: number[], curves: Record<string, Curves>}} Spectrum
 */

/** @typedef {{kind: string, folded?: boolean, [name: string]: unknown}} Part */
/** @typedef {{name: string, title: string, stage: string, about: string, parts: Part[]}} Panel */

/**
 * A stage of the method: its number, the note below it and a sentence, if it was run, and the line of Python that runs
 * it; `map` says whether its view has the map.
 *
 * @typedef {{name: string, title: string, map: boolean, number: string, note: string, sentence: string, code: string}}
 *   Stage
 */

/**
 * What stays as it is. Outputs and inputs, `outs` and `ins`, are of the modules, of each of their `experts`; `most` is the largest rank of a
 * control, `peak` what training B alone and both matrices take without the adapter, in bytes.
 *
 * @typedef {Modules & {title: string, names: string[], outs: number[], ins: number[], experts: number[], peak?: number[] | null, stages: Stage[],
 *   tabs: Tab[], spectra: Spectrum[], by_rank: Record<string, string>, panels: Panel[], texts?: boolean,
 *   presets: Record<string, string>, most: number, steps: number, run?: number[] | null, training: Defaults,
 *   resamples?: boolean, session: string, page?: boolean, live?: boolean}} About
 */

/**
 * What a training begins with, if it is known.
 *
 * @typedef {{steps: number | null, seconds: number | null, learning_rate: number | Record<string, number> | null}}
 *   Defaults
 */

/**
 * Two allocations on the map: what each is, how the second differs, why they cannot be trained, the number of the race
 * that has trained them, and whether those are trained that `training` is about.
 *
 * @typedef {{arms: Record<string, Arm>, difference: string, obstacle: string, raced: number | null,
 *   is_live: boolean}} Race
 */

/**
 * What follows the allocation, by module: ranks, kept ranks, what decided each, ranks before limits, largest ranks. If
 * experts have ranks of their own, those that PEFT holds, `stored`, and the ranks of the `experts` of each parameter.
 *
 * @typedef {object} Current
 * @property {number} rank
 * @property {number[]} ranks
 * @property {number[]} kept
 * @property {{ranks: number[], kept: number[]}} [stored]
 * @property {number[][]} [experts]
 * @property {Values} scalings
 * @property {string[]} reasons
 * @property {Values} ideals
 * @property {number[]} most
 * @property {boolean} [is_captured]
 * @property {Record<string, number>} middles
 * @property {Record<string, string | number | null>} controls
 * @property {Race} [race] Not in a page.
 * @property {string} code
 * @property {string} [message]
 * @property {boolean} [note]
 * @property {number} [undo]
 * @property {number} [redo]
 * @property {Record<string, Part[]>} parts
 */

/** @typedef {{words: string, done: number, total: number | null}} Progress */

/**
 * An allocation that can be trained: its ranks in words and by module. Once it is, losses are [step, loss]; in the end
 * it has a held-out `loss`, and if another arm has a lower one the `interval` of the distance.
 *
 * @typedef {object} Arm
 * @property {string} headline
 * @property {string} code
 * @property {number[]} ranks
 * @property {number} parameters
 * @property {number} [step]
 * @property {number} [planned]
 * @property {number[][]} [losses]
 * @property {number[][]} [held]
 * @property {boolean} [running]
 * @property {boolean} [stopped]
 * @property {Values} [updates]
 * @property {number} [loss]
 * @property {string} [interval]
 * @property {number} [seconds]
 * @property {number} [rate]
 */

/** @typedef {{text: string, right: boolean | null}} Written */
/** @typedef {{request: string, right: string, by: Record<string, Written>}} Entry */

/**
 * Two allocations compared; of a race also the verdict and what it is based on.
 *
 * @typedef {object} Comparison
 * @property {Record<string, Arm>} arms
 * @property {string} difference
 * @property {string} [said]
 * @property {string} [basis]
 * @property {string} [leader]
 * @property {boolean} [running]
 * @property {Partial<Progress>} [bar]
 * @property {Entry[]} [answers]
 */

/**
 * How the training of two allocations stands, by the number of the race; empty before the first.
 *
 * @typedef {Partial<Comparison & {number: number, winner: string}>} Training
 */

/**
 * The traits of the workbench. A page has some of them, and those of panels are empty until the kernel answers.
 *
 * @typedef {object} Traits
 * @property {About} about
 * @property {Current} current
 * @property {string} stage
 * @property {string} tab
 * @property {string} [panel]
 * @property {{left?: string, right?: string, rank?: number}} [compared]
 * @property {number[]} selected
 * @property {number[][][]} [resampled] Of each module, [rank, count].
 * @property {Training} [training]
 * @property {Comparison[]} [races]
 * @property {Partial<Reading>} [reading]
 * @property {Partial<Answer> & {sample?: number, key?: string}} [switched]
 * @property {Explaining} [explaining]
 * @property {{samples?: Sample[], rows?: Row[]}} [explained] What a kernel has taken apart.
 */

/**
 * How the answer stands that a kernel takes apart: of a row, or null of a request of the reader's own.
 *
 * @typedef {{row?: number | null, said?: string, running?: boolean, bar?: Progress}} Explaining
 */

/** @typedef {[number, number, number | null, string]} GridCell Row, column, value and text. */

/**
 * The traits of the training monitor; of a training that has begun also its losses and what the grid shows.
 *
 * @typedef {object} MonitorTraits
 * @property {{label: string, disabled: boolean}} button
 * @property {{status: string, line?: string, detail?: string, arms?: Record<string, Losses>, rows?: string[],
 *   columns?: number[], cells?: GridCell[]}} state
 */

/** @typedef {{losses: number[][], held: number[][], planned: number}} Losses */
/** @typedef {{call: string, args?: object, gesture?: string | null, id?: number}} Message */

/**
 * A message of the kernel: that a request is answered, or a file to save.
 *
 * @typedef {{answer?: number, more?: boolean, file?: string, text?: string}} Content
 */

/**
 * A model as anywidget gives it, of a widget with these traits.
 *
 * @template T
 * @typedef {object} ModelOf
 * @property {<K extends keyof T>(name: K) => T[K]} get
 * @property {<K extends keyof T>(name: K, value: T[K]) => void} set
 * @property {() => void} save_changes
 * @property {(event: string, listener: (content: Content) => void) => void} on
 * @property {(event: string, listener: (content: Content) => void) => void} [off]
 * @property {(message: Message) => void} send
 */

/** @typedef {ModelOf<Traits>} Model */

/** @typedef {(call: string, args?: object, gesture?: string | null) => void} Ask Sends a request. */

export {};
