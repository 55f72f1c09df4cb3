// What the tabs of the map show: a value of each module, as a number and as text.

import { MINUS, number, signed } from "../text.js";

/** @import { Stage, Tab } from "../traits.js" */
/** @import { Bench } from "./workbench.js" */

/**
 * By how much the rank of a module differs from the one that was kept.
 *
 * @type {(bench: Pick<Bench, "current">, k: number) => number}
 */
export const change = ({ current }, k) => current.ranks[k] - current.kept[k];

/**
 * Whether the ranks are those of the run, which else says nothing about them.
 *
 * @type {(bench: Pick<Bench, "about" | "current">) => boolean}
 */
export const isOfRun = ({ about, current }) =>
  Boolean(about.run?.every((rank, k) => rank === (current.stored ?? current).ranks[k]));

/**
 * The stage whose view is shown.
 *
 * @type {(bench: Bench) => Stage}
 */
export const stageOf = (
  { about, model },
) => /** @type {Stage} */ (about.stages.find(({ name }) => name === model.get("stage")));

/**
 * Whether a tab is there: each is of a stage, and some are about a training.
 *
 * @type {(bench: Bench, tab: Tab) => boolean}
 */
export function isOffered(bench, { stage, trained, run }) {
  return stage === bench.model.get("stage") && (!trained || Boolean(bench.model.get("training")?.arms?.[trained])) &&
    (!run || isOfRun(bench));
}

/**
 * The tab that is shown, by default the first of the stage, or of all if it has none.
 *
 * @type {(bench: Bench) => Tab}
 */
export function currentTab(bench) {
  const { about, model } = bench, tabs = about.tabs.filter((tab) => isOffered(bench, tab));
  return tabs.find(({ name }) => name === model.get("tab")) ?? tabs[0] ?? about.tabs[0];
}

/**
 * The value of a module, or null.
 *
 * @type {(bench: Bench, tab: Tab, k: number) => number | null}
 */
export function value(bench, tab, k) {
  const { model, current } = bench;
  if (tab.run && !isOfRun(bench)) return null;
  if (tab.of === "change") return change(bench, k);
  if (tab.trained) return model.get("training")?.arms?.[tab.trained]?.updates?.[k] ?? null;
  if (tab.of) return tab.of === "ranks" && !current.ranks[k] ? null : current[tab.of][k];
  return (tab.curves ? tab.curves[k][current.ranks[k] - 1] : tab.values?.[k]) ?? null;
}

/**
 * The value of a module as the text of a cell: percentages without the sign, at most three characters.
 *
 * @type {(bench: Bench, tab: Tab, k: number) => string}
 */
export function valueText(bench, tab, k) {
  const v = value(bench, tab, k);
  if (v === null) return "";
  if (tab.kind === "change") return v ? signed(v) : "";
  if (!["percent", "signed"].includes(tab.kind)) return number(v);
  return 100 * v >= 9.95 ? (100 * v).toFixed(0) : (100 * v).toFixed(1).replace(/^(-?)0/, "$1").replace("-", MINUS);
}
