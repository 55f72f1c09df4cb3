"""The numbers of the three scenes, by NumPy and PyTorch: `viz/browser/tests/scenes.json`.

The browser code is tested with this file; ``python -m tests.helpers.scenes`` writes it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tlora.numerics.apportionment import apportion, apportion_captured

FILE = Path(__file__).parents[2] / "viz" / "browser" / "tests" / "scenes.json"
SEEDS = range(10)
ANGLES = (0.0, 0.4, 1.1, 2.5)
DIMENSIONS = (2, 48, 576)
LAYER_STEPS, LAYER_RATE, RATES = 50, 0.3, (0.1, 0.5, 1.0)
NETWORK_STEPS, NETWORK_RATE, WIDTH, BUDGET = 120, 0.1, 8, 8
TASKS = {
    "large": {"ranks": [0, 2, 5, 0], "sizes": [0, 0.6, 1.2, 0], "gains": [0.2, 0.6, 1.2, 0.2]},
    "small": {"ranks": [0, 1, 0, 6], "sizes": [0, 0.5, 0, 1.2], "gains": [0.3, 1.2, 0.5, 0.2]},
}


class Draws:
    """mulberry32 on integers of 32 bits, and normal numbers by Box and Muller."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def uniform(self) -> float:
        word = 0xFFFFFFFF
        self.state = (self.state + 0x6D2B79F5) & word
        bits = ((self.state ^ (self.state >> 15)) * (self.state | 1)) & word
        bits ^= (bits + (((bits ^ (bits >> 7)) * (bits | 61)) & word)) & word
        return ((bits ^ (bits >> 14)) & word) / 2**32

    def normals(self, rows: int, columns: int) -> Tensor:
        values = [
            math.sqrt(-2 * math.log(1 - self.uniform())) * math.cos(2 * math.pi * self.uniform())
            for _ in range(rows * columns)
        ]
        return torch.tensor(values, dtype=torch.float64).reshape(rows, columns)


def unit(angle: float) -> Tensor:
    return torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)


def leading_angle(matrix: Tensor) -> float:
    x, y = np.linalg.svd(matrix.numpy())[2][0]
    return math.atan2(y, x) % math.pi


def reads(seed: int) -> dict[str, Any]:
    """Scene 1: what directions catch of the inputs, the outputs and the gradient."""
    draws = Draws(seed)
    along = math.pi * draws.uniform()
    long, wide, stretched = unit(along), unit(along + math.pi / 2), along + 0.9
    rows = draws.normals(160, 2) @ torch.stack([1.3 * long, 0.75 * wide]) + 1.9 * wide
    left = math.pi * draws.uniform()
    weight = torch.outer(unit(left), 2 * unit(stretched))
    weight = weight + torch.outer(unit(left + math.pi / 2), unit(stretched + math.pi / 2) / 2)
    change = torch.outer(unit(math.pi * draws.uniform()), unit(along - 0.25))
    targets = rows @ (weight + change).T + 0.1 * draws.normals(160, 2)
    random = math.pi * draws.uniform()
    trained = weight.clone().requires_grad_()
    (0.5 * (rows @ trained.T - targets).square().sum(1).mean()).backward()
    gradient = trained.grad
    c, second = torch.from_numpy(np.cov(rows.T.numpy(), bias=True)), rows.T @ rows / len(rows)
    angles = {"principal": leading_angle(c), "wc": leading_angle(weight @ c), "gradient": leading_angle(gradient)}
    centered = rows - rows.mean(0)
    return {
        "seed": seed,
        "angles": angles,
        "random": random,
        "uncentered": {"principal": leading_angle(second), "wc": leading_angle(weight @ second)},
        "shares": [shares(centered, weight, gradient, angle) for angle in (*ANGLES, *angles.values())],
        "by_chance": [by_chance(seed, dimension) for dimension in DIMENSIONS],
    }


def shares(inputs: Tensor, weight: Tensor, gradient: Tensor, angle: float) -> dict[str, float]:
    """Of centered inputs; that of the outputs is what a regression on the one number explains."""
    number, outputs = inputs @ unit(angle), inputs @ weight.T
    fit = np.linalg.lstsq(number[:, None].numpy(), outputs.numpy(), rcond=None)[0]
    rest = outputs - number[:, None] @ torch.from_numpy(fit)
    return {
        "input": float(number.square().sum() / inputs.square().sum()),
        "output": float(1 - rest.square().sum() / outputs.square().sum()),
        "gradient": float((gradient @ unit(angle)).square().sum() / gradient.square().sum()),
    }


def by_chance(seed: int, dimension: int) -> dict[str, float]:
    """What 200 random directions catch of a fixed one: the mean and the most."""
    squares = torch.nn.functional.normalize(Draws(seed).normals(200, dimension), dim=1)[:, 0].square()
    return {"dimension": dimension, "mean": float(squares.mean()), "most": float(squares.max())}


def layer(seed: int) -> dict[str, Any]:
    """Scene 2: losses of one layer by method, step and rate, and the lowest that a frozen A allows."""
    draws = Draws(seed)
    scales = 1.5 * 3.0 ** (-torch.arange(12, dtype=torch.float64) / 11)
    rows = draws.normals(64, 12) * scales
    change = draws.normals(8, 2) @ draws.normals(2, 12)
    change = change / (rows @ change.T).square().sum(1).mean().mul(0.5).sqrt()
    uniform = torch.tensor([draws.uniform() for _ in range(24)], dtype=torch.float64).reshape(2, 12)
    random = (2 * uniform - 1) / math.sqrt(12)
    weight = torch.zeros(8, 12, dtype=torch.float64, requires_grad=True)
    layer_loss(rows, weight, change).backward()
    leading = torch.from_numpy(np.linalg.svd(weight.grad.numpy())[2][:2].copy())
    peaks = leading.gather(1, leading.abs().argmax(1, keepdim=True)).sign()
    size = rows.square().sum(1).mean() / 36 / (rows @ leading.T).square().mean(0)
    directions = {"random": random, "gradient": leading * peaks * size.sqrt()[:, None]}
    methods = ("random", "gradient", "lora", "full")
    return {
        "seed": seed,
        "floors": {name: floor(rows, a, change) for name, a in directions.items()},
        "losses": {m: trained(rows, change, directions.get(m, random), m, LAYER_RATE)[::10] for m in methods},
        "by_rate": {m: [trained(rows, change, directions.get(m, random), m, r)[-1] for r in RATES] for m in methods},
    }


def layer_loss(rows: Tensor, update: Tensor, change: Tensor) -> Tensor:
    return 0.5 * (rows @ (update - change).T).square().sum(1).mean()


def floor(rows: Tensor, a: Tensor, change: Tensor) -> float:
    seen, wanted = (rows @ a.T).numpy(), (rows @ change.T).numpy()
    rest = wanted - seen @ np.linalg.lstsq(seen, wanted, rcond=None)[0]
    return float(0.5 * (rest**2).sum(1).mean())


def trained(rows: Tensor, change: Tensor, a: Tensor, method: str, rate: float) -> list[float | None]:
    """Losses of the steps of gradient descent, by autograd; None of one that is not finite."""
    a, b = a.clone(), torch.zeros(8, 2, dtype=torch.float64)
    full, losses = torch.zeros(8, 12, dtype=torch.float64), []
    moving = {"full": [full], "lora": [a, b]}.get(method, [b])
    for parameter in moving:
        parameter.requires_grad_()
    for _ in range(LAYER_STEPS + 1):
        loss = layer_loss(rows, full if method == "full" else b @ a, change)
        losses.append(loss.item() if loss < 1e6 else None)
        gradients = torch.autograd.grad(loss, moving)
        with torch.no_grad():
            for parameter, gradient in zip(moving, gradients, strict=True):
                parameter -= rate * gradient
    return losses


def network(seed: int, name: str) -> dict[str, Any]:
    """Scene 3: scores of four layers, ranks by three rules, and the losses of training with them."""
    draws, task = Draws(seed), TASKS[name]
    weights = [gain / math.sqrt(WIDTH) * draws.normals(WIDTH, WIDTH) for gain in task["gains"]]
    inputs, changed = draws.normals(64, WIDTH), []
    for weight, rank, size in zip(weights, task["ranks"], task["sizes"], strict=True):
        raw = draws.normals(WIDTH, rank) @ draws.normals(rank, WIDTH)
        changed.append(weight + (size * raw / raw.norm() if rank else 0))
    targets, parameters = forward(changed, inputs), [weight.clone().requires_grad_() for weight in weights]
    scores = np.zeros(4)
    for row, target in zip(inputs, targets, strict=True):
        gradients = torch.autograd.grad(network_loss(parameters, row[None], target[None]), parameters)
        scores += [(w * g).abs().mean().item() / len(inputs) for w, g in zip(weights, gradients, strict=True)]
    start = network_loss(parameters, inputs, targets)
    decompositions = [np.linalg.svd(g.numpy()) for g in torch.autograd.grad(start, parameters)]
    captured = [(values**2).tolist() for _, values, _ in decompositions]
    limits = ([0] * 4, [WIDTH] * 4, [1] * 4)
    rules = {
        "uniform": apportion([1.0] * 4, BUDGET, *limits),
        "sensitivity": apportion(scores.tolist(), BUDGET, *limits),
        "captured": apportion_captured(captured, BUDGET, *limits),
        "class": [8, 0, 0, 0],
    }
    losses = {}
    for rule, ranks in rules.items():
        a = [torch.from_numpy(v[:r].copy()) for (_, _, v), r in zip(decompositions, ranks, strict=True)]
        losses[rule] = network_losses(weights, inputs, targets, a)
    return {
        "seed": seed,
        "task": name,
        "scores": scores.tolist(),
        "captured": captured,
        "ranks": rules,
        "losses": losses,
    }


def forward(weights: list[Tensor], inputs: Tensor) -> Tensor:
    for weight in weights:
        inputs = inputs + torch.tanh(inputs @ weight.T)
    return inputs


def network_loss(weights: list[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (forward(weights, inputs) - targets).square().sum(1).mean()


def network_losses(weights: list[Tensor], inputs: Tensor, targets: Tensor, a: list[Tensor]) -> list[float]:
    """Every 40th loss, as a share of the first."""
    b = [torch.zeros(WIDTH, len(rows), dtype=torch.float64, requires_grad=True) for rows in a]
    losses = []
    for _ in range(NETWORK_STEPS + 1):
        adapted = [weight + columns @ rows for weight, columns, rows in zip(weights, b, a, strict=True)]
        loss = network_loss(adapted, inputs, targets)
        losses.append(loss.item())
        with torch.no_grad():
            for columns, gradient in zip(b, torch.autograd.grad(loss, b), strict=True):
                columns -= NETWORK_RATE * gradient
    return [loss / losses[0] for loss in losses[::40]]


def numbers() -> dict[str, Any]:
    """All that is compared."""
    return {
        "angles": ANGLES,
        "rates": RATES,
        "reads": [reads(seed) for seed in SEEDS],
        "layer": [layer(seed) for seed in SEEDS],
        "network": [network(seed, name) for name in TASKS for seed in SEEDS],
    }


def rounded(value: Any) -> Any:
    """Ten digits: more than is compared, and the same on every machine."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.10g}") if isinstance(value, float) else value


if __name__ == "__main__":
    FILE.write_text(json.dumps(rounded(numbers()), separators=(",", ":")) + "\n", "utf-8")
