"""Compress an adapter: cut its ranks where the loss is least, in its weights or in its outputs on the task."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from tlora.adapters.compression import HELD_OUT, PLAIN, TASK, Compression, check_budget, choose_ranks
from tlora.adapters.factored import (
    FactoredAdapter,
    check_calibration,
    embedding_ranks,
    factor_tensors,
    pattern_config,
    read_adapter,
    second_moments,
)
from tlora.calibration.calibration import Calibration
from tlora.calibration.covariance import Covariance
from tlora.results import Meta
from tlora.utils.validation import check_type

_ROUNDING = 1e-13
"""Share of a module's largest energy below which energies are rounding of float64."""


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
    budget: dict[str, Any] = {"rank": rank, "parameters": parameters, "energy": energy, "error": error}
    check_budget(budget)
    source = read_adapter(adapter, "compress")
    moments = {}
    for label, one in ((TASK, calibration), (HELD_OUT, held_out)):
        if one is not None:
            what = "the calibration" if label == TASK else "the held-out calibration"
            check_calibration(check_type(one, Calibration, "calibrate(model, ...)"), source, what)
            moments[label] = second_moments(one)
    _check_disjoint(calibration, held_out)
    cuts = [PLAIN] if calibration is None else [PLAIN, TASK]
    directions = {
        name: _directions(name, *factors, source.scalings[name], cuts, moments)
        for name, factors in source.factors.items()
    }
    energies = {name: ranked.energies[-1, len(cuts) - 1] for name, ranked in directions.items()}
    if contributions is not None:
        energies = _weighted(energies, contributions, budget)
    ranks = choose_ranks(energies, source.shapes, **budget)
    cut = {
        name: _cut(*source.factors[name], source.scalings[name], directions[name].vectors[:, :kept])
        for name, kept in ranks.items()
        if kept
    }
    if not cut:
        raise ValueError("nothing would be kept: every update is zero, or the budget drops every module")
    given = {"rank": rank, "contributions": contributions}
    described = budget | {name: dict(one) if isinstance(one, Mapping) else one for name, one in given.items()}
    used = Meta() if calibration is None else calibration.meta
    return Compression(
        shapes=source.shapes,
        original_ranks=source.ranks,
        ranks=ranks,
        cuts=cuts,
        measures=[PLAIN, *moments],
        energies={name: ranked.energies for name, ranked in directions.items()},
        config=_config(source, cut),
        adapter=factor_tensors({name: (a, b) for name, (a, b, _) in cut.items()}) | source.others,
        fingerprints={name: source.fingerprints[name] for name in source.shapes if name in source.fingerprints},
        meta=Meta(source.base, used.task, described, None, used.samples),
    )


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


class _Directions(NamedTuple):
    """Energies of each cut in every measure, (cuts, measures, r), and the directions of the last cut, (r, r)."""

    energies: Tensor
    vectors: Tensor


def _directions(
    name: str,
    a: Tensor,
    b: Tensor,
    scaling: float,
    cuts: list[str],
    moments: Mapping[str, Callable[[str], Covariance]],
) -> _Directions:
    """Return what each direction of each cut contributes to what is kept, from r x r matrices in float64."""
    a, r = a.double(), _qr(b, scaling).R
    grams = {PLAIN: a @ a.T} | {label: a @ (moment(name) @ a.T) for label, moment in moments.items()}
    cores = {label: r @ gram @ r.T for label, gram in grams.items()}
    if not all(bool(core.isfinite().all()) for core in cores.values()):
        raise ValueError(f"the update of {name} is not finite: the adapter is damaged, or diverged")
    energies = []
    for cut in cuts:
        vectors = torch.linalg.eigh((cores[cut] + cores[cut].T) / 2).eigenvectors.flip(1)
        kept = torch.stack([((core @ vectors) * vectors).sum(0) for core in cores.values()])
        energies.append(torch.where(kept > _ROUNDING * kept.amax(1, keepdim=True), kept, 0.0))
    return _Directions(torch.stack(energies), vectors)


def _qr(b: Float[Tensor, "d_out r"], scaling: float) -> Any:
    """Return ``Q`` (d_out, r) and ``R`` of ``s B``, float64."""
    return torch.linalg.qr(scaling * b.double())


def _cut(a: Tensor, b: Tensor, scaling: float, vectors: Float[Tensor, "r rank"]) -> tuple[Tensor, Tensor, float]:
    """Return ``A``, ``B`` and scaling for as many directions; unchanged if all directions are kept."""
    if vectors.shape[1] == len(a):
        return a, b, scaling
    q, r = _qr(b, scaling)
    rows, columns = vectors.T @ r @ a.double(), q @ vectors
    size = rows.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny).sqrt()  # as large in A as in B
    return (rows / size[:, None]).to(a.dtype), (columns * size).to(b.dtype), 1.0


def cut_update(
    name: str, a: Tensor, b: Tensor, rank: int, moment: Callable[[str], Covariance] | None
) -> tuple[Tensor, Tensor, float]:
    """Cut the update ``B A`` of a module to a rank as `compress` does; return ``A``, ``B`` and its error.

    The error is the share of the update's norm that is lost, in the outputs if there is a ``moment`` of the inputs, and
    otherwise in the weights.
    """
    moments = {} if moment is None else {TASK: moment}
    energies, vectors = _directions(name, a, b, 1.0, [PLAIN, *moments], moments)
    own = energies[-1, -1]
    a, b, _ = _cut(a, b, 1.0, vectors[:, :rank])
    return a, b, float((own[rank:].sum() / own.sum().clamp(min=torch.finfo(own.dtype).tiny)).sqrt())


def _config(source: FactoredAdapter, cut: Mapping[str, tuple[Tensor, Tensor, float]]) -> dict[str, Any]:
    """Return the adapter's config with the new ranks, by full names."""
    embeddings = embedding_ranks(source.others)
    ranks = {name: len(a) for name, (a, _, _) in cut.items()} | embeddings
    scalings = {name: s for name, (_, _, s) in cut.items()} | {name: source.scalings[name] for name in embeddings}
    return pattern_config(source.config, ranks, scalings)
