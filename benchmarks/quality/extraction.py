"""Adapters extracted from four full fine-tunes: task loss and change of other text, by rank and by what the cut is on.

    python -m benchmarks.quality.extraction           # what is not in the store, then the tables
    python -m benchmarks.quality.extraction --table   # print the tables of the store, and write them to the page

Two tasks of SmolLM2-135M and two of MiniLM are fine-tuned with all weights. Each fine-tune is then extracted at three
ranks and at full rank, by the weights and, with a calibration on samples it was trained on, by the outputs on the task.
Each is a line of the store, written when it is measured; the fine-tunes are kept in ``runs/extraction``.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import tlora
from benchmarks.lab.store import Store, key_text
from benchmarks.quality.pages import difference_text, markdown, publish
from benchmarks.quality.two_adapters import load_pair_task
from tlora.recipes import calibrate_on
from tlora.tasks.evaluation import losses_of_samples
from tlora.utils.reproducibility import temporary_seed

STORE = Store("benchmarks/results/extraction.jsonl")
PAGE = Path("docs/results/extraction.md")
FOLDER = Path("runs/extraction")
RANKS = (4, 16, 64, 4096)
"""The last is cut to what each matrix has."""
CUTS = ("plain", "task")
POOLED = "plain, pooler whole"
CALIBRATED = 32
OTHERS = ("prose", "code")
"""Text that a model that writes was not fine-tuned on."""

TUNES: dict[str, dict[str, dict[str, Any]]] = {
    "smollm2-135m": {
        "smart_home": {"learning_rate": 3e-5, "batch_size": 4, "steps": 120},
        "spell_backward": {"learning_rate": 3e-5, "batch_size": 4, "steps": 60},
    },
    "minilm": {
        "rotten_tomatoes": {"learning_rate": 5e-5, "batch_size": 16, "steps": 120},
        "states": {"learning_rate": 1e-4, "batch_size": 16, "steps": 60},
    },
}
"""How each full fine-tune is trained, by model and task."""
EVALUATED = {"smollm2-135m": 48, "minilm": 300}
"""Most test samples of a task."""

Array = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=TUNES, default=list(TUNES))
    parser.add_argument("--table", action="store_true", help="print what is there")
    options = parser.parse_args()
    if not options.table:
        STORE.check_writable()
        for model in options.models:
            for task in TUNES[model]:
                Bench(model, task).measure()
    if STORE.path.exists():
        publish(PAGE, "extraction", TABLES)


def variants(model: str) -> list[dict[str, Any]]:
    """What is measured of each fine-tune; of a classifier also an extraction that keeps the pooler whole."""
    pooled = [{"what": "extracted", "rank": 16, "cut": POOLED}] if model == "minilm" else []
    extracted = [{"what": "extracted", "rank": rank, "cut": cut} for rank, cut in itertools.product(RANKS, CUTS)]
    return [{"what": "base"}, {"what": "fine-tune"}, *extracted, *pooled]


def cell_key(model: str, task: str, variant: dict[str, Any]) -> dict[str, Any]:
    """The key of a record."""
    return {"model": model, "task": task, **TUNES[model][task], **variant}


class Bench:
    """A base, a task, and the full fine-tune on it."""

    def __init__(self, model: str, task: str) -> None:
        self.model, self.name, self.folder = model, task, FOLDER / model / task
        self.task = load_pair_task(model, task)
        self.test = self.task.test.select(range(min(EVALUATED[model], len(self.task.test))))

    def load(self, name: str) -> Any:
        """The base or the fine-tune, by its name or folder."""
        return tlora.load_model(name, num_labels=self.task.num_labels, dtype="float32", device="cpu")[0]

    @cached_property
    def texts(self) -> dict[str, tlora.Task]:
        """Other text; none for a classifier."""
        return tlora.load_texts(self.task.tokenizer, *OTHERS) if self.task.num_labels is None else {}

    def measure(self) -> None:
        """Measure what is not in the store."""
        known, calibration = STORE.by_key(), None
        for variant in variants(self.model):
            key = cell_key(self.model, self.name, variant)
            if key_text(key) in known:
                continue
            if not (self.folder / "config.json").exists():
                self.fine_tune()
            if variant.get("cut") == "task" and calibration is None:
                calibration = calibrate_on(self.load(self.model), self.task, {}, CALIBRATED, progress=False)
            model, about = self.variant(variant, calibration)
            losses = {"task": losses_of_samples(model, self.task, self.test, 16)}
            losses |= {name: losses_of_samples(model, text, text.test, 8) for name, text in self.texts.items()}
            STORE.append({"key": key, "losses": {n: each.tolist() for n, each in losses.items()}, **about})
            print(key_text(key), f"{losses['task'].mean():.4f}", about, flush=True)

    def variant(self, variant: dict[str, Any], calibration: Any) -> tuple[Any, dict[str, Any]]:
        """A model to measure, and what an extraction says of itself."""
        if variant["what"] != "extracted":
            return self.load(self.model if variant["what"] == "base" else str(self.folder)), {}
        extraction = tlora.extract(
            self.model,
            self.folder,
            variant["rank"],
            calibration=calibration if variant["cut"] == "task" else None,
            modules_to_save=["pooler"] if variant["cut"] == POOLED else [],
            progress=False,
        )
        with tempfile.TemporaryDirectory() as place:
            adapted = tlora.load_adapter(extraction.save_adapter(place), self.load(self.model))
        return adapted, {"held": extraction.held, "left_out": extraction.left_out}

    def fine_tune(self) -> None:
        """Train all weights with AdamW, a warm-up over a tenth of the steps and a linear decay, and save them."""
        options, model = TUNES[self.model][self.name], self.load(self.model)
        steps, rows, size = options["steps"], list(self.task.train), options["batch_size"]
        optimizer = torch.optim.AdamW(model.parameters(), lr=options["learning_rate"], weight_decay=0.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1, 10 * (step + 1) / steps, (steps - step) / (0.9 * steps))
        )
        passes = range(-(-size * steps // len(rows)))
        order = np.concatenate([np.random.default_rng(n).permutation(len(rows)) for n in passes])
        with temporary_seed(0):
            model.train()
            for step in range(steps):
                picked = [rows[n] for n in order[size * step : size * (step + 1)]]
                loss = model(**self.task.collate(picked)).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                if step % 20 == 0:
                    print(self.model, self.name, step, f"{loss.item():.3f}", flush=True)
        model.eval().save_pretrained(self.folder)
        self.task.tokenizer.save_pretrained(self.folder)


def _groups() -> dict[tuple[str, str], dict[tuple[Any, ...], dict[str, Any]]]:
    """Records by model and task, then by what was measured."""
    groups: dict[tuple[str, str], dict[tuple[Any, ...], dict[str, Any]]] = {}
    for record in STORE.read():
        key = record["key"]
        what = (key["what"], key.get("rank"), key.get("cut"))
        groups.setdefault((key["model"], key["task"]), {})[what] = record
    order = [(model, task) for model, tasks in TUNES.items() for task in tasks]
    return {pair: groups[pair] for pair in order if pair in groups}


def _losses(record: dict[str, Any], *names: str) -> Array:
    return np.concatenate([record["losses"][name] for name in names])


def _rank(rank: int) -> str:
    return "full" if rank == RANKS[-1] else str(rank)


def missing_cells() -> str:
    """Say how many cells the tables are to have, and which fine-tunes lack how many."""
    known, counts, total = STORE.by_key(), {}, 0
    for model, tasks in TUNES.items():
        for task in tasks:
            texts = [key_text(cell_key(model, task, variant)) for variant in variants(model)]
            counts[f"{task} on {model}"] = sum(text not in known for text in texts)
            total += len(texts)
    lacking = "; ".join(f"{name}: {count}" for name, count in counts.items() if count)
    return f"{sum(counts.values())} of {total} cells are missing" + (f" ({lacking})." if lacking else ".")


def task_table() -> str:
    """Loss of the task: base, fine-tune and each extraction, compared with the fine-tune and with the plain cut."""
    lines = []
    for (model, task), group in _groups().items():
        base, tuned = (_losses(group[what, None, None], "task") for what in ("base", "fine-tune"))
        shown = "-" if model == "minilm" else f"{base.mean():.3f}"  # its head is random
        lines.append([model, task, "base", "", shown, "", ""])
        lines.append([model, task, "fine-tune", "", f"{tuned.mean():.3f}", "", ""])
        for rank, cut in itertools.product(RANKS, (*CUTS, POOLED)):
            if (record := group.get(("extracted", rank, cut))) is None:
                continue
            loss, plain = _losses(record, "task"), group.get(("extracted", rank, "plain"))
            gained = "" if cut == "plain" or plain is None else difference_text(loss, _losses(plain, "task"))
            lines.append([model, task, _rank(rank), cut, f"{loss.mean():.3f}", difference_text(loss, tuned), gained])
    heads = ["model", "task", "rank", "cut on", "loss", "less that of the fine-tune", "less that of the plain cut"]
    return markdown(heads, lines)


def text_table() -> str:
    """Change of the loss of other text against the base."""
    lines = []
    for (model, task), group in _groups().items():
        base = group["base", None, None]
        if set(OTHERS) - set(base["losses"]):
            continue
        whats = [("fine-tune", None, None), *(("extracted", r, c) for r, c in itertools.product(RANKS, CUTS))]
        for what in whats:
            if what not in group:
                continue
            changes = [difference_text(_losses(group[what], name), _losses(base, name)) for name in OTHERS]
            label = [what[0], ""] if what[1] is None else [_rank(what[1]), str(what[2])]
            lines.append([model, task, *label, *changes])
    return markdown(["model", "task", "rank", "cut on", *OTHERS], lines)


def held_table() -> str:
    """The share of the change that each rank holds, and what is outside of all modules."""
    lines = []
    for (model, task), group in _groups().items():
        for rank in RANKS:
            parts = [group.get(("extracted", rank, cut)) for cut in CUTS]
            if None in parts:
                continue
            plain, on_task = (part["held"] for part in parts if part is not None)
            cells = [plain["plain"], on_task["plain"], on_task["task"], parts[0]["left_out"]]  # type: ignore[index]
            lines.append([model, task, _rank(rank), *(f"{share:.1%}" for share in cells)])
    heads = ["model", "task", "rank", "of the weights, plain", "of the weights, task", "of the outputs, task"]
    return markdown([*heads, "outside the modules"], lines)


TABLES = {"missing": missing_cells, "task": task_table, "text": text_table, "held": held_table}

if __name__ == "__main__":
    main()
