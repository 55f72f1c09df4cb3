"""What makes the host wait for a card, line by line, and how much lives on the card, found without one.

    python -m benchmarks.speed.host_copies    # the first two blocks of SmolLM2-135M, on a stand-in for a card

The stand-in (`tests/helpers/other_device.py`) counts every copy to the host, and the bytes that live on it; it takes no
times. Costs of a batch and of a step are differences of runs that are one longer.
"""

from __future__ import annotations

import argparse
from collections import Counter
from functools import partial
from typing import Any

import torch

import tlora
from tests.helpers.other_device import OtherDevice, Watched, trainer_on
from tlora.models.forward import IGNORED
from tlora.training.callbacks import ModuleRecorder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="blocks of SmolLM2-135M that are kept")
    parser.add_argument("--rank", type=int, default=8, help="of the adapter; subspaces have four times that")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with OtherDevice() as card:
        _pipeline(card, arguments.layers, arguments.rank)


def _pipeline(card: OtherDevice, layers: int, rank: int) -> None:
    model, tokenizer = tlora.load_model("smollm2-135m", dtype="float32", device="cpu")
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    model.to(card.device)
    task = tlora.load_task("family_relationships", tokenizer)
    batches = task.calibration(16, batch_size=4)
    length, labels = (int(max(of(batch) for batch in batches)) for of in (_length, _labels))
    tokens = {"samples": 16, "length": length, "labels": labels, "batch_size": 4}
    estimate = tlora.estimate(model.config, rank, **tokens).bytes

    def calibrate(count: int) -> tlora.Calibration:
        return tlora.calibrate(model, batches[:count], progress=False)

    short, long, whole = (card.watch(partial(calibrate, count)) for count in (2, 3, 4))
    _say("calibrate, before and after the batches", whole.ours - _times(long.ours - short.ours, 4))
    _say("calibrate, each batch", long.ours - short.ours, long.others - short.others)
    _say_peak("calibration", whole, estimate["calibration, covariances whole"])
    calibration = whole.result
    for kind in ("wc", "wc_half"):
        find = partial(tlora.task_subspaces, model, calibration, max_rank=4 * rank, kind=kind, progress=False)
        found = card.watch(find)
        _say(f"task_subspaces, kind {kind!r}, {len(calibration.names)} modules", found.ours)
        _say_peak("subspaces", found, estimate["subspaces"])
    subspaces = tlora.task_subspaces(model, calibration, max_rank=4 * rank, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=rank)
    attached = card.watch(partial(tlora.attach, model, subspaces, allocation))
    _say("attach", attached.ours)

    def train(steps: int) -> tlora.TrainingRun:
        recorder = ModuleRecorder(every=1000)
        options: dict[str, Any] = {"batch_size": 4, "evaluation_limit": 0, "progress": False, "callbacks": recorder}
        return tlora.train(attached.result, task.train.select(range(32)), max_steps=steps, **options)

    with trainer_on(card.device):
        short, long = (card.watch(partial(train, steps)) for steps in (3, 4))
    _say("train, each step", long.ours - short.ours, long.others - short.others)
    _say_peak("training", long, estimate["training B"])


def _length(batch: dict[str, torch.Tensor]) -> int:
    return batch["input_ids"].shape[1]


def _labels(batch: dict[str, torch.Tensor]) -> int:
    """Of the sample that has most."""
    return int((batch["labels"] != IGNORED).sum(1).max())


def _times(copies: Counter[str], factor: int) -> Counter[str]:
    return Counter({place: factor * count for place, count in copies.items()})


def _say(what: str, ours: Counter[str], others: Counter[str] | None = None) -> None:
    print(f"{what}: {ours.total()} copies to the host" + (f", {others.total()} of libraries" if others else ""))
    for place, count in [*ours.most_common(), *(others or Counter()).most_common()]:
        print(f"  {count:5d}  {place}")


def _say_peak(stage: str, watched: Watched, estimated: int) -> None:
    print(f"  largest live sum of {stage}: {watched.largest / 1e6:.0f} MB (estimated: {estimated / 1e6:.0f} MB)\n")


if __name__ == "__main__":
    main()
