"""Copy the experiments into PEFT's board, and give those of recipe `captured` their ranks and initial adapter.

    python -m benchmarks.board.prepare peft/method_comparison/MetaMathQA

32 training samples of the board are the calibration. Experiments of the same name on the board are replaced.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import tlora
from tlora.recipes import Recipe
from tlora.utils.defaults import SAMPLES

EXPERIMENTS = Path(__file__).parent / "experiments"
RECIPE = "captured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("board", type=Path, help="the folder method_comparison/MetaMathQA of a clone of PEFT")
    board = parser.parse_args().board
    settings = json.loads((board / "default_training_params.json").read_text())
    model, tokenizer = tlora.load_model(settings["model_id"], dtype=settings["dtype"])
    tokenizer.model_max_length = settings["max_seq_length"]
    sys.path.insert(0, str(board))
    splits = importlib.import_module("data").get_train_valid_test_datasets(
        tokenizer=tokenizer, query_template=settings["query_template"], print_fn=print
    )
    rows = splits[0].shuffle(seed=0).select(range(SAMPLES))["input_ids"]
    for folder in prepare_experiments(board, model, list(batches(rows, settings["batch_size"]))):
        print(folder)


def batches(rows: Sequence[Sequence[int]], size: int) -> Iterator[dict[str, Tensor]]:
    """Yield padded batches in which every token is a label, as the board trains."""
    for start in range(0, len(rows), size):
        tokens = [torch.tensor(row) for row in rows[start : start + size]]
        yield {
            "input_ids": pad_sequence(tokens, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True),
            "labels": pad_sequence(tokens, batch_first=True, padding_value=-100),
        }


def prepare_experiments(board: Path, model: Any, samples: Sequence[Mapping[str, Tensor]]) -> Iterator[Path]:
    """Copy every experiment, and write ranks and initial adapter where the recipe decides them.

    Yields
    ------
    pathlib.Path
        The folder of each experiment on the board.
    """
    calibration = None
    for source in sorted(EXPERIMENTS.glob("*/*")):
        folder = board / "experiments" / source.relative_to(EXPERIMENTS)
        shutil.copytree(source, folder, dirs_exist_ok=True)
        if RECIPE in source.name:
            config = LoraConfig.from_pretrained(str(source))
            recipe = Recipe.named(RECIPE).override(
                calibrate={"target_modules": sorted(config.target_modules)}, allocate={"alpha": config.lora_alpha}
            )
            plan = tlora.prepare(model, samples, recipe, config.r, calibration=calibration, progress=False)
            calibration = plan.calibration
            tlora.save_initial(tlora.attach(model, plan), folder)
            tlora.detach(model)
        yield folder


if __name__ == "__main__":
    main()
