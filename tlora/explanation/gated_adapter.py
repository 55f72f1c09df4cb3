"""A copy of an adapted model in which the update of every module can be scaled, differentiated, changed or left out."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from peft import PeftModel
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn import functional

from tlora.adapters.lora_layers import adapter_layers, lora_updates, require_one_lora
from tlora.adapters.peft_config import refuse_more_than_lora, trace_in_base
from tlora.models.forward import can_restrict_logits, evaluation_mode, input_device
from tlora.models.hooks import first_argument
from tlora.models.record import record_of
from tlora.models.targets import is_causal, output_embeddings
from tlora.models.weights import copy_sharing_weights, intact, refuse_packed
from tlora.utils.progress import Bar, note_progress
from tlora.utils.reproducibility import exact_products

ANSWER_MEASURES = ("log-probability", "log-odds")
"""The measures of a token, both in nats: the first ends at 0, the second has no ceiling."""

_TOKENS_WITH_GRAPH, _TOKENS = 1024, 2**14
_LOGITS = 2**26
"""Most tokens of a pass, with and without a graph, and most of its logits; a pass has at least one row."""

Variant = Mapping[str, Tensor]
"""Modules that are changed: the (r, r) matrix that is put between ``A`` and ``B``, zero to leave the module out."""


@dataclass(frozen=True)
class Answer:
    """One sample whose answer is explained, on the model's device.

    Attributes
    ----------
    inputs : dict of Tensor
        Arguments of the model with one row, without padding; for an encoder-decoder with the labels.
    columns : list of int
        Columns of the logits that predict the answer's tokens; empty for a classifier.
    targets : (K,) int64 tensor
        Token ids of the answer, or the class.
    widths : tuple of int
        Tokens that the model reads, and that a separate decoder reads.
    """

    inputs: dict[str, Tensor]
    columns: list[int]
    targets: Int64[Tensor, " answer"]
    widths: tuple[int, ...]


class Scores(NamedTuple):
    """How likely each answer token is: (measures, ..., K) nats; its rank, 1 for the first choice; the first choice."""

    values: Float[Tensor, "measures *rows answer"]
    ranks: Int64[Tensor, "*rows answer"]
    choices: Int64[Tensor, "*rows answer"]


class Contributions(NamedTuple):
    """Integrated gradients of the answer's tokens: by module, by direction of each module, by token that was read."""

    by_module: Float[Tensor, "measures answer modules"]
    by_direction: dict[str, Float[Tensor, "answer r"]]
    by_token_read: Float[Tensor, "modules answer tokens"]


class GatedAdapter:
    """A copy of an adapted model, sharing its weights, with a gate between ``A`` and ``B`` of every LoRA module.

    Parameters
    ----------
    adapted : peft.PeftModel
        With one active LoRA adapter; it is not changed.
    function : str
        The public function that takes it, for messages.

    Attributes
    ----------
    ranks : dict of int
        Rank of each module, by full name in model order.
    """

    def __init__(self, adapted: PeftModel, function: str) -> None:
        require_one_lora(adapted, function)
        refuse_packed(adapted)
        self.adapter = adapted.active_adapter
        config = adapted.peft_config[self.adapter].to_dict()
        way_out = f"{function}() takes an adapter of plain LoRA"
        refuse_more_than_lora(config, way_out)
        layers = {name: layer for name, layer in adapter_layers(adapted).items() if self.adapter in layer.r}
        if off := next((name for name, layer in layers.items() if layer.disable_adapters), None):
            raise ValueError(
                f"the adapter is switched off at {off}, so it changes nothing: call {function}() outside of "
                "model.disable_adapter()"
            )
        updates = lora_updates(adapted, embeddings=True)
        for name, layer in layers.items():
            if layer.lora_variant.get(self.adapter) or name not in updates:
                raise ValueError(
                    f"the update of {name} ({type(layer).__name__}) is not s B A of a linear layer or an embedding: "
                    + way_out
                )
        self.peft: PeftModel = copy_sharing_weights(adapted).eval().requires_grad_(False)
        self.model: Any = self.peft.get_base_model()
        self.ranks: dict[str, int] = {name: updates[name].rank for name in layers}
        wraps_more = any(isinstance(module, AuxiliaryTrainingWrapper) for module in self.model.modules())
        is_random = bool(record_of(adapted.get_base_model()).newly_initialized)
        # biases are trained in the base itself, and its own are gone
        self.has_head = wraps_more and not is_random and not trace_in_base(config)
        self._grows = is_causal(self.model)
        self._blocks = _blocks(self.model, self.ranks)
        self._output = next((n for n in self.ranks if self.model.get_submodule(n) is output_embeddings(self.model)), "")
        self._restricts_logits = can_restrict_logits(self.model) and not self._output
        self._gate: Callable[[str, Tensor], Tensor] | None = None
        copies = adapter_layers(self.peft)
        for name in layers:
            self._place_gate(name, copies[name])

    def _place_gate(self, name: str, layer: Any) -> None:
        def gate(z: Tensor) -> Tensor:
            return z if self._gate is None else self._gate(name, z)

        if self.adapter in layer.lora_embedding_A:
            embed = layer._embed
            layer._embed = lambda *args, **kwargs: gate(embed(*args, **kwargs))
        else:
            layer.lora_A[self.adapter].register_forward_hook(lambda module, args, z: gate(z))

    @contextlib.contextmanager
    def _gated(self, gate: Callable[[str, Tensor], Tensor] | None) -> Iterator[None]:
        """Run the copy with this gate inside; 4-bit layers keep their format, and products their precision."""
        self._gate = gate
        try:
            with intact(self.model), exact_products():
                yield
        finally:
            self._gate = None

    @contextlib.contextmanager
    def as_base(self) -> Iterator[PeftModel]:
        """Inside the block the copy computes what the base does; only trained biases and a random head stay."""
        disabled = self.peft.disable_adapter() if self.has_head else contextlib.nullcontext()
        with disabled, self._gated(lambda name, z: 0 * z):
            yield self.peft

    @contextlib.contextmanager
    def changed(self, variant: Variant) -> Iterator[PeftModel]:
        """Inside the block the copy computes what the model does with this variant of the adapter."""

        def gate(name: str, z: Tensor) -> Tensor:
            return z @ variant[name].to(z).T if name in variant else z

        with self._gated(gate):
            yield self.peft

    def scores(self, answer: Answer, scale: float = 1.0) -> Scores:
        """Score the answer with the whole adapter at this scale, and everything else as trained."""
        with torch.no_grad(), self._gated(lambda name, z: scale * z):
            return _scores(self._logits(answer)[0], answer.targets)

    def changed_scores(self, answer: Answer, variant: Variant) -> Scores:
        """Score the answer with one variant of the adapter, in a single row."""
        with torch.no_grad(), self.changed(variant):
            return _scores(self._logits(answer)[0], answer.targets)

    def base_scores(self, answer: Answer) -> Scores:
        """Score the answer with the base model."""
        with torch.no_grad(), self.as_base():
            return _scores(self._logits(answer)[0], answer.targets)

    def contributions(self, answer: Answer, points: int, bar: Bar | None = None) -> Contributions:
        """Integrate the derivatives by the gates along the adapter's scale, by Gauss-Legendre quadrature.

        Each token of the answer is a copy of the sample, so that one backward pass gives the derivatives of all.
        """
        count, width = len(answer.targets), sum(answer.widths)
        rows = min(_TOKENS_WITH_GRAPH // width, math.isqrt(_LOGITS // self._vocabulary)) or 1
        by_module = torch.zeros(2, count, len(self.ranks), dtype=torch.float64)
        by_direction = {name: torch.zeros(count, rank, dtype=torch.float64) for name, rank in self.ranks.items()}
        by_token = torch.zeros(len(self.ranks), count, width, dtype=torch.float64)
        nodes, weights = np.polynomial.legendre.leggauss(points)
        for start in range(0, count, rows):
            chunk = slice(start, min(start + rows, count))
            for number, (node, weight) in enumerate(zip((nodes + 1) / 2, weights / 2, strict=True), 1):
                if bar is not None:
                    note_progress(bar, f"tokens up to {chunk.stop} of {count}, point {number} of {points}")
                odds, gradients = self._derivatives(answer, chunk, float(node))
                # the derivative of log p is that of the log-odds times 1 - p
                factors = weight * torch.stack([torch.sigmoid(-odds), torch.ones_like(odds)])
                for module, (name, calls) in enumerate(gradients.items()):
                    for gradient in calls:
                        columns = slice(0, gradient.shape[1])
                        if gradient.shape[1] != answer.widths[0]:
                            columns = slice(answer.widths[0], answer.widths[0] + gradient.shape[1])
                        along, at = gradient.sum(1), gradient.sum(2)
                        by_module[:, chunk, module] += (factors * along.sum(1)).cpu()
                        by_direction[name][chunk] += (factors[0][:, None] * along).cpu()
                        by_token[module, chunk, columns] += (factors[0][:, None] * at).cpu()
        return Contributions(by_module, by_direction, by_token)

    def _derivatives(
        self, answer: Answer, chunk: slice, scale: float
    ) -> tuple[Float[Tensor, " copies"], dict[str, list[Float[Tensor, "copies tokens r"]]]]:
        """Log-odds of some answer tokens, and their derivatives by the gates of each call of each module."""
        copies = chunk.stop - chunk.start
        gates: dict[str, list[Tensor]] = defaultdict(list)

        def gate(name: str, z: Tensor) -> Tensor:
            # in full precision, as the scale would be rounded
            kind = torch.promote_types(z.dtype, torch.float32)
            gates[name].append(torch.full_like(z, scale, dtype=kind, requires_grad=True))
            return (z * gates[name][-1]).to(z.dtype)

        with torch.enable_grad(), self._gated(gate):
            logits = self._logits(answer, copies, chunk).diagonal(dim1=0, dim2=1).T
            odds = _log_odds(logits, answer.targets[chunk])
            leaves = list(itertools.chain.from_iterable(gates.values()))
            found = iter(torch.autograd.grad(odds.sum(), leaves, allow_unused=True))
        derivatives: dict[str, list[Tensor]] = {name: [] for name in self.ranks}
        for name, calls in gates.items():
            for leaf in calls:
                gradient = next(found)
                rows = leaf.shape[:-1].numel() // copies
                if rows not in answer.widths or rows * copies != leaf.shape[:-1].numel():
                    raise ValueError(
                        f"{name} reads {leaf.shape[:-1].numel()} rows for {copies} copies of a sample of "
                        f"{' and '.join(map(str, answer.widths))} tokens, so they cannot be told apart: only adapters "
                        "on modules that read every token can be attributed"
                    )
                if gradient is not None:
                    derivatives[name].append(gradient.reshape(copies, rows, -1).double())
        return odds.detach().double(), derivatives

    def switched(self, answer: Answer, variants: Sequence[Variant], bar: Bar | None = None) -> Scores:
        """Score the answer with the whole adapter in row 0, and with each variant in the next: (1 + variants, K).

        In a causal model the rows of a pass share what comes before: a variant joins, as a copy of row 0, at the block
        of the first module that it changes.
        """
        starts = [min(map(self._start, variant), default=0) for variant in variants]
        order = sorted(range(len(variants)), key=starts.__getitem__)
        early = sum(start < 0 for start in starts)  # rows from the embeddings on
        limit = min(_TOKENS // sum(answer.widths), _LOGITS // (self._vocabulary * len(answer.targets))) or 1
        rows: dict[int, Scores] = {}
        with torch.no_grad():
            for group in (order[:early], order[early:]):
                for first in range(0, len(group), limit):
                    members = group[first : first + limit]
                    try:
                        logits = self._run(answer, [variants[n] for n in members], [starts[n] for n in members])
                    except (RuntimeError, ValueError):  # XGLM compares the sizes itself
                        if not self._grows:
                            raise
                        self._grows = False  # blocks that read more by row than hidden states, as Bloom's alibi
                        return self.switched(answer, variants, bar)
                    scores = [_scores(row, answer.targets) for row in logits]
                    rows |= dict(zip((-1, *members), scores, strict=True))
                    if bar is not None:
                        note_progress(bar, f"{len(rows) - 1} of {len(variants)} parts switched off")
        ordered = [rows[n] if n in rows else self.scores(answer) for n in range(-1, len(variants))]
        return Scores(*(torch.stack(part, dim=-2) for part in zip(*ordered, strict=True)))

    def _run(self, answer: Answer, variants: Sequence[Variant], starts: Sequence[int]) -> Tensor:
        """Run the unchanged row and the variants, sorted by their starts: logits (1 + variants, K, V)."""
        edits: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        for row, variant in enumerate(variants, start=1):
            for name, matrix in variant.items():
                edits[name].append((row, matrix))
        joined = 1 + sum(start < 0 for start in starts)
        count = joined

        def gate(name: str, z: Tensor) -> Tensor:
            if not edits[name]:
                return z
            rows = z.reshape(count, -1, z.shape[-1]).clone()
            for row, matrix in edits[name]:
                rows[row] = rows[row] @ matrix.to(z).T
            return rows.reshape(z.shape)

        def join(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], block: int) -> Any:
            nonlocal count
            count = max(count, 1 + bisect.bisect_right(starts, block))
            hidden = first_argument(args, kwargs)
            hidden = torch.cat([hidden, hidden[:1].expand(count - len(hidden), *hidden.shape[1:])])
            return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): hidden})

        with contextlib.ExitStack() as undo:
            if starts[-1] >= 0:
                for block, module in enumerate(self._blocks.values()):
                    hook = partial(join, block=block)
                    undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            undo.enter_context(self._gated(gate))
            return self._logits(answer, joined)

    def _start(self, name: str) -> int:
        """The block at which a row that changes this module leaves row 0; -1 for a row of its own from the start."""
        if not self._grows:
            return -1
        block = next((place for place, at in enumerate(self._blocks) if name.startswith(f"{at}.")), -1)
        return len(self._blocks) - 1 if name == self._output else block

    @property
    def _vocabulary(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    def _logits(self, answer: Answer, rows: int = 1, tokens: slice = slice(None)) -> Float[Tensor, "rows answer vocab"]:
        """Logits that predict some of the answer's tokens, for copies of the sample."""
        return _answer_logits(self.model, answer, rows, tokens, self._restricts_logits)


def score_answer(model: Any, answer: Answer) -> Scores:
    """Score the answer with a model without an adapter."""
    device = input_device(model.get_input_embeddings())
    inputs = {key: value.to(device) for key, value in answer.inputs.items()}
    with evaluation_mode(model), exact_products():
        logits = _answer_logits(model, replace(answer, inputs=inputs), restricts=can_restrict_logits(model))[0]
    return _scores(logits, answer.targets.to(logits.device))


def _answer_logits(
    model: Any, answer: Answer, rows: int = 1, tokens: slice = slice(None), restricts: bool = False
) -> Float[Tensor, "rows answer vocab"]:
    """Logits of a model that predict some of the answer's tokens, for copies of the sample."""
    inputs: dict[str, Any] = {key: value.repeat_interleave(rows, 0) for key, value in answer.inputs.items()}
    columns = answer.columns[tokens]
    if not answer.columns:
        return _in_full(model(**inputs).logits)[:, None]
    if restricts:
        inputs["logits_to_keep"] = columns
    logits = model(**inputs, use_cache=False).logits
    return _in_full(logits if restricts else logits[:, columns])


def _blocks(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The repeated blocks of the model that hold these modules, and their neighbors, by name in model order."""
    lists: dict[str, nn.ModuleList] = {}
    for name in names:
        parts = name.split(".")
        paths = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        outermost = next((path for path in paths if isinstance(model.get_submodule(path), nn.ModuleList)), None)
        if outermost is not None:
            lists[outermost] = model.get_submodule(outermost)  # type: ignore[assignment]
    return {f"{path}.{place}": block for path, blocks in lists.items() for place, block in enumerate(blocks)}


def _in_full(logits: Tensor) -> Tensor:
    """Logits in single precision at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_odds(logits: Float[Tensor, "*rows answer vocab"], targets: Int64[Tensor, " answer"]) -> Tensor:
    """Log-odds ``log p - log(1 - p)`` of the targets, from the logits of the others alone: exact if p is near 1."""
    at = targets.expand(logits.shape[:-1])[..., None]
    return (logits.gather(-1, at) - logits.scatter(-1, at, -torch.inf).logsumexp(-1, keepdim=True))[..., 0]


def _scores(logits: Float[Tensor, "answer vocab"], targets: Int64[Tensor, " answer"]) -> Scores:
    odds = _log_odds(logits, targets).double()
    ranks = (logits > logits.gather(-1, targets[:, None])).sum(-1) + 1
    values = torch.stack([functional.logsigmoid(odds), odds])
    return Scores(values.cpu(), ranks.cpu(), logits.argmax(-1).cpu())
