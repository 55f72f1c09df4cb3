"""Whether the best learning rate can be told before training, by the curvature at the start or by a range test.

    python -m benchmarks.quality.rate_rule              # cells not in the store yet; can be stopped
    python -m benchmarks.quality.rate_rule --seeds 0
    python -m benchmarks.quality.rate_rule --table      # write the tables of the store to the page

The rules, how their constants are fitted, and when one wins are on the page, docs/results/rate_rule.md, which was
written before anything was measured. A cell is a recipe on a task with a seed; cells are kept in
``benchmarks/results/rate_rule.jsonl``, and those that are there are not measured again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.lab.methods import Cache, Job, choose_method, seeded_adapt
from benchmarks.lab.run import Settings, load_data, sample_training_rows
from benchmarks.lab.store import Store, key_text
from benchmarks.quality import directions, pilot
from benchmarks.quality.best_rates import ARM, best_rates, newest_keys
from benchmarks.quality.pages import RESAMPLES, markdown, publish
from tlora.adapters.lora_layers import lora_parameters
from tlora.models.forward import IGNORED
from tlora.models.loading import load_model
from tlora.numerics.statistics import interval
from tlora.recipes import Recipe

STORE = Store("benchmarks/results/rate_rule.jsonl")
PAGE = Path("docs/results/rate_rule.md")
SEEDS = (0, 1)
BATCHES = 4
"""Batches of calibration samples, each as large as in training, on which everything is measured."""
PRODUCTS, CHANGE = 10, 0.02
"""A power iteration ends after so many products, or when the curvature changes by less than this part."""
STEP = 1e-2
"""Length of the step of `B` by which logits are differentiated."""
EPSILON = 1e-8
"""As in AdamW."""
TEST_RATES = np.geomspace(1e-4, 1, 20)
"""The rising rates of the range test."""
CHATS, REVIEWS = ("chain_sum", "family_relationships", "letter_counting", "syllogism"), ("rotten_tomatoes", "imdb")
LORA, FROZEN = FAMILIES = ("LoRA", "frozen A")
BY_RECIPE = "constant by recipe"
"""The row of a rule that was not written down before: a constant for each recipe and LoRA's rank."""
Batches = Sequence[Mapping[str, Tensor]]


# --- Cells ---


@dataclass(frozen=True)
class Arm:
    """A recipe on a task of a study that stored its best rate."""

    study: str
    task: str
    method: str | Recipe
    rank: int = 8

    @property
    def name(self) -> str:
        """Name in the store."""
        return self.method if isinstance(self.method, str) else self.method.name

    @property
    def family(self) -> str:
        """Whether `A` is trained or frozen."""
        return LORA if self.method == "lora" else FROZEN

    def key(self, seed: int) -> dict[str, Any]:
        """Return the key of a cell."""
        return {"study": self.study, "task": self.task, "method": self.name, "rank": self.rank, "seed": seed}


ARMS = [
    *(
        Arm("directions", task, arm.method, arm.rank)
        for task in directions.TASKS
        for name, arm in directions.ARMS.items()
        if name != directions.CAPTURED  # it ran at one rate
    ),
    *(Arm("comparison", task, method) for task in CHATS for method in ("lora", pilot.EARLIER["score"])),
    *(Arm("pilot", "cipher", method) for method in ("lora", *map(pilot.frozen_recipe, ("random", "wc", "g")))),
    *(Arm("pilot", task, method) for task in REVIEWS for method in ("lora", pilot.EARLIER["score"])),
]


def measure(arm: Arm, seed: int, cache: Cache) -> None:
    """Measure a cell and store it, unless it is there."""
    if key_text(arm.key(seed)) in STORE.by_key():
        return
    started = time.perf_counter()
    trained = newest_keys()[arm.study, arm.task]
    settings = Settings(*(trained[part] for part in ("model", "steps", "batch_size", "samples", "dtype")), device="cpu")
    task = cache(("task", trained["data"]), partial(load_data, settings, arm.task, trained["data"]))
    task = sample_training_rows(task, settings, seed)
    model, _ = load_model(settings.model, num_labels=task.num_labels, seed=seed, dtype=settings.dtype, device="cpu")
    job = Job(model, task, arm.rank, seed, settings.steps, settings.samples, cache)
    adapted = seeded_adapt(choose_method(arm.method), job).eval()
    batches = task.calibration(BATCHES * settings.batch_size, settings.batch_size)
    plain, preconditioned = curvatures(adapted, batches)
    record = {"key": arm.key(seed), "curvature": plain, "adam_curvature": preconditioned}
    STORE.append(record | {"losses": range_test(adapted, batches), "seconds": round(time.perf_counter() - started, 1)})
    print(*arm.key(seed).values(), f"{time.perf_counter() - started:.0f} s", flush=True)


# --- Curvature ---


def curvatures(adapted: nn.Module, batches: Batches) -> tuple[list[float], list[float]]:
    """Return the largest curvature in `B`, plain and as AdamW scales `B`, after each product of a power iteration.

    The curvature is that of the Gauss-Newton matrix ``G`` of the mean loss of the batches, in the `B` of all modules.
    AdamW divides a gradient by ``p = sqrt(v) + 1e-8``; with ``v`` the mean square of the gradients of the batches, its
    curvature is the largest eigenvalue of ``P^(-1/2) G P^(-1/2)``.
    """
    parameters = [b for _, b in lora_parameters(adapted).values()]
    gradients = torch.stack([flat_gradient(adapted(**batch).loss, parameters) for batch in batches])
    start, scale = gradients.mean(0), (gradients.square().mean(0).sqrt() + EPSILON).sqrt()

    def product(vector: Tensor) -> Tensor:
        return gauss_newton_product(adapted, batches, parameters, vector)

    return power_iteration(product, start), power_iteration(lambda x: product(x / scale) / scale, start / scale)


def power_iteration(product: Callable[[Tensor], Tensor], start: Tensor) -> list[float]:
    """Return the Rayleigh quotient of each iterate: it rises to the largest eigenvalue of a semidefinite matrix."""
    values: list[float] = []
    while len(values) < PRODUCTS:
        vector = start / start.norm()
        start = product(vector)
        values.append(float(vector @ start))
        if len(values) > 1 and abs(values[-1] - values[-2]) < CHANGE * values[-1]:
            break
    return values


def gauss_newton_product(model: nn.Module, batches: Batches, parameters: list[nn.Parameter], vector: Tensor) -> Tensor:
    """Return ``J^T H J v``, the mean over batches: ``J`` of the logits, ``H`` of the mean cross-entropy in them.

    ``J v`` is a central difference, since fused attention has no forward derivative.
    """
    step = STEP / vector.norm()
    products = []
    for batch in batches:
        with torch.no_grad():
            ahead, behind = (shifted_logits(model, batch, parameters, sign * step * vector) for sign in (1, -1))
        change = (ahead - behind) / (2 * step)
        logits = label_logits(model, batch)
        p = logits.detach().softmax(-1)
        curved = p * (change - (p * change).sum(-1, keepdim=True)) / len(logits)
        products.append(flat_gradient(logits, parameters, curved))
    return torch.stack(products).mean(0)


def shifted_logits(
    model: nn.Module, batch: Mapping[str, Tensor], parameters: list[nn.Parameter], shift: Tensor
) -> Tensor:
    """Return the logits with the parameters moved by a vector."""
    before = [parameter.clone() for parameter in parameters]
    for parameter, part in zip(parameters, shift.split([p.numel() for p in parameters]), strict=True):
        parameter += part.view_as(parameter)
    try:
        return label_logits(model, batch)
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)


def label_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the logits from which the loss is computed, (N, classes): one row per labeled token or sample."""
    labels = batch["labels"]
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    return logits if labels.dim() == 1 else logits[:, :-1][labels[:, 1:] != IGNORED]


def flat_gradient(output: Tensor, parameters: list[nn.Parameter], weights: Tensor | None = None) -> Tensor:
    """Return the gradient of an output, weighted if it is no scalar, as one vector."""
    return torch.cat([part.flatten() for part in torch.autograd.grad(output, parameters, weights)])


# --- The range test ---


def range_test(adapted: nn.Module, batches: Batches) -> list[float]:
    """Train with the rising rates, and return the loss of each step's batch before the step.

    It ends when a loss is not finite. As in training: AdamW without weight decay, gradients clipped at norm 1.
    """
    parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    losses: list[float] = []
    for step, rate in enumerate(TEST_RATES):
        loss = adapted(**batches[step % len(batches)]).loss
        if not math.isfinite(loss.item()):
            break
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
    return losses


def range_rate(losses: list[float]) -> float:
    """Return the rate of the range test at which the mean loss of the last `BATCHES` steps was lowest."""
    means = np.convolve(losses, np.ones(BATCHES) / BATCHES, "valid")
    return float(TEST_RATES[int(means.argmin()) + BATCHES - 1])


# --- The rules ---

RULES: dict[str, str | None] = {
    "constant": None,
    "curvature": "curvature",
    "AdamW's curvature": "adam_curvature",
    "range test": "range",
}
"""By its name, the measurement that a rule multiplies by its constant; a constant rate measures nothing."""


def measurements() -> pd.DataFrame:
    """Return one row per arm that has a cell: its best rate, and what a rule multiplies, the geometric mean of seeds.

    The rows are in the order of `ARMS`. ``group`` is the task, whose arms are left out together; the two ciphers are
    one. ``recipe`` is a row of the table in docs/howto/learning_rate.md: LoRA of a rank, or a frozen `A` with uniform
    ranks or not.
    """
    numbers = ["curvature", "adam_curvature", "range"]
    rows = [
        record["key"] | {"range": range_rate(record["losses"])} | {name: 1 / record[name][-1] for name in numbers[:2]}
        for record in STORE.by_key().values()
    ]
    cells = pd.DataFrame(rows, columns=[*ARM, "seed", *numbers]).astype({"rank": int, **dict.fromkeys(numbers, float)})
    means = np.exp(np.log(cells.set_index(ARM)[numbers]).groupby(ARM, sort=False).mean()).reset_index()
    families = pd.DataFrame([arm.key(0) | {"family": arm.family} for arm in ARMS]).drop(columns="seed")
    table = families.merge(means).merge(best_rates()[[*ARM, "best"]])
    by_sensitivity = np.where(table["method"] == "score", "by sensitivity", "uniform")
    recipe = table["family"] + " " + np.where(table["family"] == LORA, table["rank"].astype(str), by_sensitivity)
    return table.assign(group=table["task"].str.removeprefix("second_"), recipe=recipe)


def doublings_off(table: pd.DataFrame, measured: str | None, by: str = "family", only: str | None = None) -> pd.Series:
    """Return log2 of the suggested over the best rate of each arm.

    The rate suggested is a constant times what is measured. The constant is the median, over the arms on other tasks
    with the same value (or the value ``only``) in the column ``by``, of the best rate over what is measured there.
    """
    measure = pd.Series(1.0, table.index) if measured is None else table[measured]
    ratio, errors = np.log2(table["best"] / measure), pd.Series(np.nan, table.index)
    for place, row in table.iterrows():
        others = (table[by] == (only or row[by])) & (table["group"] != row["group"])
        errors[place] = ratio[others].median() - ratio[place]
    return errors


def is_hit(errors: pd.Series) -> pd.Series:
    """Whether a suggested rate is within a factor of two of the best."""
    return errors.abs() <= 1 + 1e-9


def judge(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per rule, for the constant of LoRA applied to all arms, and for a constant by recipe.

    ``LoRA`` and ``frozen A`` are shares of arms that are hit, ``off`` the mean size of `doublings_off`, ``difference``
    the share of hits minus that of the constant, with ``low`` and ``high`` over resampled tasks, and ``wins``.
    """
    errors = {rule: doublings_off(table, measured) for rule, measured in RULES.items()}
    errors["LoRA's rate for all"] = doublings_off(table, None, only=LORA)
    errors[BY_RECIPE] = doublings_off(table, None, by="recipe")
    constant = is_hit(errors["constant"])
    groups = table["group"].unique()
    draws = np.random.default_rng(0).integers(len(groups), size=(RESAMPLES, len(groups)))
    rows = []
    for rule, error in errors.items():
        hits, by_group = is_hit(error), table["group"]
        gained = (hits.astype(int) - constant.astype(int)).groupby(by_group).sum().loc[groups].to_numpy()
        sizes = by_group.value_counts().loc[groups].to_numpy()
        low, high = interval((gained[draws].sum(1) / sizes[draws].sum(1))[:, None], 0.95)
        shares = {family: hits[table["family"] == family].mean() for family in FAMILIES}
        is_level = all(share >= constant[table["family"] == family].mean() for family, share in shares.items())
        rows.append(
            {"rule": rule, **shares, "off": error.abs().mean(), "difference": gained.sum() / len(table),
             "low": low[0], "high": high[0], "wins": rule in list(RULES)[1:] and is_level and low[0] > 0}
        )  # fmt: skip
    return pd.DataFrame(rows)


# --- On the page ---


def missing_cells() -> str:
    """Say how many cells there are to be, and how many of them are missing."""
    there = STORE.by_key()
    missing = sum(key_text(arm.key(seed)) not in there for arm in ARMS for seed in SEEDS)
    planned = len(ARMS) * len(SEEDS)
    return f"{planned} cells are planned: {len(ARMS)} arms with {len(SEEDS)} seeds. {missing} of them are missing."


def rules_table() -> str:
    """How often each rule was within a factor of two of the best rate."""
    table = measurements()
    if table.groupby("family")["group"].nunique().reindex(FAMILIES, fill_value=0).min() < 2:
        return "Nothing is measured yet."
    counts = table["family"].value_counts()
    lines = []
    for row in judge(table).to_dict("records"):
        hits = [f"{row[family] * counts[family]:.0f} of {counts[family]}" for family in FAMILIES]
        points = [f"{100 * row[name]:+.0f}" for name in ("difference", "low", "high")]
        gained = "" if row["rule"] == "constant" else "{} ({} to {})".format(*points)
        verdict = "" if row["rule"] not in list(RULES)[1:] else "wins" if row["wins"] else "does not win"
        lines.append([row["rule"], *hits, f"{row['off']:.2f}", gained, verdict])
    heads = ["rule", *FAMILIES, "doublings off", "hits minus the constant's, points (95 %)", ""]
    return markdown(heads, lines)


def arms_table() -> str:
    """Every arm with its best rate and the rate that each rule suggests."""
    table = measurements()
    if table.empty:
        return "Nothing is measured yet."
    rates = {rule: table["best"] * 2 ** doublings_off(table, measured) for rule, measured in RULES.items()}
    lines = []
    for row in table.itertuples():
        measured = [f"{1 / value:.3g}" for value in (row.curvature, row.adam_curvature)]
        suggested = [f"{rates[rule][row.Index]:.2g}" for rule in RULES]
        lines.append([row.study, row.task, row.method, f"{row.rank}", f"{row.best:g}", *measured, *suggested])
    return markdown([*ARM, "best rate", "curvature", "AdamW's curvature", *(f"by {rule}" for rule in RULES)], lines)


TABLES = {"missing": missing_cells, "rules": rules_table, "arms": arms_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true", help="measure nothing, and write the tables to the page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        for seed in options.seeds:
            for study, task in dict.fromkeys((arm.study, arm.task) for arm in ARMS):
                cache = Cache()
                for arm in ARMS:
                    if (arm.study, arm.task) == (study, task):
                        measure(arm, seed, cache)
    publish(PAGE, "rate_rule", TABLES)


if __name__ == "__main__":
    main()
