"""What quantization leaves of an adapter: the share of its update that survives, by format."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tlora.adapters.adapter import LoraAdapter
from tlora.adapters.attach import copy_base
from tlora.adapters.files import read_training_record, validate_adapter
from tlora.adapters.hub import adapter_folder
from tlora.adapters.load_adapter import load_adapter, named_base, saved_classes
from tlora.adapters.lora_layers import adapter_layers
from tlora.adapters.peft_config import refuse_experts
from tlora.models.loading import load_model
from tlora.models.stored_weights import weight_reader
from tlora.models.targets import target_modules
from tlora.models.weights import (
    SIMILARITY_THRESHOLD,
    copy_sharing_weights,
    fingerprint,
    fingerprint_similarity,
    get_base_model,
    model_name,
    weight,
)
from tlora.numerics.quantization import (
    LOST,
    NF4_BLOCK,
    QUANTIZATION_FORMATS,
    few_levels_share,
    fits_blocks,
    round_to_format,
    surviving_product,
)
from tlora.numerics.statistics import ratio_interval
from tlora.results import Meta, Result
from tlora.tasks.evaluation import losses_of_samples
from tlora.tasks.task import Task
from tlora.utils.packages import require
from tlora.utils.progress import progress_bar
from tlora.utils.text import count_text
from tlora.utils.validation import check_arguments, require_positive_int

WHOLE, TOO_MUCH = 0.9, 1.2
"""Shares from which an update counts as whole, and above which rounding adds to it."""

K_QUANTS = "gguf cannot write K-quants"
_CONFIDENCE = 0.95
_ROWS = 256


@dataclass(frozen=True, repr=False, eq=False)
class Survival(Result):
    """What quantization leaves of an adapter, by format; from `tlora.survival`.

    Attributes
    ----------
    sums : DataFrame
        One row per module and format: ``format``, ``module``, and sums over the measured rows of its weight:
        ``product`` (``<Q(W + U) - Q(W), U>``), ``update`` (``|U|^2``), ``weight`` (``|W|^2``), ``error``
        (``|Q(W) - W|^2``) and ``few_levels``, the share of blocks of 32 weights with at most 16 values.
    losses : dict of dict of float
        With a task, by format: the loss in nats of the ``base``, the base ``quantized``, the ``adapter`` on the base as
        it is, the adapter ``beside`` the quantized base, and ``merged`` into the base and then quantized.
    unmeasured : dict of str
        Formats that were not measured, and why.
    meta : Meta
        The base, the task, and its number of samples.

    Examples
    --------
    >>> survival = tlora.survival("adapter", "base", formats=["q8_0"])
    >>> survival.to_frame()[["format", "modules", "on_grid"]].shape
    (1, 3)
    >>> survival
    Survival(...)
    """

    sums: pd.DataFrame
    losses: dict[str, dict[str, float]]
    unmeasured: dict[str, str]
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "format": "name of the format",
        "modules": "number of measured modules; a width that is no multiple of 32 is not quantized by GGUF formats",
        "share": "share of the update that survives: <Q(W + U) - Q(W), U> / |U|^2, over all modules",
        "low": "lower end of its 95 % interval over modules",
        "high": "upper end",
        "grid_distance": "|Q(W) - W| / |W|: the change of the base by rounding",
        "on_grid": "whether the base lies on the grid of the format already",
        "update_size": "|U| / |W|",
        "base_loss": "loss of the base, nats; NaN without a task",
        "quantized_loss": "loss of the quantized base",
        "adapter_loss": "loss of the adapter on the base as it is",
        "beside_loss": "loss of the adapter beside the quantized base",
        "merged_loss": "loss after merging and then quantizing",
    }
    module_columns: ClassVar[dict[str, str]] = {
        "format": columns["format"],
        "module": "full module name",
        "share": "share of its update that survives, NaN if it has none",
        "grid_distance": columns["grid_distance"],
        "update_size": columns["update_size"],
    }

    @property
    def formats(self) -> list[str]:
        """The measured formats, in the order in which they were asked for."""
        return list(dict.fromkeys(self.sums["format"]))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per format; see ``columns``."""
        rows = []
        for format, sums in self.sums.groupby("format", sort=False):
            product, update = sums["product"].to_numpy(), sums["update"].to_numpy()
            low, high = ratio_interval(product, update, _CONFIDENCE)
            distance = math.sqrt(sums["error"].sum() / sums["weight"].sum())
            losses = self.losses.get(str(format), {})
            rows.append(
                {
                    "format": format,
                    "modules": len(sums),
                    "share": product.sum() / update.sum(),
                    "low": low,
                    "high": high,
                    "grid_distance": distance,
                    "on_grid": distance < QUANTIZATION_FORMATS[str(format)].largest_grid_distance,
                    "update_size": math.sqrt(update.sum() / sums["weight"].sum()),
                }
                | {f"{name}_loss": losses.get(name, math.nan) for name in _ORDERS}
            )
        return pd.DataFrame(rows)[list(self.columns)]

    def modules(self) -> pd.DataFrame:
        """Return one row per module and format; see ``module_columns``."""
        update, weights = self.sums["update"].where(self.sums["update"] > 0), self.sums["weight"]
        ratios = {
            "share": self.sums["product"] / update,
            "grid_distance": np.sqrt(self.sums["error"] / weights),
            "update_size": np.sqrt(self.sums["update"] / weights),
        }
        return self.sums[["format", "module"]].assign(**ratios)[list(self.module_columns)]

    def finding(self, format: str) -> str:
        """Say in one or two sentences what a format leaves of the adapter, and what to do.

        Parameters
        ----------
        format : str
            One of ``formats``.

        Returns
        -------
        str
        """
        row, name = self.to_frame().set_index("format").loc[format], format.upper()
        if row["share"] < LOST:
            on_grid = f": this base is on the {name} grid already" if row["on_grid"] else f" in {name}"
            kept = self.to_frame().query(f"{WHOLE} <= share <= {TOO_MUCH} and format != @format")
            kept = kept[[QUANTIZATION_FORMATS[one].bits > 4 for one in kept["format"]]]
            others = [f"{one.format.upper()} ({one.share:.1%})" for one in kept.itertuples()]
            stored = f", or store the merged model in {others[0]}" if others else ""
            ways = f"Keep the adapter beside it{',' if stored else ' or'} merge into the unquantized base{stored}"
            return f"{row['share']:.0%} of the update survives{on_grid}. {ways}"
        lost = row["merged_loss"] - row["adapter_loss"]
        known = not math.isnan(lost)
        nats = f"{lost:+.2g} nats on {self.meta.samples} rows" if known else "measure it with task="
        if row["share"] > TOO_MUCH or self._is_on_another_grid(format, row["on_grid"]):
            return f"The base's weights are rounded a second time, and that, not the update, is what is lost: {nats}"
        share = "All" if row["share"] >= WHOLE else f"{row['share']:.0%}"
        return f"{share} of the update survives; what you lose is what {name} costs the base: {nats}"

    def _is_on_another_grid(self, format: str, on_grid: bool) -> bool:
        """Whether the base has the few values of four bits, and the format is another one of four bits."""
        sums = self.sums[self.sums["format"] == format]
        few = np.average(sums["few_levels"], weights=sums["weight"])
        return bool(few > 0.5 and not on_grid and QUANTIZATION_FORMATS[format].bits == 4)

    @property
    def headline(self) -> str:
        """The finding for the format that leaves least."""
        worst = self.to_frame().nsmallest(1, "share")["format"].iloc[0]
        return f"{worst.upper()}: {self.finding(worst)}"

    def _summary(self) -> str:
        shares = ", ".join(f"{row.format.upper()} {row.share:.3g}" for row in self.to_frame().itertuples())
        modules = count_text(self.sums["module"].nunique(), "module")
        return f"{modules} of {self.meta.model}, share of the update that survives: {shares}"


_ORDERS = ("base", "quantized", "adapter", "beside", "merged")


def survival(
    adapter: str | os.PathLike[str] | PeftModel,
    base: nn.Module | str | os.PathLike[str] | None = None,
    formats: Sequence[str] | None = None,
    task: Task | None = None,
    *,
    rows: int | None = _ROWS,
    limit: int | None = 32,
    progress: bool = True,
) -> Survival:
    """Measure how much of an adapter is left when it is merged into its base and the result is quantized.

    Parameters
    ----------
    adapter : path-like, str or peft.PeftModel
        A LoRA adapter: its folder, its name on the hub, or a model with one active adapter. It is only read.
    base : transformers.PreTrainedModel, path-like or str, optional
        The base: a model, or a name as `load_model` takes it; by default the one that the adapter names, or that of the
        ``PeftModel``. Of a saved base in safetensors files one weight at a time is read.
    formats : sequence of str, optional
        ``"q8_0"``, ``"q5_0"``, ``"q4_1"``, ``"q4_0"`` (extra ``gguf``) and ``"nf4"`` (bitsandbytes, blocks of 64); by
        default all that are installed. K-quants are not measured, since ``gguf`` cannot write them.
    task : Task, optional
        Also measure losses on its test samples: of the base, the quantized base, the adapter, the adapter beside the
        quantized base, and merged and then quantized. The base is then loaded, with a second copy of its linear layers.
    rows : int, optional
        Most rows of each weight to measure, evenly spaced; all if None.
    limit : int, optional
        Most test samples, drawn with the task's seed; all if None.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Survival

    Raises
    ------
    ValueError
        If there is no adapter that is plain LoRA, it changes nothing, the base is another one, a format is unknown, or
        no module has a width that the formats take.
    ModuleNotFoundError
        If a format was asked for whose package is not installed.

    Notes
    -----
    With ``Q`` the rounding, ``W`` the weight and ``U`` the update, the share that survives is
    ``<Q(W + U) - Q(W), U> / |U|^2``. It is about 1 if ``W`` lies anywhere between grid points, since rounding then acts
    as a dither, and near 0 if ``W`` lies on the grid and ``U`` is smaller than half a step. Only linear layers are
    rounded; embeddings and heads stay as they are.

    Examples
    --------
    >>> survival = tlora.survival("adapter", "base", formats=["q8_0", "q4_0"])
    >>> survival.formats
    ['q8_0', 'q4_0']
    >>> bool(survival.modules()["share"].notna().all())
    True
    """
    check_arguments(survival, locals())
    chosen, unmeasured = _choose_formats(formats)
    if rows is not None:
        require_positive_int(rows, "rows")
    if isinstance(adapter, PeftModel) and base is not None:
        raise ValueError("base: the adapter is on a model already, which is its base: leave base out")
    lora = LoraAdapter.read(adapter, "survival")
    refuse_experts(lora.parameters, "survival")
    source, where = (adapter, {}) if isinstance(adapter, PeftModel) else _base_of(adapter, base)
    if not any(bool(update.b.any()) for update in lora.updates.values()):
        raise ValueError("the adapter changes nothing, since all its B are zero: measure a trained one")
    adapted = None if task is None else _adapted(adapter, source, where)
    read = weight_reader(source if adapted is None else adapted, list(lora.updates), **where)
    sums: list[dict[str, Any]] = []
    for name, update in progress_bar(lora.updates.items(), desc="weights", unit="module", show=progress):
        matrix = read(name).float()
        _check_weight(lora, name, matrix)
        part = _spaced_rows(matrix, rows)
        weights = matrix[part]
        change = update.scaling * (update.b[part.to(update.b.device)].float() @ update.a.float()).detach().cpu()
        facts = {"weight": float(weights.double().square().sum()), "few_levels": few_levels_share(weights)}
        for format in chosen:
            if not fits_blocks(matrix.shape[1], format):
                continue
            before, after = round_to_format(weights, format), round_to_format(weights + change, format)
            product, energy = surviving_product(before, after, change)
            error = float((before.double() - weights.double()).square().sum())
            products = {"product": product, "update": energy, "error": error}
            sums.append({"format": format, "module": name} | products | facts)
    measured = {row["format"] for row in sums}
    unmeasured |= {one: "no width is a multiple of 32" for one in chosen if one not in measured}
    if not sums:
        raise ValueError(f"none of {', '.join(chosen)} takes a module of the adapter: {unmeasured}")
    table = pd.DataFrame(sums)
    table = pd.concat([table[table["format"] == one] for one in chosen], ignore_index=True)
    losses = {}
    if task is not None and adapted is not None:
        losses = _measure_losses(adapted, task, [one for one in chosen if one in measured], lora, limit, progress)
    return Survival(
        sums=table,
        losses=losses,
        unmeasured=unmeasured,
        meta=Meta(
            model=source if isinstance(source, str) else model_name(get_base_model(source)),
            task="" if task is None else task.name,
            recipe={"formats": chosen, "rows": rows, "limit": limit},
            samples=None if task is None else len(task.rows("test", limit)),
        ),
    )


def _choose_formats(formats: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """Return the formats to measure, and why others are not."""
    unmeasured = {"K-quants": K_QUANTS}
    if formats is None:
        for name, facts in QUANTIZATION_FORMATS.items():
            if importlib.util.find_spec(facts.package) is None:
                unmeasured[name] = f"{facts.package} is not installed: run `pip install -e '.[quantization]'`"
        if not (chosen := [name for name in QUANTIZATION_FORMATS if name not in unmeasured]):
            require(QUANTIZATION_FORMATS["q8_0"].package, "quantization")
        return chosen, unmeasured
    chosen = [formats] if isinstance(formats, str) else list(formats)
    if not chosen:
        raise ValueError(f"formats is empty: take some of {', '.join(QUANTIZATION_FORMATS)}")
    for name in chosen:
        if name not in QUANTIZATION_FORMATS:
            known = ", ".join(QUANTIZATION_FORMATS)
            raise ValueError(f"formats: {name!r} is not one of {known}; {K_QUANTS}, so they are not measured")
        require(QUANTIZATION_FORMATS[name].package, "quantization")
    return list(dict.fromkeys(chosen)), unmeasured


def _base_of(
    adapter: str | os.PathLike[str], base: nn.Module | str | os.PathLike[str] | None
) -> tuple[Any, dict[str, Any]]:
    """Return the base model or its name, and the arguments that locate its files."""
    if base is None:
        folder = adapter_folder(adapter)
        return named_base(folder, validate_adapter(folder, "survival")[0], "base=")
    return (base, {}) if isinstance(base, nn.Module) else (os.fspath(base), {})


def _adapted(adapter: str | os.PathLike[str] | PeftModel, base: Any, where: dict[str, Any]) -> PeftModel:
    """Return the adapter on a base whose layers can be replaced: a copy that shares its weights, or a loaded one."""
    if isinstance(adapter, PeftModel):
        return copy_sharing_weights(adapter)
    folder = adapter_folder(adapter)
    if isinstance(base, nn.Module):
        return load_adapter(folder, copy_sharing_weights(base))
    classes = saved_classes(folder, *validate_adapter(folder, "survival"), read_training_record(folder))
    return load_adapter(folder, load_model(base, num_labels=classes, **where)[0])


def _check_weight(lora: LoraAdapter, name: str, matrix: Tensor) -> None:
    """Refuse another base than the adapter was trained on."""
    if tuple(matrix.shape) != (expected := lora.shapes[name]):
        raise ValueError(
            f"base: {name} is {tuple(matrix.shape)} there and {expected} in the adapter: pass its own base"
        )
    if name in lora.fingerprints:
        similarity = fingerprint_similarity(fingerprint(matrix), lora.fingerprints[name].cpu())
        if not similarity > SIMILARITY_THRESHOLD:
            raise ValueError(
                f"base: {name} has another weight than the base of the adapter (similarity {similarity:.2f} of 1): "
                "pass the base that it was trained on"
            )


def _spaced_rows(matrix: Tensor, rows: int | None) -> Tensor:
    """Return the places of evenly spaced rows; all if blocks reach over several rows, as NF4's of narrow rows do."""
    d_out, d_in = matrix.shape
    if rows is None or rows >= d_out or d_in % NF4_BLOCK:
        return torch.arange(d_out)
    return torch.linspace(0, d_out - 1, rows).long()


def _measure_losses(
    adapted: PeftModel, task: Task, formats: Sequence[str], lora: LoraAdapter, limit: int | None, progress: bool
) -> dict[str, dict[str, float]]:
    """Return the losses by format; the layers of the model are replaced."""
    base, rows, layers = adapted.get_base_model(), task.rows("test", limit), adapter_layers(adapted)
    names = [*lora.updates, *(name for name in _linear_layers(base) if name not in lora.updates)]
    linears = {name: base.get_submodule(name) for name in names}
    linears |= {name: layer.get_base_layer() for name, layer in layers.items() if name in linears}

    def loss() -> float:
        return float(losses_of_samples(adapted, task, rows, 16, progress).mean())

    def base_loss() -> float:
        with adapted.disable_adapter():
            return loss()

    def replace(format: str, is_merged: bool) -> None:
        for name, linear in linears.items():
            matrix = weight(linear, name).float()
            if is_merged and name in lora.updates:
                matrix = matrix + lora.updates[name].to(torch.float32, matrix.device).matrix()
            if fits_blocks(matrix.shape[1], format):
                matrix = round_to_format(matrix, format).to(matrix.device)
            _set_linear(base, name, matrix, getattr(linear, "bias", None), adapted.dtype)

    unquantized = {"base": base_loss(), "adapter": loss()}
    losses = {}
    for format in formats:
        replace(format, is_merged=False)
        found = unquantized | {"quantized": base_loss(), "beside": loss()}
        replace(format, is_merged=True)
        for layer in layers.values():
            layer.enable_adapters(False)  # a head stays that of the adapter
        losses[format] = found | {"merged": loss()}
        for layer in layers.values():
            layer.enable_adapters(True)
    return losses


def _linear_layers(base: nn.Module) -> list[str]:
    """Return the names of the layers that engines quantize, without the adapter's."""
    return list(target_modules(copy_base(base)))


def _set_linear(base: nn.Module, name: str, matrix: Tensor, bias: Any, dtype: torch.dtype) -> None:
    """Put a linear layer with this weight in place of a module, or under its adapter."""
    d_out, d_in = matrix.shape
    linear = nn.Linear(d_in, d_out, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(matrix.to(dtype), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    module = base.get_submodule(name)
    if isinstance(module, LoraLayer):
        module.base_layer = linear
        return
    parent, _, child = name.rpartition(".")
    setattr(base.get_submodule(parent), child, linear)
