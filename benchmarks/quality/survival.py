"""What quantization leaves of an adapter in each order, and whether `tlora.survival` says so before.

    python -m benchmarks.quality.survival                          # what is not in the store, then the tables
    python -m benchmarks.quality.survival --model minilm --seeds 0
    python -m benchmarks.quality.survival --table                  # print the tables, and write them to the page

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
from benchmarks.quality.pages import markdown, publish
from tlora.models.targets import target_modules
from tlora.numerics.quantization import LOST, round_to_format
from tlora.tasks.load import load_task_for_model

STORE = Store("benchmarks/results/survival.jsonl")
PAGE = Path("docs/results/survival.md")
DATA = {"smollm2-135m": "notebooks/data/smart_home", "minilm": "rotten_tomatoes"}
STEPS = {"smollm2-135m": 60, "minilm": 300}
ADAPTERS: dict[str, dict[str, Any]] = {
    "captured, r = 8": {"recipe": "captured", "rank": 8, "learning_rate": 2e-3},
    "LoRA, r = 8": {"recipe": "lora", "rank": 8, "learning_rate": 1e-3},
    "LoRA, r = 32": {"recipe": "lora", "rank": 32, "learning_rate": 1e-3},
}
SEEDS, LIMIT = (0, 1, 2), 32
CLEAR_GAIN = 0.05
"""Nats that an adapter has to gain beside the quantized base for the loss of half of them to be more than noise."""


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
    if not options.table:
        for seed in options.seeds:
            for model in options.model:
                for name, arguments in ADAPTERS.items():
                    measure(model, name, seed, arguments)
    publish(PAGE, "survival", TABLES)


def run_keys(model: str, adapter: str, seed: int) -> dict[str, dict[str, Any]]:
    """Return the key of each run of an adapter, by base."""
    run = {"model": model, "adapter": adapter, "seed": seed, "steps": STEPS[model]}
    return {base: run | {"base": base} for base in BASES}


def measure(model_name: str, name: str, seed: int, arguments: dict[str, Any]) -> None:
    """Train one adapter, unless all of its records are there, and measure it on each base."""
    keys, there = run_keys(model_name, name, seed), STORE.by_key()
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
        STORE.append({"key": key, "rows": [row | {"finding": f} for row, f in zip(rows, findings, strict=True)]})
        print(key, flush=True)


def base_layers(adapted: PeftModel, names: list[str]) -> Iterator[Any]:
    """Return the linear layers of the base, under the adapter if it has them."""
    for name in names:
        layer: Any = adapted.get_base_model().get_submodule(name)
        yield layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer


def measurements() -> pd.DataFrame:
    """Return one row per run and format, with what the adapter gains beside the quantized base and merged into it."""
    frame = pd.DataFrame([record["key"] | row for record in STORE.read() for row in record["rows"]])
    frame["beside"] = frame["quantized_loss"] - frame["beside_loss"]
    frame["merged"] = frame["quantized_loss"] - frame["merged_loss"]
    frame["warned"] = frame["share"] < LOST
    frame["lost"] = frame["merged"] < LOST * frame["beside"]
    frame["clear"] = frame["beside"] >= CLEAR_GAIN
    return frame


def missing_runs() -> str:
    """Say how many runs there are to be, and how many of them are missing."""
    there = STORE.by_key()
    wanted = [run_keys(model, name, seed) for seed in SEEDS for model in DATA for name in ADAPTERS]
    texts = [key_text(key) for keys in wanted for key in keys.values()]
    return (
        f"{len(texts)} runs are planned: {len(ADAPTERS)} adapters on {len(DATA)} models with {len(SEEDS)} seeds, each "
        f"on {len(BASES)} bases. {sum(text not in there for text in texts)} of them are missing."
    )


RUN = ["model", "adapter", "steps", "base"]


def share_table() -> str:
    """Shares that survive: means over seeds, and the lowest and highest end of their intervals over modules."""
    lines = []
    for run, rows in measurements().groupby(RUN, sort=False):
        formats = rows.groupby("format", sort=False)
        ends = formats.agg(share=("share", "mean"), low=("low", "min"), high=("high", "max"))
        shares = [f"{row.share:.3f} ({row.low:.3f} to {row.high:.3f})" for row in ends.itertuples()]
        lines.append([*map(str, run), str(rows["seed"].nunique()), *shares])
    formats = [name.upper() for name in measurements()["format"].unique()]
    return markdown([*RUN, "seeds", *formats], lines)


def order_table() -> str:
    """Nats gained over the quantized base in two orders, as means over seeds, and what the sentence said."""
    lines = []
    for run, rows in measurements().groupby([*RUN, "format"], sort=False):
        said = ", ".join(dict.fromkeys(map(verdict, rows["finding"])))
        means = rows[["share", "quantized_loss", "beside", "merged"]].mean()
        numbers = [f"{means['share']:.3f}", f"{means['quantized_loss']:.3f}"]
        numbers += [f"{means[order]:+.3f}" for order in ("beside", "merged")]
        lines.append([*map(str, run[:-1]), run[-1].upper(), *numbers, said])
    heads = [*RUN, "format", "share", "loss of the quantized base", "gained beside", "gained merged", "the sentence"]
    return markdown(heads, lines)


def verdict(finding: str) -> str:
    """Say in a word which of its three sentences `tlora.survival` said."""
    if finding.startswith("The base's weights are rounded a second time"):
        return "rounded twice"
    return "kept" if "what you lose is what" in finding else "lost"


def rule_table() -> str:
    """How often a share below a half, and nothing else, told that merging lost half of a clear gain."""
    frame = measurements()
    parts = {"all": frame, **{f"base {base}": rows for base, rows in frame.groupby("base", sort=False)}}
    lines = []
    for name, rows in parts.items():
        clear = rows[rows["clear"]]
        warned, lost = clear["warned"], clear["lost"]
        counts = [len(rows), rows["warned"].sum(), len(clear), lost.sum()]
        counts += [(warned & lost).sum(), (~warned & lost).sum(), (warned & ~lost).sum()]
        lines.append([name, *map(str, counts)])
    heads = ["", "measurements", "warned", "with a clear gain", "half of it lost", "of these warned", "missed"]
    return markdown([*heads, "wrong warnings"], lines)


TABLES = {"missing": missing_runs, "shares": share_table, "orders": order_table, "rule": rule_table}

if __name__ == "__main__":
    main()
