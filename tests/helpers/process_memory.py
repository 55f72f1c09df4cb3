"""What `tlora.estimate` says, and what a process held, in fourteen configurations.

    python -m tests.helpers.process_memory 3      # the bytes that this process held in the third, from 0

A peak is that of the process's resident memory, less what it held before there was a model.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
import transformers
from torch import distributed
from torch.distributed.fsdp import fully_shard
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

import tlora
from tests.helpers.training_steps import random_batch
from tlora.models.forward import restrict_logits
from tlora.resources.simulated_model import switch_checkpointing
from tlora.utils.peak_memory import PeakMemory

LLAMA = LlamaConfig(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=8, num_attention_heads=12, vocab_size=4000
)
GPT2 = GPT2Config(n_embd=512, n_layer=6, n_head=8, vocab_size=8000, n_positions=256, bos_token_id=1, eos_token_id=2)
WORK = {"samples": 8, "length": 128, "batch_size": 8, "labels": 16}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Configuration:
    """A stage of the estimate, a model, and arguments of `tlora.estimate` beyond the usual ones."""

    stage: str
    config: PretrainedConfig = field(default_factory=lambda: LLAMA)
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items() if name != "rank")
        return f"{self.config.model_type}: {self.stage}{', ' * bool(options)}{options}"

    @property
    def arguments(self) -> dict[str, Any]:
        """What `tlora.estimate` is told."""
        return WORK | {"rank": 64, "sketch_size": 64, "gpus": 0} | self.options


B, BOTH, FULL = "training B", "training A and B", "training all weights"
CONFIGURATIONS = (
    Configuration("calibration, covariances whole"),
    Configuration("calibration, covariances sketched"),
    Configuration("calibration, covariances whole", options={"fisher": True}),
    Configuration("calibration, covariances sketched", options={"fisher": True, "sketch_size": 256}),
    Configuration("subspaces"),
    Configuration(B),
    Configuration(BOTH),
    Configuration(BOTH, options={"gradient_checkpointing": True, "length": 256}),
    Configuration(B, options={"bits": 4}),
    Configuration(FULL),
    Configuration(FULL, options={"gradient_checkpointing": True, "optim": "sgd", "length": 256}),
    Configuration(B, GPT2, {"labels": 128}),
    Configuration(B, options={"gpus": 2}),
    Configuration(FULL, options={"gpus": 2}),
)


def estimated(configuration: Configuration) -> int:
    """Bytes that `tlora.estimate` says."""
    return tlora.estimate(configuration.config, **configuration.arguments).bytes[configuration.stage]


def measured(configuration: Configuration) -> int:
    """Bytes that a process held, the most of several that run it together."""
    number, count = CONFIGURATIONS.index(configuration), configuration.options.get("gpus", 0)
    return max(int(line) for line in said_by(__name__, str(number), processes=count))


def said_by(module: str, *words: str, processes: int = 0) -> list[str]:
    """What a module prints, each line of digits or JSON, in a process of its own or in several under a launcher."""
    several = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [sys.executable, "-m", *(several if processes else ()), module, *words]
    # Tensors that are let go of leave the process at once, and not when the allocator sees fit.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ran.returncode:
        raise RuntimeError(f"{module} {' '.join(words)} failed:\n{ran.stderr[-2000:]}")
    return [line for line in ran.stdout.splitlines() if line.isdecimal() or line.startswith("{")]


def _peak(configuration: Configuration) -> int:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    if "gpus" in configuration.options:
        distributed.init_process_group("gloo")
    _warm(configuration)
    gc.collect()
    before = psutil.Process().memory_info()
    model = _model(configuration)
    run = _training if configuration.stage.startswith("training") else _analysis
    peak, after = run(configuration, model), psutil.Process().memory_info()
    # Without the pages of files: of those of the libraries a busy system takes some back meanwhile.
    return (peak - after.shared) - (before.rss - before.shared)


def _warm(configuration: Configuration) -> None:
    """Have libraries take what they take at first use."""
    config = AutoConfig.for_model(**configuration.config.to_dict() | {"vocab_size": 50})
    config.num_hidden_layers = 1
    batch = random_batch(4, 8, 4, 50)
    tiny = AutoModelForCausalLM.from_config(config).eval()
    tlora.calibrate(tiny, _for_each(batch), progress=False)
    if "bits" in configuration.options:
        tiny = _quantized(tiny)
        tiny(**batch)


def _for_each(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """One for every process."""
    return [batch] * (distributed.get_world_size() if distributed.is_initialized() else 1)


def _model(configuration: Configuration) -> PreTrainedModel:
    dtype = getattr(torch, configuration.options.get("dtype", "float32"))
    model = AutoModelForCausalLM.from_config(configuration.config, dtype=dtype).eval()
    return _quantized(model) if "bits" in configuration.options else model


def _quantized(model: PreTrainedModel) -> PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        packed = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bits, dtype=torch.float32)
    for parameter in packed.parameters():
        if parameter.dtype == torch.float32:  # a view of the file, which is in memory as long as one is
            parameter.data = parameter.data.clone()
    return packed.eval()


def shard(model: PreTrainedModel, **options: Any) -> None:
    """Spread a Llama over all processes, block by block, by FSDP2."""
    for block in model.model.layers:
        fully_shard(block, **options)
    fully_shard(model, **options)


def _sizes(configuration: Configuration) -> dict[str, torch.Tensor]:
    arguments = configuration.arguments
    return random_batch(
        arguments["batch_size"], arguments["length"], arguments["labels"], configuration.config.vocab_size
    )


def _analysis(configuration: Configuration, model: PreTrainedModel) -> int:
    batch, arguments = _sizes(configuration), configuration.arguments
    kept = "sketch" if configuration.stage.endswith("sketched") else "dense"
    with PeakMemory(CPU) as calibrating:
        options = {name: arguments[name] for name in ("sketch_size", "fisher") if name in arguments}
        calibration = tlora.calibrate(model, [batch], covariance=kept, **options, progress=False)
    if configuration.stage != "subspaces":
        return int(calibrating.bytes or 0)
    gc.collect()
    with PeakMemory(CPU) as finding:
        tlora.task_subspaces(model, calibration, max_rank=4 * arguments["rank"], progress=False)
    return int(finding.bytes or 0)


def _training(configuration: Configuration, model: PreTrainedModel) -> int:
    batch, arguments = _sizes(configuration), configuration.arguments
    trained: torch.nn.Module = model
    if configuration.stage != FULL:
        few = {name: value[:1, -8:] for name, value in batch.items()}
        calibration = tlora.calibrate(model, _for_each(few), covariance="sketch", sketch_size=8, progress=False)
        allocation = tlora.allocate(calibration.sensitivity, arguments["rank"], adapt_ranks=False, adapt_scales=False)
        trained = tlora.attach(model, None, allocation, freeze_a=configuration.stage == B)
    trained.train()
    model.config.use_cache = False  # as the Trainer has it
    if arguments.get("gradient_checkpointing"):
        switch_checkpointing(model, "enable", {"use_reentrant": False})
    if arguments["gpus"] > 1:
        adapters = {parameter for name, parameter in trained.named_parameters() if "lora_" in name}
        shard(model, ignored_params=adapters)
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    makes = torch.optim.SGD if arguments.get("optim") == "sgd" else torch.optim.AdamW
    optimizer = makes(parameters, lr=1e-4)
    gc.collect()
    with PeakMemory(CPU) as peak:
        for _ in range(2):
            trained(**restrict_logits(trained, batch)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return int(peak.bytes or 0)


if __name__ == "__main__":
    sys.stdout.write(f"{_peak(CONFIGURATIONS[int(sys.argv[1])])}\n")
