"""What libraries say that a user can do nothing about does not reach the user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SESSION = """
import tlora

model, tokenizer = tlora.load_model("llama")
task = tlora.load_task("pairs.jsonl", tokenizer, train=8, validation=2, test=2)
adapted = tlora.attach(model, tlora.prepare(model, task, rank=2, samples=4, progress=False))
tlora.train(adapted, task, batch_size=4, max_steps=2, progress=False).save("trained")
tlora.attribute(adapted, task, limit=1, progress=False)
tlora.export(adapted, "merged", format="merged")
tlora.load_adapter("trained", tlora.load_model("llama")[0])
"""
COMMANDS = """
from tlora.cli.main import app

size = "--train-samples 8 --validation-samples 2 --test-samples 2"
for line in (
    f"run llama pairs.jsonl {size} --samples 4 --rank 2 --batch-size 4 --steps 2 --output adapter --quiet",
    "inspect adapter",
    "explain adapter --prompt w4 --quiet",
    "export adapter --format merged --output whole --quiet",
    f"calibrate llama pairs.jsonl {size} --samples 4 --output calibration.safetensors --quiet",
    f"race llama pairs.jsonl {size} --rank 2 --steps 2 --lr 1e-3 --output raced --quiet",
):
    app(line.split(), standalone_mode=False)
"""


@pytest.mark.rest
@pytest.mark.parametrize("program", [SESSION, COMMANDS], ids=["session", "commands"])
def test_nothing_is_written_to_stderr(workplace: Path, program: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
