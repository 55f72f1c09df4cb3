"""Observe what the directions of subspaces read in a pass over samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tlora.calibration.batches import Batch
from tlora.calibration.constant_tokens import find_constant_tokens
from tlora.calibration.forward_backward import prepare_batches, run_batches
from tlora.explanation.direction_activations_result import CONTROL, PARTS, DirectionActivations, ReadTokens
from tlora.explanation.token_texts import token_texts
from tlora.models.experts import is_expert
from tlora.models.observe_experts import RoutedRows, Rows
from tlora.models.targets import Model, Target
from tlora.models.weights import model_name
from tlora.numerics.linalg import orthonormal_rows
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces, check_subspaces, subspaces_by_label
from tlora.utils.progress import progress_bar
from tlora.utils.reproducibility import module_seed
from tlora.utils.validation import check_arguments, require_positive_int


def direction_activations(
    model: Model,
    subspaces: Subspaces | Mapping[str, Subspaces],
    batches: Iterable[Mapping[str, Any]],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    ranks: int = 8,
    need: bool = False,
    first_token: bool = True,
    gradient_checkpointing: bool | None = None,
    seed: int = 0,
    task: str = "",
    progress: bool = True,
) -> DirectionActivations:
    """Measure which tokens of the samples the directions of each module respond to.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model. It is observed, not changed.
    subspaces : Subspaces or mapping of str to Subspaces
        One kind, or several by label; all of the same modules of this model. As many random directions are read along
        with them as a control.
    batches : iterable of dict
        As for `calibrate`; at least two samples, better ones the subspaces were not computed from.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        For the texts of the tokens; without it they are token ids.
    ranks : int
        Directions of each module, at most as many as its subspace has.
    need : bool
        Measure how much the loss needs each module's output at each token, in a backward pass.
    first_token : bool
        Look at the first token of each sample. It is an attention sink in many models: some modules read little else
        then, see `DirectionActivations.sinks`.
    gradient_checkpointing : bool, optional
        As for `calibrate`.
    seed : int
        Seed of the random directions.
    task : str
        Name of the task; by default that of the batches, if they have one.
    progress : bool
        Show a progress bar.

    Returns
    -------
    DirectionActivations
        Of experts at the tokens that are routed to each; without those to which none is.

    Raises
    ------
    ValueError
        If the subspaces are of other modules or of another model, a batch does not fit the model, there is only one
        sample, or an activation is not finite.

    Examples
    --------
    >>> kinds = {kind: tlora.task_subspaces(model, calibration, max_rank=4, kind=kind) for kind in ("wc", "g")}
    >>> activations = tlora.direction_activations(model, kinds, task.calibration(8), tokenizer=tokenizer, ranks=4,
    ...                                           progress=False)
    >>> activations.constant_share()["kind"].tolist()
    ['wc', 'g', 'random']
    """
    check_arguments(direction_activations, locals())
    kinds = subspaces_by_label(subspaces)
    targets = check_subspaces(model, kinds)
    rank = require_positive_int(ranks, "ranks")
    prepared = list(prepare_batches(model, batches))
    constant = find_constant_tokens(prepared)
    rows = {name: _directions(target, kinds, rank, seed) for name, target in targets.items()}
    readings = _Readings(model, rows, first_token)
    shown = progress_bar(prepared, desc="reading", unit="batch", show=progress)
    run_batches(model, targets, map(constant.mark, shown), readings, need, gradient_checkpointing, shown)
    names = [name for name in targets if readings.has_read(name)]
    standardized = {name: _standardize(name, readings.along(name), len(rows[name])) for name in names}
    return DirectionActivations(
        targets={name: targets[name] for name in names},
        kinds=[*kinds, *[CONTROL] * (CONTROL not in kinds)],
        z={name: z for name, (z, _) in standardized.items()},
        deviations={name: deviation for name, (_, deviation) in standardized.items()},
        tokens=readings.read_tokens(tokenizer),
        sides={name: readings.sides[name] for name in names},
        routed={name: readings.routed(name) for name in names if is_expert(name)},
        need={name: _relative(torch.cat(readings.need[name])) for name in names if need},
        has_first=first_token,
        meta=Meta(
            model=model_name(model),
            task=task or getattr(batches, "task", ""),
            recipe={"ranks": rank, "subspaces": {label: each.meta.recipe for label, each in kinds.items()}},
            seed=seed,
            samples=readings.samples,
        ),
    )


def _directions(
    target: Target, kinds: Mapping[str, Subspaces], rank: int, seed: int
) -> Float[Tensor, "kinds directions d_in"]:
    """The first rows of each kind, as many as all have, and of the control."""
    rank = min(rank, *(len(each.bases[target.name]) for each in kinds.values()))
    rows = [each.basis(target.name, rank) for each in kinds.values()]
    if CONTROL not in kinds:
        generator = torch.Generator().manual_seed(module_seed(seed, target.name))
        rows.append(orthonormal_rows(rank, target.d_in, generator))
    return torch.stack(rows)


def _standardize(
    name: str, along: Float[Tensor, "tokens rows"], kinds: int
) -> tuple[Float[Tensor, "kinds directions tokens"], Float[Tensor, "kinds directions"]]:
    """``z`` and the standard deviations."""
    values = along.double()
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"the inputs of {name} are not finite (NaN or infinity) on these samples: look at the module before it, or "
            "load the model with dtype='float32'"
        )
    centered = values - values.mean(0)
    deviation = centered.square().mean(0).sqrt()
    z = centered / torch.where(deviation > 0, deviation, 1.0)
    z, deviation = z.T.half().contiguous().cpu(), deviation.float().cpu()
    return z.unflatten(0, (kinds, -1)), deviation.unflatten(0, (kinds, -1))


def _relative(norms: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """Norms over their mean; zero for a module without a gradient."""
    mean = norms.double().mean()
    return (norms / torch.where(mean > 0, mean, 1.0)).half().cpu()


class _Readings:
    """Inputs along the directions and norms of the gradients, by token, collected in a pass."""

    def __init__(self, model: Any, rows: Mapping[str, Tensor], first_token: bool) -> None:
        self.model, self.first_token = model, first_token
        self.rows = {name: each.flatten(0, 1) for name, each in rows.items()}
        self.sides: dict[str, str] = {}
        self.need: defaultdict[str, list[Tensor]] = defaultdict(list)
        self.samples = 0
        self._along: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._tokens: defaultdict[str, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        self._places: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._starts: dict[str, list[int]] = {}  # of the samples of the batch among the tokens of each side
        self._batch: Batch
        self._sample: int  # the first one of the part
        self._added: set[tuple[str, ...]]

    def start_batch(self, batch: Batch) -> None:
        """Note the tokens of a new batch, with their parts and samples."""
        is_labeled = batch.labeled if batch.inputs["labels"].ndim == 2 and not batch.is_encoder_decoder else None
        self._add_tokens("input_ids", batch.inputs["input_ids"], batch.real, batch.constant, is_labeled)
        if batch.is_encoder_decoder:
            read = _decoder_ids(self.model, batch)
            self._add_tokens("decoder", read, batch.labeled, batch.target_constant, batch.labeled)
        self.samples += len(batch)

    def start_part(self, part: Batch, samples: slice, added: set[tuple[str, ...]]) -> None:
        """Prepare for samples of the batch."""
        self._batch, self._added, self._sample = part, added, samples.start

    def _add_tokens(self, side: str, ids: Tensor, real: Tensor, constant: Tensor, labeled: Tensor | None) -> None:
        seen = self._seen(real)
        before = sum(len(ids) for ids, _, _ in self._tokens[side])
        self._starts[side] = (before + seen.sum(1).cumsum(0) - seen.sum(1)).tolist()
        part = torch.full_like(real, PARTS.index("prompt"), dtype=torch.int64)
        if labeled is not None:
            part[labeled] = PARTS.index("labels")
        part[constant] = PARTS.index("constant")
        self._tokens[side].append((ids.cpu()[seen], part[seen], self.samples + seen.nonzero()[:, 0]))

    def _seen(self, real: Tensor) -> Tensor:
        """The tokens that are looked at."""
        return real if self.first_token else real & (real.cumsum(1) > 1)

    def add_inputs(self, name: str, inputs: list[Rows], tensors: tuple[int, ...]) -> None:
        """Add the inputs of a module along its directions."""
        calls = [x for x in inputs if self._batch.has_token_rows(x)]
        if not calls or ("input", name) in self._added:  # without calls it reads positions
            return
        rows = self.rows[name]
        self.sides[name] = "decoder" if self._batch.is_decoder_input(calls[0]) else "input_ids"
        seen = [self._rows(x) for x in calls]
        along = torch.stack([rows_seen.float() @ rows.to(rows_seen.device).T for rows_seen, _ in seen])
        self._along[name].append(along.gather(0, along.abs().argmax(0, keepdim=True))[0])
        self._places[name].append(seen[0][1])
        self._added.add(("input", name))

    def add_gradients(self, name: str, inputs: list[Rows], gradients: list[Rows]) -> None:
        """Add the norm of the gradient at each token, over all calls of the module."""
        norms = [self._rows(g)[0].float().norm(dim=1) for g in gradients if self._batch.has_token_rows(g)]
        if norms and ("gradient", name) not in self._added:
            self.need[name].append(torch.stack(norms).norm(dim=0))
            self._added.add(("gradient", name))

    def _rows(self, x: Rows) -> tuple[Tensor, Tensor]:
        """The rows at the tokens that are looked at, and of an expert their places among all of its side."""
        if not isinstance(x, RoutedRows):
            samples = self._batch.counted_rows([x], "all")
            return torch.cat(samples if self.first_token else [rows[1:] for rows in samples]), torch.empty(0)
        is_decoder = self._batch.is_decoder_input(x)
        seen = self._seen(self._batch.labeled if is_decoder else self._batch.real).flatten()
        kept = seen[x.tokens].nonzero()[:, 0]
        start = self._starts["decoder" if is_decoder else "input_ids"][self._sample]
        places = start + seen.cumsum(0)[x.tokens[kept]] - 1
        return x.rows.detach().index_select(0, kept.to(x.device)), places

    def has_read(self, name: str) -> bool:
        """Whether a module reads tokens, and at least one was routed to an expert."""
        return any(map(len, self._along[name]))

    def routed(self, name: str) -> Tensor:
        """The tokens of its side that an expert reads."""
        return torch.cat(self._places[name])

    def along(self, name: str) -> Float[Tensor, "tokens rows"]:
        """The inputs of a module along its directions."""
        return torch.cat(self._along[name])

    def read_tokens(self, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, ReadTokens]:
        """The tokens of all samples, by side."""
        found = {}
        for side, batches in self._tokens.items():
            ids, parts, samples = (torch.cat(each) for each in zip(*batches, strict=True))
            found[side] = ReadTokens(ids, token_texts(tokenizer, ids.tolist()), parts, samples)
        return found


def _decoder_ids(model: Any, batch: Batch) -> Tensor:
    """The tokens that a separate decoder reads."""
    given: Tensor | None = batch.inputs.get("decoder_input_ids")
    if given is not None:
        return given
    labels: Tensor = batch.inputs["labels"]
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        prepared: Tensor = model.prepare_decoder_input_ids_from_labels(labels=labels)
        return prepared
    start = torch.full_like(labels[:, :1], model.config.decoder_start_token_id)
    return torch.cat([start, labels[:, :-1]], 1)
