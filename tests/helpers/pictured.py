"""Results made by hand, at the sizes and with the names of real models, for the tests of the pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

import viz
from tests.helpers.targets import named, target
from tlora.allocation.allocate import allocate
from tlora.allocation.allocation import Allocation
from tlora.calibration.expert_use import ExpertUse
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.explanation.attribution import Attribution, ExplainedAnswer
from tlora.explanation.interference import Interference
from tlora.explanation.measure_scales import RescaledPoint, Rescaling
from tlora.explanation.side_effects import MeasuredText, SideEffects
from tlora.models.targets import Target
from tlora.results import Meta
from tlora.subspaces.alignment import Alignment
from tlora.subspaces.gradient_capture import GradientCapture
from tlora.training.run import TrainingRun

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
    "one projection": (("o_proj",), 30),
    "one module": (("o_proj",), 1),
    "long names": (tuple(f"{'x' * 30}_{'y' * 22}_{i}_proj" for i in range(4)), 6),
}
META = Meta("models/smollm2-135m", "family_relationships", samples=5)


def targets(model: str, shape: tuple[int, int] = (576, 576)) -> dict[str, Target]:
    """The modules of a model, all of one shape."""
    projections, layers = MODELS[model]
    return named(*(target(f"layers.{layer}.{p}", layer, p, shape) for layer in range(layers) for p in projections))


def sensitivity(model: str = "2 layers") -> Sensitivity:
    """Log-normal scores of five samples."""
    modules = targets(model, (64, 48))
    generator = torch.Generator().manual_seed(0)
    scores = 1e-6 * torch.exp(1.5 * torch.randn(5, len(modules), generator=generator))
    return Sensitivity(modules, scores, META)


def expert_use(layers: int = 6, experts: int = 16, other: bool = False) -> ExpertUse:
    """Log-normal work of 16 experts per layer; on the other text the first of each layer do less."""
    generator, places = torch.Generator().manual_seed(0), [(i, j) for i in range(layers) for j in range(experts)]
    means = torch.exp(1.5 * torch.randn(len(places), generator=generator))
    work, rest = (means * (1 + 0.2 * torch.rand(5, len(places), generator=generator)) for _ in range(2))
    rest[:, ::experts] *= 0.1
    return ExpertUse(
        [f"layers.{layer}.experts" for layer, _ in places], [layer for layer, _ in places],
        [expert for _, expert in places], [3] * len(places), work, means.double(), rest if other else None, 0.95, 50,
        META, replace(META, task="code") if other else None,
    )  # fmt: skip


def spectrum(model: str = "2 layers", k: int = 40, trace: float | None = None) -> Spectrum:
    """Power laws; ``k_proj`` and ``v_proj`` read what ``q_proj`` of their layer reads."""
    modules = targets(model, (64, 40))
    inputs = {n: n.replace("k_proj", "q_proj").replace("v_proj", "q_proj") for n in modules}
    decays = dict(zip(modules, np.random.default_rng(0).uniform(0.5, 2, len(modules)), strict=True))
    whole = {n: torch.arange(1, 41).float() ** -decays[s] for n, s in inputs.items()}
    return Spectrum(
        modules, {n: values[:k] for n, values in whole.items()},
        {n: float(values.sum()) if trace is None else trace for n, values in whole.items()},
        dict.fromkeys(modules, 40), inputs, "covariance", META,
    )  # fmt: skip


def alignment(model: str = "2 layers", rank: int = 8) -> Alignment:
    """Overlaps between chance and one; ``down_proj`` and ``wo`` read inputs three times as wide."""
    modules = targets(model)
    modules |= {n: replace(t, d_in=1536) for n, t in modules.items() if t.projection.endswith(("down_proj", "wo"))}
    draws = np.random.default_rng(0).beta(2, 4, (len(modules), rank))
    return Alignment(
        modules, ("wc", "g"), rank,
        {n: torch.from_numpy(np.sort(np.arccos(np.sqrt(draw)))) for n, draw in zip(modules, draws, strict=True)},
        {n: torch.from_numpy(np.cumsum(draw) / np.arange(1, rank + 1)) for n, draw in zip(modules, draws, strict=True)},
        dict.fromkeys(modules, rank), META,
    )  # fmt: skip


SHARES = {"wc": 0.43, "w": 0.04, "c": 0.49, "wc_half": 0.1, "g": 0.91, "random": 0.014}
"""Of the kinds at rank 8, as they were found on a real task."""


def _shares(ranks: tuple[int, ...]) -> np.ndarray:
    """(kinds, ranks): what is left falls by a third when the rank doubles."""
    left = 1 - np.array(list(SHARES.values()))[:, None]
    return 1 - left ** (1 + 0.25 * np.log2(np.array(ranks) / 8))


def gradient_capture(model: str = "2 layers", ranks: tuple[int, ...] = (8, 32)) -> GradientCapture:
    """Six kinds, on five samples."""
    modules, generator = targets(model), torch.Generator().manual_seed(0)
    total = torch.rand(5, len(modules), generator=generator) + 0.5
    noise = 1 + 0.2 * torch.rand(5, len(modules), 1, 1, generator=generator)
    shares = torch.from_numpy(_shares(ranks)).float() / 1.2
    best = total.double().sum(0)[:, None] * torch.tensor([0.95 + 0.01 * i for i in range(len(ranks))])
    return GradientCapture(
        modules, list(SHARES), list(ranks), total[..., None, None] * shares * noise, total, best, 0.95, 200, META
    )


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
        "interrupted": False, "diverged": False, "meta": replace(META, recipe={"evaluated_on": "test"}),
    }  # fmt: skip
    return TrainingRun(**values | changes)


def allocation(model: str = "2 layers", **options: Any) -> Allocation:
    """Of that sensitivity, at rank 8."""
    return allocate(sensitivity(model), rank=8, **options)


def attribution(model: str = "2 layers") -> Attribution:
    """Two answers of four tokens, of which the first module did most, in one direction each."""
    modules = targets(model)
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(2):
        by_module = torch.rand(2, 4, len(modules), generator=generator, dtype=torch.float64)
        by_module[:, :, 0] *= 3
        base = -by_module.sum(2) - 0.1
        zeros = torch.full_like(base, -0.1)
        one = ExplainedAnswer(
            prompt="Set the blind.",
            answer="blind=on",
            tokens=["<s>", "Set", " the", " blind", ".\n", "blind", "=", "on", "</s>"],
            positions=[5, 6, 7, 8],
            base=base,
            start=base,
            adapter=zeros,
            ranks=torch.tensor([[5, 1, 3, 1], [1, 1, 1, 1]]),
            choices=[["a", "=", "b", "</s>"], ["blind", "=", "on", "</s>"]],
            shifts=torch.tensor([5, 1, 3, 1]),
            by_module=by_module,
            by_direction={name: by_module[0, :, n, None].float() for n, name in enumerate(modules)},
            by_token_read=torch.rand(len(modules), 4, 9, generator=generator).half(),
            switched={name: zeros - 0.2 for name in list(modules)[:10]},
            unchanged={name: torch.ones(4, dtype=torch.bool) for name in list(modules)[:10]},
            generated=["a = b", "blind=on"],
            matches=[0.0, 1.0],
            points=16,
        )
        samples.append(one)
    values = {name: torch.ones(1) for name in modules}
    ranks, switches = dict.fromkeys(modules, 1), {name: [name] for name in list(modules)[:10]}
    return Attribution(modules, ranks, values, samples, switches, META)


def interference(model: str = "2 layers") -> Interference:
    """Of adapters that add outputs of random size, at random angles."""
    modules, generator = targets(model), torch.Generator().manual_seed(0)
    shares = torch.rand(3, len(modules), generator=generator, dtype=torch.float64)
    parts = torch.randn(len(modules), 2, 2, 5, generator=generator, dtype=torch.float64)
    return Interference(
        labels=("home", "letters"),
        shapes={name: (576, 576) for name in modules},
        ranks=dict.fromkeys(modules, (8, 8)),
        grams={name: part @ part.mT for name, part in zip(modules, parts, strict=True)},
        reads=dict(zip(modules, shares[0].tolist(), strict=True)),
        writes=dict(zip(modules, shares[1].tolist(), strict=True)),
        same_a=dict.fromkeys(modules, False),
        on_tasks=True,
        meta=META,
    )


def effects() -> SideEffects:
    """Three texts of two sets."""
    samples = []
    for number, (name, shift) in enumerate((("prose", 0.0), ("prose", 0.3), ("code", 0.1))):
        tokens = ["The", " ferry", " left", ".\n", "It", " rained", "."]
        base = -torch.arange(1.0, 7.0, dtype=torch.float64)
        rise = torch.tensor([-3.0, 0.2, 0.0, -0.5, 1.0, 0.1], dtype=torch.float64) + shift
        samples.append(MeasuredText(name, number, tokens, [1, 2, 3, 4, 5, 6], base, base + rise))
    return SideEffects(samples, None, replace(META, recipe={"sets": ["prose", "code"]}))


def rescaling() -> Rescaling:
    """Nine scales and two parts left out."""
    modules = targets("2 layers")
    counts = {"task": torch.tensor([4, 5]), "code": torch.tensor([10, 12])}

    def point(label: str, kind: str, factors: dict[str, float]) -> RescaledPoint:
        t = sum(factors.values()) / len(factors)
        losses = {"task": counts["task"] * (5.5 - 5.4 * t), "code": counts["code"] * (1.2 + 0.4 * t**2)}
        return RescaledPoint(label, kind, factors, {name: each.double() for name, each in losses.items()})

    points = [point(f"scale {n / 8:.3g}", "scale", dict.fromkeys(modules, n / 8)) for n in range(9)]
    ones = dict.fromkeys(modules, 1.0)
    points += [point(f"without {name}", "part", ones | {name: 0.0}) for name in list(modules)[:2]]
    points.append(point("without 2 of 14 modules", "left out", ones | dict.fromkeys(list(modules)[:2], 0.0)))
    base = points[0].losses
    return Rescaling(modules, dict.fromkeys(modules, 4), ones, counts, base, points, 0.1, {}, {}, {}, META)


PLOTS = {
    viz.plot_spectrum: spectrum,
    viz.plot_sensitivity: sensitivity,
    viz.plot_expert_use: expert_use,
    viz.plot_alignment: alignment,
    viz.plot_allocation: allocation,
    viz.plot_training: training_run,
    viz.plot_attribution: attribution,
    viz.plot_interference: interference,
    viz.plot_side_effects: effects,
    viz.plot_rescaling: rescaling,
}
"""Every picture, and what makes a result for it."""


def texts(ax: Axes) -> list[str]:
    """All texts in the axes but their titles and labels; the line of details comes last."""
    return [text.get_text() for text in ax.texts]


def cells(ax: Axes) -> np.ma.MaskedArray:
    """The values of a heat map, (projections, layers)."""
    return ax.collections[0].get_array()
