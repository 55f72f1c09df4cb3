"""Compress an adapter: cut its ranks where the loss is least, in its weights or in its outputs on the task."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from tlora.adapters.adapter import LoraAdapter, input_moments
from tlora.adapters.compression import HELD_OUT, PLAIN, TASK, Compression, check_budget, choose_ranks
from tlora.adapters.update import Moment, direction_energies, leading_directions, project
from tlora.calibration.calibration import Calibration
from tlora.results import Meta
from tlora.utils.validation import check_arguments, require_finite


def compress(
    adapter: str | os.PathLike[str] | PeftModel,
    *,
    rank: int | Mapping[str, int] | None = None,
    parameters: float | None = None,
    energy: float | None = None,
    error: float | None = None,
    calibration: Calibration | None = None,
    held_out: Calibration | None = None,
    contributions: Mapping[str, float] | None = None,
) -> Compression:
    """Cut the ranks of a LoRA adapter, whoever trained it, by what its weights or its outputs on a task lose.

    Parameters
    ----------
    adapter : path-like, str or peft.PeftModel
        Its folder; its name on the hub, ``owner/name`` or ``owner/name@revision``; or a model with one active adapter,
        which is only read. LoRA and rsLoRA, with patterns of ranks and alphas. Embeddings, heads and biases that come
        with it are kept as they are.
    rank : int or mapping of str to int, optional
        Largest rank of every module; or ranks by full module name (0 drops a module), others being kept.
    parameters : int or float, optional
        Parameters of all ``A`` and ``B`` together: a number, or, as a float up to 1, a share of those of the adapter.
        Never exceeded.
    energy : float, optional
        Share of the squared measure, summed over modules, to keep with the fewest parameters; in (0, 1].
    error : float, optional
        Largest share of its update's norm that any module may lose, in the measure; in [0, 1).
    calibration : Calibration, optional
        From `calibrate` on the adapter's base and samples of a task: the loss is then measured in the outputs on it,
        and otherwise in the weights.
    held_out : Calibration, optional
        A calibration on other samples of the task, on which the loss is measured as well.
    contributions : mapping of str to float, optional
        What each module did, from `tlora.attribute`; only with ``parameters`` or ``energy``. A budget is then shared by
        the part of its update that a module loses times its contribution, none if that is negative.

    Returns
    -------
    Compression
        It holds the smaller adapter; `Compression.save_adapter` writes it.

    Raises
    ------
    FileNotFoundError
        If there is no adapter.
    ValueError
        If not exactly one of ``rank``, ``parameters``, ``energy`` and ``error`` is given; if contributions do not name
        every module, or come with ``rank`` or ``error``; if the adapter is damaged,
        merged, or computes something else than ``W + s B A`` (DoRA, PiSSA that was not converted to LoRA, ...); if a
        calibration is of another model, lacks a module, or shares samples with the held-out one.

    Notes
    -----
    With ``M`` the uncentered second moment of a module's inputs and ``N`` samples, cutting ``dW = s B A`` to ``D``
    changes the module's outputs by ``||X (dW - D)^T||_F^2 = N tr((dW - D) M (dW - D)^T)``. Over ``D`` of rank ``k``
    this is least at ``D = U_k U_k^T dW``, ``U_k`` the leading left singular vectors of ``dW M^(1/2)``, and then the sum
    of the remaining squared singular values (Eckart & Young). With ``B = Q R`` these come from the r x r matrix
    ``s^2 R (A M A^T) R^T``, whose eigenvalues are the squares: neither ``dW`` nor a root of ``M`` is ever formed.
    ``M = I`` gives the truncated SVD of ``dW``.

    A budget is shared by taking the singular directions of all modules in the order of energy per parameter. Within a
    module energies decrease while the cost of a rank, ``d_in + d_out``, is constant, so the kept energy is a concave
    function of its parameters. For a sum of such functions the greedy order is optimal for every budget that it uses
    up, and less than one rank from the optimum otherwise. Errors of modules are added as they are: the measure ignores
    how the error of one module changes the inputs of the next, and how the loss weighs them. ``contributions`` weigh
    them, by answers that were taken apart: where a cut costs something, less is lost (docs/results/attribution.md).

    Experts of a parameter keep one rank, as PEFT has it: it is the leading direction of each, costs the parameters of
    all, and their outputs count before the router's weights.

    Other trainers do not record fingerprints of the base: a calibration of another model is then recognized by names
    and shapes alone.

    References
    ----------
    Eckart & Young (1936), The approximation of one matrix by another of lower rank. SVD-LLM, arXiv 2403.07378, and
    CorDA, arXiv 2406.05223, decompose weights by uncentered second moments of their inputs; here it is the update.

    Examples
    --------
    >>> half = tlora.compress("adapter", parameters=0.5)
    >>> before, after = half.parameters
    >>> after <= before / 2
    True
    >>> tlora.compress("adapter", rank=2, calibration=calibration).measures
    ['plain', 'task']
    >>> answers = tlora.attribute(adapted, task, limit=2, progress=False).to_frame().set_index("module")
    >>> kept = tlora.compress("adapter", parameters=0.25, contributions=answers["contribution"].to_dict())
    """
    check_arguments(compress, locals())
    if contributions is not None:
        contributions = {name: require_finite(v, f"contributions[{name!r}]") for name, v in contributions.items()}
    budget: dict[str, Any] = {"rank": rank, "parameters": parameters, "energy": energy, "error": error}
    check_budget(budget)
    source = LoraAdapter.read(adapter, "compress")
    moments: dict[str, Callable[[str], Moment | None]] = {PLAIN: lambda name: None}
    if calibration is not None:
        moments[TASK] = input_moments(calibration, [source], "the calibration")
    if held_out is not None:
        moments[HELD_OUT] = input_moments(held_out, [source], "the held-out calibration")
    _check_disjoint(calibration, held_out)
    cuts = [label for label in (PLAIN, TASK) if label in moments]
    measured, directions = {}, {}
    for name, update in source.updates.items():
        cores = [update.core(moment(name)) for moment in moments.values()]
        several = [leading_directions(core) for core in cores[: len(cuts)]]
        measured[name] = torch.stack(
            [torch.stack([_by_rank(direction_energies(core, axes)) for core in cores]) for axes in several]
        )
        directions[name] = several[-1]
    energies = {name: by_cut[-1, len(cuts) - 1] for name, by_cut in measured.items()}
    if contributions is not None:
        energies = _weighted(energies, contributions, budget)
    ranks = choose_ranks(energies, source.shapes, **budget)
    cut = {name: project(source.updates[name], directions[name][..., :kept]) for name, kept in ranks.items() if kept}
    if not cut:
        raise ValueError(
            "nothing would be kept: every update is zero, no contribution is above 0, or the budget is too small: "
            "raise it"
        )
    smaller = source.with_updates(cut)
    given = {"rank": rank, "contributions": contributions}
    described = budget | {name: dict(one) if isinstance(one, Mapping) else one for name, one in given.items()}
    used = Meta() if calibration is None else calibration.meta
    return Compression(
        shapes=source.shapes,
        original_ranks=source.ranks,
        ranks=ranks,
        cuts=cuts,
        measures=list(moments),
        energies=measured,
        config=smaller.config,
        adapter=smaller.tensors,
        fingerprints={name: source.fingerprints[name] for name in source.shapes if name in source.fingerprints},
        meta=Meta(source.base, used.task, described, None, used.samples),
    )


def _by_rank(energies: Float[Tensor, "*experts r"]) -> Float[Tensor, " r"]:
    """Energies by rank: one rank of a parameter is a direction of each of its experts."""
    return energies.reshape(-1, energies.shape[-1]).sum(0)


def _check_disjoint(calibration: Calibration | None, held_out: Calibration | None) -> None:
    if calibration is None or held_out is None:
        return
    both = {*calibration.sample_fingerprints.tolist()} & {*held_out.sample_fingerprints.tolist()}
    if both:
        raise ValueError(f"{len(both)} samples are in both the calibration and the held-out one: hold out others")


def _weighted(
    energies: Mapping[str, Tensor], contributions: Mapping[str, float], budget: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Each direction's share of its module's energy, times the contribution of the module."""
    if budget["parameters"] is None and budget["energy"] is None:
        raise ValueError("contributions= share a budget between modules: pass parameters= or energy=")
    if missing := [name for name in energies if name not in contributions]:
        raise ValueError(f"contributions= lacks {missing[0]}: take them from tlora.attribute on this adapter")
    least = torch.finfo(torch.float64).tiny
    return {n: max(contributions[n], 0.0) * energy / energy.sum().clamp(min=least) for n, energy in energies.items()}
