"""Task against other text: adapters trained at lower rates, and one that is scaled down afterwards.

Design, written before the runs:

- Model and task: SmolLM2-135M, ``smart_home``, rank 8, 20 steps of 4 samples. Arms: LoRA at 4e-3, the best rate for
  this task in the study of directions; LoRA at a quarter of it; the recipe ``captured`` at 4e-3. Three seeds, which set
  the start of ``A`` and the order of the samples. All arms see the same samples.
- Every adapter is measured at nine scales on 16 test samples of the task and on three packaged sets of text, four
  texts each (prose, code, chat). Other text is the mean change of the loss of the three sets.
- The question is decided by one number: at the change of other text of LoRA at a lower rate, the task loss of LoRA at
  4e-3 scaled down to the same change, by linear interpolation between measured scales, minus that of the lower rate.
  Student's t interval over the three seeds. Below 0, the slider is better than the lower rate.
- Asked afterwards, when `captured` had turned out to lose less of other text: LoRA at half of its best rate.
- Leaving out instead of scaling down, for LoRA at 4e-3 and `captured`: each projection alone and then more and more of
  them, three seeds; the same by layer, one seed. Decided by the lowest task loss among measured points at which other
  text changes by no more than 0.05, 0.1 and 0.2 nats, compared with the nine scales of the same adapter. The order in
  which parts are left out is chosen on the samples that are measured, which favors leaving out.
- Run again for `captured` when its ranks followed the gradient; with uniform ranks it had come to the same conclusions.
- Whatever comes out is reported. Runs are kept in ``benchmarks/results/frontier.jsonl``; those there are not run again.

Run it from the root of the project::

    python -m benchmarks.quality.frontier          # what is not in the store: 80 s of one core for each arm and seed,
                                                   # 2 minutes more for its projections, 4 for its layers
    python -m benchmarks.quality.frontier --table --picture docs/frontier.png
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import tlora
from benchmarks.quality.pages import markdown, publish
from tlora.numerics.statistics import mean_interval
from tlora.recipes import calibrate_on
from viz import style

STORE = Path("benchmarks/results/frontier.jsonl")
PAGE = Path("docs/howto/side_effects.md")
MODEL, DATA = "smollm2-135m", "notebooks/data/smart_home"
ARMS: dict[str, tuple[str, float]] = {
    "LoRA, 4e-3": ("lora", 4e-3),
    "LoRA, 2e-3": ("lora", 2e-3),
    "LoRA, 1e-3": ("lora", 1e-3),
    "captured, 4e-3": ("captured", 4e-3),
}
"""Recipe and learning rate of each arm."""
SLIDER, LOWER = "LoRA, 4e-3", ("LoRA, 2e-3", "LoRA, 1e-3")
SEEDS = (0, 1, 2)
PARTS: dict[str, tuple[int, ...]] = {"projections": SEEDS, "layers": (0,)}
"""What is left out of the adapters of `PARTED`, and of which seeds."""
PARTED = ("LoRA, 4e-3", "captured, 4e-3")
LIMITS = (0.05, 0.1, 0.2)
CHANGE = 0.1
"""Change of other text, nats per token, at which the title of the picture compares adapters."""
TEXTS, TEXTS_OF_A_SET, TASK_SAMPLES = ("prose", "code", "chat"), 4, 16


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--picture", type=Path, help="file for the picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        for seed in SEEDS:
            for arm in ARMS:
                run(arm, seed)
    rows = curves(records())
    print(frontier(rows).to_markdown(index=False, disable_numparse=True))
    print(comparison(rows).to_markdown(index=False, disable_numparse=True))
    publish(PAGE, "frontier", TABLES)
    if options.picture:
        picture(rows, options.picture)


_CALIBRATIONS: list[tlora.Calibration] = []


def calibrate(model: Any, task: tlora.Task) -> tlora.Calibration:
    """Calibrate once for all runs: neither the base nor the samples depend on the seed."""
    if not _CALIBRATIONS:
        _CALIBRATIONS.append(calibrate_on(model, task, {"fisher": True}, 16, progress=False))
    return _CALIBRATIONS[0]


def run(arm: str, seed: int) -> None:
    """Train an adapter, measure it at nine scales and without its parts, and store what is not there yet."""
    wanted = [None, *(parts for parts, seeds in PARTS.items() if arm in PARTED and seed in seeds)]
    known = [row["parts"] for row in records() if (row["arm"], row["seed"]) == (arm, seed)]
    missing = [parts for parts in wanted if parts not in known]
    if not missing:
        return
    adapted, task, texts = train(arm, seed)
    for parts in missing:
        found = tlora.measure_scales(
            adapted, task, texts, parts=parts, split="test", samples=TASK_SAMPLES, progress=False
        )
        points = [
            {"label": label, "scale": part["scale"].iloc[0], "loss": dict(zip(part["set"], part["loss"], strict=True)),
             "change": dict(zip(part["set"], part["change"], strict=True))}
            for label, part in found.to_frame().groupby("point", sort=False)
        ]  # fmt: skip
        with STORE.open("a") as file:
            file.write(json.dumps({"arm": arm, "seed": seed, "parts": parts, "points": points}) + "\n")
        print(arm, seed, parts, found.headline, flush=True)


def train(arm: str, seed: int) -> tuple[Any, tlora.Task, dict[str, tlora.Task]]:
    """Train an adapter; return it with its task and the other texts."""
    name, rate = ARMS[arm]
    model, tokenizer = tlora.load_model(MODEL)
    task = tlora.load_task(DATA, tokenizer)
    plan = tlora.prepare(model, task, name, 8, calibration=calibrate(model, task), progress=False)
    adapted = tlora.attach(model, plan, seed=seed)
    options: dict[str, Any] = {"learning_rate": rate, "batch_size": 4, "max_steps": 20, "seed": seed}
    tlora.train(adapted, task, evaluation_limit=0, progress=False, **options)
    texts = {
        key: replace(each, test=each.test.select(range(TEXTS_OF_A_SET)))
        for key, each in tlora.load_texts(tokenizer, *TEXTS).items()
    }
    return adapted, task, texts


def records() -> list[dict[str, Any]]:
    """What was run: a line an arm, a seed and what was left out, None for the scales."""
    rows = [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []
    return [{"parts": None} | row for row in rows]


def curves(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs at nine scales."""
    return [row for row in rows if row["parts"] is None]


def seeds(rows: list[dict[str, Any]]) -> list[int]:
    """The seeds of which every arm was run."""
    return [seed for seed in SEEDS if {row["arm"] for row in rows if row["seed"] == seed} == set(ARMS)]


def curve(rows: list[dict[str, Any]], arm: str, seed: int) -> pd.DataFrame:
    """Scale, task loss and change of other text of an adapter."""
    (row,) = [row for row in rows if (row["arm"], row["seed"]) == (arm, seed)]
    return pd.DataFrame(
        {
            "scale": point["scale"],
            "task": point["loss"]["task"],
            "other": other(point),
        }
        for point in row["points"]
    )


def frontier(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Task loss and change of each set of texts, as trained and at a few scales: means and intervals over seeds."""
    table, known = [], seeds(rows)
    for arm in ARMS:
        for scale in (1.0, 0.75, 0.5, 0.25) if arm in (SLIDER, "captured, 4e-3") else (1.0,):
            runs = [row for row in rows if row["arm"] == arm and row["seed"] in known]
            points = [point for row in runs for point in row["points"] if point["scale"] == scale]
            values: dict[str, Any] = {"arm": arm, "scale": scale}
            values["task loss"] = with_interval([point["loss"]["task"] for point in points], "")
            for name in TEXTS:
                values[name] = with_interval([point["change"][name] for point in points])
            table.append(values)
    return pd.DataFrame(table)


def comparison(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The slider minus each lower rate, in task loss, at the same change of other text."""
    table = []
    for arm in LOWER:
        found = []
        for seed in seeds(rows):
            slider, whole = curve(rows, SLIDER, seed), curve(rows, arm, seed).query("scale == 1").iloc[0]
            task, scale = at_change(slider, whole["other"])
            found.append((whole["other"], whole["task"], task, scale, task - whole["task"]))
        other, own, task, scale, difference = zip(*found, strict=True)
        table.append(
            {
                "lower rate": arm,
                "change of other text": with_interval(other),
                "its task loss": with_interval(own, ""),
                "slider at that change": with_interval(task, ""),
                "scale": ", ".join(f"{value:.2f}" for value in scale),
                "difference": with_interval(difference),
            }
        )
    return pd.DataFrame(table)


def at_change(slider: pd.DataFrame, change: float) -> tuple[float, float]:
    """Task loss and scale of the largest scale at which other text changes by no more, between measured scales."""
    inside = slider["other"] <= change
    if inside.all():
        return float(slider["task"].iloc[-1]), 1.0
    k = int(np.flatnonzero(inside.to_numpy())[-1]) if inside.any() else 0
    here, there = slider.iloc[k], slider.iloc[k + 1]
    part = max(0.0, (change - here["other"]) / (there["other"] - here["other"]))
    return tuple(float(here[name] + part * (there[name] - here[name])) for name in ("task", "scale"))  # type: ignore[return-value]


def other(point: dict[str, Any]) -> float:
    """Mean change of the sets of other text, nats."""
    return float(np.mean([point["change"][name] for name in TEXTS]))


def left_out_table() -> str:
    """The lowest task loss at which other text changes by no more than a limit, by scaling and by leaving out."""
    lines = []
    for arm, parts, limit in itertools.product(PARTED, PARTS, LIMITS):
        runs = [row for row in records() if (row["arm"], row["parts"]) == (arm, parts)]
        if not runs:
            continue
        cells = []
        for scaled in (True, False):
            within = [
                [p for p in row["points"] if p["label"].startswith("scale") == scaled and other(p) <= limit]
                for row in runs
            ]
            best = [min(points, key=lambda point: point["loss"]["task"]) for points in within if points]
            loss = with_interval([p["loss"]["task"] for p in best], "") if len(best) == len(runs) else "none"
            cells += [loss, ", ".join(dict.fromkeys(point["label"] for point in best))]
        lines.append([arm, parts, str(len(runs)), f"{limit:g}", *cells])
    return markdown(["arm", "parts", "seeds", "limit", "scaled: task loss", "at", "left out: task loss", "at"], lines)


def parts_table() -> str:
    """What each projection does: change of the task loss and of other text if it alone is left out, by arm."""
    changes: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in (row for row in records() if row["parts"] == "projections"):
        whole = next(point for point in row["points"] if point["label"] == "scale 1")
        for point in row["points"]:
            change = (point["loss"]["task"] - whole["loss"]["task"], other(point) - other(whole))
            if point["label"].startswith("without") and " of " not in point["label"]:
                changes.setdefault((row["arm"], point["label"]), []).append(change)
    lines = [[*key, *(with_interval(values) for values in zip(*each, strict=True))] for key, each in changes.items()]
    return markdown(["arm", "left out", "task loss", "other text"], lines)


def with_interval(values: Any, sign: str = "+") -> str:
    """Mean of a few seeds with its 95 % interval."""
    array = np.array(values, dtype=float)
    low, high = (float(end[0]) for end in mean_interval(array[:, None], 0.95))
    ends = "" if math.isnan(low) else f" ({low:{sign}.3f} to {high:{sign}.3f})"
    return f"{array.mean():{sign}.3f}{ends}"


@style.styled
def picture(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw the task loss by the change of other text: a line for each arm that is scaled, a point for the others."""
    ax = style.axes(None, 7.6, 4.2)
    for (arm, color), marker in zip(zip(ARMS, style.colors(len(ARMS)), strict=True), "osPD", strict=True):
        for number, seed in enumerate(seeds(rows)):
            points = curve(rows, arm, seed)
            label = None if number else arm
            if arm in LOWER:
                points = points.iloc[-1:]
            ax.plot(points["other"], points["task"], f"-{marker}", color=color, markersize=4, linewidth=1, label=label)
    style.logarithmic(ax, "y")
    style.guide_lines(ax)
    ax.set(xlabel="change of the loss of other text, nats per token", ylabel="task loss, nats per token")
    style.name_lines(ax)
    captured, lora = (
        np.mean([at_change(curve(rows, arm, seed), CHANGE)[0] for seed in seeds(rows)])
        for arm in ("captured, 4e-3", SLIDER)
    )
    losses = f"captured has a task loss of {captured:.2f}, LoRA {lora:.2f}"
    finding = f"Scaled until other text changes by {CHANGE:g} nats, {losses}"
    detail = f"{MODEL}, smart_home, seeds {', '.join(map(str, seeds(rows)))}"
    style.headline(ax, finding, f"{detail}; lines: one adapter at nine scales, the last as trained")
    style.figure_of(ax).savefig(file, dpi=110)


TABLES = {"leaving out": left_out_table, "parts": parts_table}

if __name__ == "__main__":
    main()
