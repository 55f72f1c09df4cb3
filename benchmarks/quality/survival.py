"""What quantization leaves of an adapter in each order, and whether `tlora.survival` says so before.

    python -m benchmarks.quality.survival
    python -m benchmarks.quality.survival --model minilm --seeds 0
    python -m benchmarks.quality.survival --table

Trains three adapters on each model with each seed, and measures them on three bases: as loaded, moved off every grid by
uniform noise of one step, and rounded to NF4. Runs are kept in ``benchmarks/results/survival.jsonl``; those that are
there are not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from peft import PeftModel
from torch import Tensor

import tlora
from benchmarks.lab.store import Store, key_text
from tlora.models.targets import target_modules
from tlora.numerics.quantization import LOST, round_to_format
from tlora.tasks.load import load_task_for_model

STORE = Path("benchmarks/results/survival.jsonl")
DATA = {"smollm2-135m": "notebooks/data/smart_home", "minilm": "rotten_tomatoes"}
STEPS = {"smollm2-135m": 60, "minilm": 300}
ADAPTERS: dict[str, dict[str, Any]] = {
    "captured, r = 8": {"recipe": "captured", "rank": 8, "learning_rate": 2e-3},
    "LoRA, r = 8": {"recipe": "lora", "rank": 8, "learning_rate": 1e-3},
    "LoRA, r = 32": {"recipe": "lora", "rank": 32, "learning_rate": 1e-3},
}
SEEDS, LIMIT = (0, 1, 2), 32


def off_grid(weight: Tensor) -> Tensor:
    """Move every weight by up to half a step of a grid of 16 levels, in blocks of 32."""
    blocks = weight.reshape(-1, 32)
    step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / 15
    noise = torch.rand(blocks.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return (blocks + noise * step).reshape(weight.shape)


BASES: dict[str, Callable[[Tensor], Tensor]] = {
    "as loaded": lambda weight: weight,
    "off the grid": off_grid,
    "NF4": lambda weight: round_to_format(weight, "nf4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true", help="print what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(STORE)
    if not options.table:
        for seed in options.seeds:
            for model in options.model:
                for name, arguments in ADAPTERS.items():
                    measure(store, model, name, seed, arguments)
    frame = table(store)
    print(frame.to_string(index=False, float_format="%.4g"))
    print(verdict(frame))


def measure(store: Store, model_name: str, name: str, seed: int, arguments: dict[str, Any]) -> None:
    """Train one adapter, unless all of its records are there, and measure it on each base."""
    run = {"model": model_name, "adapter": name, "seed": seed, "steps": STEPS[model_name]}
    keys = {base: run | {"base": base} for base in BASES}
    there = store.by_key()
    if all(key_text(key) in there for key in keys.values()):
        return
    task = load_task_for_model(model_name, DATA[model_name], seed=seed)
    model, _ = tlora.load_model(model_name, num_labels=task.num_labels, device="cpu", dtype="float32", seed=seed)
    linears = list(target_modules(model))
    recipe, rank = arguments["recipe"], arguments["rank"]
    plan = tlora.prepare(model, task, recipe, rank, samples=16, seed=seed, progress=False)
    adapted = tlora.attach(model, plan)
    options = {"max_steps": STEPS[model_name], "learning_rate": arguments["learning_rate"], "batch_size": 4}
    tlora.train(adapted, task, seed=seed, evaluation_limit=0, progress=False, **options)
    for base, key in keys.items():
        if key_text(key) in there:
            continue
        with_weights = [(layer, layer.weight.data) for layer in base_layers(adapted, linears)]
        for layer, weight in with_weights:
            layer.weight.data = BASES[base](weight)
        survival = tlora.survival(adapted, task=task, limit=LIMIT, progress=False)
        for layer, weight in with_weights:
            layer.weight.data = weight
        rows = survival.to_frame().astype({"on_grid": bool}).to_dict("records")
        findings = [survival.finding(format) for format in survival.formats]
        store.append({"key": key, "rows": [row | {"finding": f} for row, f in zip(rows, findings, strict=True)]})
        print(key, flush=True)


def base_layers(adapted: PeftModel, names: list[str]) -> Iterator[Any]:
    """Return the linear layers of the base, under the adapter if it has them."""
    for name in names:
        layer: Any = adapted.get_base_model().get_submodule(name)
        yield layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def table(store: Store) -> pd.DataFrame:
    """Return one row per run and format, with the part of the adapter's gain that merging kept."""
    frame = pd.DataFrame([record["key"] | row for record in store.read() for row in record["rows"]])
    gain = frame["quantized_loss"] - frame["beside_loss"]
    frame["kept"] = (frame["quantized_loss"] - frame["merged_loss"]) / gain
    return frame.drop(columns=["low", "high", "modules"])


def verdict(frame: pd.DataFrame) -> str:
    """Return how often a share below a half, and nothing else, told that merging lost half of the gain."""
    warned, lost = frame["share"] < LOST, frame["kept"] < LOST
    return (
        f"of {len(frame)} measurements {lost.sum()} lost half of what the adapter gains beside the quantized base: "
        f"{(warned & lost).sum()} with a share below a half, {(~warned & lost).sum()} without; "
        f"{(warned & ~lost).sum()} warnings were wrong"
    )


if __name__ == "__main__":
    main()
