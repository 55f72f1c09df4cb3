"""LLaMA-Factory continues from what `tlora init` writes; ``make integrations`` installs it and runs this."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import PeftModel
from safetensors.torch import load_file

import tlora
from tests.helpers.models import tiny_model, tiny_tokenizer
from tlora.adapters.lora_layers import adapter_layers

COMMAND = os.environ.get("LLAMA_FACTORY", "")
pytestmark = pytest.mark.skipif(not COMMAND, reason="LLAMA_FACTORY names no llamafactory-cli: make integrations")
INIT = "-m tlora init base --data rows.jsonl --rank 3 --samples 8 --output start"
TRAINING = """
dataset: pairs
dataset_dir: data
template: empty
cutoff_len: 64
output_dir: out
max_steps: 6
learning_rate: 0.02
per_device_train_batch_size: 4
logging_steps: 1
report_to: none
"""


def run(*command: str) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def shapes(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def read(model: Any) -> dict[str, tuple[int, float]]:
    return {name: (layer.r["default"], layer.scaling["default"]) for name, layer in adapter_layers(model).items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, the samples for both sides, and the settings on the page of the untrained adapter."""
    monkeypatch.chdir(tmp_path)
    tiny_model("llama").save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    pairs = [(f"w{4 + n} w9 w5", f"w{10 + n} w7 w8") for n in range(16)]
    Path("rows.jsonl").write_text("\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in pairs))
    run(sys.executable, *INIT.split())
    Path("data").mkdir()
    theirs = [{"instruction": prompt, "input": "", "output": completion} for prompt, completion in pairs]
    Path("data/pairs.json").write_text(json.dumps(theirs))
    Path("data/dataset_info.json").write_text(json.dumps({"pairs": {"file_name": "pairs.json"}}))
    page = re.search(r"## LLaMA-Factory\n\n```yaml\n(.*?)```", Path("start/README.md").read_text(), re.DOTALL)
    assert page
    Path("train.yaml").write_text(page[1] + TRAINING)
    assert yaml.safe_load(Path("train.yaml").read_text())["adapter_name_or_path"] == "start"
    return tmp_path


def test_it_trains_both_matrices_from_the_folder_at_our_ranks(folder: Path) -> None:
    run(COMMAND, "train", "train.yaml")
    start, end = (load_file(f"{name}/adapter_model.safetensors") for name in ("start", "out"))
    assert shapes(end) == shapes(start)
    assert all(bool(tensor.any()) for name, tensor in end.items() if "lora_B" in name)
    moved = {bool((tensor != start[name]).any()) for name, tensor in end.items() if "lora_A" in name}
    assert moved == {True}, "the page says that LLaMA-Factory does not keep A frozen"
    log = map(json.loads, Path("out/trainer_log.jsonl").read_text().splitlines())
    losses = [row["loss"] for row in log if row.get("loss") is not None]
    assert losses[-1] < losses[0]
    ours = read(tlora.load_adapter("start", tiny_model("llama")))
    assert read(PeftModel.from_pretrained(tiny_model("llama"), "out")) == ours
    assert len({rank for rank, _ in ours.values()}) > 1
