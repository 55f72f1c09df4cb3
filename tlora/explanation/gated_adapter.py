"""A copy of an adapted model in which the update of every module can be scaled, differentiated, changed or left out."""

from __future__ import annotations

import bisect
import contextlib
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

from tlora.adapters.lora_layers import adapter_layers, has_experts, lora_updates, require_one_lora
from tlora.adapters.peft_config import refuse_more_than_lora, trace_in_base
from tlora.adapters.update import LoraUpdate
from tlora.models.experts import holds_experts, refuse_unreadable
from tlora.models.forward import can_restrict_logits, evaluation_mode, input_device
from tlora.models.hooks import first_argument
from tlora.models.observe_experts import OnProjection, observed_projections
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
"""Modules that are changed: the (r, r) matrix that is put between ``A`` and ``B``, zero to leave the module out; of a
parameter with experts one for all, or (E, r, r)."""


@dataclass(frozen=True)
class Routing:
    """The token and the expert of each row that the experts of a layer read, among so many tokens of the batch."""

    tokens: Int64[Tensor, " rows"]
    experts: Int64[Tensor, " rows"]
    count: int

    def __getitem__(self, rows: Any) -> Routing:
        return Routing(self.tokens[rows], self.experts[rows], self.count)


Gate = Callable[[str, Tensor, Routing | None], Tensor]
"""What is put between ``A`` and ``B``: the module, what ``A`` gives, (..., r), and of experts whose rows they are."""


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
    by_direction: dict[str, Float[Tensor, "answer *experts r"]]
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
        require_one_lora(adapted, function, experts=True)
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
            if has_experts(layer):
                _refuse_unobserved(name, layer.get_base_layer(), way_out)
        self.peft: PeftModel = copy_sharing_weights(adapted).eval().requires_grad_(False)
        self.model: Any = self.peft.get_base_model()
        self.ranks: dict[str, int] = {name: updates[name].rank for name in layers}
        self._rows_of_a = {name: updates[name].a.shape[:-1] for name in layers}
        wraps_more = any(isinstance(module, AuxiliaryTrainingWrapper) for module in self.model.modules())
        is_random = bool(record_of(adapted.get_base_model()).newly_initialized)
        # biases are trained in the base itself, and its own are gone
        self.has_head = wraps_more and not is_random and not trace_in_base(config)
        self._grows = is_causal(self.model)
        self._blocks = _blocks(self.model, self.ranks)
        copies: dict[str, Any] = adapter_layers(self.peft)
        self._output = next((n for n in self.ranks if copies[n] is output_embeddings(self.model)), "")
        self._restricts_logits = can_restrict_logits(self.model) and not self._output
        self._gate: Gate | None = None
        self._experts = {name: copies[name] for name, layer in layers.items() if has_experts(layer)}
        self._expert_updates = {
            name: update for name, update in lora_updates(self.peft).items() if name in self._experts
        }
        for name in layers.keys() - self._experts.keys():
            self._place_gate(name, copies[name])

    def _place_gate(self, name: str, layer: Any) -> None:
        def gate(z: Tensor) -> Tensor:
            return z if self._gate is None else self._gate(name, z, None)

        if self.adapter in layer.lora_embedding_A:
            embed = layer._embed
            layer._embed = lambda *args, **kwargs: gate(embed(*args, **kwargs))
        else:
            layer.lora_A[self.adapter].register_forward_hook(lambda module, args, z: gate(z))

    @contextlib.contextmanager
    def _gated(self, gate: Gate) -> Iterator[None]:
        """Run the copy with this gate inside; 4-bit layers keep their format, and products their precision."""
        self._gate = gate
        try:
            with intact(self.model), exact_products(), self._gated_experts(gate):
                yield
        finally:
            self._gate = None

    @contextlib.contextmanager
    def _gated_experts(self, gate: Gate) -> Iterator[None]:
        """Add ``s B A`` to the rows of each expert, with the gate in between, instead of PEFT's sum of the weights."""
        modules = {name.rpartition(".")[0]: layer.get_base_layer() for name, layer in self._experts.items()}
        adding = {module: _adding(name, self._expert_updates, gate) for name, module in modules.items()}
        try:
            for layer in self._experts.values():
                layer.forward = layer.base_layer.__call__
            with observed_projections(adding):
                yield
        finally:
            for layer in self._experts.values():
                vars(layer).pop("forward", None)

    @contextlib.contextmanager
    def as_base(self) -> Iterator[PeftModel]:
        """Inside the block the copy computes what the base does; only trained biases and a random head stay."""
        disabled = self.peft.disable_adapter() if self.has_head else contextlib.nullcontext()
        with disabled, self._gated(lambda name, z, routing: 0 * z):
            yield self.peft

    @contextlib.contextmanager
    def changed(self, variant: Variant) -> Iterator[PeftModel]:
        """Inside the block the copy computes what the model does with this variant of the adapter."""

        def gate(name: str, z: Tensor, routing: Routing | None) -> Tensor:
            return _change(z, variant[name], routing) if name in variant else z

        with self._gated(gate):
            yield self.peft

    def scores(self, answer: Answer, scale: float = 1.0) -> Scores:
        """Score the answer with the whole adapter at this scale, and everything else as trained."""
        with torch.no_grad(), self._gated(lambda name, z, routing: scale * z):
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
        by_direction = {n: torch.zeros(count, *rows, dtype=torch.float64) for n, rows in self._rows_of_a.items()}
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
                    for along, at in calls:
                        columns = slice(0, at.shape[1])
                        if at.shape[1] != answer.widths[0]:
                            columns = slice(answer.widths[0], answer.widths[0] + at.shape[1])
                        by_module[:, chunk, module] += (factors * along.flatten(1).sum(1)).cpu()
                        by_direction[name][chunk] += (factors[0].reshape(-1, *[1] * (along.ndim - 1)) * along).cpu()
                        by_token[module, chunk, columns] += (factors[0][:, None] * at).cpu()
        return Contributions(by_module, by_direction, by_token)

    def _derivatives(
        self, answer: Answer, chunk: slice, scale: float
    ) -> tuple[Float[Tensor, " copies"], dict[str, list[tuple[Tensor, Float[Tensor, "copies tokens"]]]]]:
        """Log-odds of some answer tokens, and their derivatives by the gates of each call of each module.

        Those are summed over tokens, (copies, r) or of experts (copies, E, r), and over directions.
        """
        copies = chunk.stop - chunk.start
        gates: dict[str, list[tuple[Tensor, Routing | None]]] = defaultdict(list)

        def gate(name: str, z: Tensor, routing: Routing | None) -> Tensor:
            # in full precision, as the scale would be rounded
            kind = torch.promote_types(z.dtype, torch.float32)
            leaf = torch.full_like(z, scale, dtype=kind, requires_grad=True)
            gates[name].append((leaf, routing))
            return (z * leaf).to(z.dtype)

        with torch.enable_grad(), self._gated(gate):
            logits = self._logits(answer, copies, chunk).diagonal(dim1=0, dim2=1).T
            odds = _log_odds(logits, answer.targets[chunk])
            leaves = [leaf for calls in gates.values() for leaf, _ in calls]
            found = iter(torch.autograd.grad(odds.sum(), leaves, allow_unused=True))
        derivatives: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.ranks}
        for name, calls in gates.items():
            for leaf, routing in calls:
                gradient = next(found)
                tokens = leaf.shape[:-1].numel() if routing is None else routing.count
                rows = tokens // copies
                if rows not in answer.widths or rows * copies != tokens:
                    raise ValueError(
                        f"{name} reads {tokens} rows for {copies} copies of a sample of "
                        f"{' and '.join(map(str, answer.widths))} tokens, so they cannot be told apart: only adapters "
                        "on modules that read every token can be attributed"
                    )
                if gradient is None:
                    continue
                if routing is None:
                    by_token = gradient.reshape(copies, rows, -1).double()
                    sums = by_token.sum(1), by_token.sum(2)
                else:
                    sums = _sum_routed(gradient.double(), routing, copies, self._rows_of_a[name][0])
                derivatives[name].append(sums)
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

        def gate(name: str, z: Tensor, routing: Routing | None) -> Tensor:
            if not edits[name]:
                return z
            rows = z.reshape(-1, z.shape[-1]).clone()
            width = (len(rows) if routing is None else routing.count) // count
            for row, matrix in edits[name]:
                if routing is None:
                    at = slice(row * width, (row + 1) * width)
                    rows[at] = _change(rows[at], matrix)
                else:
                    is_there = routing.tokens // width == row
                    rows[is_there] = _change(rows[is_there], matrix, routing[is_there])
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


def _refuse_unobserved(name: str, module: nn.Module, way_out: str) -> None:
    """Refuse experts of which it is unknown which tokens each of them reads."""
    if not holds_experts(module):
        raise ValueError(
            f"transformers does not run the experts of {name} (a {type(module).__name__}) through its interface for "
            f"experts, so which tokens each of them reads is unknown: {way_out}"
        )
    refuse_unreadable(name.rpartition(".")[0], module)


def _adding(module: str, updates: Mapping[str, LoraUpdate], gate: Gate) -> OnProjection:
    """Return what adds the updates of a module's experts to their outputs, with the gate inside."""

    def add(key: str, x: Tensor, tokens: Tensor, counts: list[int], count: int, output: Tensor) -> Tensor | None:
        if (update := updates.get(f"{module}.{key}")) is None:
            return None
        numbers = torch.repeat_interleave(torch.tensor(counts)).to(x.device)
        z = _by_expert(x.to(update.a.dtype), update.a, counts)
        z = gate(update.module, z, Routing(tokens.to(x.device), numbers, count))
        return (update.scaling * _by_expert(z, update.b, counts)).to(output.dtype)

    return add


def _by_expert(rows: Tensor, matrices: Float[Tensor, "experts out in"], counts: list[int]) -> Tensor:
    """Rows, sorted by expert, times the matrix of the expert of each."""
    parts = zip(rows.split(counts), matrices, strict=True)
    return torch.cat([part @ matrix.T for part, matrix in parts if len(part)])


def _change(z: Float[Tensor, "*rows r"], matrix: Tensor, routing: Routing | None = None) -> Float[Tensor, "*rows r"]:
    """What ``A`` gives, times a matrix of a `Variant`."""
    if matrix.ndim == 2 or routing is None:
        return z @ matrix.to(z).T
    return torch.einsum("nk,njk->nj", z, matrix.to(z)[routing.experts])


def _sum_routed(
    gradient: Float[Tensor, "rows r"], routing: Routing, copies: int, experts: int
) -> tuple[Float[Tensor, "copies experts r"], Float[Tensor, "copies tokens"]]:
    """Sum the derivatives at the rows of experts over tokens, and over experts and directions."""
    width, rank = routing.count // copies, gradient.shape[1]
    along = gradient.new_zeros(copies * experts, rank)
    along.index_add_(0, routing.tokens // width * experts + routing.experts, gradient)
    at = gradient.new_zeros(routing.count).index_add_(0, routing.tokens, gradient.sum(1))
    return along.reshape(copies, experts, rank), at.reshape(copies, width)


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
