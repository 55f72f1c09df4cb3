"""What reading directions costs beside a calibration of the same samples: processor time, and memory beyond a pass."""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
from collections.abc import Callable

import torch

import tlora
from benchmarks.speed.stopwatch import Stages
from tlora.explanation.direction_activations_result import DirectionActivations


def main() -> None:
    """Print seconds over those of the calibration, and megabytes over those of a plain forward and backward pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", default="notebooks/data/smart_home")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model, tokenizer = tlora.load_model(args.model)
    batches = tlora.load_task(args.data, tokenizer).calibration(args.samples)
    calibration = tlora.calibrate(model, batches, gradient=True, progress=False)
    kinds = {kind: tlora.task_subspaces(model, calibration, max_rank=8, kind=kind) for kind in ("wc", "g")}
    del calibration
    model.requires_grad_(False)

    def plain(backward: bool) -> None:
        """A pass of the same batches, with gradients of the activations alone."""
        for batch in batches:
            embedded = model.get_input_embeddings()(batch["input_ids"]).requires_grad_(backward)
            inputs = {key: value for key, value in batch.items() if key != "input_ids"}
            with torch.set_grad_enabled(backward):
                loss = model(inputs_embeds=embedded, **inputs).loss
            if backward:
                loss.backward()

    def read(need: bool) -> DirectionActivations:
        return tlora.direction_activations(model, kinds, batches, tokenizer=tokenizer, need=need, progress=False)

    work: dict[str, Callable[[], object]] = {
        "forward": lambda: plain(backward=False),
        "forward and backward": lambda: plain(backward=True),
        "read": lambda: read(need=False),
        "read with need": lambda: read(need=True),
        "calibrate": lambda: tlora.calibrate(model, batches, progress=False),
    }
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(args.rounds):
        found: dict[str, dict[str, float]] = {}
        for stage, call in work.items():
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier stages held, so that the peak is this one's
            stages = Stages()
            stages(stage, call)
            found |= stages.found
        rounds.append(found)
    for stage in rounds[0]:
        seconds = statistics.median(each[stage]["seconds"] for each in rounds)
        share = statistics.median(each[stage]["seconds"] / each["calibrate"]["seconds"] for each in rounds)
        memory = statistics.median(each[stage]["bytes"] for each in rounds) / 1e6
        print(f"{stage:21} {seconds:6.1f} s  {share:5.2f} x the calibration  {memory:6.0f} MB")


if __name__ == "__main__":
    main()
