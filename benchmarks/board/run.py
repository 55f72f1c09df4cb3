"""Run an experiment of PEFT's board from its initial adapter, with `A` frozen throughout.

    python -m benchmarks.board.run peft/method_comparison/MetaMathQA lora/llama-3.2-3B-rank32-captured-lr_0.0004
    python -m benchmarks.board.run peft/method_comparison/MetaMathQA lora/llama-3.2-3B-rank32-lorafa --freeze-a

An experiment whose folder holds an adapter starts from it. The board's own script does the rest.
"""

from __future__ import annotations

import argparse
import importlib
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from peft import load_peft_weights, set_peft_model_state_dict

import tlora
from tlora.utils.file_names import ADAPTER_WEIGHTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("board", type=Path, help="the folder method_comparison/MetaMathQA of a clone of PEFT")
    parser.add_argument("experiment", help="METHOD/NAME, a folder of its experiments")
    parser.add_argument("--freeze-a", action="store_true", help="freeze A of an experiment without initial adapter")
    options = parser.parse_args()
    os.chdir(options.board)
    folder = Path("experiments", options.experiment)
    sys.path.insert(0, os.curdir)
    utils = importlib.import_module("utils")
    make_model = utils.get_model

    def get_model(**arguments: Any) -> Any:
        model = make_model(**arguments)
        is_initial = (folder / ADAPTER_WEIGHTS).exists()
        if is_initial:
            set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        if is_initial or options.freeze_a:
            tlora.freeze_a(model)
        return model

    utils.get_model = get_model  # the board's script imports it from there
    sys.argv = ["run.py", "-v", str(folder)]
    runpy.run_path("run.py", run_name="__main__")


if __name__ == "__main__":
    main()
