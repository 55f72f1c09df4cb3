"""How long commands that need no model's weights take to start.

    python -m benchmarks.speed.startup                           # of this checkout
    python -m benchmarks.speed.startup ../earlier .              # of several, side by side

Processor time of a process of its own on one thread, the least of the repeats, in which the checkouts take turns: it
hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008}
LLAMA |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000}
ESTIMATE = "-m tlora estimate --dtype bfloat16 --batch-size 4 --length 1024 --memory 40 --teraflops 300 --model"


def commands(folder: Path) -> dict[str, str]:
    """The arguments of Python, by what is shown."""
    return {
        "`import torch`": "-c import_torch",
        "`import tlora`": "-c import_tlora",
        "`tlora --help`": "-m tlora --help",
        "an unknown command": "-m tlora frain",
        "`tlora inspect` of nothing": f"-m tlora inspect {folder / 'nothing'}",
        "`tlora inspect`": f"-m tlora inspect {folder}",
        "`tlora estimate` of LLaMA-2-7B": f"{ESTIMATE} {folder / 'config.json'}",
    }


def write_files(folder: Path) -> None:
    """An adapter of 224 modules with ranks of their own, and the config of LLaMA-2-7B."""
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(56) for p in "qkvo"]
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": names}
    config["rank_pattern"] = {f"^{name}$": 4 for name in names}
    shapes = {"lora_A": (4, 256), "lora_B": (256, 4)}
    tensors = {f"base_model.model.{n}.{part}.weight": torch.ones(s) for n in names for part, s in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps(LLAMA))


def seconds(words: str, checkout: Path) -> float:
    """Processor time of a process."""
    arguments = [word.replace("_", " ") if word.startswith("import_") else word for word in words.split()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, *arguments], capture_output=True, env=environment, cwd=checkout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs="*", default=[Path()])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        for name, words in commands(Path(folder)).items():
            times = [[seconds(words, checkout) for checkout in arguments.checkouts] for _ in range(arguments.repeats)]
            row = pd.DataFrame(times, columns=list(map(str, arguments.checkouts))).min().round(2)
            print(f"{name:32}", *(f"{value:6.2f} s" for value in row), flush=True)


if __name__ == "__main__":
    main()
