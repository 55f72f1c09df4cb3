"""Results made by hand, at the sizes and with the names of real models, for the tests of the pictures."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

import viz
from tlora.allocation import Allocation, allocate
from tlora.run import TrainingRun
from tlora.sensitivity import Sensitivity
from tlora.spectrum import Spectrum
from tlora.storage import Meta

matplotlib.use("Agg")  # no windows on machines that have a display
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BERT = ("attention.self.query", "attention.self.key", "attention.self.value", "output.dense")
T5 = tuple(f"encoder.{p}" for p in ("q", "k", "v", "o", "wi", "wo")) + tuple(
    f"decoder.{p}" for p in ("SelfAttention.q", "EncDecAttention.q", "EncDecAttention.k", "wi", "wo")
)
MODELS = {
    "2 layers": (LLAMA, 2),
    "30 layers": (LLAMA, 30),
    "80 layers": (LLAMA, 80),
    "BERT": (BERT, 12),
    "T5": (T5, 12),
}
META = Meta("models/smollm2-135m", "family_relationships", samples=5)


def places(model: str) -> tuple[dict[str, int], dict[str, str]]:
    """Layer and projection of each module."""
    projections, layers = MODELS[model]
    names = {f"layers.{layer}.{p}": (layer, p) for layer in range(layers) for p in projections}
    return {n: layer for n, (layer, _) in names.items()}, {n: p for n, (_, p) in names.items()}


def sensitivity(model: str = "2 layers") -> Sensitivity:
    """Log-normal scores of five samples."""
    layers, projections = places(model)
    generator = torch.Generator().manual_seed(0)
    scores = 1e-6 * torch.exp(1.5 * torch.randn(5, len(layers), generator=generator))
    return Sensitivity(scores, dict.fromkeys(layers, (64, 48)), layers, projections, META)


def spectrum(model: str = "2 layers", k: int = 40, trace: float | None = None) -> Spectrum:
    """Power laws; ``k_proj`` and ``v_proj`` read what ``q_proj`` of their layer reads."""
    layers, projections = places(model)
    inputs = {n: n.replace("k_proj", "q_proj").replace("v_proj", "q_proj") for n in layers}
    decays = dict(zip(layers, np.random.default_rng(0).uniform(0.5, 2, len(layers)), strict=True))
    whole = {n: torch.arange(1, 41).float() ** -decays[s] for n, s in inputs.items()}
    return Spectrum(
        {n: values[:k] for n, values in whole.items()},
        {n: float(values.sum()) if trace is None else trace for n, values in whole.items()},
        dict.fromkeys(layers, 40), inputs, layers, projections, "covariance", META,
    )  # fmt: skip


def training_run(steps: int = 20, **changes: Any) -> TrainingRun:
    """Losses that fall as ``1 / step``, evaluated every fifth step; ``changes`` replace fields."""
    step = np.arange(1, steps + 1)
    history = pd.DataFrame(
        {
            "step": step,
            "epoch": step / steps,
            "loss": 1 + 2 / step,
            "learning_rate": 1e-4,
            "grad_norm": 1.0,
            "eval_loss": np.where(step % 5 == 0, 1.1 + 2 / step, np.nan),
        }
    )
    values = {
        "history": history,
        "module_history": pd.DataFrame(columns=list(TrainingRun.module_columns)),
        "before": {"loss": 3.21, "perplexity": 24.8, "exact_match": 0.02},
        "after": {"loss": 1.19, "perplexity": 3.29, "exact_match": 0.415},
        "ranks": {}, "scalings": {}, "frozen_a": True, "trainable_parameters": 1234, "seconds": 1.0,
        "interrupted": False, "diverged": False, "meta": META,
    }  # fmt: skip
    return TrainingRun(**values | changes)


def allocation(model: str = "2 layers", **knobs: Any) -> Allocation:
    """Of that sensitivity, at rank 8."""
    return allocate(sensitivity(model), rank=8, **knobs)


PLOTS = {
    viz.plot_spectrum: spectrum,
    viz.plot_sensitivity: sensitivity,
    viz.plot_allocation: allocation,
    viz.plot_training: training_run,
}
"""Every picture, and what makes a result for it."""


def texts(ax: Axes) -> list[str]:
    """All texts in the axes but their titles and labels; the line of details comes last."""
    return [text.get_text() for text in ax.texts]


def cells(ax: Axes) -> np.ma.MaskedArray:
    """The values of a heat map, (projections, layers)."""
    return ax.collections[0].get_array()
