"""One small example of every kind of result: what the contract test runs over.

They come out of one real walk over a tiny model, so that what holds for them holds for what users get. A new
result class adds a builder to `EXAMPLES`; a test fails until it has.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel

from tests.helpers.experts import tiny_mixture
from tests.helpers.foreign import foreign
from tests.helpers.jobs import task
from tests.helpers.models import singles, tiny_batch, tiny_config, tiny_model, tiny_tokenizer
from tests.helpers.spectra import truncated
from tests.helpers.targets import named, target
from tlora.adapters.attach import attach
from tlora.adapters.combine import Combination, combine
from tlora.adapters.compress import compress
from tlora.adapters.compression import Compression
from tlora.adapters.extract import extract
from tlora.adapters.extraction import Extraction
from tlora.allocation.allocate import allocate
from tlora.allocation.allocation import Allocation
from tlora.calibration.calibrate import calibrate
from tlora.calibration.calibration import Calibration
from tlora.calibration.expert_use import ExpertUse, expert_use
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.comparison.race import race as compete
from tlora.comparison.race_result import Race
from tlora.explanation.attribute import attribute
from tlora.explanation.attribution import Attribution
from tlora.explanation.compare_answers import AnswerTable, ComparedAnswer, compare_answers
from tlora.explanation.direction_activations import direction_activations
from tlora.explanation.direction_activations_result import DirectionActivations
from tlora.explanation.interference import Interference
from tlora.explanation.interference import interference as interfere
from tlora.explanation.measure_scales import Rescaling, measure_scales
from tlora.explanation.side_effects import SideEffects, side_effects
from tlora.recipes import Plan, Recipe, prepare
from tlora.resources.estimate import ResourceEstimate, estimate
from tlora.results import FORMAT_VERSION, Meta, Result
from tlora.serving.inspect import inspect
from tlora.serving.inspection import Inspection
from tlora.serving.survival import Survival
from tlora.serving.survival import survival as survive
from tlora.subspaces.alignment import align
from tlora.subspaces.gradient_capture import GradientCapture, gradient_capture
from tlora.subspaces.subspaces import Subspaces
from tlora.subspaces.task_subspaces import task_subspaces
from tlora.tasks.load_texts import load_texts
from tlora.training.run import TrainingRun
from tlora.training.train import train

META = Meta(model="tiny-llama", task="family_relationships", recipe={"tokens": "all"}, seed=3, samples=4)
# Not in alphabetical order: a format that sorted the modules would be noticed.
NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
TARGETS = named(
    target(NAMES[0], 0, "q_proj", (8, 8)),
    target(NAMES[1], 0, "down_proj", (8, 12)),
    target(NAMES[2], 1, "down_proj", (8, 12)),
)


def sensitivity(samples: int = 4) -> Sensitivity:
    """Positive scores of a fixed seed, made by hand."""
    noise = torch.rand(samples, len(NAMES), generator=torch.Generator().manual_seed(0))
    return Sensitivity(TARGETS, noise + torch.tensor([1.0, 2.0, 3.0]), META)


@cache
def base() -> PreTrainedModel:
    """The model that all examples are of."""
    return tiny_model("llama")


@cache
def calibration() -> Calibration:
    """Four samples, with gradients."""
    batch = tiny_batch("llama", lengths=(7, 4, 9, 6))
    return calibrate(base(), [batch], gradient=True, fisher=True, task="family_relationships", progress=False)


@cache
def use_of_experts() -> ExpertUse:
    """Compared with another text."""
    texts = (tiny_batch("llama", lengths=(7, 4, 9)), tiny_batch("llama", seed=1))
    first, second = (
        calibrate(tiny_mixture(), [batch], target_modules="experts", fisher=True, progress=False) for batch in texts
    )
    return expert_use(first, second, resamples=20)


@cache
def subspaces() -> Subspaces:
    """The default kind."""
    return task_subspaces(base(), calibration(), max_rank=8, progress=False)


@cache
def kinds() -> dict[str, Subspaces]:
    """Two kinds."""
    rest = task_subspaces(base(), calibration(), max_rank=8, kind="random", progress=False)
    return {"wc": subspaces(), "random": rest}


@cache
def capture() -> GradientCapture:
    """Of both kinds at two ranks, on two samples."""
    batch = tiny_batch("llama", lengths=(5, 8), seed=1)
    return gradient_capture(base(), [batch], kinds(), ranks=(2, 4), resamples=10, progress=False)


@cache
def activations() -> DirectionActivations:
    """Of both kinds on three samples, with need."""
    batch = tiny_batch("llama", lengths=(5, 8, 6), seed=1)
    return direction_activations(base(), kinds(), [batch], tokenizer=tiny_tokenizer(), need=True, progress=False)


@cache
def allocation() -> Allocation:
    """An allocation with a module left out, a rank set by hand, and everything else by the scores."""
    first, second, *_ = calibration().names
    return allocate(calibration().sensitivity, rank=3, max_rank=8, exclude_modules=first).edit({second: 2})


@cache
def adapted() -> PeftModel:
    """A copy of the base with its adapter."""
    return attach(copy.deepcopy(base()), subspaces(), allocation())


@cache
def plan() -> Plan:
    """By a recipe of one's own, with the calibration of the others."""
    recipe = Recipe("wider", allocate={"temperature": 0.5}, train={"freeze_a_after": 0.2}, attach={"freeze_a": False})
    return prepare(base(), [], recipe, 3, calibration=calibration(), progress=False)


@cache
def run() -> TrainingRun:
    """Four steps of training."""
    rows = [{key: row[0].tolist() for key, row in sample.items()} for sample in singles(tiny_batch("llama"))]
    task = Dataset.from_list(rows)
    return train(adapted(), task, max_steps=4, batch_size=2, learning_rate=0.01, progress=False)


def inspection() -> Inspection:
    """Of the trained adapter's folder."""
    with TemporaryDirectory() as folder:
        return inspect(run().save(Path(folder, "adapter")))


def extraction() -> Extraction:
    """Of rank 2 from a model with other weights, on the task; embeddings and norms changed too."""
    return extract(base(), tiny_model("llama", seed=1), 2, calibration=calibration(), progress=False)


def compression() -> Compression:
    """Half of the trained adapter, on the task."""
    with TemporaryDirectory() as folder:
        return compress(run().save(Path(folder, "adapter")), parameters=0.5, calibration=calibration())


def combination() -> Combination:
    """The trained adapter and one of PEFT, with a cut on the task."""
    with TemporaryDirectory() as folder:
        first = run().save(Path(folder, "first"))
        foreign(copy.deepcopy(base()), Path(folder, "second"))
        return combine({first: 1.0, Path(folder, "second"): 0.5}, rank=3, calibration=calibration())


def interference() -> Interference:
    """Of the trained adapter and one of PEFT, which has fewer modules."""
    other = foreign(copy.deepcopy(base()))
    return interfere(adapted(), other, (calibration(), calibration()))


def spectrum() -> Spectrum:
    """Of the covariances, truncated."""
    return truncated(calibration().spectrum(), 6)


@cache
def race() -> Race:
    """Two arms with two seeds."""
    arms: dict[str, Any] = {"A": allocation(), "LoRA": "lora"}
    options: dict[str, Any] = {"steps": 4, "seeds": (0, 1), "learning_rate": 0.01, "progress": False}
    return compete(base(), task(), arms, subspaces=subspaces(), **options)


@cache
def resources() -> ResourceEstimate:
    """Of a tiny model on a small card."""
    return estimate(tiny_config("llama"), 2, samples=4, length=16, batch_size=2, speed=1e9, memory=1e9)


@cache
def attribution() -> Attribution:
    """Of two answers, with a layer left out."""
    return attribute(foreign(copy.deepcopy(base())), task(), limit=2, points=4, switch_off=[1], progress=False)


@cache
def answer_table() -> AnswerTable:
    """Of three requests, one taken apart."""
    return compare_answers(foreign(copy.deepcopy(base())), task(), limit=3, explain=[1], progress=False)


@cache
def many_answers() -> AnswerTable:
    """Twelve requests with every pair of marks, one of them without a reference; one is taken apart."""
    marks = [(False, True), (True, False), (True, True), (False, False)] * 3
    answers = [
        ComparedAnswer(f"request {n}", f"r{n}", f"b{n}", f"a{n}" if n else "b0", *marks[n], (n - 4) / 2)
        for n in range(12)
    ]
    answers[5] = dataclasses.replace(answers[5], reference=None, base_right=None, adapter_right=None)
    answers[7] = dataclasses.replace(answers[7], base_cut=True)
    return dataclasses.replace(answer_table(), answers=answers)


@cache
def large_contributions() -> Attribution:
    """The attribution with contributions above every cost; without its first module the answers are likelier."""
    found, samples = attribution(), []
    for one in found.samples:
        switched = one.switched | {found.names[0]: one.adapter + 0.1}
        samples.append(dataclasses.replace(one, by_module=one.by_module.abs() + 1, switched=switched))
    return dataclasses.replace(found, samples=samples)


@cache
def effects() -> SideEffects:
    """On two sets, with two tokens taken apart."""
    texts = load_texts(tiny_tokenizer(), notes=["w4 w5 w6 w7", "w8 w9 w4"], more=["w11 w12 w13"])
    return side_effects(foreign(copy.deepcopy(base())), texts, explain=2, progress=False)


@cache
def rescaling() -> Rescaling:
    """On two sets, with layers left out, under a limit."""
    texts = load_texts(tiny_tokenizer(), notes=["w4 w5 w6 w7", "w8 w9 w4"], more=["w11 w12 w13"])
    return measure_scales(foreign(copy.deepcopy(base())), task(), texts, limit=0.05, parts="layers", progress=False)


@cache
def survival() -> Survival:
    """In one format, with losses."""
    return survive(foreign(copy.deepcopy(base())), formats=["q4_0"], task=task())


EXAMPLES: dict[str, Callable[[], Result]] = {
    "Alignment": lambda: align(kinds()["wc"], kinds()["random"], rank=3),
    "Allocation": allocation,
    "AnswerTable": answer_table,
    "Attribution": attribution,
    "Calibration": calibration,
    "Combination": combination,
    "Compression": compression,
    "DirectionActivations": activations,
    "ExpertUse": use_of_experts,
    "Extraction": extraction,
    "GradientCapture": capture,
    "Inspection": inspection,
    "Interference": interference,
    "Plan": plan,
    "Race": race,
    "Rescaling": rescaling,
    "ResourceEstimate": resources,
    "SideEffects": effects,
    "Sensitivity": lambda: calibration().sensitivity,
    "Spectrum": spectrum,
    "Subspaces": subspaces,
    "Survival": survival,
    "TrainingRun": run,
}

STORED = Path(__file__).parents[1] / "data"
"""Results of each format that must stay readable, a folder for each: ``python -m tests.helpers.results``."""
LARGE = {"Calibration", "Plan", "Race"}
"""More than 100 kB; what they are made of is in others."""


def same(one: Any, other: Any) -> bool:
    """Whether two results, or any of their parts, are equal, down to dtypes and the order of modules."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and one.equal(other)
    if isinstance(one, pd.DataFrame):
        return one.equals(other) and list(one.columns) == list(other.columns)
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, Mapping):
        return _order(one) == _order(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other, equal_nan=isinstance(one, float)))


def _order(mapping: Mapping[str, Any]) -> list[str]:
    """The keys: as they come where they are modules, sorted where order says nothing, as in an adapter."""
    return list(mapping) if set(mapping) <= set(calibration().names) | set(NAMES) else sorted(mapping)


if __name__ == "__main__":  # writes the folder of a new format
    for name, make in EXAMPLES.items():
        if name not in LARGE:
            make().save(STORED / f"format_{FORMAT_VERSION}" / name)
