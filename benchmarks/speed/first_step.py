"""How long one waits for the first step of training, and for all of it, beside plain LoRA through PEFT.

    python -m benchmarks.speed.first_step

The stages of `tlora run` and of LoRA on the same samples, with the same evaluations and an epoch of 300 samples, in
seconds of processor time. Each has a process of its own with one thread, and both run at the same time, so that
whatever else the machine does meets both. About fifteen minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
from peft import LoraConfig, TaskType, get_peft_model

import tlora
from benchmarks.speed.stopwatch import Stages
from tlora.recipes import calibrate_on

RANK, SAMPLES, EPOCH, EVALUATED = 8, 32, 300, 64
TASKS = {"smollm2-135m": "family_relationships", "minilm": "rotten_tomatoes"}
TRAINING: dict[str, Any] = {
    "batch_size": 4,
    "learning_rate": 1e-3,
    "evaluation_limit": 0,
    "progress": False,
    "logging_steps": 10,
}
EVALUATIONS, EPOCHS = ("evaluation before", "evaluation after"), "training, one epoch"


def measured(name: str, *, is_captured: bool, folder: Path) -> dict[str, float]:
    """The stages of one of the two on one model, in this process."""
    imports, stage = time.process_time(), Stages()
    model, tokenizer = stage("load model", lambda: tlora.load_model(name))
    sizes = {"train": EPOCH, "validation": 0, "test": EVALUATED}
    task = stage("load and tokenize task", lambda: tlora.load_task(TASKS[name], tokenizer, **sizes))
    adapted = (_captured if is_captured else _lora)(model, task, stage, folder)
    stage(EVALUATIONS[0], lambda: task.evaluate(adapted))
    run = stage(EPOCHS, lambda: tlora.train(adapted, task, **TRAINING))
    stage(EVALUATIONS[1], lambda: task.evaluate(adapted))
    stage("save", lambda: run.save(folder / "adapter"))
    return {"import": imports} | {name: found["seconds"] for name, found in stage.found.items()}


def _captured(model: Any, task: tlora.Task, stage: Stages, folder: Path) -> Any:
    """As `tlora run` does, which saves the allocation before it trains."""
    recipe = tlora.Recipe.named("captured")
    calibration = stage("calibrate", lambda: calibrate_on(model, task, recipe.needs, SAMPLES, progress=False))
    plan = stage(
        "subspaces, allocate",
        lambda: tlora.prepare(model, task, recipe, RANK, calibration=calibration, progress=False),
    )
    stage("save allocation", lambda: plan.allocation.save(folder / "allocation"))
    return stage("attach", lambda: tlora.attach(model, plan))


def _lora(model: Any, task: tlora.Task, stage: Stages, _: Path) -> Any:
    """Plain LoRA of the same rank on the same modules."""
    kind = TaskType.SEQ_CLS if task.num_labels else TaskType.CAUSAL_LM
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(tlora.target_modules(model)), task_type=kind)
    return stage("attach", lambda: get_peft_model(model, config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--measure", choices=("captured", "lora"), help="the stages of one of them, as JSON")
    arguments = parser.parse_args()
    if arguments.measure:
        with tempfile.TemporaryDirectory() as folder:
            (name,) = arguments.models
            print(json.dumps(measured(name, is_captured=arguments.measure == "captured", folder=Path(folder))))
        return
    for name in arguments.models:
        _tell(name, _both(name))


def _both(name: str) -> dict[str, dict[str, float]]:
    """Both, at the same time."""
    line = [sys.executable, "-m", "benchmarks.speed.first_step", "--models", name, "--measure"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = {
        kind: subprocess.Popen([*line, kind], stdout=subprocess.PIPE, text=True, env=environment)
        for kind in ("captured", "lora")
    }
    found = {}
    for kind, process in running.items():
        told, _ = process.communicate()
        if process.returncode:
            raise SystemExit(process.returncode)
        found[kind] = dict(json.loads(told.splitlines()[-1]))
    return found


def _tell(name: str, found: dict[str, dict[str, float]]) -> None:
    table = pd.DataFrame(found).reindex([*found["captured"]]).fillna(0.0)
    total = table.sum()
    print(f"\n{name}, {TASKS[name]}, rank {RANK}, {SAMPLES} samples of calibration; seconds of processor time\n")
    print(table.round(1).to_string())
    before = [stage for stage in table.index[: table.index.get_loc(EPOCHS)] if stage != EVALUATIONS[0]]
    more = table.loc[before, "captured"].sum() - table.loc[before, "lora"].sum()
    epoch = table.loc[EPOCHS, "lora"]
    print(
        f"total: {total['captured']:.0f} and {total['lora']:.0f}, {total['captured'] / total['lora']:.2f} x\n"
        f"before the first step, without the evaluation: {table.loc[before, 'captured'].sum():.1f} and "
        f"{table.loc[before, 'lora'].sum():.1f}, {more:.1f} more, {more / epoch:.2f} of LoRA's epoch"
    )


if __name__ == "__main__":
    main()
