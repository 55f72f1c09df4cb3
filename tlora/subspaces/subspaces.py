"""Task subspaces: the input directions that an adapter's A may read (stage 3 of TLoRA)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, zip_longest
from typing import Any, ClassVar, NamedTuple, get_args

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tlora.allocation.allocation import Allocation
from tlora.calibration.calibration import Calibration, check_alike
from tlora.calibration.covariance import Covariance
from tlora.calibration.spectrum import Spectrum, descending
from tlora.models.module_result import ModuleResult
from tlora.models.sharding import model_processes
from tlora.models.targets import Target
from tlora.models.weights import base_modules, check_same_model, get_base_model, weight
from tlora.numerics.linalg import Product, complete_rows, fix_signs, leading_right_singular_vectors, orthonormal_rows
from tlora.results import Meta
from tlora.utils.defaults import KIND, Kind
from tlora.utils.devices import HostCoroutine, run_coroutines
from tlora.utils.reproducibility import exact_products, module_seed
from tlora.utils.validation import fraction, positive, positive_int

SHRINKAGE = 0.01
"""Weight of ``tr(C)/d * I`` in the covariance of kind ``"wc_half"``, whose inverse root is needed."""

TOGETHER = 1 << 29
"""Bytes of covariances and weights that are decomposed side by side on an accelerator, so that the host waits less."""


@dataclass(frozen=True, repr=False, eq=False)
class Subspaces(ModuleResult):
    """An orthonormal basis of input directions for each target module, the most important first.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order.
    kind : str
        Matrix whose right singular vectors these are; see `task_subspaces`.
    max_rank : int
        Largest rank that a basis can be asked for (a module smaller than that is limited by its own size); of subspaces
        made for an allocation, its largest rank.
    bases : dict of (k, d_in) float32 tensor
        Orthonormal rows, ``k = min(max_rank, d_in, d_out)``, or the module's rank in the allocation.
    singular_values : dict of (k,) float32 tensor
        Falling; zero from ``numerical_rank`` on, and all zero for kind ``"random"``.
    numerical_rank : dict of int
        From this row on the basis is an orthonormal completion by seeded random directions.
    row_variance : dict of (k,) float32 tensor
        ``a^T C a`` of each row ``a``: variance of the inputs along it; second moment with ``centred=False``.
    traces : dict of float
        Total input variance ``tr(C)`` of each module, or the trace of the second moment.
    fingerprints : dict of (16,) float32 tensor
        As in `Calibration`.
    meta : Meta
        Model, task, seed.
    inner : dict of (k, k) float32 tensor
        Of kind ``"g_whitened"``, ``V K V^T`` of the rows ``V``, for ``attach(..., rows="whitened")``; else empty.
    """

    kind: str
    max_rank: int
    bases: dict[str, Tensor]
    singular_values: dict[str, Tensor]
    numerical_rank: dict[str, int]
    row_variance: dict[str, Tensor]
    traces: dict[str, float]
    fingerprints: dict[str, Tensor]
    meta: Meta
    inner: dict[str, Tensor] = field(default_factory=dict)

    columns: ClassVar[dict[str, str]] = {
        "module": "full module name",
        "layer": "index of the block",
        "projection": "role within the block",
        "rank": "rows of the basis",
        "numerical_rank": "rows that the matrix determines; the rest is a seeded completion",
        "first_singular_value": "largest singular value of the decomposed matrix",
        "last_singular_value": "smallest one kept",
        "explained_variance": "share of the inputs' variance within the basis",
    }

    def basis(self, name: str, rank: int) -> Tensor:
        """The first ``rank`` directions of a module.

        Parameters
        ----------
        name : str
            Full module name.
        rank : int
            Rows wanted.

        Returns
        -------
        (rank, d_in) float32 tensor
            Orthonormal rows.

        Raises
        ------
        KeyError
            If there is no such module.
        ValueError
            If the rank is below 1 or beyond what was computed.
        """
        if name not in self.bases:
            raise KeyError(f"no subspace for module {name!r}: there are {len(self.bases)}, e.g. {self.names[0]!r}")
        rows = self.bases[name]
        if not 1 <= rank <= len(rows):
            target = self.targets[name]
            has_more = len(rows) < min(target.d_out, target.d_in)
            more = (
                ", or compute what an allocation needs with task_subspaces(..., max_rank=allocation)"
                if has_more
                else ""
            )
            raise ValueError(
                f"rank {rank} asked for {name}, whose basis has {len(rows)} directions: use 1 to {len(rows)}{more}"
            )
        return rows[:rank].clone()

    def to_frame(self) -> pd.DataFrame:
        """One row a module; see ``columns``."""
        values = self.singular_values.values()
        return pd.DataFrame(
            self._places()
            | {
                "rank": [len(rows) for rows in self.bases.values()],
                "numerical_rank": list(self.numerical_rank.values()),
                "first_singular_value": [float(v[0]) for v in values],
                "last_singular_value": [float(v[-1]) for v in values],
                "explained_variance": [float(self.row_variance[n].sum() / self.traces[n]) for n in self.names],
            }
        )

    def spectrum(self) -> Spectrum:
        """Squared singular values of the matrix ``M`` behind each subspace: the energy of each direction.

        Returns
        -------
        Spectrum
            Of the same kind, truncated at the largest rank. For kind ``"c"`` it is the spectrum of ``C`` itself, as
            from `Calibration.spectrum`, and its trace is known; for the others only where no direction is missing.
            Subspaces do not say how many tokens were seen: its dimension is the width of the input, and where the
            tokens are fewer its effective ranks are looser bounds than those of `Calibration.spectrum`.

        Raises
        ------
        ValueError
            If the subspaces are random, or a singular value is NaN.
        """
        if self.kind == "random":
            raise ValueError("kind 'random' comes from no matrix and has no spectrum: choose another, e.g. 'wc'")
        values = {name: descending(name, found) for name, found in self.singular_values.items()}
        if self.kind == "c":
            traces, sizes = dict(self.traces), {name: target.d_in for name, target in self.targets.items()}
        else:
            values = {name: found.square() for name, found in values.items()}
            sizes = {name: min(shape) for name, shape in self.shapes.items()}
            # all are known where they are as many as the matrix has, or end in zeros
            ends = {name: len(v) == sizes[name] or bool(v[-1] == 0) for name, v in values.items()}
            traces = {name: float(v.double().sum()) if ends[name] else float("nan") for name, v in values.items()}
        return Spectrum(
            targets=dict(self.targets),
            eigenvalues=values,
            traces=traces,
            dimensions=sizes,
            inputs={name: name for name in values},
            kind=self.kind,
            meta=self.meta,
        )

    def _summary(self) -> str:
        short = sum(self.numerical_rank[n] < len(rows) for n, rows in self.bases.items())
        completed = f", {short} completed beyond their numerical rank" if short else ""
        return (
            f"{len(self.bases)} modules of {self.meta.model}, kind {self.kind!r}, up to rank {self.max_rank}{completed}"
        )


@exact_products()
def task_subspaces(
    model: Any,
    calibration: Calibration,
    *,
    max_rank: int | Allocation = 64,
    kind: Kind = KIND,
    centred: bool = True,
    general: Calibration | None = None,
    general_weight: float = 1.0,
    ridge: float = SHRINKAGE,
    seed: int = 0,
    progress: bool = True,
) -> Subspaces:
    """Leading right singular vectors of each module's matrix, by randomised block Krylov iteration in float32.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model that was calibrated; of one with adapters, the layers under them. Read only. Of one that FSDP2 has
        sharded each process decomposes its part of the modules, one whole weight at a time, and all have the result.
    calibration : Calibration
        From `calibrate`.
    max_rank : int or Allocation
        Vectors computed for each module. An allocation: as many as the module's rank in it, and no subspace for modules
        that it leaves out. A number: the same for all, so that changing an allocation costs no new decomposition.
    kind : {"wc", "w", "c", "wc_half", "g", "g_whitened", "random"}
        The matrix: ``W C`` (TLoRA); ``W`` (as in PiSSA); ``C`` (as in EVA, which centres by one mean over all
        tokens); ``W C^(1/2)`` with the space spanned by ``V^T C^(-1/2)``, C shrunk by 1 %; the mean gradient (as in
        LoRA-GA), which needs ``calibrate(..., gradient=True)``; that gradient whitened, ``G K^(-1/2)`` with the space
        spanned by ``V^T K^(-1/2)``, ``K`` the second moment of the inputs; a random space (as in LoRA-FA).
    centred : bool
        Of kinds with ``C``: True takes the covariance, of inputs minus the mean of their sample; False puts the second
        moment ``M`` of the inputs as they are in its place. Kind ``"wc_half"`` keeps, of all spaces of its rank, the
        variation of the module's outputs within samples best with ``C``, and the outputs themselves with ``M``, but for
        the shrinkage.
    general : Calibration, optional
        Of kind ``"g_whitened"``: a calibration of the same model on other text, whose second moment is added to ``K``.
        An update along what that text reads, too, is then charged for.
    general_weight : float
        Its weight, beside 1 for the task's; each is a mean over tokens.
    ridge : float
        Weight of ``tr(K)/d * I`` in ``K``, in (0, 1].
    seed : int
        Seed of the start of the iteration, of random spaces, and of completions.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Subspaces
        On the CPU. Signs are fixed (largest entry of a row positive), so one seed gives the same bytes.

    Raises
    ------
    TypeError
        If ``calibration`` is not a `Calibration`.
    ValueError
        If ``max_rank`` is below 1 or an allocation of other modules, the kind unknown or not possible with this
        calibration, or the calibration is of another model.

    Notes
    -----
    The authors form ``W C`` and take its full SVD, O(d^3) for each module. Only the leading subspace is wanted, and
    products with ``W`` and ``C`` give it. ``"wc_half"`` with ``centred=False`` minimises ``||X (W - W')^T||_F`` over
    ``W'`` of rank r, the criterion of SVD-LLM. CorDA decomposes ``W M`` and spans its space by ``V^T M^(-1)``, which
    minimises ``||(W - W') M||_F``. Where the matrix has fewer independent directions than asked for, the basis
    is completed orthonormally by seeded random directions, and ``numerical_rank`` says from where on.

    ``"g_whitened"`` is of this project. Training ``B`` is a regression on ``A x``, with the curvature ``A M A^T``: of
    all ``A`` of rank r, ``V^T K^(-1/2)`` has the step of a natural gradient that lowers the loss most.

    References
    ----------
    TLoRA, arXiv 2604.18124: the initialisation of A from the SVD of weight times input covariance.
    Musco & Musco (2015), Randomized block Krylov methods for stronger and faster approximate singular value
    decomposition, algorithm 2. SVD-LLM, arXiv 2403.07378; CorDA, arXiv 2406.05223.
    """
    counts = _counts(calibration, max_rank)
    _check_possible(calibration, counts, kind, centred)
    fraction("ridge", positive("ridge", ridge))
    if general is not None:
        _check_general(calibration, general, kind)
        positive("general_weight", general_weight)
    check_same_model(model, calibration.fingerprints, calibration.sensitivity.shapes)
    modules = base_modules(model)
    inputs = _Inputs(calibration, centred, ridge if kind == "g_whitened" else None, general, general_weight)
    processes = model_processes(get_base_model(model))
    computed: dict[str, _Basis] = {}
    shown = progress and processes.rank == 0
    with tqdm(total=len(counts), desc=f"subspaces {kind}", unit="module", disable=not shown) as bar:
        for groups in _rounds(modules, calibration, counts, processes.count):
            now, mine = [*chain.from_iterable(groups)], {name: counts[name] for name in groups[processes.rank]}
            for part in processes.gather(_decomposed(modules, inputs, now, mine, kind, seed)):
                computed |= part
            bar.update(len(now))
    found = {name: computed[name] for name in counts}
    trace = {first: inputs.moment(first).trace for first in calibration.covariances}
    recipe: dict[str, Any] = {"kind": kind, "centred": centred}
    if kind == "g_whitened":
        of_general = None if general is None else {"task": general.meta.task, "weight": general_weight}
        recipe |= {"ridge": ridge, "general": of_general}
    return Subspaces(
        targets={name: calibration.targets[name] for name in counts},
        kind=kind,
        max_rank=max(counts.values()) if isinstance(max_rank, Allocation) else int(max_rank),
        bases={name: basis.rows for name, basis in found.items()},
        singular_values={name: basis.values for name, basis in found.items()},
        numerical_rank={name: basis.rank for name, basis in found.items()},
        row_variance={name: basis.variance for name, basis in found.items()},
        traces={name: trace[calibration.shared[name]] for name in found},
        fingerprints={name: calibration.fingerprints[name] for name in counts},
        meta=Meta(calibration.meta.model, calibration.meta.task, recipe, seed, calibration.meta.samples),
        inner={name: basis.inner for name, basis in found.items() if basis.inner is not None},
    )


def _counts(calibration: Calibration, max_rank: int | Allocation) -> dict[str, int]:
    """Directions wanted of each module, in model order, at most as many as its matrix has."""
    if not isinstance(calibration, Calibration):
        raise TypeError(f"calibration is a {type(calibration).__name__}: pass what calibrate(model, ...) returned")
    if not isinstance(max_rank, Allocation):
        most = positive_int(max_rank, "max_rank")
        return {name: min(most, *shape) for name, shape in calibration.sensitivity.shapes.items()}
    for name in max_rank.ranks:
        if max_rank.shapes[name] != calibration.sensitivity.shapes.get(name):
            raise ValueError(
                f"the allocation has {name}, the calibration does not: allocate from this calibration's sensitivity"
            )
    return {name: max_rank.ranks[name] for name in calibration.names if name in max_rank.ranks}


def _check_possible(calibration: Calibration, counts: Mapping[str, int], kind: Kind, centred: bool) -> None:
    """Refuse, before anything is computed, a kind without what it needs, and ranks beyond a sketch."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(get_args(Kind))}")
    if kind in ("g", "g_whitened") and calibration.gradient is None:
        raise ValueError(f"kind={kind!r} needs the mean gradient: calibrate(..., gradient=True)")
    if not centred and kind not in ("wc", "c", "wc_half"):
        raise ValueError(f"centred=False is of covariances, kind={kind!r} has none: choose 'wc', 'c' or 'wc_half'")
    if centred and kind in ("wc", "c", "wc_half") and not any(c.rank_bound for c in calibration.covariances.values()):
        raise ValueError(
            f"kind={kind!r} needs inputs that vary within a sample, and each sample has one counted token at most: "
            "calibrate with tokens='all' and texts of several tokens, pass centred=False, or choose kind='w', 'g' or "
            "'random'"
        )
    if kind not in ("wc", "c"):
        return
    for name, count in counts.items():
        kept = calibration.covariance[name].total.shape[1]
        if count > kept:
            raise ValueError(
                f"rank {count} of {name} is beyond the sketch of its inputs, which has {kept} columns: take a max_rank "
                f"of {kept} at most, or calibrate with a larger sketch_size"
            )


def _check_general(calibration: Calibration, general: Calibration, kind: Kind) -> None:
    """Refuse a second calibration of another model or in another form, or one that nothing is made of."""
    if kind != "g_whitened":
        raise ValueError(f"general= is for kind='g_whitened', and kind={kind!r} has no use for it: leave it out")
    if not isinstance(general, Calibration):
        raise TypeError(f"general is a {type(general).__name__}: pass what calibrate(model, ...) returned")
    recipe = general.meta.recipe | {name: calibration.meta.recipe[name] for name in ("gradient", "tokens")}
    check_alike(calibration, general.names, recipe, general.fingerprints, "general")


def _rounds(
    modules: Mapping[str, nn.Module], calibration: Calibration, names: Iterable[str], processes: int
) -> Iterator[tuple[Sequence[str], ...]]:
    """What each process decomposes at one time: modules that read one input in one process, dealt by cost."""
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
    room = TOGETHER if processes == 1 else 0  # no process then holds the whole weights of more than one module
    return zip_longest(*(_groups(modules, each, room) for each in targets), fillvalue=())


def _decomposed(
    modules: Mapping[str, nn.Module],
    inputs: _Inputs,
    now: Iterable[str],
    mine: Mapping[str, int],
    kind: Kind,
    seed: int,
) -> dict[str, _Basis]:
    """Bases of so many directions of this process's modules, among those that all processes decompose now."""
    weights = {}
    for name in now if kind != "random" else ():
        found = weight(modules[name], name)  # of a sharded model all processes have to ask for it
        if name in mine:
            weights[name] = found.float()
    bases = run_coroutines([_module_basis(weights, inputs, name, k, kind, seed) for name, k in mine.items()])
    return dict(zip(mine, bases, strict=True))


def _groups(modules: Mapping[str, nn.Module], targets: Mapping[str, Target], room: int) -> Iterator[list[str]]:
    """Modules that are decomposed side by side: on the CPU each alone, elsewhere as many as so many bytes hold."""
    group: list[str] = []
    left = room
    for name, target in targets.items():
        parameter = next(modules[name].parameters(), None)
        is_elsewhere = parameter is not None and parameter.device.type not in ("cpu", "meta")
        size = 4 * target.d_in * (target.d_out + target.d_in) if is_elsewhere else TOGETHER
        if group and size > left:
            yield group
            group, left = [], room
        group.append(name)
        left -= size
    yield group


class _Inputs:
    """The covariances, or second moments, where the products run.

    Modules that share one follow each other: only the last is kept here.
    """

    def __init__(
        self,
        calibration: Calibration,
        centred: bool,
        ridge: float | None = None,
        general: Calibration | None = None,
        general_weight: float = 0.0,
    ) -> None:
        self.calibration, self.centred = calibration, centred
        self.general, self.general_weight = general, general_weight
        self.on = lru_cache(maxsize=1)(self._on)
        # what `powers` are of, but for the shrinkage
        self.metric = self.on if ridge is None else lru_cache(maxsize=1)(self._curvature)
        self.shrinkage = SHRINKAGE if ridge is None else ridge
        self.powers = lru_cache(maxsize=1)(self._powers)

    def moment(self, first: str) -> Covariance:
        """What is decomposed of the inputs that a module is the first to read, on the CPU."""
        covariance = self.calibration.covariances[first]
        return covariance if self.centred else covariance.second_moment()

    def _on(self, first: str, device: torch.device) -> Covariance:
        return self.moment(first).to(device)

    def _powers(self, first: str, device: torch.device) -> tuple[Product, Product]:
        return self.metric(first, device).powers(self.shrinkage)

    def _curvature(self, first: str, device: torch.device) -> Covariance:
        """``K`` but for the ridge: the second moment of the task's tokens, and of general ones."""
        found = self.calibration.covariances[first].second_moment().per_token()
        if self.general is not None:
            other = self.general.covariances[first].second_moment().per_token()
            found = found.plus(other, self.general_weight)
        return found.to(device)


class _Basis(NamedTuple):
    """Rows, singular values, numerical rank, input variance and products by K of the rows of a module, on the CPU."""

    rows: Tensor
    values: Tensor
    rank: int
    variance: Tensor
    inner: Tensor | None = None


def _module_basis(
    weights: Mapping[str, Tensor], inputs: _Inputs, name: str, k: int, kind: Kind, seed: int
) -> HostCoroutine[_Basis]:
    calibration = inputs.calibration
    d_in = calibration.targets[name].d_in
    generator = torch.Generator().manual_seed(module_seed(seed, name))
    if kind == "random":
        rows = fix_signs(orthonormal_rows(k, d_in, generator))
        return _Basis(rows, torch.zeros(k), k, _variance(calibration.covariance[name], rows))
    w = weights[name]
    c = inputs.on(calibration.shared[name], w.device)
    matrix = _matrix(w, c, inputs, name, kind)
    leading = yield from leading_right_singular_vectors(
        matrix.product, matrix.transposed, d_in, k, generator, device=w.device, warm=matrix.warm
    )
    rows, values = leading.rows, leading.singular_values
    bound = c.rank_kept if kind in ("wc", "c") else k
    rank = min(numerical_rank(values, d_in), bound)
    if matrix.back is not None:
        rows = fix_signs(torch.linalg.qr(matrix.back(rows[:rank].T)).Q.T)
    if rank < k:
        rows = fix_signs(complete_rows(rows[:rank], k, generator))
        values = torch.where(torch.arange(k) < rank, values, 0.0)
    found = [rows.contiguous(), _variance(c, rows)]
    if kind == "g_whitened":
        metric = inputs.metric(calibration.shared[name], w.device)
        found.append(rows @ metric.shrunk(inputs.shrinkage, rows.T))
    rows, variance, *inner = yield found
    return _Basis(rows, values, rank, variance, *inner)


def _variance(c: Covariance, rows: Tensor) -> Tensor:
    return ((c @ rows.T) * rows.T).sum(0)


class _Matrix(NamedTuple):
    """Products with the matrix of a kind and with its transpose.

    ``warm`` is a symmetric factor that improves a random start, ``back`` maps the vectors to the space wanted.
    """

    product: Product
    transposed: Product
    warm: Product | None = None
    back: Product | None = None


def _matrix(w: Tensor, c: Covariance, inputs: _Inputs, name: str, kind: Kind) -> _Matrix:
    calibration = inputs.calibration
    if kind == "w":
        return _Matrix(lambda x: w @ x, lambda y: w.T @ y)
    if kind == "g":
        assert calibration.gradient is not None
        gradient = calibration.gradient[name]
        return _Matrix(lambda x: gradient @ x, gradient.transposed)
    if kind == "g_whitened":
        assert calibration.gradient is not None
        gradient, (_, whiten) = calibration.gradient[name], inputs.powers(calibration.shared[name], w.device)
        return _Matrix(lambda x: gradient @ whiten(x), lambda y: whiten(gradient.transposed(y)), None, back=whiten)
    if kind == "c":
        return _Matrix(c.__matmul__, c.__matmul__)
    if kind == "wc":
        return _Matrix(lambda x: w @ (c @ x), lambda y: c @ (w.T @ y), c.__matmul__)
    root, inverse = inputs.powers(calibration.shared[name], w.device)
    return _Matrix(lambda x: w @ root(x), lambda y: root(w.T @ y), root, inverse)


def numerical_rank(values: Tensor, d: int) -> int:
    """Singular values that stand above what float32 rounding makes of zero, ``sqrt(d) * eps`` of the largest."""
    floor = values[0] * torch.finfo(values.dtype).eps * d**0.5
    return int((values > floor).sum())
