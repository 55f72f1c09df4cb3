"""What an adapter loses when it is cut, by its weights and on the task, at each budget, on samples held out.

    python -m benchmarks.quality.compression --adapter "demo=demo" --adapter "LoRA, r = 32=lora32"
    python -m benchmarks.quality.compression --only needed --data family_relationships --adapter "LoRA, r = 32=family32"
    python -m benchmarks.quality.compression --only needed --model minilm --data rotten_tomatoes --adapter ...
    python -m benchmarks.quality.compression --table --picture docs/rank_needed.png

For each adapter and share of its parameters: the norm of the outputs that is lost, measured on samples of the test
split with 95 % intervals over groups of them, and the loss of the model with the smaller adapter on all of that split.
Then whether sensitivity, known before training, tells where rank was needed afterwards. Runs are kept in
``benchmarks/results/compression.jsonl``; those that are there are not run again. The adapters come from::

    make demo
    tlora run smollm2-135m notebooks/data/smart_home --samples 16 --rank 32 --batch-size 4
        --learning-rate 1e-3 --no-init --no-adapt-ranks --no-adapt-scales --output lora32

and those of the other two tasks from the last line with ``smollm2-135m family_relationships --train-samples 300
--learning-rate 5e-4``, and with ``minilm rotten_tomatoes --train-samples 1500 --batch-size 16``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from scipy.stats import spearmanr

import tlora
from benchmarks.quality.pages import difference_text
from tlora.adapters.compression import Compression
from tlora.calibration.sensitivity import SCORES
from tlora.models.forward import evaluation_mode
from tlora.numerics.statistics import bootstrap_means, interval
from tlora.tasks.evaluation import summed_losses
from tlora.tasks.load import load_task_for_model
from viz import style

STORE = Path("benchmarks/results/compression.jsonl")
SHARES = (0.25, 0.5, 0.75)
MEASURED = (0.25, 0.5)
"""Of these the model is run, too."""
CUTS = ("plain", "task", "both", "uniform")
"""Ranks shared and directions chosen by the weights; both on the task; ranks by the weights and directions on the task;
one rank, directions on the task."""
GROUPS, GROUP = 10, 4
"""How many groups of test samples, and samples of each: intervals are over groups."""
RESAMPLES = 2000

Array = NDArray[np.float64]


def main() -> None:
    options = _arguments()
    torch.set_num_threads(1)
    if not options.table:
        bench = Bench(options.model, options.data, options.samples)
        for given in options.adapter:
            name, _, folder = given.rpartition("=")
            for part in options.only:
                PARTS[part](bench, name, folder)
    print(table(records()))
    if options.picture:
        picture(records(), options.picture)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="notebooks/data/smart_home")
    parser.add_argument("--samples", type=int, default=32, help="training samples to calibrate on")
    parser.add_argument("--adapter", action="append", default=[], help="NAME=FOLDER")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured")
    parser.add_argument("--picture", type=Path, help="file for the picture of rank needed by sensitivity")
    parser.add_argument("--table", action="store_true", help="print what is there")
    return parser.parse_args()


class Bench:
    """The base, its task, and what is calibrated when first asked for."""

    def __init__(self, model: str, data: str, samples: int) -> None:
        self.name, self.data, self.samples = model, data, samples
        self.task = load_task_for_model(model, data)
        self.model, _ = tlora.load_model(model, num_labels=self.task.num_labels, dtype="float32", device="cpu")
        self._known: tlora.Calibration | None = None

    def key(self, adapter: str, what: str, **more: Any) -> dict[str, Any]:
        """What tells a record from all others."""
        data = {"model": self.name, "data": self.data, "samples": self.samples}
        return {"what": what, "adapter": adapter, **data, **more}

    @property
    def known(self) -> tlora.Calibration:
        """Of training samples."""
        if self._known is None:
            self._known = tlora.calibrate(self.model, self.task.calibration(self.samples))
        return self._known

    def held_out(self) -> Iterator[tlora.Calibration]:
        """Of one group of the test split after the other; all of them together are large."""
        rows = list(self.task.test)
        for start in range(0, GROUPS * GROUP, GROUP):
            batch = self.task.collate(rows[start : start + GROUP])
            yield tlora.calibrate(self.model, [batch], progress=False)


def errors(bench: Bench, name: str, folder: str) -> None:
    """Share of the outputs' norm that is lost on each group of held-out samples, and by how much cuts differ."""
    if all(there(bench.key(name, "error", share=share)) for share in SHARES):
        return
    ranks = {share: select_ranks(bench, folder, share) for share in SHARES}
    lost: dict[tuple[float, str], list[float]] = {(share, cut): [] for share in SHARES for cut in CUTS}
    whole = []
    for held_out in bench.held_out():
        found = tlora.compress(folder, parameters=1.0, calibration=bench.known, held_out=held_out)
        whole.append(sum(float(e[0, 2].sum()) for e in found.energies.values()))
        for share, cut in lost:
            row = 0 if cut == "plain" else 1
            kept = ranks[share][cut]
            lost[share, cut].append(sum(float(e[row, 2, kept[n] :].sum()) for n, e in found.energies.items()))
    for share in SHARES:
        columns = np.array([whole, *(lost[share, cut] for cut in CUTS)]).T
        means = bootstrap_means(columns, RESAMPLES, 0)
        values = {cut: _with_interval(_error(columns.mean(0)), _error(means), at) for at, cut in enumerate(CUTS)}
        ratios = {
            f"task / {cut}": _with_interval(_ratio(columns.mean(0), at), _ratio(means, at), None)
            for at, cut in ((0, "plain"), (2, "both"), (3, "uniform"))
        }
        store(bench.key(name, "error", share=share), values | ratios)


def _error(means: Array) -> Array:
    """Of each cut, from means over groups of (whole, lost of each cut)."""
    return np.sqrt(means[..., 1:] / means[..., :1])


def _ratio(means: Array, other: int) -> Array:
    found = _error(means)
    return found[..., CUTS.index("task")] / found[..., other]


def _with_interval(value: Array, resampled: Array, at: int | None) -> list[float]:
    """A value, and the ends of its 95 % interval."""
    column = resampled if at is None else resampled[:, at]
    low, high = interval(column[:, None], 0.95)
    return [float(value if at is None else value[at]), float(low[0]), float(high[0])]


def select_ranks(bench: Bench, folder: str, share: float) -> dict[str, dict[str, int]]:
    """Ranks of each cut within a share of the parameters."""
    task = compressed(bench, folder, "task", share)
    return {"task": task.ranks, **{cut: compressed(bench, folder, cut, share).ranks for cut in CUTS if cut != "task"}}


def compressed(bench: Bench, folder: str, cut: str, share: float) -> Compression:
    """The adapter cut to a share; uniform: each module on the task, to the largest rank that all can have."""
    if cut == "plain":
        return tlora.compress(folder, parameters=share)
    if cut == "task":
        return tlora.compress(folder, parameters=share, calibration=bench.known)
    if cut == "both":
        return tlora.compress(folder, rank=tlora.compress(folder, parameters=share).ranks, calibration=bench.known)
    curve = tlora.compress(folder, parameters=1.0, calibration=bench.known)
    budget = share * curve.parameters[0]
    fits = [rank for rank in range(1, max(curve.ranks.values()) + 1) if _spent(curve, rank) <= budget]
    return tlora.compress(folder, rank=max(fits), calibration=bench.known)


def _spent(found: Compression, rank: int) -> int:
    return sum(min(rank, its) * sum(found.shapes[name]) for name, its in found.original_ranks.items())


def losses(bench: Bench, name: str, folder: str) -> None:
    """Loss of each held-out sample: as trained, and cut."""
    original = {"cut": "as trained", "share": 1.0}
    for key in (original, *({"cut": cut, "share": share} for share in MEASURED for cut in CUTS)):
        if there(bench.key(name, "loss", **key)):
            continue
        with tempfile.TemporaryDirectory() as place:
            smaller = Path(folder)
            if key != original:
                smaller = compressed(bench, folder, str(key["cut"]), float(key["share"])).save_adapter(place)
            adapted = tlora.load_adapter(smaller, bench.model)
            with evaluation_mode(adapted), torch.no_grad():
                totals, counts = summed_losses(adapted, bench.task, bench.task.test, 25, False)
            tlora.detach(adapted)  # takes it off the base, which is bench.model
        store(bench.key(name, "loss", **key), {"loss": (totals * len(totals) / counts.sum()).tolist()})


def needed(bench: Bench, name: str, folder: str) -> None:
    """Of each module its scores before training, and the rank that it kept at half of the parameters."""
    key = bench.key(name, "needed")
    if there(key):
        return
    found = compressed(bench, folder, "task", 0.5).to_frame().set_index("module")
    known = bench.known.sensitivity
    seen = known.to_frame().set_index("module").loc[found.index, ["layer", "projection"]].assign(rank=found["rank"])
    for score in SCORES:
        seen[score] = pd.Series(known.rescale(score).scores)
    store(key, seen.to_dict("list"))


PARTS = {"errors": errors, "needed": needed, "losses": losses}


@style.styled
def picture(found: list[dict[str, Any]], path: Path) -> None:
    """The rank that each module kept by its sensitivity before training, a panel a task."""
    shown = [record for record in found if record["key"]["what"] == "needed"]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 4), layout="constrained", squeeze=False)
    for ax, record in zip(axes[0], shown, strict=True):
        frame = pd.DataFrame(record["values"])
        names = style.projections(frame)
        for name, color in zip(names, style.colors(len(names)), strict=True):
            part = frame[frame["projection"] == name]
            ax.scatter(part["mean"], part["rank"], s=12, color=color, label=name)
        rho = spearmanr(frame["mean"], frame["rank"]).statistic
        ax.set_title(f"{task_of(record)}: correlation {rho:+.2f}".replace("-", style.MINUS))
        ax.set(xscale="log", xlabel="sensitivity, nats per token")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=7, frameon=False, handletextpad=0)
    axes[0][0].set_ylabel("rank kept of 32, at half of the parameters")
    figure.savefig(path, dpi=110)


def task_of(record: dict[str, Any]) -> str:
    return Path(record["key"]["data"]).name


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []


def there(key: dict[str, Any]) -> bool:
    return any(record["key"] == key for record in records())


def store(key: dict[str, Any], values: dict[str, Any]) -> None:
    with STORE.open("a") as file:
        file.write(json.dumps({"key": key, "values": values}) + "\n")
    print(json.dumps(key), flush=True)


def table(found: list[dict[str, Any]]) -> str:
    """What was measured, as a page of Markdown."""
    lines = [
        "| adapter | kept | by the weights | on the task | ranks by the weights | one rank | task / weights |",
        "|" + "---|" * 7,
    ]
    for record in found:
        key, values = record["key"], record["values"]
        if key["what"] == "error":
            cells = [_share(values[cut]) for cut in CUTS] + [_times(values["task / plain"])]
            lines.append(f"| {key['adapter']} | {key['share']:.1%} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_losses(found), "", *_needed(found)])


def _share(values: list[float]) -> str:
    value, low, high = (100 * each for each in values)
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"


def _times(values: list[float]) -> str:
    value, low, high = values
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def _losses(found: list[dict[str, Any]]) -> list[str]:
    """Loss, and by how much the cut on the task is better than that by the weights, paired."""
    runs = {
        (r["key"]["adapter"], r["key"]["share"], r["key"]["cut"]): r["values"]
        for r in found
        if r["key"]["what"] == "loss"
    }
    lines = [
        "| adapter | kept | cut | loss | loss less that of the cut by the weights |",
        "|" + "---|" * 5,
    ]
    for (adapter, share, cut), values in runs.items():
        loss = np.array(values["loss"])
        beside = runs.get((adapter, share, "plain"))
        difference = ""
        if beside is not None and cut != "plain":
            difference = difference_text(loss, np.array(beside["loss"]))
        lines.append(f"| {adapter} | {share:.1%} | {cut} | {loss.mean():.4f} | {difference} |")
    return lines


def _needed(found: list[dict[str, Any]]) -> list[str]:
    """Rank correlation of each score with the rank kept."""
    lines = ["| task | over | mean, as published | sum | sum per parameter |", "|" + "---|" * 5]
    for record in found:
        if record["key"]["what"] == "needed":
            frame = pd.DataFrame(record["values"])
            numbers = frame[[*SCORES, "rank"]]
            places = {"modules": numbers, **{by: numbers.groupby(frame[by]).mean() for by in ("layer", "projection")}}
            for over, each in places.items():
                rho = [f"{spearmanr(each[score], each['rank']).statistic:+.2f}" for score in SCORES]
                lines.append(f"| {task_of(record)} | {over} | {' | '.join(rho)} |")
    return lines


if __name__ == "__main__":
    main()
