"""Scaling an adapter down and cutting its ranks, beside what PEFT has for both.

    python -m benchmarks.quality.peft_tools           # what is not in the store, then the tables
    python -m benchmarks.quality.peft_tools --table   # print the tables of the store, and write them to the page

Two tasks of SmolLM2-135M, each with plain LoRA and with the default recipe, are trained as those of
`benchmarks.quality.two_adapters`, one seed each. Each adapter is then scaled down, and given to PEFT's
``reduce_intruder_dimension``, which takes a part of those singular directions of the merged weight away that the base
does not have; and it is cut to smaller ranks by `tlora.compress`, by its weights and on the task, and by PEFT's
``convert_to_lora``. Each is a line of the store, written when it is measured; adapters are kept in
``runs/peft_tools``.

Written before the runs
-----------------------
Both ways to spare other text cost loss on the task, so they are compared at equal task loss. The losses of the task and
of other text (prose and code, the mean over all their texts) are interpolated over the scales, linearly. Each adapter
that PEFT made is compared with the largest scale, going down from 1, at which the task's loss reaches that of PEFT's
adapter; with 1 if its loss is lower than at any scale. What counts is the loss of other text at that scale, less that
of PEFT's adapter: below zero, scaling spares more. The cuts are compared at equal rank by the loss of the task.
Intervals are of 95 %, bootstrap over the task's samples and the texts.

Expected: (1) scaling spares other text as much as the removal of intruders, within the intervals or better, in at least
six of the eight cases with a lambda of 0.75 and 0.25; (2) the cut by the weights and PEFT's agree to 0.001 nats, since
both are the truncated singular value decomposition; (3) the cut on the task is better than both at ranks 1 and 2.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel, convert_to_lora, get_peft_model, set_peft_model_state_dict
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora.intruders import reduce_intruder_dimension

import tlora
from benchmarks.lab.store import Store, key_text
from benchmarks.quality.pages import difference_text, markdown, publish
from benchmarks.quality.two_adapters import CALIBRATED, PAIRS, load_pair_task
from tlora.numerics.statistics import interval
from tlora.recipes import calibrate_on
from tlora.tasks.evaluation import losses_of_samples

STORE = Store("benchmarks/results/peft_tools.jsonl")
PAGE = Path("docs/results/peft_tools.md")
FOLDER = Path("runs/peft_tools")
MODEL = "smollm2-135m"
TASKS = PAIRS[MODEL]
RECIPES = ("lora", "captured")
SCALES = (0.25, 0.5, 0.625, 0.75, 0.875, 1.0)
LAMBDAS = (0.75, 0.5, 0.25)
"""The part of an intruder that ``reduce_intruder_dimension`` leaves; the first is its default."""
RANKS = (1, 2, 4)
CUTS = ("weights", "task", "PEFT")
TESTED, RESAMPLES = 48, 2000
TEXTS = ("prose", "code")

Array = NDArray[np.float64]
VARIANTS: list[dict[str, Any]] = [
    {"what": "base"},
    *({"what": "scaled", "scale": scale} for scale in SCALES),
    *({"what": "intruders", "lambda": share} for share in LAMBDAS),
    *({"what": "cut", "rank": rank, "by": by} for rank, by in itertools.product(RANKS, CUTS)),
]
"""What is measured of each adapter."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--table", action="store_true", help="print what is there")
    options = parser.parse_args()
    if not options.table:
        STORE.check_writable()
        for task, recipe in itertools.product(options.tasks, options.recipes):
            Bench(task, recipe).measure()
    if STORE.path.exists():
        publish(PAGE, "peft_tools", TABLES)


def cell_key(task: str, recipe: str, variant: dict[str, Any]) -> dict[str, Any]:
    """The key of a record."""
    return {"model": MODEL, "task": task, "recipe": recipe, **TASKS[task], **variant}


class Bench:
    """A base, a task and the adapter that a recipe made of both."""

    def __init__(self, task: str, recipe: str) -> None:
        self.name, self.recipe, self.folder = task, recipe, FOLDER / task / recipe
        self.task = load_pair_task(MODEL, task)
        self.test = self.task.test.select(range(min(TESTED, len(self.task.test))))
        self.texts = tlora.load_texts(self.task.tokenizer, *TEXTS)

    def base(self) -> Any:
        """A fresh one."""
        return tlora.load_model(MODEL, dtype="float32", device="cpu")[0]

    def measure(self) -> None:
        """Measure what is not in the store."""
        known, calibration = STORE.by_key(), None
        for variant in VARIANTS:
            key = cell_key(self.name, self.recipe, variant)
            if key_text(key) in known:
                continue
            if not (self.folder / "adapter_model.safetensors").exists():
                self.train()
            if variant.get("by") == "task" and calibration is None:
                calibration = calibrate_on(self.base(), self.task, {}, CALIBRATED, progress=False)
            with self.variant(variant, calibration) as model:
                losses = {"task": losses_of_samples(model, self.task, self.test, 16)}
                losses |= {name: losses_of_samples(model, text, text.test, 8) for name, text in self.texts.items()}
            STORE.append({"key": key, "losses": {name: values.tolist() for name, values in losses.items()}})
            print(key_text(key), *(f"{name} {values.mean():.4f}" for name, values in losses.items()), flush=True)

    def train(self) -> None:
        """Train the adapter and keep it."""
        base, options = self.base(), TASKS[self.name]
        if self.recipe == "lora":
            options = options | {"learning_rate": options["learning_rate"] / 2}
        plan = tlora.prepare(base, self.task, self.recipe, 8, samples=CALIBRATED, progress=False)
        adapted = tlora.attach(base, plan, seed=0)
        tlora.train(adapted, self.task, evaluation_limit=0, progress=False, **options).save(self.folder)

    @contextmanager
    def variant(self, variant: dict[str, Any], calibration: tlora.Calibration | None) -> Iterator[Any]:
        """A model to measure."""
        if variant["what"] == "base":
            yield self.base()
        elif variant["what"] == "scaled":
            adapted = tlora.load_adapter(self.folder, self.base())
            with rescale_adapter_scale(adapted, variant["scale"]):
                yield adapted
        elif variant["what"] == "intruders":
            adapted = PeftModel.from_pretrained(self.base(), self.folder)
            reduce_intruder_dimension(adapted, mitigation_lambda=variant["lambda"], logging_sink=None)
            yield adapted
        elif variant["by"] == "PEFT":
            yield self.converted(variant["rank"])
        else:
            known = calibration if variant["by"] == "task" else None
            cut = tlora.compress(self.folder, rank=variant["rank"], calibration=known)
            with tempfile.TemporaryDirectory() as place:
                yield tlora.load_adapter(cut.save_adapter(place), self.base())

    def converted(self, rank: int) -> PeftModel:
        """The adapter as PEFT's conversion cuts it."""
        config, tensors = convert_to_lora(PeftModel.from_pretrained(self.base(), self.folder), rank)
        adapted = get_peft_model(self.base(), config)
        set_peft_model_state_dict(adapted, tensors)
        return adapted


def _groups() -> dict[tuple[str, str], dict[str, dict[str, Array]]]:
    """Losses of each variant, by the text of its key, for each task and recipe."""
    known, groups = STORE.by_key(), {}
    for task, recipe in itertools.product(TASKS, RECIPES):
        found = {}
        for variant in VARIANTS:
            text = key_text(cell_key(task, recipe, variant))
            if text in known:
                found[key_text(variant)] = {name: np.array(x) for name, x in known[text]["losses"].items()}
        if found:
            groups[task, recipe] = found
    return groups


def scale_for(loss: float, scales: Array, losses: Array) -> float:
    """The largest scale, going down from the last, at which the interpolated loss reaches ``loss``.

    The last if its loss is as high, or if none is; ``scales`` rise.
    """
    for right in range(len(scales) - 1, 0, -1):
        here, below = losses[right], losses[right - 1]
        if here >= loss:
            return float(scales[right])
        if below >= loss:
            return float(scales[right] - (scales[right] - scales[right - 1]) * (loss - here) / (below - here))
    return float(scales[-1])


def compare_at_equal_loss(scaled: list[dict[str, Array]], reduced: dict[str, Array]) -> tuple[float, float, float]:
    """The scale at which the task loses as much as PEFT's adapter, and the losses of other text of both."""
    scales = np.array([0.0, *SCALES])
    scale = scale_for(reduced["task"].mean(), scales, np.array([x["task"].mean() for x in scaled]))
    others = np.array([_others(x).mean() for x in scaled])
    return scale, float(np.interp(scale, scales, others)), float(_others(reduced).mean())


def _others(losses: dict[str, Array]) -> Array:
    return np.concatenate([losses[name] for name in TEXTS])


def _resampled(losses: dict[str, Array], picked: dict[str, NDArray[np.int64]]) -> dict[str, Array]:
    return {name: values[picked[name]] for name, values in losses.items()}


def intruder_table() -> str:
    """Other text at equal task loss: scaled down, and without a part of its intruders."""
    lines, generator = [], np.random.default_rng(0)
    for (task, recipe), found in _groups().items():
        names = [key_text({"what": "base"}), *(key_text({"what": "scaled", "scale": scale}) for scale in SCALES)]
        if any(name not in found for name in names):
            continue
        scaled, base = [found[name] for name in names], found[names[0]]
        for share in LAMBDAS:
            reduced = found.get(key_text({"what": "intruders", "lambda": share}))
            if reduced is None:
                continue
            scale, ours, theirs = compare_at_equal_loss(scaled, reduced)
            differences = []
            for _ in range(RESAMPLES):
                picked = {name: generator.integers(len(values), size=len(values)) for name, values in base.items()}
                resampled = [_resampled(losses, picked) for losses in scaled]
                _, one, other = compare_at_equal_loss(resampled, _resampled(reduced, picked))
                differences.append([one - other])
            low, high = interval(np.array(differences), 0.95)
            cells = [f"{reduced['task'].mean():.3f}", f"{theirs - _others(base).mean():+.3f}", f"{scale:.2f}"]
            cells += [f"{ours - _others(base).mean():+.3f}", f"{ours - theirs:+.3f} ({low[0]:+.3f} to {high[0]:+.3f})"]
            lines.append([task, recipe, str(share), *cells])
    heads = [
        "task",
        "adapter",
        "lambda",
        "task's loss",
        "other text, PEFT",
        "scale of equal loss",
        "other text, scaled",
    ]
    return markdown([*heads, "less than PEFT's"], lines)


def cut_table() -> str:
    """The loss of the task at each rank, by what the cut is on."""
    lines = []
    for (task, recipe), found in _groups().items():
        for rank in RANKS:
            names = [key_text({"what": "cut", "rank": rank, "by": by}) for by in CUTS]
            if any(name not in found for name in names):
                continue
            weights, on_task, peft = (found[name]["task"] for name in names)
            cells = [f"{losses.mean():.4f}" for losses in (weights, on_task, peft)]
            lines.append([task, recipe, str(rank), *cells, difference_text(on_task, peft, digits=4)])
    return markdown(
        ["task", "adapter", "rank", "by the weights", "on the task", "PEFT", "on the task less PEFT"], lines
    )


TABLES = {"intruders": intruder_table, "cuts": cut_table}

if __name__ == "__main__":
    main()
