"""Compute the numbers of one checkout, a function per stage, and print their digests as JSON.

`benchmarks.same_numbers` runs this file as a script with the checkout's code on the path, so it imports nothing of this
package. What versions of the package call differently is at the top.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file

import tlora
import viz
from tlora.explanation.attribution import Attribution

# Names that versions call differently, the later name first.


def find(owner: Any, *names: str) -> Any:
    """Return the first of the names that this version has."""
    return getattr(owner, next(name for name in names if hasattr(owner, name)))


def has_recipe(name: str) -> bool:
    """Whether this version has a recipe of that name."""
    try:
        tlora.Recipe.named(name)
    except KeyError:
        return False
    return True


@functools.cache
def help_of(command: str) -> str:
    """Return the help page of a command."""
    call = [sys.executable, "-m", "tlora", command, "--help"]
    return subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True).stdout


def run_arguments(model: str, data: str, options: Mapping[str, Any]) -> list[str]:
    """Return the arguments of ``tlora run``."""
    page = help_of("run")
    if "--model" in page:
        words = ["--model", model, "--data", data]
    else:
        words = [model, data]
        options = {{"max-steps": "steps"}.get(name, name): value for name, value in options.items()}
    return [*words, *(f"--{name}={value}" for name, value in options.items())]


def send(workbench: Any, call: str, gesture: str, args: Mapping[str, Any]) -> None:
    """Send the workbench a request as the browser does."""
    workbench.widget._handle_custom_msg({"call": call, "args": args, "gesture": gesture, "id": 1}, [])


def shown_numbers(workbench: Any) -> dict[str, Any]:
    """Return the numbers that the browser shows of the workbench's allocation."""
    return {name: workbench.widget.current[name] for name in ("ranks", "kept", "scalings", "ideals", "most", "rank")}


load_adapter = find(tlora, "load_adapter", "load")
measure_scales = find(tlora, "measure_scales", "rescale")
CAPTURED = "captured" if has_recipe("captured") else "tlora"
"""The default recipe of ``tlora run``."""

# The numbers.

MODEL, DATA = "smollm2-135m", "notebooks/data/smart_home"
STEPS = 12
"""Training steps: enough for every parameter to move many times."""


class Demo:
    """What the stages share; each part is made when a stage first needs it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.model, self.tokenizer = tlora.load_model(MODEL)
        self.task = tlora.load_task(DATA, self.tokenizer, seed=seed)
        self.texts = tlora.load_texts(self.tokenizer, "code", "chat")

    @functools.cached_property
    def calibration(self) -> tlora.Calibration:
        """On training samples, with the mean and the squared gradients."""
        return tlora.calibrate(self.model, self.task.calibration(16), gradient=True, fisher=True, progress=False)

    @functools.cached_property
    def held_out(self) -> tlora.Calibration:
        """On other samples."""
        batches = [self.task.collate([row]) for row in self.task.rows("test", 4)]
        return tlora.calibrate(self.model, batches, progress=False)

    @functools.cache  # noqa: B019
    def subspaces(self, kind: str) -> tlora.Subspaces:
        """Directions of a kind."""
        return tlora.task_subspaces(
            self.model, self.calibration, max_rank=32, kind=kind, seed=self.seed, progress=False
        )

    @functools.cached_property
    def run(self) -> tlora.TrainingRun:
        """A training of the published method, on a model of its own."""
        model, _ = tlora.load_model(MODEL)
        allocation = tlora.allocate(self.calibration.sensitivity, rank=8, max_rank=32)
        adapted = tlora.attach(model, self.subspaces("wc"), allocation, seed=self.seed)
        options = {"learning_rate": 2e-3, "batch_size": 4, "max_steps": STEPS, "evaluation_limit": 4}
        return tlora.train(adapted, self.task, seed=self.seed, logging_steps=1, progress=False, **options)

    @functools.cached_property
    def adapter(self) -> Path:
        """The folder of the trained adapter."""
        return self.run.save(self.folder / "adapter")

    @functools.cached_property
    def adapted(self) -> Any:
        """The trained adapter, loaded onto a model of its own."""
        return load_adapter(self.adapter, tlora.load_model(MODEL)[0])

    @functools.cached_property
    def attribution(self) -> Attribution:
        """Answers taken apart: a module is cut by the outputs on the task, each projection is left out."""
        module = self.calibration.names[0]
        options = {"limit": 2, "points": 4, "calibration": self.calibration, "progress": False}
        return tlora.attribute(self.adapted, self.task, switch_off=["projections", (module, 1)], **options)

    @functools.cache  # noqa: B019
    def command_line(self, recipe: str, *more: str) -> Path:
        """The folder of an adapter that ``tlora run`` trained."""
        folder = self.folder / f"run-{recipe}"
        options = {"recipe": recipe, "samples": 8, "max-steps": 3, "batch-size": 4, "lr": 2e-3, "eval-limit": 4}
        options |= {"seed": self.seed, "output": folder}
        call = [sys.executable, "-m", "tlora", "run", *run_arguments(MODEL, DATA, options), "--quiet", *more]
        subprocess.run(call, stdout=subprocess.DEVNULL, check=True)
        return folder


def calibration(demo: Demo) -> dict[str, Any]:
    result = demo.calibration
    assert result.gradient is not None
    assert result.fisher is not None
    return {
        "covariance": {name: covariance.dense() for name, covariance in result.covariance.items()},
        "gradient": {name: gradient.dense() for name, gradient in result.gradient.items()},
        "fisher": {name: moment.total for name, moment in result.fisher.items()},
        "sensitivity": result.sensitivity.per_sample,
    }


def subspaces(demo: Demo) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for kind in ("wc", "g", "fisher", "random"):
        values |= {kind: demo.subspaces(kind).bases, f"singular values of {kind}": demo.subspaces(kind).singular_values}
    return values


def allocation(demo: Demo) -> dict[str, Any]:
    ways = {
        "by score": {},
        "of parameters by score": {"budget": "parameters"},
        "captured": {"by": "captured", "budget": "parameters", "subspaces": demo.subspaces("fisher")},
    }
    values: dict[str, Any] = {}
    for name, options in ways.items():
        result = tlora.allocate(demo.calibration.sensitivity, rank=8, max_rank=32, **options)
        values |= {
            f"ranks {name}": result.ranks,
            f"scalings {name}": result.scalings,
            f"table {name}": result.to_frame(),
        }
    return values


def training(demo: Demo) -> dict[str, Any]:
    run = demo.run
    about = {"losses": run.to_frame()["loss"].tolist(), "before": run.before, "after": run.after}
    return about | {"adapter": run.adapter, "file": saved(demo.adapter)}


def tlora_run(demo: Demo) -> dict[str, Any]:
    values: dict[str, Any] = {}
    # The ranks and scalings of lora are those of the options, whatever the seed.
    options = {
        "captured": [CAPTURED],
        "tlora-paper": ["tlora-paper"],
        "lora": ["lora", f"--rank={8 + demo.seed}", "--alpha=16"],
    }
    for name, arguments in options.items():
        folder = demo.command_line(*arguments)
        shared = tlora.Allocation.load(folder / "tlora" / "allocation")
        about = {"ranks": shared.ranks, "scalings": shared.scalings, "adapter": saved(folder)}
        values |= {f"{part} of {name}": value for part, value in about.items()}
    return values


def compress(demo: Demo) -> dict[str, Any]:
    contributions = demo.attribution.to_frame().set_index("module")["contribution"].to_dict()
    ways: dict[str, dict[str, Any]] = {
        "rank": {"rank": 3},
        "parameters": {"parameters": 0.5},
        "energy": {"energy": 0.8},
        "error": {"error": 0.3},
        "rank on the task": {"rank": 3, "calibration": demo.calibration, "held_out": demo.held_out},
        "parameters on the task": {"parameters": 0.5, "calibration": demo.calibration},
        "contributions": {"parameters": 0.25, "calibration": demo.calibration, "contributions": contributions},
    }
    values: dict[str, Any] = {}
    for name, options in ways.items():
        result = tlora.compress(demo.adapter, **options)
        folder = result.save_adapter(demo.folder / f"compressed {name}")
        values |= {name: result.to_frame(), f"adapter by {name}": saved(folder)}
    return values | {"curves": result.curves()}


def combine(demo: Demo) -> dict[str, Any]:
    whole = {demo.adapter: 1.0, demo.command_line("tlora-paper"): 0.5}
    # A quarter of the modules, as the methods that prune form whole updates.
    part = {name: 4 * (at % 4 == 0) for at, name in enumerate(demo.calibration.names)}
    folders = [
        tlora.compress(folder, rank=part).save_adapter(demo.folder / f"part of {folder.name}") for folder in whole
    ]
    parts = dict(zip(folders, whole.values(), strict=True))
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "sum": (whole, {}),
        "sum cut": (whole, {"rank": 4, "calibration": demo.calibration}),
        "ties": (parts, {"method": "ties"}),
        "dare_ties": (parts, {"method": "dare_ties", "seed": demo.seed}),
    }
    values: dict[str, Any] = {}
    for name, (adapters, options) in ways.items():
        result = tlora.combine(adapters, **options)
        values |= {name: result.to_frame(), f"adapter by {name}": saved(result.save_adapter(demo.folder / name))}
    return values


def interference(demo: Demo) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, calibrations in {"weights": None, "outputs": (demo.calibration, demo.held_out)}.items():
        result = tlora.interference(demo.adapter, demo.command_line("tlora-paper"), calibrations)
        values |= {name: result.to_frame(), f"{name} overall": result.overall}
    return values


def rescale(demo: Demo) -> dict[str, Any]:
    result = measure_scales(
        demo.adapted, demo.task, demo.texts, limit=0.5, parts="projections", samples=2, progress=False
    )
    milder = result.save_adapter(demo.folder / "milder", result.points[4])
    part = result.save_adapter(demo.folder / "part", result.points[-1])
    return {"points": result.to_frame(), "best": result.best.factors, "scaled": saved(milder), "left out": saved(part)}


def attribute(demo: Demo) -> dict[str, Any]:
    result = demo.attribution
    return {
        "modules": result.to_frame(),
        "contributions": torch.as_tensor(result.contributions()),
        "log-odds": torch.as_tensor(result.contributions(1)),
        "costs": result.costs(),
        "tokens": result.tokens(),
        "tokens read": result.from_tokens(),
        "directions": result.by_direction(result.names[0]),
        "answers": result.answers(),
    }


def side_effects(demo: Demo) -> dict[str, Any]:
    result = tlora.side_effects(demo.adapted, demo.texts, limit=2, explain=1, progress=False)
    explained = result.attribution
    values = {"texts": result.to_frame(), "sets": result.sets(), "tokens": result.tokens()}
    return values | {"explained": None if explained is None else explained.to_frame()}


def direction_activations(demo: Demo) -> dict[str, Any]:
    kinds = {kind: demo.subspaces(kind) for kind in ("wc", "fisher")}
    batches = [demo.task.collate([row]) for row in demo.task.rows("test", 4)]
    result = tlora.direction_activations(
        demo.model, kinds, batches, tokenizer=demo.tokenizer, need=True, seed=demo.seed, progress=False
    )
    values = {"directions": result.to_frame(), "constant": result.constant_share(), "z": result.z, "need": result.need}
    return values | {"tokens": result.top(result.names[0], 1)}


def export(demo: Demo) -> dict[str, Any]:
    ways: dict[str, dict[str, Any]] = {
        "vllm": {"engine": "vllm"},
        "peft in bfloat16": {"format": "peft", "dtype": "bfloat16"},
        "llama.cpp": {"engine": "llama.cpp"},
    }
    return {
        name: file_bytes(tlora.export(demo.adapted, demo.folder / f"export {name}", **options))
        for name, options in ways.items()
    }


DRAG: list[tuple[str, str, dict[str, Any]]] = [
    *(("set_rank", "drag 1", {"modules": [5], "rank": rank}) for rank in (9, 12, 17, 24, 4000)),
    *(("set_rank", "drag 2", {"modules": [40, 41, 42], "rank": rank}) for rank in (6, 3, 2)),
    ("set", "slider 1", {"temperature": 0.5}),
    ("set", "choice 1", {"budget": "parameters"}),
    ("leave_out", "click 1", {"modules": [7, 100]}),
    ("keep", "click 2", {}),
    ("set", "slider 2", {"max_rank": 20}),
    ("release", "click 3", {"modules": [5, 7]}),
    ("undo", "click 4", {}),
    ("undo", "click 5", {}),
    ("redo", "click 6", {}),
    ("set_rank", "drag 3", {"modules": [0], "rank": 14}),
]
"""Requests of the browser: drags, sliders, clicks, and steps back."""


def workbench(demo: Demo) -> dict[str, Any]:
    starts: dict[str, tuple[str, dict[str, Any]]] = {
        "by score": ("wc", {}),
        "captured": ("fisher", {"by": "captured", "budget": "parameters", "adapt_scales": False}),
    }
    values: dict[str, Any] = {}
    for name, (kind, options) in starts.items():
        bench = viz.Workbench(demo.calibration, demo.subspaces(kind), rank=8, **options)
        for number, request in enumerate([None, *DRAG]):
            if request is not None:
                call, gesture, args = request
                send(bench, call, gesture, args)
            state = {"ranks": bench.allocation.ranks, "scalings": bench.allocation.scalings, "code": bench.code()}
            state |= {f"shown {part}": value for part, value in shown_numbers(bench).items()}
            values |= {f"{part} after {number} requests, {name}": value for part, value in state.items()}
        bench.close()
    return values


STAGES: dict[str, Callable[[Demo], dict[str, Any]]] = {
    "calibration": calibration,
    "subspaces": subspaces,
    "allocation": allocation,
    "training": training,
    "tlora run": tlora_run,
    "compress": compress,
    "combine": combine,
    "interference": interference,
    "rescale": rescale,
    "attribute": attribute,
    "side_effects": side_effects,
    "direction_activations": direction_activations,
    "export": export,
    "workbench": workbench,
}
"""The numbers of each stage, by its name in the digests."""


def saved(folder: Path) -> dict[str, Any]:
    """Return the tensors and the config of an adapter on disk."""
    config = json.loads((folder / "adapter_config.json").read_text())
    return load_file(folder / "adapter_model.safetensors") | {"config": config}


def file_bytes(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {file.name: file.read_bytes() for file in files}


def digest(value: Any) -> str:
    """Return a digest of a value to the last bit; of a table without the names of its columns."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        content = repr((tensor.dtype, tuple(tensor.shape))).encode() + tensor.view(torch.uint8).numpy().tobytes()
    elif isinstance(value, pd.DataFrame):
        content = repr([value[column].tolist() for column in value]).encode()
    else:
        content = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.sha256(content).hexdigest()


def digests(stage: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return digests by name; of a mapping of tensors or files, one for each of them."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and any(isinstance(part, torch.Tensor | bytes) for part in value.values()):
            found |= {f"{stage}: {name} of {part}": digest(content) for part, content in value.items()}
        else:
            found[f"{stage}: {name}"] = digest(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="the JSON file of digests to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    options = parser.parse_args()
    if not Path(tlora.__file__).is_relative_to(Path.cwd()):
        sys.exit(f"{tlora.__file__} is not the code of {Path.cwd()}")
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        demo = Demo(Path(folder), options.seed)
        for stage in options.stage:
            start = time.perf_counter()
            found |= digests(stage, STAGES[stage](demo))
            print(f"{stage}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    options.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
