"""Every argument of every public function, given each of the things that a user has at hand."""

import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from peft import LoraConfig
from transformers import PreTrainedModel, TrainerCallback

import tlora
import viz
from tests.helpers import pictured, results
from tests.helpers.jobs import task
from tests.helpers.models import tiny_batch, tiny_tokenizer
from tlora.models.targets import Model
from tlora.results import Result
from tlora.utils.validation import check_arguments


@cache
def things() -> dict[str, Any]:
    """What a user may pass for what, by the names in the tables below."""
    model, tokenizer = results.base(), tiny_tokenizer()
    return {
        "model": model,
        "adapted": results.adapted(),
        "model and tokenizer": (model, tokenizer),
        "tokenizer": tokenizer,
        "task": task(),
        "tasks": {"code": task()},
        "rows": task().train,
        "batches": [tiny_batch(model)],
        "batch": tiny_batch(model),
        "calibration": results.calibration(),
        "calibrations": (results.calibration(), results.calibration()),
        "sensitivity": results.sensitivity(),
        "spectrum": results.spectrum(),
        "subspaces": results.subspaces(),
        "kinds": results.kinds(),
        "capture": results.capture(),
        "activations": results.activations(),
        "alignment": tlora.align(results.subspaces(), results.subspaces(), 2),
        "allocation": results.allocation(),
        "plan": results.plan(),
        "recipe": results.plan().recipe,
        "arms": {"A": "captured", "B": "lora"},
        "lora config": LoraConfig(),
        "run": results.run(),
        "compression": results.compression(),
        "attribution": results.attribution(),
        "effects": results.effects(),
        "rescaling": results.rescaling(),
        "interference": results.interference(),
        "race": results.race(),
        "expert use": pictured.expert_use(),
        "estimate": results.resources(),
        "axes": plt.figure().subplots(),
        "text": "adapter",
        "number": 2,
        "names": ["q_proj", "k_proj"],
        "numbers": [1, 2],
        "number by name": {"q_proj": 2},
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "callback": TrainerCallback(),
        "function": print,
        "None": None,
    }


DICTS = ("arms", "batch", "kinds", "number by name", "tasks")
NAMES = ("names", "rows", *DICTS)  # a dict stands for its keys, and of rows none is read
CALLABLE = ("function", "model", "adapted", "tokenizer")
TAKES: dict[str, tuple[str, ...]] = {
    "model": ("model", "adapted"),
    "task_subspaces.model": ("model", "adapted", "None"),
    **dict.fromkeys(("train.model", "export.model", "merge.model", "freeze_a.model", "adapted"), ("adapted",)),
    "estimate.model": ("text",),
    "tokenizer": ("tokenizer",),
    "load_task.task": ("text", "rows"),
    "explore.task": ("task", "batches", "rows"),
    "prepare.task": ("task", "batches", "rows"),
    "train.task": ("task", "rows"),
    **dict.fromkeys(("race.task", "measure_scales.task", "Workbench.task", "show.task"), ("task",)),
    "task_or_text": ("task", "text"),
    "task_or_requests": ("task", *NAMES),
    "texts": ("tasks",),
    "own": NAMES,
    "batches": ("batches", "rows"),
    "calibration": ("calibration",),
    "Workbench.calibration": ("calibration", "sensitivity"),
    "calibrations": ("calibrations",),
    "held_out": ("calibration",),
    **dict.fromkeys(("a", "b", "subspaces"), ("subspaces",)),
    "allocate.subspaces": ("subspaces", "allocation"),
    "direction_activations.subspaces": ("subspaces", "kinds"),
    "gradient_capture.subspaces": ("kinds",),
    "other": ("subspaces", "kinds"),
    "expert_use.other": ("calibration", "None"),
    **dict.fromkeys(("use", "expert_use"), ("expert use",)),
    "task_subspaces.max_rank": ("number", "allocation"),
    **dict.fromkeys(("allocate.max_rank", "min_rank", "compress.rank"), ("number", "number by name", "batch")),
    "race.learning_rate": ("number", "number by name", "batch"),
    **dict.fromkeys(("pinned", "contributions", "adapters"), ("number by name", "batch")),
    **dict.fromkeys(("base", "tuned"), ("text", "model")),
    "attribute.tuned": ("model",),
    "survival.base": ("text", "model", "adapted"),
    "extract.rank": ("number", "number by name", "batch", "allocation"),
    "survival.task": ("task",),
    "formats": ("names",),
    "modules_to_save": NAMES,
    **dict.fromkeys(("survival.rows", "survival.limit"), ("number", "None")),
    "plan": ("plan", "subspaces", "None"),
    "arms": ("arms",),
    "recipe": ("text", "recipe"),
    "config": ("lora config",),
    "result": ("alignment", "capture"),
    "found": ("interference",),
    "compression": ("compression",),
    **{name: (name,) for name in ("sensitivity", "spectrum", "allocation", "capture", "activations", "attribution")},
    **{name: (name,) for name in ("effects", "rescaling", "run", "race", "estimate")},
    "ax": ("axes",),
    "report.folder": ("text", "attribution", "effects", "rescaling", "expert use"),
    "show.result": ("attribution", "effects", "rescaling", "expert use"),
    **dict.fromkeys(("report.output", "scenes.output"), ("text",)),
    **dict.fromkeys(("folder", "name", "output_dir", "checkpoint", "head", "sources", "path"), ("text",)),
    **dict.fromkeys(("adapter", "first", "second"), ("text", "adapted")),
    "data_files": ("text", *DICTS),
    "load_task.options": DICTS,
    "training": DICTS,
    "resume": ("text", "number"),
    "device": ("text", "device"),
    "dtype": ("text", "dtype"),
    "estimate.dtype": ("text",),
    **dict.fromkeys(("target_modules", "select"), ("text", *NAMES)),
    "switch_off": ("text", "numbers", *NAMES),
    "exclude_modules": ("text", "numbers", "number", *NAMES),
    **dict.fromkeys(("kinds", "modules", "plot_tokens.tokens"), NAMES),
    **dict.fromkeys(("counts", "ranks", "plot_tokens.values"), ("numbers", "rows")),
    "direction_activations.ranks": ("number",),
    **dict.fromkeys(("side_effects.limit", "compare_answers.limit"), ("number", "None")),
    "compare_answers.explain": ("numbers", "rows"),
    "seeds": ("number", "numbers", "rows"),
    "steps": ("number", *CALLABLE),
    **dict.fromkeys(("watch", "optimizer"), CALLABLE),
    "train.callbacks": ("callback", "rows"),
    **dict.fromkeys(
        ("calibrate.tokens", "covariance", "statistics", "kind", "by", "rows", "method", "view"), ("text",)
    ),
    **dict.fromkeys(("answer", "architecture", "budget", "scaling", "score", "metric", "split", "only"), ("text",)),
    **dict.fromkeys(("detail", "label", "module", "optim", "parts", "format", "engine", "task"), ("text",)),
}
"""The things that an argument takes, the first one plausible; an argument that is not listed takes a number."""

FREE = {"kwargs", "overrides", "arguments", "options", "callbacks", "labels"}
"""Arguments with a check of their own, or none."""
FUNCTIONS = [
    *(getattr(package, name) for package in (tlora, viz) for name in package.__all__ if name != "task_names"),
]
ARGUMENTS = [
    (function, name)
    for function in FUNCTIONS
    if inspect.isfunction(function) or function is viz.Workbench
    for name in inspect.signature(function).parameters
    if f"{function.__name__}.{name}" in TAKES or name not in FREE
    if (function, name) != (viz.explore, "max_rank")
]


def taken(function: Any, name: str) -> tuple[str, ...]:
    return TAKES.get(f"{function.__name__}.{name}", TAKES.get(name, ("number",)))


@pytest.mark.parametrize(("function", "name"), ARGUMENTS, ids=[f"{f.__name__}-{name}" for f, name in ARGUMENTS])
def test_a_thing_of_another_kind_is_refused_by_the_name_of_the_argument(function: Any, name: str) -> None:
    parameters = inspect.signature(function).parameters
    collected = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in collected]
    valid = {one: things()[taken(function, one)[0]] for one in needed}
    refused = set(things()) - set(taken(function, name)) - ({"None"} if parameters[name].default is None else set())
    for label in sorted(refused):
        arguments = valid | {name: things()[label]}
        positional = [arguments.pop(one) for one in ("tokenizer", "sources") if "sources" in arguments]
        with pytest.raises(TypeError, match=rf"(?s)\b{name}\b.* is .*: pass "):
            _ = function(*positional, **arguments)


METHODS = [
    (kind, name)
    for kind in Result.__subclasses__()
    for name, method in inspect.getmembers(kind, inspect.isfunction)
    if kind.__name__ in results.EXAMPLES and not name.startswith("_") and len(inspect.signature(method).parameters) > 1
]


@pytest.mark.parametrize(("kind", "name"), METHODS, ids=[f"{kind.__name__}.{name}" for kind, name in METHODS])
def test_methods_of_results_refuse_a_thing_of_another_kind(kind: type[Result], name: str) -> None:
    method = getattr(kind, name)
    _, *parameters = inspect.signature(method).parameters.values()
    needed = {one.name: object() for one in parameters if one.default is one.empty}
    for argument in parameters:
        with pytest.raises(TypeError, match="is an object: pass "):
            method(results.EXAMPLES[kind.__name__](), **needed | {argument.name: object()})


def update(d_in: int = 4) -> tlora.LoraUpdate:
    return tlora.LoraUpdate("layer", torch.ones(2, d_in), torch.ones(3, 2))


@cache
def workbench() -> viz.Workbench:
    return viz.Workbench(results.calibration(), results.subspaces(), rank=2)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a module that is not there": (lambda: results.attribution().by_direction("nowhere"), ValueError, "'nowhere'"),
    "of tokens": (lambda: results.attribution().from_tokens("nowhere"), ValueError, "'nowhere' is none of the 4"),
    "a token": (lambda: results.attribution().from_tokens(token=9), ValueError, "token=9 is out of range"),
    "a sample": (lambda: results.attribution().from_tokens(sample=9), ValueError, "sample=9 is out of range"),
    "a measure": (lambda: results.attribution().contributions(2), ValueError, "measure=2 is out of range"),
    "a negative count": (lambda: results.attribution().largest(-1), ValueError, "count=-1"),
    "of lost tokens": (lambda: results.effects().lost(-1), ValueError, "count=-1"),
    "of risen tokens": (lambda: results.effects().rose(-1), ValueError, "count=-1"),
    "a weight": (lambda: results.interference().disturbance(math.nan, 1.0), ValueError, "first_weight"),
    "a set": (lambda: results.rescaling().loss(results.rescaling().points[0], "nowhere"), ValueError, "'nowhere'"),
    "no file name": (lambda: results.sensitivity().save(""), ValueError, "path=.* names no file"),
    "a folder above": (lambda: results.sensitivity().save(".."), ValueError, "path='..' names no file"),
    "a number to add": (lambda: update() + cast(Any, 1), TypeError, "other is an int: pass a LoraUpdate"),
    "another shape": (lambda: update() + update(5), ValueError, r"\(3, 4\) and layer \(3, 5\): add updates of one"),
    "a moment": (lambda: update().cut(1, cast(Any, "c")), TypeError, "moment is a str"),
    "a moment to measure": (lambda: update().norm(cast(Any, 2)), TypeError, "moment is an int"),
    "no list of names": (
        lambda: workbench().leave_out(cast(Any, 3)),
        TypeError,
        "names is an int: pass a string or a list",
    ),
    "no path of a page": (
        lambda: workbench().page(cast(Any, None)),
        TypeError,
        "path is None: pass a string or a path",
    ),
    "no preset": (lambda: workbench().preset(cast(Any, [])), TypeError, "name is a list: pass a string"),
    "no limit": (lambda: task().rows("test", cast(Any, "all")), TypeError, "limit is a str"),
    "no recipe": (lambda: tlora.Recipe.named(cast(Any, ["lora"])), TypeError, r"name is a list: pass name\[0\]"),
    "an array without axes": (
        lambda: tlora.target_modules(results.base(), np.array("q")),
        TypeError,
        "a ndarray: pass a",
    ),
    "for a text": (lambda: tlora.Recipe(cast(Any, np.array("mine"))), TypeError, "name is a ndarray: pass a string"),
    "several weights": (
        lambda: tlora.combine({"a": cast(Any, np.ones(2))}),
        TypeError,
        r"adapters\['a'\] is a ndarray",
    ),
    "several seeds": (lambda: tlora.combine({"a": 1.0}, seed=torch.ones(2)), TypeError, "seed is a Tensor"),
}
"""What is refused for its value, or by what is no method of a result: the call, the exception, the words."""


@pytest.mark.parametrize(("call", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_a_value_that_cannot_be_is_named(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_a_place_may_be_a_number_of_numpy_or_true() -> None:
    attribution = results.attribution()
    for measure in (np.int64(1), np.array(1), torch.tensor(1), True):
        assert attribution.contributions(measure).tolist() == attribution.contributions(1).tolist()
    assert attribution.from_tokens(token=True).equals(attribution.from_tokens(token=1))


SEEDED = [f for f in FUNCTIONS if inspect.isfunction(f) and "seed" in inspect.signature(f).parameters]


@pytest.mark.parametrize("function", SEEDED)
def test_a_fraction_is_no_seed(function: Any) -> None:
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    with pytest.raises(TypeError, match=r"seed is a float \(1.5\): pass a whole number"):
        function(**{name: things()[taken(function, name)[0]] for name in needed}, seed=1.5)


def example(model: Model, texts: dict[str, tlora.Task], adapted: tlora.LoraAdapter | None = None) -> None:
    check_arguments(example, locals())


def test_the_way_out_is_in_the_message() -> None:
    model, tasks = results.base(), {"code": task()}
    for arguments, message in [
        ((things()["model and tokenizer"], tasks), r"model is a tuple: pass model\[0\]"),
        (("smollm2-135m", tasks), r"model is a str \('smollm2-135m'\): pass .*tlora.load_model\('smollm2-135m'\)\[0\]"),
        ((model, {"code": "code"}), r"texts\['code'\] is a str \('code'\): pass .*load_task"),
        ((model, {1: task()}), r"a key of texts is an int: pass a string"),
        ((model, task()), r"texts is a Task: pass a dict.*load_task"),
        (((model, model), tasks), r"model is a tuple: pass a model"),
    ]:
        with pytest.raises(TypeError, match=message):
            example(*arguments)


def test_a_model_in_a_wrapper_is_named() -> None:
    adapted: PreTrainedModel = results.adapted()
    for wrapped, place in (
        (torch.nn.DataParallel(adapted), "model.module"),
        (torch.compile(adapted), "model._orig_mod"),
    ):
        with pytest.raises(TypeError, match=f"pass {place}$"):
            tlora.freeze_a(wrapped)


@pytest.mark.parametrize("number", [np.int64(2), np.uint8(2)], ids=lambda number: type(number).__name__)
def test_whole_numbers_of_numpy_are_numbers(number: Any) -> None:
    """They come out of data frames and arrays."""
    same, batches = results.base(), [tiny_batch("llama")]
    plans = [tlora.prepare(same, batches, rank=rank, samples=2, progress=False) for rank in (2, number)]
    assert plans[0].allocation.ranks == plans[1].allocation.ranks
    memory = [tlora.estimate(same.config, samples=n, batch_size=n, rank=n, length=8).bytes for n in (2, number)]
    assert memory[0] == memory[1]
