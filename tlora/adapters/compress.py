"""Compress: an adapter with less rank, cut where it costs least in its weights or in its outputs on the task."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from tlora.adapters.compression import HELD_OUT, PLAIN, TASK, Compression, chosen_ranks
from tlora.adapters.config import patterns
from tlora.adapters.files import (
    PREFIX,
    Adapter,
    by_layer,
    checked,
    read_factors,
    read_tensors,
    read_training_record,
    refuse_more_than_lora,
    split_factors,
)
from tlora.adapters.hub import adapter_folder
from tlora.adapters.lora_layers import (
    adapter_config,
    adapter_layers,
    adapter_tensors,
    changes_the_base,
    refuse_experts,
    refuse_unready,
    say_resized,
)
from tlora.calibration.calibration import Calibration
from tlora.calibration.covariance import Covariance
from tlora.models.weights import SIMILARITY_THRESHOLD, base_fingerprints, fingerprint_similarity
from tlora.results import Meta
from tlora.utils.validation import check_type

_ROUNDING = 1e-13
"""Of a module's largest energy: what is below is rounding of float64."""


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
    """Cut the ranks of a LoRA adapter, anybody's, by what its weights or its outputs on a task lose.

    Parameters
    ----------
    adapter : path-like, str or peft.PeftModel
        Its folder; its name on the hub, ``owner/name`` or ``owner/name@revision``; or a model with one active adapter,
        which is only read. LoRA and rsLoRA, with patterns of ranks and alphas. Embeddings, heads and biases that come
        with it are kept as they are.
    rank : int or mapping of str to int, optional
        Every module is cut to this rank at most; or, by full module name, these are, down to 0, which leaves a module
        out, and the others are kept.
    parameters : int or float, optional
        Parameters of all ``A`` and ``B`` together, shared over modules: a number, or of a float up to 1 that share of
        what the adapter has. Never exceeded; what is left over is less than one rank of any module that has one more.
    energy : float, optional
        Share of the squared error measure, summed over modules, that is kept with the fewest parameters; in (0, 1].
    error : float, optional
        No module loses more than this share of its update's norm, in the measure; in [0, 1).
    calibration : Calibration, optional
        From `calibrate` on the adapter's base and samples of a task: the loss is measured in the outputs on it. Without
        one it is measured in the weights.
    held_out : Calibration, optional
        Of other samples of the task: what is lost is measured on them, too.

    Returns
    -------
    Compression
        It holds the smaller adapter: `Compression.save_adapter` writes it.

    Raises
    ------
    TypeError
        If a calibration is something else.
    FileNotFoundError
        If there is no adapter.
    ValueError
        If none or several of ``rank``, ``parameters``, ``energy`` and ``error`` are given, or one is out of range; if
        the adapter is damaged, merged, or computes something else than ``W + s B A`` (DoRA, PiSSA that was not
        converted to LoRA, LoRA of experts, ...); if a calibration is of another model, lacks a module or the means of
        its samples, or has samples in common with the held-out one.

    Notes
    -----
    With ``M`` the uncentered second moment of a module's inputs and ``N`` samples, cutting ``dW = s B A`` to ``D``
    changes the module's outputs by ``||X (dW - D)^T||_F^2 = N tr((dW - D) M (dW - D)^T)``. Over ``D`` of rank ``k``
    this is least at ``D = U_k U_k^T dW``, ``U_k`` the leading left singular vectors of ``dW M^(1/2)``, and then the sum
    of the squared singular values that are left out (Eckart & Young). With ``B = Q R`` these come from the r x r matrix
    ``s^2 R (A M A^T) R^T``, whose eigenvalues are the squares: neither ``dW`` nor a root of ``M`` is ever formed.
    ``M = I`` gives the truncated SVD of ``dW``.

    A budget is shared by taking the singular directions of all modules in the order of energy per parameter. Each
    module's energies fall while its cost for a rank, ``d_in + d_out``, stays, so the kept energy is a concave function
    of its parameters, and for a sum of such functions the greedy order is optimal for every budget that it uses up; for
    others it is less than one rank from it. The errors of modules are added as they are: how the error of one changes
    the inputs of the next, and how the loss weighs them, is not in the measure; and inputs are those of the base.

    Other trainers write no fingerprints of the base into an adapter's folder: there, names and shapes alone tell a
    calibration of another model.

    References
    ----------
    Eckart & Young (1936), The approximation of one matrix by another of lower rank. SVD-LLM, arXiv 2403.07378, and
    CorDA, arXiv 2406.05223, decompose weights by uncentered second moments of their inputs; here it is the update.
    """
    choose = chosen_ranks(rank=rank, parameters=parameters, energy=energy, error=error)
    source = _of_model(adapter) if isinstance(adapter, PeftModel) else _of_folder(adapter_folder(adapter))
    moments = {}
    for label, given in ((TASK, calibration), (HELD_OUT, held_out)):
        if given is not None:
            _check_calibration(check_type(given, Calibration, "calibrate(model, ...)"), source, label)
            moments[label] = _moments(given)
    _check_others(calibration, held_out)
    cuts = [PLAIN] if calibration is None else [PLAIN, TASK]
    directions = {name: _directions(source, name, cuts, moments) for name in source.shapes}
    ranks = choose({name: found.energies[-1, len(cuts) - 1] for name, found in directions.items()}, source.shapes)
    factors = {name: _cut(source, name, directions[name].vectors[:, :rank]) for name, rank in ranks.items() if rank}
    if not factors:
        raise ValueError(
            "every update is zero, so that there is nothing to keep: compress the adapter once it is trained"
        )
    asked = {
        "rank": dict(rank) if isinstance(rank, Mapping) else rank,
        "parameters": parameters,
        "energy": energy,
        "error": error,
    }
    used = Meta() if calibration is None else calibration.meta
    return Compression(
        shapes=source.shapes,
        original_ranks=source.ranks,
        ranks=ranks,
        cuts=cuts,
        measures=[PLAIN, *moments],
        energies={name: found.energies for name, found in directions.items()},
        config=_config(source, factors),
        adapter=_tensors(source, factors),
        fingerprints={name: source.fingerprints[name] for name in source.shapes if name in source.fingerprints},
        meta=Meta(source.base, used.task, asked, None, used.samples),
    )


class _Source(NamedTuple):
    """An adapter taken apart: ``A`` and ``B`` with the scaling before them, and all that is kept as it is."""

    config: dict[str, Any]
    shapes: dict[str, tuple[int, int]]
    ranks: dict[str, int]
    factors: Callable[[str], tuple[Tensor, Tensor]]
    others: dict[str, Tensor]
    scalings: dict[str, float]
    fingerprints: dict[str, Tensor]
    base: str


def _of_folder(folder: Path) -> _Source:
    config, _ = checked(folder, "compress")
    refuse_more_than_lora(config, _way_out(config))
    record = read_training_record(folder)
    source = _source(config, read_tensors(folder), str(folder), dict(record.fingerprints or {}))
    return source._replace(factors=partial(read_factors, folder))


def _of_model(model: PeftModel) -> _Source:
    layers = adapter_layers(model)
    refuse_experts(layers)
    refuse_unready(model, "compress")
    config = adapter_config(model)
    if (kind := config["peft_type"]) != "LORA":
        raise ValueError(f"the model has an adapter of type {kind}: compress takes LoRA")
    refuse_more_than_lora(config, _way_out(config))
    say_resized(model)
    tensors = {key: tensor.detach().cpu() for key, tensor in adapter_tensors(model).items()}
    return _source(config, tensors, "the model's adapter", base_fingerprints(model))


def _way_out(config: Mapping[str, Any]) -> str:
    """What is left to do with an adapter that cannot be cut."""
    if changes_the_base(config):
        convert = "model.save_pretrained(folder, path_initial_model_for_weight_conversion=...)"
        return f"make LoRA of it, {convert}, and compress that"
    return "serve it as it is, or train LoRA"


def _source(config: dict[str, Any], tensors: dict[str, Tensor], where: str, prints: dict[str, Tensor]) -> _Source:
    pairs, others = split_factors(tensors, where)
    shapes = {name: (len(b), a.shape[1]) for name, (a, b) in pairs.items()}
    ranks = {name: len(a) for name, (a, _) in pairs.items()}
    scalings = by_layer(Adapter(config, ranks | _embeddings(others)))
    base = config.get("base_model_name_or_path") or "an unnamed model"
    return _Source(config, shapes, ranks, pairs.__getitem__, others, scalings, prints, base)


def _embeddings(others: Mapping[str, Tensor]) -> dict[str, int]:
    """Rank of the embeddings with LoRA, by full module name."""
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
        known = source.fingerprints.get(name)
        if (
            known is not None
            and not (alike := fingerprint_similarity(known, calibration.fingerprints[name])) > SIMILARITY_THRESHOLD
        ):
            raise ValueError(
                f"{what} is of another model than the adapter's base: {name} has another weight there (likeness "
                f"{alike:.2f} of 1); calibrate the base that it was trained on"
            )


def _check_others(calibration: Calibration | None, held_out: Calibration | None) -> None:
    if calibration is None or held_out is None:
        return
    both = {*calibration.sample_fingerprints.tolist()} & {*held_out.sample_fingerprints.tolist()}
    if both:
        raise ValueError(f"{len(both)} samples are in the calibration and in the held-out one: hold others out")


def _moments(calibration: Calibration) -> Callable[[str], Covariance]:
    """Second moment by module; modules that share one stand close to each other, and only the last two are kept."""
    found = lru_cache(maxsize=2)(lambda name: calibration.covariance[name].second_moment())
    return lambda name: found(calibration.shared[name])


class _Directions(NamedTuple):
    """Energies of each cut in every measure, (cuts, measures, r), and the directions of the last cut, (r, r)."""

    energies: Tensor
    vectors: Tensor


def _directions(
    source: _Source, name: str, cuts: list[str], moments: Mapping[str, Callable[[str], Covariance]]
) -> _Directions:
    """What each direction of each cut adds to what is kept: from r x r matrices in float64."""
    a, b = source.factors(name)
    a, r = a.double(), _columns(b, source.scalings[name]).R
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


def _columns(b: Float[Tensor, "d_out r"], scaling: float) -> Any:
    """``Q`` (d_out, r) and ``R`` of ``s B``, float64."""
    return torch.linalg.qr(scaling * b.double())


def _cut(source: _Source, name: str, vectors: Float[Tensor, "r rank"]) -> tuple[Tensor, Tensor, float]:
    """``A`` and ``B`` of as many directions, and the scaling before them; as they are where nothing is cut."""
    a, b = source.factors(name)
    if vectors.shape[1] == len(a):
        return a, b, source.scalings[name]
    q, r = _columns(b, source.scalings[name])
    rows, columns = vectors.T @ r @ a.double(), q @ vectors
    size = rows.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny).sqrt()  # as large in A as in B
    return (rows / size[:, None]).to(a.dtype), (columns * size).to(b.dtype), 1.0


def _config(source: _Source, factors: Mapping[str, tuple[Tensor, Tensor, float]]) -> dict[str, Any]:
    """The adapter's config with the new ranks, by full names."""
    ranks = {name: len(a) for name, (a, _, _) in factors.items()}
    kept = _embeddings(source.others)
    scalings = {name: s for name, (_, _, s) in factors.items()} | {name: source.scalings[name] for name in kept}
    ranks |= kept
    most = max(ranks.values())
    return source.config | {
        "r": most,
        "lora_alpha": most,
        **patterns(ranks, scalings),
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": sorted(ranks),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def _tensors(source: _Source, factors: Mapping[str, tuple[Tensor, Tensor, float]]) -> dict[str, Tensor]:
    pairs = {
        f"{PREFIX}{name}.lora_{part}.weight": factor
        for name, (a, b, _) in factors.items()
        for part, factor in zip("AB", (a, b), strict=True)
    }
    return pairs | source.others
