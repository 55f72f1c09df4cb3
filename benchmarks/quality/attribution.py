"""Did the rank go where the work was done? Contributions of modules compared with what was known before and after.

    python -m benchmarks.quality.attribution            # measure what is not measured yet
    python -m benchmarks.quality.attribution --table    # print the tables, and write them to the page

For three tasks, with ranks by score and uniform ones: an adapter is trained, and validation answers are taken apart.
Then the adapter is cut to a share of its parameters, once with ranks by what the outputs lose and once with each module
weighted by its contribution, and the loss on test samples is measured. Runs are kept in
``benchmarks/results/attribution.jsonl``: 5 to 8 minutes each on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from torch.nn import functional

import tlora
from benchmarks.quality.pages import fill_blocks, markdown, publish
from tlora.explanation.attribution import CHANGES
from tlora.models.forward import evaluation_mode
from tlora.numerics.statistics import bootstrap_means, interval
from tlora.tasks.evaluation import class_logits, summed_losses
from tlora.tasks.load import load_task_for_model

STORE = Path("benchmarks/results/attribution.jsonl")
PAGE = Path("docs/results/attribution.md")
TASKS: dict[tuple[str, str], dict[str, Any]] = {
    ("smollm2-135m", "notebooks/data/smart_home"): {"learning_rate": 2e-3, "batch_size": 4, "max_steps": 40},
    ("smollm2-135m", "letter_counting"): {"learning_rate": 4e-3, "batch_size": 4, "max_steps": 40},
    ("minilm", "rotten_tomatoes"): {"learning_rate": 4e-3, "batch_size": 16, "max_steps": 60},
}
"""How an adapter is trained for a model and a task."""
SIZES: dict[str, dict[str, Any]] = {
    "letter_counting": {"train": 400, "validation": 32, "test": 100},
    "rotten_tomatoes": {"train": 960, "validation": 200, "test": 400},
}
ANSWERS = {"notebooks/data/smart_home": 8, "letter_counting": 8, "rotten_tomatoes": 64}
"""Validation answers that are taken apart."""
RANKS: dict[str, dict[str, Any]] = {"by score": {}, "uniform": {"adapt_ranks": False, "adapt_scales": False}}
"""Arguments of `tlora.allocate` by arm."""
COMPARED = {
    "score": "sensitivity", "rank": "rank it got", "used_rank": "rank it uses", "update_norm": "size of its update",
}  # fmt: skip
"""What contributions are compared with, by column."""
SHARES = (0.25, 0.5)
"""Of the parameters of an adapter, after it is cut."""
POINTS = 8
"""Quadrature points of a first try."""
RESAMPLES = 1000
LISTED = 5
"""Modules listed for each task."""

Array = NDArray[np.float64]


def main() -> None:
    """Measure what is missing, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write the tables of what is measured to the page")
    options = parser.parse_args()
    if options.table:
        publish(PAGE, "attribution", TABLES)
        return
    torch.set_num_threads(1)
    for (model, data), training in TASKS.items():
        for ranks in RANKS:
            key = {"model": model, "task": Path(data).name, "ranks": ranks, "answers": ANSWERS[data]} | training
            if key not in [record["key"] for record in records()]:
                measure(key, data, training)


def records() -> list[dict[str, Any]]:
    """What is measured, a record for each task and way to choose ranks."""
    return [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []


def measure(key: dict[str, Any], data: str, training: dict[str, Any]) -> None:
    """Train an adapter, take validation answers apart, cut the adapter, and keep all of it."""
    task = load_task_for_model(key["model"], data, **SIZES.get(data, {}))
    model, _ = tlora.load_model(key["model"], num_labels=task.num_labels)
    recipe = tlora.Recipe(key["ranks"], allocate={"max_rank": 32, **RANKS[key["ranks"]]})
    plan = tlora.prepare(model, task, recipe, 8, samples=32, progress=False)
    adapted = tlora.attach(model, plan)
    run = tlora.train(adapted, task, evaluation_limit=0, progress=False, **training)
    options = {"split": "validation", "limit": key["answers"], "points": POINTS, "answers": False, "progress": False}
    attribution = tlora.attribute(adapted, task, switch_off="projections", **options)
    frame = attribution.to_frame().assign(score=plan.calibration.sensitivity.to_frame()["score"])
    found = {"whole": {"1.0": losses(adapted, task)}}
    with tempfile.TemporaryDirectory() as folder:
        trained = run.save(Path(folder, "trained"))
        weights = {"outputs": None, "weighted": frame.set_index("module")["contribution"].to_dict()}
        for cut, weight in weights.items():
            for share in SHARES:
                smaller = tlora.compress(trained, parameters=share, calibration=plan.calibration, contributions=weight)
                tlora.detach(model)
                cut_model = tlora.load_adapter(smaller.save_adapter(Path(folder, f"{cut}-{share}")), model)
                found.setdefault(cut, {})[str(share)] = losses(cut_model, task)
    values = {
        "gap": attribution.gap,
        "modules": frame[["module", "layer", "projection", "score", "rank", "used_rank", "update_norm"]].to_dict(
            "list"
        ),
        "contributions": rounded(attribution.contributions()),
        "rises": rounded([float(sample.rise[0].sum()) for sample in attribution.samples]),
        "costs": {
            label: rounded([float((one.adapter - one.switched[label])[0].sum()) for one in attribution.samples])
            for label in attribution.switches
        },
        "changes": attribution.tokens()["change"].value_counts().to_dict(),
        "losses": found,
    }
    with STORE.open("a") as file:
        file.write(json.dumps({"key": key, "values": values}) + "\n")
    print(json.dumps(key), flush=True)


def losses(adapted: Any, task: tlora.Task) -> list[float]:
    """Loss of each test sample, nats: the mean over its labeled tokens, or of the class."""
    with evaluation_mode(adapted), torch.no_grad():
        if task.kind == "classification":
            logits, labels = class_logits(adapted, task, task.test, 25, False), torch.tensor(task.test["labels"])
            return rounded(functional.cross_entropy(logits, labels, reduction="none"))
        totals, counts = summed_losses(adapted, task, task.test, 25, False)
    return rounded(totals / counts)


def rounded(values: Any) -> Any:
    """Numbers as they are kept."""
    return np.round(np.asarray(values, float), 5).tolist()


def correlations() -> str:
    """For each task, what answers gained, and the rank correlation of contributions with what else is known."""
    lines = []
    for record in records():
        modules, contributions = frame_of(record), np.array(record["values"]["contributions"])
        cells = [correlation(contributions, modules[column].to_numpy(float)) for column in COMPARED]
        changes = record["values"]["changes"]
        tokens = " / ".join(str(changes.get(change, 0)) for change in CHANGES)
        gained = mean_cell(np.array(record["values"]["rises"]))
        lines.append(
            [*place(record), str(len(contributions)), gained, f"{record['values']['gap']:.1%}", tokens, *cells]
        )
    heads = ["task", "ranks", "answers", "gained, nats", "gap", "tokens: same / within three / beyond"]
    return markdown([*heads, *COMPARED.values()], lines)


def largest_modules() -> str:
    """The modules that contributed most, with both numbers and the ranks they got and use."""
    lines = []
    for record in records():
        modules, contributions = frame_of(record), np.array(record["values"]["contributions"])
        costs = record["values"]["costs"]
        order = modules["score"].rank(ascending=False).astype(int)
        for at in np.argsort(-contributions.mean(0))[:LISTED]:
            row = modules.iloc[at]
            cost = mean_cell(np.array(costs[row["module"]]))
            known = [f"{order.iloc[at]} of {len(modules)}", str(row["rank"]), str(row["used_rank"])]
            name = f"layer {row['layer']} {row['projection']}"
            lines.append([*place(record), name, mean_cell(contributions[:, at]), cost, *known])
    heads = ["task", "ranks", "module", "contributed, nats", "cost of leaving it out alone", "place by sensitivity"]
    return markdown([*heads, "rank", "used"], lines)


def by_projection() -> str:
    """What all layers of a projection contributed and cost, next to their shares of the ranks and of sensitivity."""
    lines = []
    for record in records():
        modules, contributions = frame_of(record), np.array(record["values"]["contributions"])
        for name, members in modules.groupby("projection", sort=False):
            added = contributions[:, members.index].sum(1)
            shares = [members[column].sum() / modules[column].sum() for column in ("score", "rank")]
            part = ratio_cell(added, contributions.sum(1))
            cost = mean_cell(np.array(record["values"]["costs"][name]))
            lines.append(
                [*place(record), str(name), mean_cell(added), part, *(f"{share:.0%}" for share in shares), cost]
            )
    heads = ["task", "ranks", "projection", "contributed, nats", "of all", "of the sensitivity", "of the ranks"]
    return markdown([*heads, "cost of leaving all out"], lines)


def compression() -> str:
    """Test loss of the adapters, and after they are cut to the same sizes in both ways."""
    lines = []
    for record in records():
        found = record["values"]["losses"]
        for share in map(str, SHARES):
            outputs, weighted = (np.array(found[cut][share]) for cut in ("outputs", "weighted"))
            losses = [f"{np.mean(values):.3f}" for values in (found["whole"]["1.0"], outputs, weighted)]
            lines.append([*place(record), f"{float(share):.0%}", *losses, mean_cell(weighted - outputs, "+.3f")])
    heads = ["task", "ranks", "parameters kept", "loss, whole", "by the outputs", "weighted by contribution"]
    return markdown([*heads, "difference"], lines)


TABLES = {
    "correlations": correlations, "modules": largest_modules, "projections": by_projection, "compression": compression,
}  # fmt: skip


def render(text: str) -> str:
    """The page with the tables of what is stored."""
    return fill_blocks(text, "attribution", TABLES)


def frame_of(record: dict[str, Any]) -> pd.DataFrame:
    """What is known of each module of a record."""
    return pd.DataFrame(record["values"]["modules"])


def place(record: dict[str, Any]) -> list[str]:
    """Task, and how ranks were chosen."""
    return [record["key"]["task"], record["key"]["ranks"]]


def correlation(contributions: Array, values: Array) -> str:
    """Spearman's rank correlation of the mean contribution with values, with a 95 % interval over answers."""
    if len(set(values)) == 1:
        return "\u2013"
    draws = [contributions.mean(0), *bootstrap_means(contributions, RESAMPLES, 0)]
    found = np.array([stats.spearmanr(draw, values).statistic for draw in draws])
    return cell(found[0], found[1:], ".2f")


def mean_cell(values: Array, form: str = ".2g") -> str:
    """A mean over samples with its 95 % interval."""
    return cell(values.mean(), bootstrap_means(values[:, None], RESAMPLES, 0)[:, 0], form)


def ratio_cell(parts: Array, wholes: Array) -> str:
    """A part of the sum over samples with its 95 % interval."""
    means = bootstrap_means(np.stack([parts, wholes], 1), RESAMPLES, 0)
    return cell(parts.mean() / wholes.mean(), means[:, 0] / means[:, 1], ".0%")


def cell(value: float, resampled: Array, form: str) -> str:
    """A value and the interval of what was resampled."""
    low, high = interval(resampled[:, None], 0.95)
    return f"{value:{form}} ({low[0]:{form}} to {high[0]:{form}})"


if __name__ == "__main__":
    main()
