"""Starts of an adapter that look at data, PEFT's and ours: seconds and peak memory, each in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import tlora
from benchmarks.lab.methods import METHODS, Job, seeded_adapt
from benchmarks.speed.stopwatch import now
from tlora.utils.peak_memory import PeakMemory

PEERS = ("tlora-paper", "lora-ga", "corda", "eva")


def peers(arguments: argparse.Namespace) -> None:
    """The same model, samples and rank for all; who takes longer than the limit is stopped and said to be."""
    if arguments.measure:
        print(json.dumps(_measure(arguments)))
        return
    asked = f"{arguments.samples} samples, rank {arguments.rank}"
    print(f"SmolLM2-135M on {arguments.device}, {asked}, from the loaded model to the adapted one:")
    for name in PEERS:
        print(f"  {name}: {_told(name, arguments)}", flush=True)


def _told(name: str, arguments: argparse.Namespace) -> str:
    options = ["--samples", arguments.samples, "--rank", arguments.rank, "--device", arguments.device]
    command = [sys.executable, "-m", "benchmarks.speed.calibration", "peers", "--measure", name, *map(str, options)]
    try:
        ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=arguments.limit)
    except subprocess.TimeoutExpired:
        return f"not done after {arguments.limit:.0f} s on the clock"
    found = json.loads(ran.stdout.splitlines()[-1])
    return f"{found['seconds']:.1f} s, {found['peak'] / 1e9:.2f} GB at most ({found['before'] / 1e9:.2f} GB before)"


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    model, tokenizer = tlora.load_model("smollm2-135m", dtype="float32", device=arguments.device)
    task = tlora.load_task("family_relationships", tokenizer)
    with PeakMemory(model.device) as before:
        pass
    start = now(arguments.device)
    with PeakMemory(model.device) as peak:
        seeded_adapt(METHODS[arguments.measure], Job(model, task, arguments.rank, samples=arguments.samples))
    seconds = now(arguments.device) - start
    if peak.bytes is None or before.bytes is None:
        raise SystemExit("this system does not tell the peak of a process: run it on Linux")
    return {"seconds": seconds, "peak": peak.bytes, "before": before.bytes}
