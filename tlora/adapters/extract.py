"""Extract a LoRA adapter from a full fine-tune: the change of each weight, cut to a rank."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, SupportsIndex

import torch
from jaxtyping import Float
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from tlora.adapters.adapter import LoraAdapter, check_calibration
from tlora.adapters.compression import PLAIN, TASK, choose_ranks
from tlora.adapters.config import shared_config
from tlora.adapters.extraction import Extraction
from tlora.adapters.files import PREFIX
from tlora.adapters.update import LoraUpdate, balance, direction_energies, leading_directions
from tlora.allocation.allocation import Allocation
from tlora.calibration.calibration import Calibration
from tlora.calibration.covariance import Covariance
from tlora.models.loading import stream_model
from tlora.models.record import record_of
from tlora.models.targets import Target, head_modules, is_within, target_modules
from tlora.models.weights import base_modules, fingerprint, model_name, parameter, weight
from tlora.numerics.linalg import Product, leading_right_singular_vectors
from tlora.results import Meta
from tlora.utils.devices import run_coroutines
from tlora.utils.progress import progress_bar
from tlora.utils.reproducibility import exact_products, module_seed
from tlora.utils.validation import check_arguments, require_positive, require_positive_int

SHRINKAGE = 1e-6
"""Weight of ``tr(M)/d * I`` in a second moment whose root is taken: directions that no sample has read come last."""

_PART = 1 << 22
"""Numbers of a weight that are compared at once."""

Checkpoint = str | os.PathLike[str] | PreTrainedModel


@exact_products()
def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    rank: int | Mapping[str, int] | Allocation,
    *,
    parameters: float | None = None,
    calibration: Calibration | None = None,
    modules_to_save: Iterable[str] = (),
    seed: int = 0,
    progress: bool = True,
) -> Extraction:
    """Extract a LoRA adapter from a full fine-tune: the change of each weight, cut to a rank.

    Parameters
    ----------
    base, tuned : str, path-like or transformers.PreTrainedModel
        The model before and after a fine-tune of all weights: a folder, a name as in `load_model`, or a model, which is
        only read. Weights of a folder or of the hub stay in their files and are read one module at a time; those of a
        GGUF file are unpacked into memory, and a quantized model is loaded.
    rank : int, mapping of str to int, or Allocation
        Rank of every module; or ranks by full module name, from an allocation too. Modules without one, or with 0, get
        no adapter.
    parameters : int or float, optional
        Parameters of all ``A`` and ``B`` together: a number, or, as a float up to 1, a share of those at ``rank``. They
        go to the directions that hold most of the change, and ``rank`` is then the largest that a module gets.
    calibration : Calibration, optional
        From `calibrate` on the base and samples of the task: what is lost is then least in each module's outputs on
        it, and otherwise in its weights.
    modules_to_save : iterable of str
        Modules that the adapter holds whole, by their names or the ends of them, such as ``"norm"`` or
        ``"embed_tokens"``; a classifier's head is always among them.
    seed : int
        Seed of the random start of the singular vectors.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Extraction
        It holds the adapter, float32; `Extraction.save_adapter` writes it. `Extraction.rest` lists what changed
        elsewhere: norms, biases, embeddings.

    Raises
    ------
    ModuleNotFoundError
        If a packaged model is not installed.
    FileNotFoundError
        If a folder holds no model.
    ValueError
        If the two are not of one architecture with the same shapes (a resized vocabulary is named, with what to do);
        if nothing changed, or a weight is not finite; if ranks or ``modules_to_save`` name no module; or if the
        calibration is of another model or lacks a module.

    Notes
    -----
    With ``D = W' - W`` the change of a weight and ``M`` the uncentered second moment of its inputs, the update is
    ``U U^T D``, with ``U`` the leading left singular vectors of ``D M^(1/2)``: of all changes of this rank it changes
    the module's outputs most like ``D`` does (Eckart & Young; see `compress`). ``M = I`` gives the truncated singular
    value decomposition. The vectors come from products with ``D`` and a root of ``M`` alone. The root of a whole second
    moment costs ``d_in^3``: for a wide model calibrate with ``covariance="sketch"``.

    References
    ----------
    Eckart & Young (1936), The approximation of one matrix by another of lower rank.

    Examples
    --------
    >>> extraction = tlora.extract("base", "tuned", rank=4, progress=False)
    >>> extraction.to_frame()["rank"].unique().tolist()
    [4]
    >>> adapted = tlora.load_adapter(extraction.save_adapter("extracted"))
    >>> tlora.extract("base", "tuned", rank=4, calibration=calibration, progress=False).measures
    ['plain', 'task']
    """
    check_arguments(extract, locals())
    if parameters is not None:
        require_positive(parameters, "parameters")
    fingerprints: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        after = stack.enter_context(_opened(tuned))
        before = stack.enter_context(_opened(base, after.config.num_labels if head_modules(after) else None))
        base_name, tuned_name = model_name(before), model_name(after)
        targets = _common_targets(before, after, base_name, tuned_name)
        saved = _whole_modules(before, after, modules_to_save)
        ranks = _module_ranks(rank, {name: target for name, target in targets.items() if not is_within(name, saved)})
        shapes = {name: (targets[name].d_out, targets[name].d_in) for name in ranks}
        if calibration is not None:
            check_calibration(calibration, shapes, {}, "the calibration")
        inputs = None if calibration is None else _task_inputs(calibration)
        here, there = base_modules(before), base_modules(after)
        changes: dict[str, _Change] = {}
        for name in progress_bar(ranks, desc="extracting", unit="module", show=progress):
            old = weight(here[name], name)
            base_print = fingerprint(old).cpu()
            if calibration is not None:
                check_calibration(calibration, {name: shapes[name]}, {name: base_print}, "the calibration")
            difference = weight(there[name], name).to(torch.float32, copy=True).sub_(old)
            del old
            change = _decompose(name, difference, ranks[name], inputs, seed)
            del difference  # the next one is read before this name is given to it
            if change is not None:
                changes[name], fingerprints[name] = change, base_print
        if not changes:
            raise ValueError(
                f"{tuned_name} and {base_name} have the same weights in all {len(ranks)} modules that get a rank: pass "
                "a model before and after its fine-tune"
            )
        outside = _outside_changes(before, after, targets, changes)
        whole = {key: parameter(after, key).cpu().clone() for key in _parameters(after) if is_within(key, saved)}
        is_tied = any(_namesakes(after, [name]) for name in saved)
        config = _config(before, changes, saved, is_tied)
    kept = {name: change.update.rank for name, change in changes.items()}
    if parameters is not None:
        energies = {name: change.energies[-1] for name, change in changes.items()}
        kept = choose_ranks(energies, shapes, rank=None, parameters=parameters, energy=None, error=None)
        outside |= {f"{name}.weight": float(changes[name].whole[0]) for name, given in kept.items() if not given}
    updates = {name: changes[name].cut(given) for name, given in kept.items() if given}
    others = {f"{PREFIX}{key}": tensor for key, tensor in whole.items()}
    adapter = LoraAdapter(updates, config, others=others).with_updates(updates)
    used = Meta() if calibration is None else calibration.meta
    arguments = {
        "tuned": tuned_name,
        "rank": int(rank) if isinstance(rank, SupportsIndex) else ranks,
        "parameters": parameters,
        "modules_to_save": saved,
    }
    return Extraction(
        shapes=adapter.shapes,
        ranks=adapter.ranks,
        measures=[PLAIN] if calibration is None else [PLAIN, TASK],
        changes={name: changes[name].whole for name in updates},
        energies={name: changes[name].energies[:, : kept[name]].clone() for name in updates},
        outside=outside,
        saved=saved,
        config=adapter.config,
        adapter=adapter.tensors,
        fingerprints={name: fingerprints[name] for name in updates},
        meta=Meta(base_name, used.task, arguments, seed, used.samples),
    )


@contextlib.contextmanager
def _opened(checkpoint: Checkpoint, classes: int | None = None) -> Iterator[Any]:
    """A model in memory as it is, or that of a folder with its weights in their files."""
    if isinstance(checkpoint, PreTrainedModel):
        yield checkpoint
        return
    with stream_model(checkpoint, classes) as model:
        yield model


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters under all their names, those that several modules share too."""
    return dict(model.named_parameters(remove_duplicate=False))


def _common_targets(before: Any, after: Any, base: str, tuned: str) -> dict[str, Target]:
    """The target modules; refuse two models that differ in more than the values of their weights."""
    targets, others = target_modules(before), target_modules(after)
    if type(before) is not type(after) or targets.keys() != others.keys():
        kinds = f"a {type(after).__name__} with {len(others)} modules, a {type(before).__name__} with {len(targets)}"
        raise ValueError(
            f"{tuned} and {base} are of different architectures ({kinds}): pass the base that was fine-tuned"
        )
    packed = {f"{name}.weight" for name in targets}
    here = {key: tuple(p.shape) for key, p in _parameters(before).items() if key not in packed}
    there = {key: tuple(p.shape) for key, p in _parameters(after).items() if key not in packed}
    here |= {f"{name}.weight": (t.d_out, t.d_in) for name, t in targets.items()}
    there |= {f"{name}.weight": (t.d_out, t.d_in) for name, t in others.items()}
    for key in here | there:
        if (one := here.get(key)) == (other := there.get(key)):
            continue
        way_out = "pass the base that was fine-tuned"
        rows = {before.get_input_embeddings().weight.shape[0], after.get_input_embeddings().weight.shape[0]}
        if one and other and {one[0], other[0]} == rows:
            way_out = (
                f"an adapter cannot change the vocabulary. Resize the base, base.resize_token_embeddings({other[0]}), "
                "save it, and extract from that"
            )
        raise ValueError(f"{key} is {other or 'missing'} in {tuned} and {one or 'missing'} in {base}: {way_out}")
    return targets


def _whole_modules(before: Any, after: Any, names: Iterable[str]) -> list[str]:
    """Full names of the modules that are saved whole, in model order: heads, and those that are asked for.

    A module that shares a weight with one of them is saved too: PEFT replaces a module without its namesakes.
    """
    holders = {key.rpartition(".")[0] for key in _parameters(after)}
    modules = [name for name, _ in after.named_modules() if name and any(is_within(key, [name]) for key in holders)]
    chosen = set(head_modules(before))
    for end in names:
        matches = {name for name in modules if f".{name}".endswith(f".{end}")}
        if not matches:
            last = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in modules))
            raise ValueError(f"modules_to_save: no module is called {end!r}; there is {last}")
        chosen |= matches
    chosen |= _namesakes(before, chosen)
    return [name for name, _ in after.named_modules(remove_duplicate=False) if name in chosen]


def _namesakes(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Modules outside of these that share a parameter with them, as a head that is tied to its embeddings."""
    parameters, names = _parameters(model), list(names)
    inside = {id(parameter) for key, parameter in parameters.items() if is_within(key, names)}
    shared = {key.rpartition(".")[0] for key, parameter in parameters.items() if id(parameter) in inside}
    return {name for name in shared if not is_within(name, names)}


def _module_ranks(rank: Any, targets: Mapping[str, Target]) -> dict[str, int]:
    """Rank of each module that gets one, at most what its matrix has."""
    if isinstance(rank, Allocation):
        rank = rank.ranks
    if not isinstance(rank, Mapping):
        rank = dict.fromkeys(targets, require_positive_int(rank, "rank"))
    if unknown := next((name for name in rank if name not in targets), None):
        raise ValueError(
            f"rank= names {unknown}, which is no target module, or is saved whole: name modules such as "
            f"{next(iter(targets), 'none')}"
        )
    given = {name: require_positive_int(rank.get(name, 0), f"rank of {name}", 0) for name in targets}
    return {name: min(r, targets[name].d_out, targets[name].d_in) for name, r in given.items() if r}


class _Change(NamedTuple):
    """The change of one weight: its best update of a rank, and what of the change each direction of that holds."""

    update: LoraUpdate
    directions: Float[Tensor, "r r"]
    energies: Float[Tensor, "measures r"]
    whole: Float[Tensor, " measures"]

    def cut(self, rank: int) -> LoraUpdate:
        """The update of a lower rank, float32 on the CPU."""
        first = self.directions[:, :rank]
        a, b = first.mT @ self.update.a.double(), self.update.b.double() @ first
        return balance(LoraUpdate(self.update.module, a, b)).to(torch.float32, "cpu")


_Inputs = Callable[[str, torch.device], tuple[Covariance, Product]]


def _task_inputs(calibration: Calibration) -> _Inputs:
    """Return a function from a module to the second moment of its inputs, and products with a root of that.

    It keeps the last: modules that read the same input follow each other.
    """

    @lru_cache(maxsize=1)
    def inputs(first: str, device: torch.device) -> tuple[Covariance, Product]:
        moment = calibration.covariances[first].second_moment().to(device)
        return moment, moment.powers(SHRINKAGE)[0]

    return lambda name, device: inputs(calibration.shared[name], device)


def _decompose(
    name: str, difference: Float[Tensor, "d_out d_in"], rank: int, inputs: _Inputs | None, seed: int
) -> _Change | None:
    """The best update of a rank; None if nothing changed."""
    moments: list[Covariance | None] = [None]
    product: Product = difference.mT.__matmul__
    transposed: Product = difference.__matmul__
    if inputs is not None:
        moment, root = inputs(name, difference.device)
        moments.append(moment)
        product, transposed = lambda y: root(difference.mT @ y), lambda x: difference @ root(x)
    whole = torch.tensor([_squared_norm(difference, moment) for moment in moments], dtype=torch.float64)
    if not whole.isfinite().all():
        raise ValueError(f"the change of {name} is not finite: the fine-tune is damaged, or diverged")
    if not whole[0]:
        return None
    generator = torch.Generator().manual_seed(module_seed(seed, name))
    vectors = leading_right_singular_vectors(
        product, transposed, len(difference), rank, generator, device=difference.device
    )
    (leading,) = run_coroutines([vectors])
    update = LoraUpdate(name, leading.rows @ difference, leading.rows.mT)
    cores = [update.core(moment) for moment in moments]
    directions = leading_directions(cores[-1])
    energies = torch.stack([direction_energies(core, directions) for core in cores]).cpu()
    whole = torch.maximum(whole, energies.sum(1))  # products in float32 round
    return _Change(update.to(torch.float32, "cpu"), directions.cpu(), energies, whole)


def _squared_norm(difference: Float[Tensor, "d_out ..."], moment: Covariance | None) -> float:
    """``tr(D M D^T)``, or without a moment the squared norm of the weights."""
    parts = _parts(difference)  # a norm in float64 takes a copy
    if moment is None:
        return sum(float(torch.linalg.vector_norm(rows, dtype=torch.float64)) ** 2 for rows in parts)
    return sum(float(((moment @ rows.mT).mT * rows).sum(dtype=torch.float64)) for rows in parts)


def _outside_changes(
    before: Any, after: Any, targets: Mapping[str, Target], adapted: Iterable[str]
) -> dict[str, float]:
    """Squared norm of the change of each parameter outside the adapter that changed.

    Modules that the base has no weights for are left out.
    """
    held, fresh = {f"{name}.weight" for name in adapted}, record_of(before).newly_initialized or ()
    here, there = base_modules(before), base_modules(after)
    names = dict.fromkeys([*dict(after.named_parameters()), *dict(before.named_parameters())])
    changes = {}
    for key in names:
        module = key.removesuffix(".weight")
        if key in held or is_within(key, fresh):
            continue
        if module in targets:
            old: Iterable[Tensor]
            new: Iterable[Tensor]
            old, new = (_parts(weight(modules[module], module)) for modules in (here, there))
        else:
            old, new = (_parts_read(model, key) for model in (before, after))
        parts = zip(old, new, strict=True)
        if change := sum(_squared_norm(theirs.float() - ours.float(), None) for ours, theirs in parts):
            changes[key] = change
    return changes


def _parts(matrix: Float[Tensor, "d_out ..."]) -> tuple[Tensor, ...]:
    """The rows of a matrix, some at a time."""
    return matrix.split(max(1, _PART // matrix[0].numel()))


def _parts_read(model: nn.Module, key: str) -> Iterator[Tensor]:
    """The same of a parameter, read again for each part: mapped pages stay in memory as long as their tensor."""

    def read() -> tuple[Tensor, ...]:
        return _parts(torch.atleast_1d(parameter(model, key)))

    for number in range(len(read())):
        yield read()[number]


def _config(before: Any, names: Iterable[str], saved: list[str], is_tied: bool) -> dict[str, Any]:
    """The config of the adapter as PEFT saves it; ranks are still those of no module."""
    about = {"inference_mode": True, "base_model_name_or_path": before.config.name_or_path}
    about |= {"modules_to_save": saved or None, "ensure_weight_tying": is_tied}
    config = LoraConfig(**shared_config(before, names) | about).to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return json.loads(json.dumps(plain, default=str))
