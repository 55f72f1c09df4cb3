"""Compute task subspaces: leading right singular vectors by products alone (stage 3 of TLoRA)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, zip_longest
from typing import Any, NamedTuple, assert_never

import torch
from torch import Tensor, nn

from tlora.allocation.allocation import Allocation
from tlora.calibration.calibration import Calibration
from tlora.calibration.covariance import Covariance
from tlora.calibration.experts import ExpertPool
from tlora.models.experts import parameter_name
from tlora.models.sharding import model_processes
from tlora.models.targets import Model, Target, join_experts
from tlora.models.weights import base_modules, check_same_model, get_base_model, weight
from tlora.numerics.linalg import Product, complete_rows, fix_signs, leading_right_singular_vectors, orthonormal_rows
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.defaults import KIND, KINDS, Kind
from tlora.utils.devices import HostCoroutine, run_coroutines
from tlora.utils.distributed import Processes
from tlora.utils.progress import progress_bar
from tlora.utils.reproducibility import exact_products, module_seed
from tlora.utils.validation import check_arguments, require_choice, require_positive_int

SHRINKAGE = 0.01
"""Weight of ``tr(C)/d * I`` in a covariance whose inverse root is needed: kind ``"wc_half"``."""

GROUP_BYTES = 1 << 29
"""Bytes of covariances and weights decomposed at once on an accelerator, so that the host waits less."""


@exact_products()
def task_subspaces(
    model: Model | None,
    calibration: Calibration,
    *,
    max_rank: int | Allocation = 64,
    kind: Kind = KIND,
    centered: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> Subspaces:
    """Compute the leading input directions of every calibrated module.

    Parameters
    ----------
    model : transformers.PreTrainedModel or None
        The calibrated model. Read only. None for a kind that reads no weight: ``"c"``, ``"g"``, ``"fisher"`` or
        ``"random"``.
    calibration : Calibration
        Its statistics.
    max_rank : int or Allocation
        Directions to compute for each module: one number for all, of which a module takes as many as its matrix and the
        sketch of its statistics have, or the ranks of an allocation (modules without a rank are left out). Lower ranks
        need no new decomposition.
    kind : {"wc", "w", "c", "wc_half", "g", "fisher", "random"}
        The matrix whose right singular vectors are taken: ``W C`` (TLoRA), ``W`` (PiSSA), ``C`` (EVA), ``W C^(1/2)``
        (CorDA; the vectors are multiplied by ``C^(-1/2)`` and orthonormalized), the mean gradient (LoRA-GA), the inputs
        weighted by the gradients that follow them (see the notes); or random orthonormal rows.
    centered : bool
        False: use the uncentered second moment of the inputs instead of the covariance, for ``"wc"``, ``"c"`` and
        ``"wc_half"``.
    seed : int
        Seed of the start of the iteration, of random spaces, and of completions.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Subspaces
        On the CPU. Signs are fixed (the largest entry of a row is positive), so one seed gives the same bytes.

    Raises
    ------
    ValueError
        If the allocation or the calibration is of other modules or another model, or the kind needs something that the
        calibration does not have, or reads the weights and there is no model.

    Notes
    -----
    The authors form ``W C`` and take its full SVD, O(d^3) for each module. Only the leading subspace is needed, and
    products with ``W`` and ``C`` give it. ``"wc_half"`` with ``centered=False`` minimizes ``||X (W - W')^T||_F`` over
    ``W'`` of rank r, the criterion of SVD-LLM. CorDA decomposes ``W M`` and spans its space by ``V^T M^(-1)``, which
    minimizes ``||(W - W') M||_F``. If the matrix has fewer independent directions than requested, seeded random
    directions complete the basis, and ``numerical_rank`` says from which row on. The statistics of an expert are those
    of its own rows and 16 further ones that stand for all experts of its layer, so an expert with few rows has
    directions too: with ``n`` rows its own count ``n / (n + 16)``.

    ``"fisher"`` is of this project: the rows ``|d_t| x_t`` of all counted tokens, with ``d_t`` the gradient of the
    sample's loss at the module's output. Their squared singular values are the eigenvalues of ``Calibration.fisher``,
    a mean over samples: the squared gradient along each direction, token by token, as if tokens were independent.

    References
    ----------
    TLoRA, arXiv 2604.18124: the initialization of A from the SVD of weight times input covariance.
    Musco & Musco (2015), Randomized block Krylov methods for stronger and faster approximate singular value
    decomposition, algorithm 2. SVD-LLM, arXiv 2403.07378; CorDA, arXiv 2406.05223.

    Examples
    --------
    >>> subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    >>> subspaces.to_frame()[["module", "rank", "explained_variance"]].shape
    (14, 3)
    >>> tlora.task_subspaces(model, calibration, max_rank=allocation, kind="g", progress=False)
    Subspaces(14 modules of base, kind 'g', up to rank ...)
    """
    check_arguments(task_subspaces, locals())
    _check_kind(calibration, kind, centered)
    counts = _direction_counts(calibration, max_rank, kind)
    modules, processes = _modules_of(model, calibration, kind)
    inputs = _InputMoments(calibration, centered)
    bases: dict[str, _Basis] = {}
    show = progress and processes.rank == 0
    with progress_bar(total=len(counts), desc=f"subspaces {kind}", unit="module", show=show) as bar:
        for groups in _rounds(modules, calibration, counts, processes.count):
            names, own_counts = [*chain.from_iterable(groups)], {name: counts[name] for name in groups[processes.rank]}
            for part in processes.gather(_decompose(modules, inputs, names, own_counts, kind, seed)):
                bases |= part
            bar.update(len(names))
    bases = {name: bases[name] for name in counts}
    trace = {first: inputs.moment(first).trace for first in calibration.covariances}
    recipe = {"kind": kind, "centered": centered}
    return Subspaces(
        targets={name: calibration.targets[name] for name in counts},
        kind=kind,
        max_rank=max(counts.values()) if isinstance(max_rank, Allocation) else int(max_rank),
        bases={name: basis.rows for name, basis in bases.items()},
        singular_values={name: basis.values for name, basis in bases.items()},
        numerical_rank={name: basis.rank for name, basis in bases.items()},
        row_variance={name: basis.variance for name, basis in bases.items()},
        traces={name: trace[calibration.shared[name]] for name in bases},
        fingerprints={name: calibration.fingerprints[name] for name in counts},
        meta=Meta(calibration.meta.model, calibration.meta.task, recipe, seed, calibration.meta.samples),
    )


def _direction_counts(calibration: Calibration, max_rank: int | Allocation, kind: Kind) -> dict[str, int]:
    """Number of directions of each module, in model order, at most as many as its matrix and its sketch have."""
    sketched = (calibration.fisher if KINDS[kind].needs == "fisher" else calibration.covariance) or {}
    columns = {name: sketched[name].total.shape[1] for name in calibration.names if KINDS[kind].within_sketch}
    if not isinstance(max_rank, Allocation):
        limit = require_positive_int(max_rank, "max_rank")
        shapes = calibration.sensitivity.shapes
        return {name: min(limit, *shape, columns.get(name, limit)) for name, shape in shapes.items()}
    stored = max_rank.stored_ranks
    ranks = {name: stored[parameter_name(name)] for name in calibration.names if parameter_name(name) in stored}
    joined = join_experts(calibration.targets[name] for name in ranks)
    for name in max_rank.ranks:
        if max_rank.targets[name] != joined.get(name):
            raise ValueError(
                f"the allocation has {name}, the calibration does not: allocate from this calibration's sensitivity"
            )
    for name, rank in ranks.items():
        if rank > columns.get(name, rank):
            raise ValueError(
                f"rank {rank} of {name} is beyond the sketch of its inputs, which has {columns[name]} columns: "
                f"allocate with max_rank={columns[name]}, or calibrate with a larger sketch_size"
            )
    return ranks


def _check_kind(calibration: Calibration, kind: Kind, centered: bool) -> None:
    """Refuse, before anything is computed, a kind without the statistics it needs."""
    require_choice(kind, "kind", tuple(KINDS))
    facts = KINDS[kind]
    if facts.needs and getattr(calibration, facts.needs) is None:
        raise ValueError(
            f"kind={kind!r} needs more statistics of the gradients: calibrate(..., {facts.needs}=True), "
            f"on the command line tlora calibrate --{facts.needs}; or choose another kind"
        )
    if not centered and not facts.reads_covariance:
        others = ", ".join(repr(name) for name, other in KINDS.items() if other.reads_covariance)
        raise ValueError(f"centered=False has no effect on kind={kind!r}: choose one of {others}")
    if centered and facts.reads_covariance and not any(c.rank_bound for c in calibration.covariances.values()):
        raise ValueError(
            f"kind={kind!r} needs inputs that vary within a sample, and no sample has more than one counted token: "
            "calibrate with tokens='all' and longer texts, pass centered=False, or choose kind='w', 'g' or 'random'"
        )


def _modules_of(model: Any, calibration: Calibration, kind: Kind) -> tuple[Mapping[str, nn.Module], Processes]:
    """The modules of the calibrated model and the processes that share it; none, and this one, without a model."""
    if model is None:
        if KINDS[kind].reads_weight:
            free = ", ".join(repr(name) for name, other in KINDS.items() if not other.reads_weight)
            raise ValueError(f"kind={kind!r} reads the weights: pass the model, or choose one of {free}")
        return {}, Processes()
    check_same_model(model, calibration.fingerprints, calibration.sensitivity.shapes)
    return base_modules(model), model_processes(get_base_model(model))


def _rounds(
    modules: Mapping[str, nn.Module], calibration: Calibration, names: Iterable[str], processes: int
) -> Iterator[tuple[Sequence[str], ...]]:
    """Groups of modules that the processes decompose at the same time, one group for each process.

    Modules that read the same input go to the same process; costs are balanced over processes.
    """
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(calibration.shared[name], []).append(name)
    products = {name: t.d_in * (t.d_in + t.d_out) for name, t in calibration.targets.items()}
    costs = {first: sum(products[name] for name in unit) for first, unit in units.items()}
    loads = [0] * processes
    parts: list[set[str]] = [set() for _ in loads]
    for first in sorted(units, key=costs.__getitem__, reverse=True):
        least = loads.index(min(loads))
        loads[least] += costs[first]
        parts[least] |= {*units[first]}
    targets = [{name: calibration.targets[name] for name in names if name in part} for part in parts]
    room = GROUP_BYTES if processes == 1 else 0  # no process then holds the whole weights of more than one module
    return zip_longest(*(_groups(modules, each, room) for each in targets), fillvalue=())


def _groups(modules: Mapping[str, nn.Module], targets: Mapping[str, Target], room: int) -> Iterator[list[str]]:
    """Modules decomposed side by side: one at a time on the CPU, as many as fit ``room`` bytes on an accelerator."""
    group: list[str] = []
    left = room
    for name, target in targets.items():
        is_elsewhere = _device(modules, name).type != "cpu"
        size = 4 * target.d_in * (target.d_out + target.d_in) if is_elsewhere else GROUP_BYTES
        if group and size > left:
            yield group
            group, left = [], room
        group.append(name)
        left -= size
    yield group


def _device(modules: Mapping[str, nn.Module], name: str) -> torch.device:
    """Where the products of a module are computed: where its weight is, or the CPU if it is offloaded."""
    parameter = next(modules[name].parameters(), None) if name in modules else None
    return torch.device("cpu") if parameter is None or parameter.is_meta else parameter.device


def _decompose(
    modules: Mapping[str, nn.Module],
    inputs: _InputMoments,
    names: Iterable[str],
    own: Mapping[str, int],
    kind: Kind,
    seed: int,
) -> dict[str, _Basis]:
    """Bases of this process's ``own`` modules, by their number of directions; ``names`` are those of all processes."""
    weights = {}
    for name in names if KINDS[kind].reads_weight else ():
        w = weight(modules[name], name)  # all processes take part in gathering the weight of a sharded model
        if name in own:
            weights[name] = w.float()
    devices = {name: weights[name].device if name in weights else _device(modules, name) for name in own}
    bases = run_coroutines(
        [_module_basis(weights, devices[name], inputs, name, k, kind, seed) for name, k in own.items()]
    )
    return dict(zip(own, bases, strict=True))


class _InputMoments:
    """The covariances or second moments of the inputs on the device of the products.

    Modules that share an input follow each other, so only the last one is kept there.
    """

    def __init__(self, calibration: Calibration, centered: bool) -> None:
        self.calibration, self.centered, self.pool = calibration, centered, ExpertPool(calibration)
        self.on_device = lru_cache(maxsize=1)(lambda first, device: self.moment(first).to(device))
        self.powers = lru_cache(maxsize=1)(lambda first, device: self.on_device(first, device).powers(SHRINKAGE))

    def moment(self, first: str) -> Covariance:
        """The covariance or second moment of an input, by the first module that reads it, on the CPU."""
        return self.pool.moment(first, self.centered)


class _Basis(NamedTuple):
    """Rows, singular values, numerical rank, and input variance of the rows; on the CPU."""

    rows: Tensor
    values: Tensor
    rank: int
    variance: Tensor


def _module_basis(
    weights: Mapping[str, Tensor],
    device: torch.device,
    inputs: _InputMoments,
    name: str,
    k: int,
    kind: Kind,
    seed: int,
) -> HostCoroutine[_Basis]:
    calibration = inputs.calibration
    d_in = calibration.targets[name].d_in
    generator = torch.Generator().manual_seed(module_seed(seed, name))
    if kind == "random":
        rows = fix_signs(orthonormal_rows(k, d_in, generator))
        return _Basis(rows, torch.zeros(k), k, _row_variance(calibration.covariance[name], rows))
    c = inputs.on_device(calibration.shared[name], device)
    matrix = _matrix(weights, c, device, inputs, name, kind)
    leading = yield from leading_right_singular_vectors(
        matrix.product, matrix.transposed, d_in, k, generator, device=device, warm=matrix.warm
    )
    rows, values = leading.rows, leading.singular_values
    rank = min(_numerical_rank(values, d_in), matrix.rank_bound or k)
    if matrix.is_gram:
        values = values.sqrt()
    if matrix.back is not None:
        rows = fix_signs(torch.linalg.qr(matrix.back(rows[:rank].T)).Q.T)
    if rank < k:
        rows = fix_signs(complete_rows(rows[:rank], k, generator))
        values = torch.where(torch.arange(k) < rank, values, 0.0)
    rows, variance = yield [rows.contiguous(), _row_variance(c, rows)]
    return _Basis(rows, values, rank, variance)


def _row_variance(c: Covariance, rows: Tensor) -> Tensor:
    return ((c @ rows.T) * rows.T).sum(0)


class _Matrix(NamedTuple):
    """Products with the matrix of a kind and with its transpose.

    ``warm`` is a symmetric factor that improves a random start; ``back`` maps the vectors to the subspace; a sketch
    leaves ``rank_bound`` directions. ``is_gram`` if this is ``M^T M`` of the matrix ``M`` of the kind.
    """

    product: Product
    transposed: Product
    warm: Product | None = None
    back: Product | None = None
    rank_bound: int | None = None
    is_gram: bool = False


def _matrix(
    weights: Mapping[str, Tensor], c: Covariance, device: torch.device, inputs: _InputMoments, name: str, kind: Kind
) -> _Matrix:
    calibration = inputs.calibration
    match kind:
        case "w":
            w = weights[name]
            return _Matrix(lambda x: w @ x, lambda y: w.T @ y)
        case "c":
            return _Matrix(c.__matmul__, c.__matmul__, rank_bound=c.rank_kept)
        case "wc":
            w = weights[name]
            return _Matrix(lambda x: w @ (c @ x), lambda y: c @ (w.T @ y), c.__matmul__, rank_bound=c.rank_kept)
        case "wc_half":
            w = weights[name]
            root, inverse = inputs.powers(calibration.shared[name], device)
            return _Matrix(lambda x: w @ root(x), lambda y: root(w.T @ y), root, inverse)
        case "g":
            gradient = inputs.pool.gradient(name)
            return _Matrix(lambda x: gradient @ x, gradient.transposed)
        case "fisher":
            fisher = inputs.pool.fisher(name).to(device)
            return _Matrix(fisher.__matmul__, fisher.__matmul__, rank_bound=fisher.rank_kept, is_gram=True)
        case "random":
            raise AssertionError("random rows are the singular vectors of no matrix")
        case _:
            assert_never(kind)


def _numerical_rank(values: Tensor, d: int) -> int:
    """Number of singular values above float32 rounding, ``sqrt(d) * eps`` of the largest."""
    floor = values[0] * torch.finfo(values.dtype).eps * d**0.5
    return int((values > floor).sum())
