"""The results that the gallery and the first page draw: SmolLM2-135M on the smart-home requests of the quickstart.

    python docs/gallery/measure.py

writes ``docs/gallery/data`` and ``docs/memory.png``: what is small is kept whole, two pictures stand for what is not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import LlamaConfig

import tlora
import viz
from tlora.adapters.files import PREFIX
from tlora.calibration.spectrum import Spectrum
from tlora.explanation.interference import Interference

DATA = Path(__file__).parent / "data"
MEMORY = Path(__file__).parents[1] / "memory.png"
KINDS = ("wc", "w", "c", "wc_half", "g", "fisher", "random")
RANKS = (1, 2, 4, 8, 16, 32)
KNOWN = 128
"""Eigenvalues kept of each spectrum."""


def first(spectrum: Spectrum) -> Spectrum:
    """The largest eigenvalues, beside the sum of all."""
    kept = {source: spectrum.eigenvalues[source][:KNOWN].clone() for source in spectrum.inputs.values()}
    return replace(spectrum, eigenvalues={name: kept[source] for name, source in spectrum.inputs.items()})


def small(run: tlora.TrainingRun) -> tlora.TrainingRun:
    """The run with an adapter of the same singular values, a hundredth of its size."""
    adapter = {}
    for name, values in run.singular_values().items():
        a, b = (f"{PREFIX}{name}.lora_{part}.weight" for part in "AB")
        adapter |= {a: torch.eye(len(values)), b: torch.diag(values / run.scalings[name])}
    return replace(run, adapter=adapter, fingerprints={})


def interfere(model: Any, tokenizer: Any, run: tlora.TrainingRun, calibration: tlora.Calibration) -> Interference:
    """The run's adapter and one that spells words backward."""
    task = tlora.load_task("spell_backward", tokenizer, train=200, validation=0)
    other = tlora.calibrate(model, task.calibration(16))
    uniform = tlora.allocate(other.sensitivity, rank=8, adapt_ranks=False, adapt_scales=False)
    adapted = tlora.attach(model, None, uniform, freeze_a=False)
    tlora.train(adapted, task, learning_rate=2e-3, batch_size=4, max_steps=24, evaluation_limit=0)
    with TemporaryDirectory() as folder:
        found = tlora.interference(run.save(Path(folder, "home")), adapted, (calibration, other))
    tlora.detach(model)
    return replace(found, labels=("home", "backward"))


def main() -> None:
    """Calibrate, compare, allocate, train and save."""
    model, tokenizer = tlora.load_model("smollm2-135m")
    task = tlora.load_task("notebooks/data/smart_home", tokenizer)
    held_out = [task.collate([task.validation[i] for i in range(8)])]
    calibration = tlora.calibrate(model, task.calibration(16), gradient=True, fisher=True)
    others = tlora.calibrate(model, held_out)
    kinds = {kind: tlora.task_subspaces(model, calibration, max_rank=32, kind=kind) for kind in KINDS}
    allocation = tlora.allocate(calibration.sensitivity, rank=8, max_rank=32)
    sensitivity = calibration.sensitivity
    results = {
        "sensitivity": sensitivity,
        "spectrum": first(calibration.spectrum()),
        "alignment": tlora.align(kinds["wc"], kinds["g"], rank=8),
        "capture": tlora.gradient_capture(model, held_out, kinds, RANKS),
        "estimate": tlora.estimate("smollm2-135m", rank=8, samples=16, length=64, batch_size=4),
        "activations": tlora.direction_activations(
            model, {"fisher": kinds["fisher"]}, held_out, tokenizer=tokenizer, ranks=4
        ),
    }
    monitor = viz.TrainingMonitor()
    adapted = tlora.attach(model, kinds["wc"], allocation)
    options = {"learning_rate": 2e-3, "batch_size": 4, "max_steps": 40, "logging_steps": 1}
    run = tlora.train(adapted, task, evaluation_limit=100, callbacks=[monitor], **options)
    cut = tlora.compress(adapted, parameters=0.5, calibration=calibration, held_out=others)
    results["compression"] = replace(cut, adapter={}, fingerprints={})  # its curves alone
    texts = tlora.load_texts(tokenizer)
    results["side_effects"] = tlora.side_effects(adapted, texts)
    kept = {name: texts[name] for name in ("code", "chat")}
    scaled = tlora.measure_scales(adapted, task, kept, limit=0.05, parts="projections", samples=8)
    results["rescaling"] = replace(scaled, adapter={}, fingerprints={}, config={})  # its losses alone
    results["attribution"] = tlora.attribute(adapted, task, limit=2)
    tlora.detach(model)
    results["interference"] = interfere(model, tokenizer, run, calibration)
    uniform = tlora.allocate(sensitivity, rank=8, max_rank=32, adapt_ranks=False, adapt_scales=False)
    arms = {"score": allocation, "uniform": uniform, "LoRA": "lora"}
    raced = tlora.race(
        model, task, arms, subspaces=kinds["wc"], steps=12, seeds=[0], learning_rate=2e-3, batch_size=4,
        evaluation_limit=40,
    )  # fmt: skip
    results["race"] = replace(raced, runs={})  # its losses alone
    for name, result in results.items():
        result.save(DATA / name)
    small(run).save(DATA / "run")
    (DATA / "training_monitor.png").write_bytes(monitor._repr_png_())
    draw_memory()


def draw_memory() -> None:
    """Draw what freezing `A` saves at LLaMA-2-7B's size, for README and the page on memory."""
    config = LlamaConfig(name_or_path="llama-2-7b")  # its defaults are that model's
    estimate = tlora.estimate(config, rank=8, dtype="bfloat16", batch_size=4, length=1024, memory=40e9)
    viz.plot_memory(estimate).figure.savefig(MEMORY, dpi=110)


if __name__ == "__main__":
    main()
