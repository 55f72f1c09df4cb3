"""The experiments for PEFT's board: PEFT reads them, and a run there has their initial adapter with `A` frozen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, load_peft_weights
from safetensors.torch import load_file

from benchmarks.board.prepare import EXPERIMENTS, batches, prepare_experiments
from tests.helpers.models import tiny_model

CAPTURED, LORA_FA = "lora/llama-3.2-3B-rank32-captured-lr_0.0004", "lora/llama-3.2-3B-rank32-lorafa-lr_0.0004"
UTILS = """
from peft import get_peft_model
from transformers import AutoModelForCausalLM

def get_model(*, model_id, peft_config):
    return get_peft_model(AutoModelForCausalLM.from_pretrained(model_id), peft_config)
"""
SCRIPT = """
import sys
from peft import PeftConfig
from safetensors.torch import save_file
from utils import get_model

if __name__ == "__main__":
    model = get_model(model_id="base", peft_config=PeftConfig.from_pretrained(sys.argv[-1]))
    with model.disable_adapter():
        pass
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    factors = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    save_file(trained, "trained.safetensors")
    save_file(factors, "factors.safetensors")
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the parts of the board that matter here: its two files, and a tiny base."""
    folder = tmp_path_factory.mktemp("board")
    (folder / "utils.py").write_text(UTILS)
    (folder / "run.py").write_text(SCRIPT)
    model = tiny_model("llama", hidden_size=64, num_attention_heads=2, num_key_value_heads=2, head_dim=32)
    model.save_pretrained(folder / "base")
    rows = torch.randint(3, model.config.vocab_size, (6, 40), generator=torch.Generator().manual_seed(0)).tolist()
    assert len(list(prepare_experiments(folder, model, list(batches(rows, 3))))) == len(list(EXPERIMENTS.glob("*/*")))
    return folder


def run(board: Path, *arguments: str) -> tuple[set[str], dict[str, torch.Tensor]]:
    """The trained parameters and all factors of a run, after a `disable_adapter()` block."""
    command = [sys.executable, "-m", "benchmarks.board.run", str(board), *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return set(load_file(board / "trained.safetensors")), load_file(board / "factors.safetensors")


def test_every_token_of_a_batch_is_a_label_but_padding():
    first, last = batches([[5, 6, 7, 8, 9], [9, 8, 7], [4, 9, 4, 9, 4, 9], [7, 7, 5, 6]], 3)
    assert first["labels"].tolist()[1] == [9, 8, 7, -100, -100, -100]
    assert first["attention_mask"].sum(1).tolist() == [5, 3, 6]
    assert last["input_ids"].tolist() == [[7, 7, 5, 6]]


@pytest.mark.parametrize("experiment", sorted(path.name for path in EXPERIMENTS.glob("lora/*")))
def test_peft_reads_every_experiment(experiment):
    folder = EXPERIMENTS / "lora" / experiment
    config = PeftConfig.from_pretrained(str(folder))
    assert (config.r, config.lora_alpha, config.target_modules) == (32, 64, {"q_proj", "v_proj"})
    rate = json.loads((folder / "training_params.json").read_text())["optimizer_kwargs"]["lr"]
    assert float(experiment.rpartition("lr_")[2]) == rate


def test_a_run_starts_from_the_initial_adapter_and_trains_b_alone(board):
    folder = board / "experiments" / CAPTURED
    trained, factors = run(board, CAPTURED)
    saved = load_peft_weights(str(folder), device="cpu")
    assert saved
    for name, values in saved.items():
        torch.testing.assert_close(factors[name.replace(".weight", ".default.weight")], values, rtol=0, atol=0)
    assert trained == {name for name in factors if "lora_B" in name}
    ranks = {len(values) for name, values in saved.items() if "lora_A" in name}
    assert len(ranks) > 1
    config = PeftConfig.from_pretrained(str(folder))
    scalings = {alpha / config.rank_pattern.get(name, config.r) for name, alpha in config.alpha_pattern.items()}
    assert scalings <= {2.0}


def test_lora_fa_is_frozen_if_asked(board):
    trained, factors = run(board, LORA_FA, "--freeze-a")
    assert trained == {name for name in factors if "lora_B" in name}
    trained, factors = run(board, LORA_FA)
    assert trained == set(factors)
