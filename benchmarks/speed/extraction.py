"""What `tlora.extract` costs on two checkpoints of LLaMA-2-7B's widths: memory and time, by number of layers.

    python -m benchmarks.speed.extraction              # 8 layers, rank 16

Both checkpoints are written to a temporary folder in bfloat16, one file per layer, and removed afterwards: 7.5 GB of
disk for a while. The fine-tune differs by random numbers of full rank, whose spectrum is flat. The peak is VmHWM of the
process that extracts, its imports included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

import tlora

D, MLP, VOCABULARY, OF_7B = 4096, 11008, 32000, 32
SHAPES = {
    "self_attn.q_proj": (D, D),
    "self_attn.k_proj": (D, D),
    "self_attn.v_proj": (D, D),
    "self_attn.o_proj": (D, D),
    "mlp.gate_proj": (MLP, D),
    "mlp.up_proj": (MLP, D),
    "mlp.down_proj": (D, MLP),
}
LAYER = 2 * sum(d_out * d_in for d_out, d_in in SHAPES.values())
"""Bytes of a layer in bfloat16."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written for a while")
    parser.add_argument("--measure", type=Path, help="used by the process that this one starts")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.rank)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_checkpoints(Path(folder), arguments.layers)
        command = [sys.executable, "-m", "benchmarks.speed.extraction", "--measure", folder]
        output = subprocess.run(
            [*command, "--rank", str(arguments.rank)], check=True, stdout=subprocess.PIPE, text=True
        )
    found = json.loads(output.stdout.splitlines()[-1])
    limit, processor = (2 * LAYER + 1e9) / 1e9, found["processor"]
    print(
        f"{arguments.layers} layers, rank {arguments.rank}, {found['threads']} threads: {found['seconds']:.0f} s, "
        f"{processor:.0f} s of processor time, peak {found['gigabytes']:.2f} GB (two layers and 1 GB: {limit:.2f} GB); "
        f"{OF_7B} layers: about {processor * OF_7B / arguments.layers:.0f} s of processor time"
    )


def measure(folder: Path, rank: int) -> None:
    """Extract once in this process; the peak is that of its whole life."""
    started, processor = time.perf_counter(), time.process_time()
    extraction = tlora.extract(folder / "base", folder / "tuned", rank)
    extraction.save_adapter(folder / "adapter")
    numbers = {"seconds": time.perf_counter() - started, "processor": time.process_time() - processor}
    with open("/proc/self/status", encoding="ascii") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps(numbers | {"gigabytes": peak * 1024 / 1e9, "threads": torch.get_num_threads()}))


def write_checkpoints(folder: Path, layers: int) -> None:
    """Write a base and a fine-tune of it, a layer at a time."""
    generator = torch.Generator().manual_seed(0)
    config = LlamaConfig(
        hidden_size=D,
        intermediate_size=MLP,
        num_hidden_layers=layers,
        num_attention_heads=32,
        vocab_size=VOCABULARY,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    parts: list[dict[str, tuple[int, ...]]] = [
        {"model.embed_tokens.weight": (VOCABULARY, D), "model.norm.weight": (D,), "lm_head.weight": (VOCABULARY, D)}
    ]
    for layer in range(layers):
        start = f"model.layers.{layer}"
        shapes: dict[str, tuple[int, ...]] = {f"{start}.{name}.weight": shape for name, shape in SHAPES.items()}
        norms = {f"{start}.{name}.weight": (D,) for name in ("input_layernorm", "post_attention_layernorm")}
        parts.append(shapes | norms)
    for name in ("base", "tuned"):
        (folder / name).mkdir()
        config.save_pretrained(folder / name)
    index = {}
    for number, part in enumerate(parts):
        file = f"model-{number:05}.safetensors"
        index |= dict.fromkeys(part, file)
        before = {key: random(shape, 0.02, generator) for key, shape in part.items()}
        save_file(before, folder / "base" / file, metadata={"format": "pt"})
        for tensor in before.values():
            tensor += random(tuple(tensor.shape), 0.002, generator)
        save_file(before, folder / "tuned" / file, metadata={"format": "pt"})
    for name in ("base", "tuned"):
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / name / "model.safetensors.index.json").write_text(text)


def random(shape: tuple[int, ...], size: float, generator: torch.Generator) -> torch.Tensor:
    return (size * torch.randn(shape, generator=generator)).bfloat16()


if __name__ == "__main__":
    main()
