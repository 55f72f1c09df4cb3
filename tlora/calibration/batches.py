"""Batches for calibration: checked, padded on the right, with the tokens that count for each module."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from tlora.models.forward import (
    IGNORED,
    TEXT_CLASSIFIERS,
    fit_batch,
    has_argument,
    is_decoder_input,
    pad_right,
    restrict_logits,
)
from tlora.models.observe_experts import RoutedRows, Rows
from tlora.models.targets import output_embeddings


@dataclass(frozen=True)
class CountedTokens:
    """The tokens of a padded batch that count.

    ``mask`` is on the CPU, so that reading lengths waits for no device; ``index`` has the positions of the counted
    tokens among the B * T, on the model's device; ``lengths`` is their number in each sample.
    """

    mask: Bool[Tensor, "samples tokens"]
    index: Int[Tensor, " counted"]
    lengths: list[int]

    @classmethod
    def from_mask(cls, mask: Bool[Tensor, "samples tokens"], device: torch.device) -> CountedTokens:
        """The tokens for which the mask is True."""
        return cls(mask, mask.flatten().nonzero()[:, 0].to(device), mask.sum(1).tolist())

    @cached_property
    def _is_prefix(self) -> bool:
        """Whether the counted tokens of each sample come before all others."""
        return not bool((self.mask[:, 1:] & ~self.mask[:, :-1]).any())

    def split_rows(self, x: Rows) -> list[Tensor]:
        """Rows of a (B, T, d) or (B * T, d) tensor, or of an expert, at these tokens, (T_n, d) for each sample.

        They are detached, and views if possible: read only.
        """
        if isinstance(x, RoutedRows):
            kept = self.mask.flatten()[x.tokens].nonzero()[:, 0]
            lengths = (x.tokens[kept] // self.mask.shape[1]).bincount(minlength=len(self.mask)).tolist()
            return list(x.rows.detach().index_select(0, kept.to(x.device)).split(lengths))
        flat = x.detach().flatten(0, -2)
        if self._is_prefix:
            rows = flat.unflatten(0, self.mask.shape)
            return [sample[:length] for sample, length in zip(rows, self.lengths, strict=True)]
        return list(flat.index_select(0, self.index.to(x.device)).split(self.lengths))


@dataclass(frozen=True)
class Batch:
    """One batch, padded on the right.

    Attributes
    ----------
    inputs : dict
        Arguments of the model, including ``labels``: tensors on the CPU until `to` moves them.
    real : (B, T) bool tensor
        Tokens that are not padding; on the CPU.
    labeled : (B, T) bool tensor
        Tokens whose label counts; the decoder's own tokens for an encoder-decoder model; equal to ``real`` for
        classification. On the CPU.
    constant, target_constant : bool tensors
        Of the shapes of ``real`` and ``labeled``: tokens that are the same in all samples, none before
        `ConstantTokens.mark`. On the CPU.
    is_encoder_decoder : bool
        Whether ``labeled`` and ``target_constant`` belong to a separate decoder.
    fingerprints : list of int
        A 64-bit number for each sample that identifies it in whatever batch.
    """

    inputs: dict[str, Any]
    real: Bool[Tensor, "samples tokens"]
    labeled: Bool[Tensor, "samples target_tokens"]
    constant: Bool[Tensor, "samples tokens"]
    target_constant: Bool[Tensor, "samples target_tokens"]
    is_encoder_decoder: bool
    fingerprints: list[int]

    def __len__(self) -> int:
        return len(self.real)

    @property
    def device(self) -> torch.device:
        """The device on which the model is called."""
        return self.inputs["input_ids"].device

    def to(self, device: torch.device, model: Any) -> Batch:
        """The batch on a device, with logits restricted to the labels; the labels are read on the CPU before."""
        inputs = restrict_logits(model, self.inputs)
        return replace(self, inputs={k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()})

    def select(self, samples: list[int]) -> Batch:
        """The batch of some of its samples."""
        inputs = {k: v[samples] if v.ndim and len(v) == len(self) else v for k, v in self.inputs.items()}
        fingerprints = [self.fingerprints[n] for n in samples]
        masks = {name: getattr(self, name)[samples] for name in ("real", "labeled", "constant", "target_constant")}
        return replace(self, inputs=inputs, fingerprints=fingerprints, **masks)

    def single(self, sample: int) -> Batch:
        """The batch of one sample, cut after its last token and, in a decoder, its last label."""
        batch = self.select([sample])
        real, labeled = (mask[:, : int(mask[0].nonzero()[-1]) + 1] for mask in (batch.real, batch.labeled))
        labeled = labeled if self.is_encoder_decoder else batch.labeled[:, : real.shape[1]]

        def cut(key: str, value: Tensor) -> Tensor:
            in_decoder = self.is_encoder_decoder and is_decoder_input(key)
            whole, part = (batch.labeled, labeled) if in_decoder else (batch.real, real)
            return value[:, : part.shape[1]] if value.shape[:2] == whole.shape else value

        inputs = {key: cut(key, value) for key, value in batch.inputs.items()}
        constant = batch.constant[:, : real.shape[1]]
        target_constant = batch.target_constant[:, : labeled.shape[1]]
        return replace(
            batch, inputs=inputs, real=real, labeled=labeled, constant=constant, target_constant=target_constant
        )

    def singles(self) -> list[Batch]:
        """Each sample in a batch of its own."""
        return [self.single(sample) for sample in range(len(self))]

    def halves(self) -> list[Batch]:
        """The batch in two, or more if a half is square; see `split_square`. A sample alone is cut as by `single`."""
        middle = -(-len(self) // 2)
        halves = [self.select(list(half)) for half in (range(middle), range(middle, len(self)))]
        parts = [part for half in halves for part in half.split_square()]
        return [part.single(0) if len(part) == 1 else part for part in parts]

    def split_square(self) -> list[Batch]:
        """Parts with fewer samples than tokens if there are as many: the shape must tell the two axes apart."""
        tokens = {self.real.shape[1], self.labeled.shape[1]}
        size = next(n for n in range(len(self), 0, -1) if n == 1 or n not in tokens)
        if size == len(self):
            return [self]
        return [self.select(list(range(n, min(n + size, len(self))))) for n in range(0, len(self), size)]

    def has_token_rows(self, x: Rows) -> bool:
        """Whether a module's input has a row for each token of ``input_ids``, or of the decoder, or some of these."""
        return _row_count(x) in (self.real.numel(), self.labeled.numel())

    def is_decoder_input(self, x: Rows) -> bool:
        """Whether a module's input has a row for each token of a separate decoder."""
        return self.is_encoder_decoder and _row_count(x) == self.labeled.numel()

    def has_sample_rows(self, x: Rows) -> bool:
        """Whether the sample of each row of a module's input is known; that of a row routed to an expert always is.

        It is for a single sample without padding. For several samples, the sample axis must come before the token
        axis, and the rows must depend on tokens: position embeddings, for instance, need no gradient.
        """
        if isinstance(x, RoutedRows) or (len(self) == 1 and bool(self.real[0, -1])):
            return True
        transposed = [(width, len(self)) for width in (self.real.shape[1], self.labeled.shape[1])]
        return x.requires_grad and not (len(self) > 1 and x.ndim == 3 and x.shape[:2] in transposed)

    def gradient_rows(self, calls: list[Rows]) -> list[Tensor]:
        """A module's inputs or gradients, (T_n, d) for each sample, at the tokens that can have a gradient.

        These are all tokens before the padding: a label can be predicted from a masked token. Of a decoder they are all
        tokens: it is causal, so the gradient after the last label is zero. ``calls`` has one entry for each call of the
        module; the rows of a sample are those of all calls.
        """
        return self._split_rows(calls, "before padding", "whole decoder")

    def counted_rows(self, calls: list[Rows], tokens: str) -> list[Tensor]:
        """A module's inputs or gradients, (T_n, d) for each sample, at the tokens that ``tokens`` selects.

        An encoder with a separate decoder has no labels: all of its real tokens count. With "task" the batch must have
        gone through `ConstantTokens.mark`.
        """
        if tokens == "task":
            return self._split_rows(calls, "varying", "varying in decoder")
        mask = "labeled" if tokens == "labels" and not self.is_encoder_decoder else "real"
        return self._split_rows(calls, mask, "labeled")

    def _split_rows(self, calls: list[Rows], own: str, decoder: str) -> list[Tensor]:
        """Rows of each sample at the ``own`` or ``decoder`` tokens; the number of rows says which ones a call reads."""
        parts = []
        for x in calls:
            if _row_count(x) == self.real.numel():
                tokens = self._counted[own]
            elif _row_count(x) == self.labeled.numel():
                tokens = self._counted[decoder]
            else:
                tokens = CountedTokens.from_mask(torch.ones(1, _row_count(x), dtype=torch.bool), x.device)
            parts.append(tokens.split_rows(x))
        return [torch.cat(rows) if len(rows) > 1 else rows[0] for rows in zip(*parts, strict=True)]

    @cached_property
    def _counted(self) -> dict[str, CountedTokens]:
        masks = {
            "real": self.real,
            "before padding": _fill_to_last(self.real),
            "labeled": self.labeled,
            "whole decoder": torch.ones_like(self.labeled),
            "varying": self.real & ~self.constant,
            "varying in decoder": self.labeled & ~self.target_constant,
        }
        return {name: CountedTokens.from_mask(mask, self.device) for name, mask in masks.items()}


def _row_count(x: Rows) -> int:
    """Rows of an input; of an expert, those that all experts could read."""
    return x.count if isinstance(x, RoutedRows) else x.shape[:-1].numel()


def _fill_to_last(mask: Bool[Tensor, "samples tokens"]) -> Bool[Tensor, "samples tokens"]:
    """True up to the last True of each sample."""
    return mask.flip(1).cumsum(1).flip(1) > 0


def _fingerprints(tensors: Mapping[str, Tensor], real: Tensor, labeled: Tensor, has_decoder: bool) -> list[int]:
    """Digests of the samples' own values: those at their tokens, and whole those that are not by token."""
    used = _fill_to_last(labeled)  # tokens of a decoder

    def part(key: str, n: int) -> Tensor:
        value, in_decoder = tensors[key], has_decoder and key.startswith("decoder_")
        mask = labeled if key == "labels" else used if in_decoder else real
        return value[n][mask[n]] if value.shape[:2] == mask.shape else value[n]

    by_sample = (key for key, value in tensors.items() if value.ndim and len(value) == len(real))
    others = sorted({*by_sample} - {"input_ids", "labels", "attention_mask"})
    return [
        _digest([("", part("input_ids", n)), ("", part("labels", n)), *((key, part(key, n)) for key in others)])
        for n in range(len(real))
    ]


def _digest(values: list[tuple[str, Tensor]]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for key, value in values:
        digest.update(key.encode() + value.numel().to_bytes(8) + value.double().numpy().tobytes())
    return int.from_bytes(digest.digest(), signed=True)


def prepare_batch(batch: Mapping[str, Any], model: Any, label: str) -> Batch:
    """Check a batch and move its padding to the right; ``label`` names it in errors.

    ``batch`` has ``input_ids`` (B, T), ``attention_mask`` (B, T), ``labels`` (B, T) or (B,), and other arguments of the
    model.
    """
    tensors = to_tensors(batch, model, label)
    has_decoder = bool(model.config.is_encoder_decoder)
    _check_parts(tensors, model, label)
    predicts_scores = tensors["labels"].ndim == 1 and model.config.num_labels == 1
    for key, dtype in (("input_ids", torch.int64), ("labels", torch.float32 if predicts_scores else torch.int64)):
        if not tensors[key].is_floating_point():
            tensors[key] = tensors[key].to(dtype)
    if has_decoder and tensors["labels"].shape == tensors["input_ids"].shape:
        tensors = _widen_decoder(tensors)
    tensors = fit_batch(model, pad_right(tensors, has_decoder))
    real, labels = tensors["attention_mask"].bool(), tensors["labels"]
    _check_values(tensors["input_ids"], len(model.get_input_embeddings().weight), "token id", label)
    if labels.ndim == 1:
        if model.config.num_labels > 1:
            _check_values(labels, model.config.num_labels, "class", label)
        none = torch.zeros_like(real)
        return Batch(tensors, real, real, none, none, False, _fingerprints(tensors, real, real, False))
    labeled = labels != IGNORED
    _check_values(labels[labeled], len(model.get_input_embeddings().weight), "label", label)
    _check_labels(labeled, real, has_decoder, label)
    fingerprints = _fingerprints(tensors, real, labeled if has_decoder else real, has_decoder)
    none, none_in_target = torch.zeros_like(real), torch.zeros_like(labeled)
    return Batch(tensors, real, labeled, none, none_in_target, has_decoder, fingerprints)


def to_tensors(batch: Mapping[str, Any], model: Any, label: str) -> dict[str, Tensor]:
    """The arguments of the model as tensors; columns that a dataset does not format are lists."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"{label} is a {type(batch).__name__}: a batch is a dict with the tensors input_ids, attention_mask, labels"
        )
    inputs = {k: v for k, v in batch.items() if isinstance(v, Tensor) or (v is not None and has_argument(model, k))}
    lists = {k: torch.stack([*map(torch.as_tensor, v)]) for k, v in inputs.items() if isinstance(v, list | tuple)}
    return {key: torch.as_tensor(value).cpu() for key, value in (inputs | lists).items()}


def _widen_decoder(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add a token without a label to the decoder: with as many tokens as the encoder's, the two look alike."""
    in_decoder = [k for k, v in tensors.items() if is_decoder_input(k) and v.shape[:2] == tensors["labels"].shape]
    wider = {key: torch.cat([tensors[key], tensors[key][:, -1:]], 1) for key in in_decoder}
    wider["labels"][:, -1] = IGNORED
    return {**tensors, **wider}


def _check_parts(batch: Mapping[str, Tensor], model: Any, label: str) -> None:
    for key in ("input_ids", "attention_mask", "labels"):
        if key not in batch:
            hint = {
                "attention_mask": "padding would count in the statistics; without padding, pass "
                "torch.ones_like(input_ids)",
                "labels": "calibration backpropagates each sample's loss; use -100 for tokens that do not count",
            }.get(key, "pass token ids of shape (samples, tokens)")
            raise ValueError(f"{label} has no tensor {key!r}: {hint}")
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    if ids.ndim != 2 or not len(ids) or mask.shape != ids.shape or len(labels) != len(ids) or labels.ndim > 2:
        raise ValueError(
            f"{label}: shapes do not fit together: input_ids {tuple(ids.shape)}, attention_mask {tuple(mask.shape)}, "
            f"labels {tuple(labels.shape)}; expected (B, T), (B, T) and (B, T) or (B,) with B at least 1"
        )
    if bool((other := (mask != 0) & (mask != 1)).any()):
        raise ValueError(
            f"{label} has {float(mask[other][0]):g} in its attention_mask: pass 1 for a token and 0 for padding"
        )
    if bool((empty := ~mask.bool().any(1)).any()):
        raise ValueError(f"{label}: sample {int(empty.int().argmax())} has no token: its attention_mask is all zero")
    predicts_texts = any(base.__name__ in TEXT_CLASSIFIERS for base in type(model).__mro__)
    if labels.ndim == 2 and predicts_texts:
        raise ValueError(
            f"{label}: a {type(model).__name__} predicts one class or score for each text: pass labels (B,)"
        )
    if labels.ndim == 1 and not predicts_texts and output_embeddings(model) is not None:
        raise ValueError(
            f"{label}: a {type(model).__name__} predicts tokens: pass a label for each of them, or load a classifier, "
            "tlora.load_model(name, num_labels=...)"
        )


def _check_values(values: Tensor, count: int, what: str, label: str) -> None:
    """Refuse ids that an accelerator would only report as a failed assertion."""
    bad = (values < 0) | (values >= count)
    if bool(bad.any()):
        raise ValueError(
            f"{label} has {what} {int(values[bad][0])}, the model knows 0 to {count - 1}: use the model's own "
            f"tokenizer and number of classes, and {IGNORED} for labels that do not count"
        )


def _check_labels(labeled: Tensor, real: Tensor, is_encoder_decoder: bool, label: str) -> None:
    # a causal model predicts a token from those before it, so a label on the first token is never used
    used = labeled if is_encoder_decoder else labeled[:, 1:]
    if not bool(used.any(1).all()):
        sample = int(used.any(1).int().argmin())
        raise ValueError(f"{label}: sample {sample} has no label (all are -100): leave it out or raise max_length")
    if is_encoder_decoder:
        return
    if labeled.shape != real.shape:
        raise ValueError(f"{label}: labels {tuple(labeled.shape)} and input_ids {tuple(real.shape)} differ in shape")
    if bool((labeled & ~real).any()):
        sample = int((labeled & ~real).any(1).int().argmax())
        raise ValueError(f"{label}: sample {sample} has labels on padding: set them to -100 where attention_mask is 0")
