"""How long one waits beside other busy processes, by how long the threads of torch wait before they sleep.

    python -m benchmarks.speed.busy                                      # what is not yet in results/busy.jsonl
    python -m benchmarks.speed.busy --work drag --busy 3 --setting passive
    python -m benchmarks.speed.busy --table                              # what is stored, onto its page

A training step and a drag are timed in a process that has loaded its model; an explanation and a short run are whole
commands. What takes less than ten seconds is measured three times, the rest once. Each other process multiplies small
matrices with all threads, as a notebook that trains. Seconds on the clock: run it on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.lab.store import Store, key_text
from benchmarks.quality.pages import markdown, replace_block

MODEL, TASK = "smollm2-135m", "notebooks/data/smart_home"
RUN = ["run", MODEL, TASK, "--samples", "4", "--train-samples", "16", "--test-samples", "4", "--batch-size", "4"]
PROMPT = "Turn off the fan in the kitchen."
STEPS, DRAGS = 6, 100
SETTINGS = {
    "default": {"GOMP_SPINCOUNT": "300000"},  # OpenMP's own, named because the commands set another
    "0 spins": {"GOMP_SPINCOUNT": "0"},
    "1000 spins": {"GOMP_SPINCOUNT": "1000"},
    "10000 spins": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
TABLE = ("default", "1000 spins", "passive", "one thread")
"""Settings that are measured unless others are named."""
THREADS = {name for settings in SETTINGS.values() for name in settings}
WORK = ("explain", "step", "drag", "run")
OTHERS = (0, 1, 3)
REPEATS, SHORT = 3, 10.0  # how often one measures what takes less than so many seconds
STORE = Path("benchmarks", "results", "busy.jsonl")
PAGE = Path("docs", "results", "measurements.md")
BEGIN, END = "<!-- python -m benchmarks.speed.busy --table -->", "<!-- end of busy -->"
WORDS = {
    "explain": "`tlora explain` of one request",
    "step": "a training step",
    "drag": "a drag in the workbench",
    "run": "`tlora run`, 4 steps",
}
OTHER = """
import torch
x = torch.randn(256, 256)
print("up", flush=True)
while True:
    x = torch.tanh(x @ x)
"""


def main() -> None:
    """Measure what is not stored yet, and print the medians; with ``--table`` write them onto their page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORK, action="append")
    parser.add_argument("--busy", type=int, action="append", help="number of other processes; 0, 1 and 3 by default")
    parser.add_argument("--setting", choices=SETTINGS, action="append")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--adapter", type=Path, default=Path("demo"), help="of explain; made by `make demo`")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    options = parser.parse_args()
    store = Store(options.store)
    if not options.table:
        if "explain" in (options.work or WORK) and not options.adapter.is_dir():
            parser.error(f"--adapter {options.adapter} is not there: run `make demo`, or name an adapter")
        cells = itertools.product(
            range(options.repeats), options.work or WORK, options.busy or OTHERS, options.setting or TABLE
        )
        fill(store, cells, options.adapter)
    else:
        PAGE.write_text(filled(PAGE.read_text(), store))
    print(section(store))


def fill(store: Store, cells: Iterator[tuple[int, str, int, str]], adapter: Path) -> None:
    """Measure every cell that the store lacks, and store and print it before the next one begins."""
    import torch

    store.check_writable()
    known = store.by_key()
    for repeat, work, others, setting in cells:
        key = {"work": work, "others": others, "setting": setting, "repeat": repeat}
        key |= {"cores": os.cpu_count(), "torch": torch.__version__}
        first = known.get(key_text(key | {"repeat": 0}))
        if key_text(key) in known or (repeat and first and first["seconds"] >= SHORT):
            continue
        with beside(others):
            seconds = measure(work, SETTINGS[setting], adapter)
        known[key_text(key)] = {"key": key, "seconds": seconds}
        store.append(known[key_text(key)])
        print(f"{work:8} beside {others}, {setting:12} {seconds:10.3f} s", flush=True)


@contextmanager
def beside(count: int) -> Iterator[None]:
    """Run other processes of torch with all threads, as OpenMP has them wait, during the block."""
    processes = []
    try:
        for _ in range(count):
            command = [sys.executable, "-c", OTHER]
            environment = environment_with(SETTINGS["default"])
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()  # waits, and closes the pipe


def measure(work: str, settings: dict[str, str], adapter: Path) -> float:
    """Return the seconds of a piece of work in a process with these settings."""
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "explain": ["-m", "tlora", "explain", str(adapter), "--prompt", PROMPT, "--quiet"],
            "run": ["-m", "tlora", *RUN, "--output", str(Path(folder, "trained")), "--quiet"],
        }
        timed = ["-c", f"from benchmarks.speed.busy import {work}; print({work}())"]
        began = time.perf_counter()
        command, environment = [sys.executable, *commands.get(work, timed)], environment_with(settings)
        ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - began
    return seconds if work in commands else float(ran.stdout.split()[-1])


def environment_with(settings: dict[str, str]) -> dict[str, str]:
    """Return the environment with these settings of threads and no others."""
    return {name: value for name, value in os.environ.items() if name not in THREADS} | settings


def step() -> float:
    """Return the median seconds of a step of training, without the first."""
    from peft import LoraConfig, get_peft_model
    from transformers import TrainerCallback

    import tlora

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    model, tokenizer = tlora.load_model(MODEL)
    task = tlora.load_task(TASK, tokenizer)
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    tlora.freeze_a(adapted)
    clock = Clock()
    training: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 4, "evaluation_limit": 0, "progress": False}
    tlora.train(adapted, task, max_steps=STEPS, callbacks=[clock], **training)
    return statistics.median(b - a for a, b in itertools.pairwise(clock.times))


def drag() -> float:
    """Return the median seconds from a dragged rank to the message for the browser, on the modules of LLaMA-2-7B."""
    import torch

    import viz
    from tests.helpers.sensitivities import llama_sensitivity
    from tests.helpers.subspaces import random_subspaces

    scores = llama_sensitivity(16)
    workbench = viz.Workbench(scores, random_subspaces(scores, "wc", torch.Generator().manual_seed(0)))
    times = []
    for i in range(DRAGS):
        began = time.perf_counter()
        workbench.set_rank(scores.names[i], 1 + i % 16)
        json.dumps(workbench.widget.current)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def table(records: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the median seconds by work and other processes, with a column for each setting."""
    rows = pd.DataFrame([record["key"] | {"seconds": record["seconds"]} for record in records])
    medians = rows.pivot_table("seconds", ["work", "others"], "setting", "median")
    order = [(work, others) for work in WORK for others in OTHERS if (work, others) in medians.index]
    return medians.loc[order, [name for name in SETTINGS if name in medians]]


def section(store: Store) -> str:
    """Return the section of the page, of the machine that measured last; empty if nothing is stored."""
    records = store.read() if store.path.is_file() else []
    if not records:
        return ""
    cores, version = (records[-1]["key"][name] for name in ("cores", "torch"))
    medians = table([one for one in records if (one["key"]["cores"], one["key"]["torch"]) == (cores, version)])
    lines = [
        [WORDS[work], str(others), *("" if pd.isna(value) else f"{value:.3g}" for value in medians.loc[(work, others)])]
        for work, others in medians.index
    ]
    about = (
        f"Seconds on the clock, {cores} cores, torch {version}; the median where it was measured more than once. "
        "`default` is OpenMP's own 300,000 spins, the commands of `tlora` take 1000."
    )
    heads = ["", "other processes", *medians.columns]
    return f"## What one waits for beside other processes\n\n{about}\n\n{markdown(heads, lines)}"


def filled(text: str, store: Store) -> str:
    """Return the text of the page with the section of what is stored."""
    return replace_block(BEGIN, END, section(store), text)


if __name__ == "__main__":
    main()
