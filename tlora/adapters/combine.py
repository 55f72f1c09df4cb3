"""Combine adapters of one base into one: their exact weighted sum, the same cut to a rank, or what PEFT merges."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, get_args

import pandas as pd
import torch
from peft.utils import merge_utils
from torch import Tensor

from tlora.adapters.adapter import ComputedAdapter, LoraAdapter, difference_of_bases, input_moments
from tlora.adapters.files import COMBINE, PREFIX
from tlora.adapters.update import LoraUpdate, add_updates, cut_update, have_same_a
from tlora.calibration.calibration import Calibration
from tlora.results import Meta, Result
from tlora.utils.defaults import CombineMethod
from tlora.utils.reproducibility import temporary_seed
from tlora.utils.text import ranks_text
from tlora.utils.validation import (
    check_arguments,
    require_choice,
    require_finite,
    require_fraction,
    require_positive_int,
)


@dataclass(frozen=True, repr=False, eq=False)
class Combination(ComputedAdapter, Result):
    """Several LoRA adapters of one base as one adapter; from `tlora.combine`.

    Attributes
    ----------
    weights : dict of float
        Weight of each adapter, by its folder or name.
    method : str
        How they were combined.
    shapes : dict of (int, int)
        ``(d_out, d_in)`` of each module, by full name; of the experts of a parameter their sums.
    ranks_before : dict of list of int
        Rank of each module in the adapters, in the order of ``weights``; 0 if an adapter does not have it.
    ranks : dict of int
        Rank of each module in the new adapter.
    same_a : dict of bool
        Whether several adapters have the module, and all of them the same ``A``, or the first rows of the largest.
    errors : dict of float
        Share of the norm of each module's combined update that the cut to its rank loses: in the outputs, if a
        calibration was given, and otherwise in the weights. 0 without a cut.
    head : str
        The adapter whose head is kept; empty if none has one.
    config : dict
        ``adapter_config.json`` of the new adapter.
    adapter : dict of Tensor
        Its tensors, under the names that PEFT saves them by.
    fingerprints : dict of (16,) float32 tensor
        Of the base weights, if known; `tlora.load_adapter` recognizes another base by them.
    meta : Meta
        The base model, the task and number of samples of the calibration, and the arguments.

    Examples
    --------
    >>> both = tlora.combine({"adapter": 1.0, "other": 1.0})
    >>> both.to_frame()[["module", "ranks_before", "rank", "same_a", "error"]].shape
    (14, 5)
    >>> both.save_adapter("both").name
    'both'
    """

    weights: dict[str, float]
    method: str
    shapes: dict[str, tuple[int, int]]
    ranks_before: dict[str, list[int]]
    ranks: dict[str, int]
    same_a: dict[str, bool]
    errors: dict[str, float]
    head: str
    config: dict[str, Any]
    adapter: dict[str, Tensor]
    fingerprints: dict[str, Tensor]
    meta: Meta

    _writer: ClassVar[str] = COMBINE
    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "d_out": "outputs of the weight, of all experts of a parameter",
        "d_in": "inputs of the weight, of all experts of a parameter",
        "ranks_before": "rank in each adapter, 0 if one does not have the module",
        "rank": "rank in the new adapter",
        "parameters": "parameters of A and B of the new adapter",
        "same_a": "whether several adapters have the module with the same A, or the first rows of the largest",
        "error": "norm of what a cut loses divided by that of the combined update; 0 without a cut",
    }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per module; see ``columns``."""
        ranks = list(self.ranks.values())
        return pd.DataFrame(
            {
                "module": self.names,
                "d_out": [d_out for d_out, _ in self.shapes.values()],
                "d_in": [d_in for _, d_in in self.shapes.values()],
                "ranks_before": [" + ".join(map(str, before)) for before in self.ranks_before.values()],
                "rank": ranks,
                "parameters": [rank * sum(shape) for rank, shape in zip(ranks, self.shapes.values(), strict=True)],
                "same_a": list(self.same_a.values()),
                "error": list(self.errors.values()),
            }
        )

    def _summary(self) -> str:
        parts = " and ".join(f"{weight:g} {Path(name).name}" for name, weight in self.weights.items())
        same = sum(self.same_a.values())
        cut = f", loses up to {max(self.errors.values()):.1%} of an update" if any(self.errors.values()) else ""
        head = f", head of {Path(self.head).name}" if self.head else ""
        ranks = ranks_text(self.ranks.values())
        modules = f"{len(self.ranks)} modules of {self.meta.model}"
        return f"{self.method} of {parts}: {modules}, {ranks}, the same A in {same}{cut}{head}"


def combine(
    adapters: Mapping[Any, float],
    *,
    method: CombineMethod = "sum",
    rank: int | None = None,
    calibration: Calibration | None = None,
    density: float = 0.5,
    head: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Combination:
    """Combine LoRA adapters of one base into one adapter.

    Parameters
    ----------
    adapters : mapping of path-like or str to float
        The weight of each adapter, by its folder or its name on the hub, ``owner/name`` or ``owner/name@revision``.
        LoRA and rsLoRA of any ranks and alphas, with patterns. One adapter alone is scaled by its weight.
    method : {"sum", "ties", "dare_linear", "dare_ties", "magnitude_prune"}
        ``"sum"``: the weighted sum of the updates, exactly. The others prune or elect entries of the updates by PEFT's
        own functions, and cut the result to a rank.
    rank : int, optional
        Largest rank of every module. By default a sum keeps the rank that it needs, and the other methods the largest
        rank that an adapter has in the module, as in PEFT.
    calibration : Calibration, optional
        On samples of all tasks, ``first.merge(second)``: a cut then loses least in the outputs on them, and otherwise
        in the weights; see `compress`.
    density : float
        Share of the entries of each update that the pruning methods keep, in (0, 1).
    head : path-like or str, optional
        The adapter whose head is kept, if several have one: a model has only one.
    seed : int
        Seed of the entries that ``"dare_linear"`` and ``"dare_ties"`` drop.

    Returns
    -------
    Combination
        It holds the new adapter, float32; `Combination.save_adapter` writes it.

    Raises
    ------
    FileNotFoundError
        If there is no adapter.
    ValueError
        If the adapters are of different bases, if one of them is damaged, has LoRA of an embedding, or computes
        something else than ``W + s B A`` (DoRA, PiSSA that was not converted to LoRA, ...), or if several have a head
        and ``head`` does not name one, or an adapter is named twice.

    Notes
    -----
    The update of a sum is ``sum_i w_i s_i B_i A_i``. If all adapters have the same ``A`` in a module, or the first rows
    of the largest, it is ``(sum_i w_i s_i B_i) A``, at unchanged rank: so it is with adapters that were attached to the
    same subspaces and trained with ``A`` frozen. Otherwise rows of ``A`` and columns of ``B`` are concatenated, and
    ranks add up, to at most what the matrix has. PEFT's ``"linear"`` adds ``A`` and ``B`` each on their own,
    which is not the sum of the updates.

    Weights, scalings, alphas and rsLoRA are folded into ``B``; the config has a scaling of 1 and the rank of each
    module. Heads and other tensors are kept as they are, whatever the weight of their adapter.

    The pruning methods act on whole updates, as PEFT's ``"ties_svd"`` and the like do, and not on ``A`` and ``B``.

    References
    ----------
    Yadav et al. (2023), TIES-Merging, arXiv 2306.01708. Yu et al. (2024), Language models are super Mario (DARE), arXiv
    2311.03099.

    Examples
    --------
    >>> both = tlora.combine({"adapter": 1.0, "other": 0.5})
    >>> both
    Combination(sum of 1 adapter and 0.5 other: 14 modules of base, ...)
    >>> both.save_adapter("both").name
    'both'
    >>> max(tlora.combine({"adapter": 1.0, "other": 1.0}, method="ties", rank=2).ranks.values())
    2
    """
    check_arguments(combine, locals())
    if not adapters:
        raise ValueError("adapters is empty: give the folder of each adapter with its weight")
    require_choice(method, "method", get_args(CombineMethod))
    names = [os.fspath(name) for name in adapters]
    weights = dict(zip(names, (float(weight) for weight in adapters.values()), strict=True))
    places = [os.path.normpath(name) for name in names]
    if twice := next((name for name, place in zip(names, places, strict=True) if places.count(place) > 1), None):
        raise ValueError(f"adapters names {twice} twice: give it once, with one weight")
    for name, weight in weights.items():
        require_finite(weight, f"weight of {name}")
    if rank is not None:
        require_positive_int(rank, "rank")
    density = require_fraction(density, "density") if method != "sum" else density
    if method != "sum" and not 0 < density < 1:
        raise ValueError(f"density={density}: use a share above 0 and below 1, such as 0.5")
    parts = {name: LoraAdapter.read(name, "combine") for name in names}
    for first, second in combinations(names, 2):
        if why := difference_of_bases(parts[first], parts[second]):
            raise ValueError(f"{first} and {second} are of different bases ({why}): combine adapters of one base")
    owner = _owner_of_head(parts, head)
    moment = None if calibration is None else input_moments(calibration, parts.values(), "the calibration")
    by_module: dict[str, list[tuple[float, LoraUpdate]]] = {}  # weights and updates of each module
    for name, part in parts.items():
        for module, update in part.updates.items():
            folded = update.to(torch.float64).fold().to(torch.float32)
            by_module.setdefault(module, []).append((weights[name], folded))
    updates, errors = {}, {}
    with temporary_seed(seed):
        for module, weighted in by_module.items():
            if method == "sum":
                update = add_updates([weight * part for weight, part in weighted])
            else:
                update = _merge(getattr(merge_utils, method), density, weighted)
            asked = rank or (update.rank if method == "sum" else max(part.rank for _, part in weighted))
            kept = min(asked, *update.shape)
            cut, error = cut_update(update, kept, moment and moment(module)) if kept < update.rank else (update, 0.0)
            updates[module], errors[module] = cut, error
    source = parts[owner or names[0]]
    combined = replace(source.with_updates(updates), others=source.others if owner else {})
    return Combination(
        weights=weights,
        method=method,
        shapes=combined.shapes,
        ranks_before={module: [part.ranks.get(module, 0) for part in parts.values()] for module in updates},
        ranks=combined.ranks,
        same_a={
            m: len(weighted) > 1 and have_same_a([part for _, part in weighted]) for m, weighted in by_module.items()
        },
        errors=errors,
        head=owner,
        config=combined.config,
        adapter=combined.tensors,
        fingerprints={m: p for part in parts.values() for m, p in part.fingerprints.items() if m in updates},
        meta=Meta(
            model=source.base,
            task="" if calibration is None else calibration.meta.task,
            recipe={"rank": rank, "density": None if method == "sum" else density},
            seed=seed if method.startswith("dare") else None,
            samples=None if calibration is None else calibration.meta.samples,
        ),
    )


def _owner_of_head(parts: Mapping[str, LoraAdapter], head: str | os.PathLike[str] | None) -> str:
    """Return the adapter whose other tensors are kept, empty if none has any; refuse to choose one of several."""
    for name, part in parts.items():
        if part.embeddings:
            embedding = next(iter(part.embeddings))
            raise ValueError(f"{name} has LoRA of an embedding, {embedding}: combine takes linear layers")
    owners = [name for name, part in parts.items() if part.others]
    if head is not None:
        by_place = {os.path.normpath(name): name for name in owners}
        if (place := os.path.normpath(head)) not in by_place:
            raise ValueError(
                f"head={place!r} is not one of the adapters with a head: {', '.join(owners) or 'none has one'}"
            )
        return by_place[place]
    if len(owners) > 1:
        key = next(iter(parts[owners[0]].others)).removeprefix(PREFIX)
        raise ValueError(
            f"{' and '.join(owners)} each have a head ({key}), and a model has one: name by head= the adapter whose "
            "head is kept"
        )
    return owners[0] if owners else ""


def _merge(merge: Callable[..., Tensor], density: float, weighted: Sequence[tuple[float, LoraUpdate]]) -> LoraUpdate:
    """Return what a function of PEFT makes of whole updates, expert by expert, as a product with the identity."""
    weights = torch.tensor([weight for weight, _ in weighted])
    matrices = [update.matrix() for _, update in weighted]
    if weighted[0][1].has_experts:
        whole = torch.stack([merge(list(several), weights, density) for several in zip(*matrices, strict=True)])
    else:
        whole = merge(matrices, weights, density)
    *experts, d_out, d_in = whole.shape
    wide, tall = (torch.eye(d).expand(*experts, d, d) for d in (d_in, d_out))
    a, b = (wide, whole) if d_in < d_out else (whole, tall)
    return LoraUpdate(weighted[0][1].module, a, b)
