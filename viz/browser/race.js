import { lossCurves } from "./chart.js";
import { drawBar } from "./controls.js";
import { make } from "./elements.js";
import { describe, explained } from "./explain.js";
import { drawTable } from "./table.js";

export function racePanel(parent, { about, model, ask, width }) {
  const root = make("div", { class: "train", role: "group", "aria-label": "Training of two allocations" }, parent);
  const other = make("div", { class: "other" }, root),
    verdict = make("div", { class: "status", role: "status" }, root),
    basis = make("div", { class: "basis" }, root);
  const head = make("div", { class: "bar" }, root), given = about.training;
  const begin = make("button", { type: "button" }, head, "Train both"), plan = make("span", { class: "plan" }, head);
  const field = (label, attributes) =>
    make(
      "input",
      { type: "number", ...attributes },
      explained(make("label", { class: "control" }, head, label), label),
    );
  const steps = field("steps", { min: 1, step: 1, placeholder: "auto", value: given.steps ?? "" });
  const rate = field("learning rate", {
    min: 0,
    step: "any",
    value: typeof given.learning_rate === "number" ? given.learning_rate : "",
  });
  const stops = make("span", { class: "group" }, head),
    winner = describe(
      make("button", { type: "button" }, head, "Save winner"),
      "Save the adapter with the lower held-out loss to the folder workbench-winner.",
    );
  const lines = make("div", { class: "arms" }, root), shown = make("div", { class: "outcome" }, root);
  const curves = make("div", { class: "curves" }, shown), answers = make("div", { class: "answers" }, shown);
  let obstacle = "", running = false;
  begin.addEventListener("click", () => {
    if (obstacle || running || !steps.validity.valid || !rate.validity.valid) return;
    const options = {};
    if (steps.value) options.steps = Number(steps.value);
    if (rate.value) options.learning_rate = Number(rate.value);
    ask("train", options);
  });
  winner.addEventListener("click", () => ask("save_winner"));
  function ready() { // whether it can begin, and if not why: a disabled button would not be found by key
    begin.setAttribute("aria-disabled", Boolean(obstacle) || running);
    describe(
      begin,
      obstacle ||
        `Train ${current.arms.join(" and ")} on the same batches, and say which is better on held-out samples.`,
    );
  }
  let current = { arms: [], obstacle: "", is_shown: false };
  function tell(now) {
    current = now.race;
    obstacle = current.obstacle;
    place();
    for (const input of [steps, rate]) {
      input.parentElement.hidden = !given.learning_rate && !given.steps && !given.seconds;
    }
    plan.textContent = obstacle ||
      `${current.arms.join(" and ")}, ` +
        (steps.value || !given.seconds
          ? "on the same batches"
          : `as many steps as fit into about ${Math.round(given.seconds / 60)} minutes`);
    ready();
  }
  function place() { // a verdict is about the allocations that were trained, which the map may no longer show
    const isOther = Object.keys(model.get("training")?.arms ?? {}).length > 0 && !current.is_shown;
    root.classList.toggle("past", isOther);
    other.textContent = isOther ? "The map shows other ranks than those that were trained:" : "";
  }
  function follow() {
    const state = model.get("training") ?? {}, names = Object.keys(state.arms ?? {});
    running = Boolean(state.running);
    place();
    ready();
    winner.hidden = !state.winner;
    verdict.textContent = state.said ?? "";
    basis.textContent = state.basis ?? "";
    if (
      stops.children.length !== (running ? names.length : 0) ||
      [...stops.children].some((stop, i) => stop.dataset.arm !== names[i])
    ) {
      stops.replaceChildren();
      for (const name of running ? names : []) {
        const stop = describe(
          make("button", { type: "button", "data-arm": name }, stops, `Stop ${name}`),
          `End the training of ${name} after this step; the other goes on.`,
        );
        stop.addEventListener("click", () => ask("stop", { name }));
      }
    }
    for (const stop of stops.children) {
      stop.disabled = !state.arms[stop.dataset.arm].running || state.arms[stop.dataset.arm].stopped;
    }
    lines.replaceChildren();
    if (running && state.bar?.words) drawBar(make("div", {}, lines), state.bar);
    names.forEach((name, i) => {
      const arm = state.arms[name], loss = arm.losses.at(-1)?.[1], held = arm.held.at(-1)?.[1];
      const row = make("div", { class: `arm arm${i}`, "data-arm": name }, lines);
      make(
        "div",
        { class: "ranks" },
        row,
        `${name}: ${arm.ranks}; ${arm.parameters.toLocaleString("en-US")} trained parameters`,
      );
      if (!arm.planned) return;
      make("progress", { max: arm.planned, value: arm.step, "aria-label": `training of ${name}` }, row);
      row.append(
        `step ${arm.step} of ${arm.planned}` + (loss === undefined ? "" : `, training loss ${loss.toPrecision(3)}`) +
          (held === undefined ? "" : `, held-out loss ${held.toPrecision(4)}`) + (arm.stopped ? ", stopped" : ""),
      );
    });
    curves.replaceChildren();
    if (names.some((name) => state.arms[name].losses.length)) {
      lossCurves(curves, state.arms, Math.max(280, Math.min(430, width())));
    }
    answers.replaceChildren();
    if (state.answers?.length) drawAnswers(answers, state.answers, names);
  }
  root.addEventListener("input", () => tell({ race: current }));
  model.on("change:training", follow);
  follow();
  return tell;
}

// Held-out requests, their right answers, and what each adapter wrote; right ones are marked.
function drawAnswers(parent, entries, names) {
  const arms = names.filter((name) => name in entries[0].by),
    right = (name) => entries.filter((one) => one.by[name].right).length;
  const counted = arms.filter((name) => entries[0].by[name].right !== null).map((name) =>
    `${name} ${right(name)} of ${entries.length} right`
  );
  const mark = ({ text, right }) => `${right === null ? "" : right ? "\u2713 " : "\u2717 "}${text}`;
  drawTable(parent, {
    caption: `Answers to held-out requests${counted.length ? `: ${counted.join(", ")}` : ""}`,
    head: ["request", "right answer", ...arms],
    rows: entries.map((one) => [one.request, one.right, ...arms.map((name) => mark(one.by[name]))]),
    text: [0, 1, 2, 3],
  });
}
