"""What loading a GGUF file takes, beside the three calls of transformers that it is made of, in one run.

    python benchmarks/speed/loading.py --model smollm2-135m

Each repeat times both sides right after each other, in seconds of processor time, and gives one ratio. The limit is one
reading of the file and one unpacking of its tensors. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import statistics
import time

import gguf
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

import tlora
from tlora.models.loading import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    location = resolve(arguments.model, {})
    sides = {
        "transformers": lambda: _plain(location.path, location.where["gguf_file"]),
        "load_model": lambda: tlora.load_model(arguments.model, device="cpu"),
        "reading and unpacking": lambda: _least(f"{location.path}/{location.where['gguf_file']}"),
    }
    for load in sides.values():
        load()  # imports and the disk's cache
    taken = [{name: _seconds(load) for name, load in sides.items()} for _ in range(arguments.repeats)]
    for name in sides:
        ratios = [one[name] / one["transformers"] for one in taken]
        print(
            f"{name}: {statistics.median(one[name] for one in taken):.2f} s, of what transformers takes "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def _seconds(load) -> float:
    started = time.process_time()
    load()
    return time.process_time() - started


def _plain(folder: str, file: str) -> None:
    where = {"gguf_file": file}
    AutoConfig.from_pretrained(folder, **where)
    AutoTokenizer.from_pretrained(folder, **where)
    AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=GgufConfig(dequantize=True), dtype="float32", **where
    )


def _least(path: str) -> None:
    for tensor in gguf.GGUFReader(path).tensors:
        gguf.dequantize(tensor.data, tensor.tensor_type)


if __name__ == "__main__":
    main()
