"""Compress an adapter: cut its ranks where the loss is least, in its weights or in its outputs on the task."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from tlora.adapters.compression import HELD_OUT, PLAIN, TASK, Compression, check_budget, choose_ranks
from tlora.adapters.config import patterns
from tlora.adapters.files import (
    PREFIX,
    AdapterLayout,
    read_tensors,
    read_training_record,
    refuse_more_than_lora,
    split_factors,
    validate_adapter,
)
from tlora.adapters.hub import adapter_folder
from tlora.adapters.lora_layers import (
    adapter_config,
    adapter_tensors,
    require_one_lora,
    rewrites_base,
    warn_resized_vocabulary,
)
from tlora.calibration.calibration import Calibration
from tlora.calibration.covariance import Covariance
from tlora.models.weights import SIMILARITY_THRESHOLD, base_fingerprints, fingerprint_similarity
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

    Returns
    -------
    Compression
        It holds the smaller adapter; `Compression.save_adapter` writes it.

    Raises
    ------
    FileNotFoundError
        If there is no adapter.
    ValueError
        If not exactly one of ``rank``, ``parameters``, ``energy`` and ``error`` is given; if the adapter is damaged,
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
    how the error of one module changes the inputs of the next, and how the loss weighs them.

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
    """
    budget: dict[str, Any] = {"rank": rank, "parameters": parameters, "energy": energy, "error": error}
    check_budget(budget)
    source = _read_model(adapter) if isinstance(adapter, PeftModel) else _read_folder(adapter_folder(adapter))
    moments = {}
    for label, one in ((TASK, calibration), (HELD_OUT, held_out)):
        if one is not None:
            _check_calibration(check_type(one, Calibration, "calibrate(model, ...)"), source, label)
            moments[label] = _second_moments(one)
    _check_disjoint(calibration, held_out)
    cuts = [PLAIN] if calibration is None else [PLAIN, TASK]
    directions = {name: _directions(source, name, cuts, moments) for name in source.shapes}
    energies = {name: ranked.energies[-1, len(cuts) - 1] for name, ranked in directions.items()}
    ranks = choose_ranks(energies, source.shapes, **budget)
    factors = {name: _cut(source, name, directions[name].vectors[:, :rank]) for name, rank in ranks.items() if rank}
    if not factors:
        raise ValueError("nothing would be kept: every update is zero, or the budget drops every module")
    described = budget | {"rank": dict(rank) if isinstance(rank, Mapping) else rank}
    used = Meta() if calibration is None else calibration.meta
    return Compression(
        shapes=source.shapes,
        original_ranks=source.ranks,
        ranks=ranks,
        cuts=cuts,
        measures=[PLAIN, *moments],
        energies={name: ranked.energies for name, ranked in directions.items()},
        config=_config(source, factors),
        adapter={
            f"{PREFIX}{name}.lora_{part}.weight": factor
            for name, pair in factors.items()
            for part, factor in zip("AB", pair[:2], strict=True)
        }
        | source.others,
        fingerprints={name: source.fingerprints[name] for name in source.shapes if name in source.fingerprints},
        meta=Meta(source.base, used.task, described, None, used.samples),
    )


class _Source(NamedTuple):
    """An adapter taken apart: ``A``, ``B`` and the scaling of each module, and everything that is kept as it is."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, int]]
    ranks: dict[str, int]
    factors: dict[str, tuple[Tensor, Tensor]]
    others: dict[str, Tensor]
    scalings: dict[str, float]
    fingerprints: dict[str, Tensor]
    base: str


def _read_folder(folder: Path) -> _Source:
    config, _ = validate_adapter(folder, "compress")
    record = read_training_record(folder)
    return _source(config, read_tensors(folder), str(folder), dict(record.fingerprints or {}))


def _read_model(model: PeftModel) -> _Source:
    require_one_lora(model, "compress")
    warn_resized_vocabulary(model)
    tensors = {key: tensor.detach().cpu() for key, tensor in adapter_tensors(model).items()}
    return _source(adapter_config(model), tensors, "the model's adapter", base_fingerprints(model))


def _source(config: dict[str, Any], tensors: dict[str, Tensor], where: str, prints: dict[str, Tensor]) -> _Source:
    convert = "model.save_pretrained(folder, path_initial_model_for_weight_conversion=...)"
    refuse_more_than_lora(
        config,
        f"convert it to LoRA by {convert} and compress that"
        if rewrites_base(config)
        else "serve it as it is, or train LoRA",
    )
    factors, others = split_factors(tensors, where)
    ranks = {name: len(a) for name, (a, _) in factors.items()}
    return _Source(
        config=config,
        shapes={name: (len(b), a.shape[1]) for name, (a, b) in factors.items()},
        ranks=ranks,
        factors=factors,
        others=others,
        scalings=AdapterLayout(config, ranks | _embedding_ranks(others)).scalings,
        fingerprints=prints,
        base=config.get("base_model_name_or_path") or "an unnamed model",
    )


def _embedding_ranks(others: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the rank of embeddings with LoRA, by full module name."""
    end = ".lora_embedding_A"
    return {key.removesuffix(end).removeprefix(PREFIX): len(a) for key, a in others.items() if key.endswith(end)}


def _check_calibration(calibration: Calibration, source: _Source, label: str) -> None:
    """Refuse a calibration of another model than the adapter's base, as far as shapes and fingerprints tell."""
    what = "the calibration" if label == TASK else "the held-out calibration"
    for name, here in source.shapes.items():
        if name not in calibration.targets:
            raise ValueError(
                f"{what} has no {name}, which the adapter changes: calibrate its base with target_modules=[...] that "
                "include it"
            )
        if here != (there := calibration.sensitivity.shapes[name]):
            raise ValueError(f"{what} is of another model: {name} is {there} there, in the adapter it is {here}")
        if name in source.fingerprints:
            similarity = fingerprint_similarity(source.fingerprints[name], calibration.fingerprints[name])
            if not similarity > SIMILARITY_THRESHOLD:
                raise ValueError(
                    f"{what} is of another model than the adapter's base: {name} has another weight there (similarity "
                    f"{similarity:.2f} of 1); calibrate the base that it was trained on"
                )


def _check_disjoint(calibration: Calibration | None, held_out: Calibration | None) -> None:
    if calibration is None or held_out is None:
        return
    both = {*calibration.sample_fingerprints.tolist()} & {*held_out.sample_fingerprints.tolist()}
    if both:
        raise ValueError(f"{len(both)} samples are in both the calibration and the held-out one: hold out others")


def _second_moments(calibration: Calibration) -> Callable[[str], Covariance]:
    """Return a function from a module to its second moment, which keeps the last two: neighbors share them."""
    second_moment = lru_cache(maxsize=2)(lambda name: calibration.covariance[name].second_moment())
    return lambda name: second_moment(calibration.shared[name])


class _Directions(NamedTuple):
    """Energies of each cut in every measure, (cuts, measures, r), and the directions of the last cut, (r, r)."""

    energies: Tensor
    vectors: Tensor


def _directions(
    source: _Source, name: str, cuts: list[str], moments: Mapping[str, Callable[[str], Covariance]]
) -> _Directions:
    """Return what each direction of each cut contributes to what is kept, from r x r matrices in float64."""
    a, b = source.factors[name]
    a, r = a.double(), _qr(b, source.scalings[name]).R
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


def _cut(source: _Source, name: str, vectors: Float[Tensor, "r rank"]) -> tuple[Tensor, Tensor, float]:
    """Return ``A``, ``B`` and scaling for as many directions; unchanged if all directions are kept."""
    a, b = source.factors[name]
    if vectors.shape[1] == len(a):
        return a, b, source.scalings[name]
    q, r = _qr(b, source.scalings[name])
    rows, columns = vectors.T @ r @ a.double(), q @ vectors
    size = rows.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny).sqrt()  # as large in A as in B
    return (rows / size[:, None]).to(a.dtype), (columns * size).to(b.dtype), 1.0


def _config(source: _Source, factors: Mapping[str, tuple[Tensor, Tensor, float]]) -> dict[str, Any]:
    """Return the adapter's config with the new ranks, by full names."""
    ranks = {name: len(a) for name, (a, _, _) in factors.items()}
    embeddings = _embedding_ranks(source.others)
    scalings = {name: s for name, (_, _, s) in factors.items()} | {name: source.scalings[name] for name in embeddings}
    ranks |= embeddings
    largest = max(ranks.values())
    return source.config | {
        "r": largest,
        "lora_alpha": largest,
        **patterns(ranks, scalings),
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": sorted(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
