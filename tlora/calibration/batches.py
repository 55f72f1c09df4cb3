"""Batches as calibration takes them: checked where they enter, and which of their tokens count for which module."""

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
from tlora.models.targets import output_embeddings


@dataclass(frozen=True)
class Tokens:
    """Which tokens of a padded batch count.

    Attributes
    ----------
    mask : (B, T) bool tensor
        On the CPU, so that asking for lengths waits for no device.
    index : (n,) int64 tensor
        Their places among the B * T tokens, on the model's device.
    lengths : list of int
        How many each sample has.
    """

    mask: Bool[Tensor, "samples tokens"]
    index: Int[Tensor, " counted"]
    lengths: list[int]

    @classmethod
    def of(cls, mask: Bool[Tensor, "samples tokens"], device: torch.device) -> Tokens:
        """Those that are True."""
        return cls(mask, mask.flatten().nonzero()[:, 0].to(device), mask.sum(1).tolist())

    @cached_property
    def _come_first(self) -> bool:
        """Whether nothing that counts stands after something that does not."""
        return not bool((self.mask[:, 1:] & ~self.mask[:, :-1]).any())

    def samples(self, x: Tensor) -> list[Tensor]:
        """What a module read or gave at these tokens, (T_n, d) for each sample.

        Parameters
        ----------
        x : (B, T, d) or (B * T, d) tensor
            Of one call; some models flatten their inputs.

        Returns
        -------
        list of Tensor
            Detached; views where that is possible, only to be read.
        """
        flat = x.detach().flatten(0, -2)
        if self._come_first:
            rows = flat.unflatten(0, self.mask.shape)
            return [sample[:length] for sample, length in zip(rows, self.lengths, strict=True)]
        return list(flat.index_select(0, self.index.to(x.device)).split(self.lengths))


@dataclass(frozen=True)
class Batch:
    """One padded batch, padding on the right.

    Attributes
    ----------
    inputs : dict
        What the model is called with, and ``labels``: tensors, on the CPU until `on` moves them, and what
        `restrict_logits` adds then.
    real : (B, T) bool tensor
        Tokens that are not padding; on the CPU.
    labelled : (B, T) bool tensor
        Tokens whose label counts; the decoder's own tokens for an encoder-decoder model; equal to ``real`` for
        classification. On the CPU.
    is_encoder_decoder : bool
        Whether ``labelled`` belongs to a decoder of its own.
    fingerprints : list of int
        For each sample a number of 64 bits that tells it from others, whatever batch it is in.
    """

    inputs: dict[str, Any]
    real: Bool[Tensor, "samples tokens"]
    labelled: Bool[Tensor, "samples target_tokens"]
    is_encoder_decoder: bool
    fingerprints: list[int]

    def __len__(self) -> int:
        return len(self.real)

    @property
    def device(self) -> torch.device:
        """Where the model is called."""
        return self.inputs["input_ids"].device

    def on(self, device: torch.device, model: Any) -> Batch:
        """The batch as the model on this device is called with it; its labels are looked at here, on the CPU."""
        asked = restrict_logits(model, self.inputs)
        return replace(self, inputs={k: v.to(device) if isinstance(v, Tensor) else v for k, v in asked.items()})

    def only(self, samples: list[int]) -> Batch:
        """The batch of some of its samples."""
        inputs = {k: v[samples] if v.ndim and len(v) == len(self) else v for k, v in self.inputs.items()}
        fingerprints = [self.fingerprints[n] for n in samples]
        real, labelled = self.real[samples], self.labelled[samples]
        return replace(self, inputs=inputs, real=real, labelled=labelled, fingerprints=fingerprints)

    def alone(self, sample: int) -> Batch:
        """The batch of one sample, without what follows its last token and, in a decoder, its last label."""
        batch = self.only([sample])
        real, labelled = (mask[:, : int(mask[0].nonzero()[-1]) + 1] for mask in (batch.real, batch.labelled))
        labelled = labelled if self.is_encoder_decoder else batch.labelled[:, : real.shape[1]]

        def cut(key: str, value: Tensor) -> Tensor:
            decoders = self.is_encoder_decoder and is_decoder_input(key)
            whole, part = (batch.labelled, labelled) if decoders else (batch.real, real)
            return value[:, : part.shape[1]] if value.shape[:2] == whole.shape else value

        inputs = {key: cut(key, value) for key, value in batch.inputs.items()}
        return replace(batch, inputs=inputs, real=real, labelled=labelled)

    def told_apart(self) -> list[Batch]:
        """The batch, in parts where it has as many samples as tokens: by its shape nothing tells which are which."""
        tokens = {self.real.shape[1], self.labelled.shape[1]}
        most = next(n for n in range(len(self), 0, -1) if n == 1 or n not in tokens)
        if most == len(self):
            return [self]
        return [self.only(list(range(n, min(n + most, len(self))))) for n in range(0, len(self), most)]

    def singles(self) -> list[Batch]:
        """Each sample alone."""
        return [self.alone(sample) for sample in range(len(self))]

    def is_of_tokens(self, x: Tensor) -> bool:
        """Whether an input has a row for each token of ``input_ids``, or for each of the decoder."""
        return _rows(x) in (self.real.numel(), self.labelled.numel())

    def is_by_sample(self, x: Tensor) -> bool:
        """Whether it is known which rows of an input are of which sample: all are where there is one without padding.

        Of several, where samples come before tokens, and the rows are of tokens: others, such as positions, need no
        gradient.
        """
        if len(self) == 1 and bool(self.real[0, -1]):
            return True
        turned = [(width, len(self)) for width in (self.real.shape[1], self.labelled.shape[1])]
        return x.requires_grad and not (len(self) > 1 and x.ndim == 3 and x.shape[:2] in turned)

    def real_rows(self, calls: list[Tensor]) -> list[Tensor]:
        """What a module read or gave, (T_n, d) for each sample, at the tokens that may carry a gradient.

        All up to the last one that is not padding: a label may be predicted from a token that is masked. All of the
        decoder's: it is causal, so what follows the last label has gradient zero.

        Parameters
        ----------
        calls : list of Tensor
            One entry a call; the rows of a sample are those of all calls, one after the other.
        """
        return _joined([self._tokens(x, self._before_padding, self._all_of_decoder).samples(x) for x in calls])

    def counted_rows(self, calls: list[Tensor], tokens: str) -> list[Tensor]:
        """What a module read, (T_n, d) for each sample, at the tokens that its covariance is taken over.

        The encoder of an encoder-decoder model has no labels: all of its real tokens count in either case.
        """
        own = self._labelled if tokens == "labels" and not self.is_encoder_decoder else self._real
        return _joined([self._tokens(x, own, self._labelled).samples(x) for x in calls])

    def _tokens(self, x: Tensor, own: Tokens, decoders: Tokens) -> Tokens:
        """Of these the ones that an input is of, by how many rows it has; see `prepare`."""
        if _rows(x) == self.real.numel():
            return own
        if _rows(x) == self.labelled.numel():
            return decoders
        return Tokens.of(torch.ones(1, _rows(x), dtype=torch.bool), x.device)

    @cached_property
    def _real(self) -> Tokens:
        return Tokens.of(self.real, self.device)

    @cached_property
    def _before_padding(self) -> Tokens:
        return Tokens.of(_up_to_last(self.real), self.device)

    @cached_property
    def _labelled(self) -> Tokens:
        return Tokens.of(self.labelled, self.device)

    @cached_property
    def _all_of_decoder(self) -> Tokens:
        return Tokens.of(torch.ones_like(self.labelled), self.device)


def _rows(x: Tensor) -> int:
    return x.shape[:-1].numel()


def _joined(calls: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*calls, strict=True)]


def _up_to_last(mask: Bool[Tensor, "samples tokens"]) -> Bool[Tensor, "samples tokens"]:
    """True up to the last True of each sample."""
    return mask.flip(1).cumsum(1).flip(1) > 0


def _fingerprints(tensors: Mapping[str, Tensor], real: Tensor, labelled: Tensor, has_decoder: bool) -> list[int]:
    """A digest of all that is a sample's own, in whatever batch: at its tokens, and whole what is not of tokens."""
    used = _up_to_last(labelled)  # of a decoder's tokens

    def part(key: str, n: int) -> Tensor:
        value, decoders = tensors[key], has_decoder and key.startswith("decoder_")
        counts = labelled if key == "labels" else used if decoders else real
        return value[n][counts[n]] if value.shape[:2] == counts.shape else value[n]

    own = (key for key, value in tensors.items() if value.ndim and len(value) == len(real))
    others = sorted({*own} - {"input_ids", "labels", "attention_mask"})
    return [
        _fingerprint([part("input_ids", n), part("labels", n)], {key: part(key, n) for key in others})
        for n in range(len(real))
    ]


def _fingerprint(ids_and_labels: list[Tensor], others: Mapping[str, Tensor]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for key, part in [*(("", part) for part in ids_and_labels), *others.items()]:
        digest.update(key.encode() + part.numel().to_bytes(8) + part.double().numpy().tobytes())
    return int.from_bytes(digest.digest(), signed=True)


def prepare(batch: Mapping[str, Any], model: Any, where: str) -> Batch:
    """Check a batch and move its padding to the right.

    Parameters
    ----------
    batch : mapping
        ``input_ids`` (B, T), ``attention_mask`` (B, T), ``labels`` (B, T) or (B,), and whatever else the model takes.
    model : transformers.PreTrainedModel
        The model that will read it.
    where : str
        What to call the batch in an error.

    Returns
    -------
    Batch
        On the CPU, where looking at its values makes nobody wait.

    Raises
    ------
    TypeError
        If it is not a mapping of tensors.
    ValueError
        If a part is missing or the parts do not fit together or the model.
    """
    tensors = as_tensors(batch, model, where)
    _check_parts(tensors, where)
    _check_predicts(tensors["labels"], model, where)
    tensors["input_ids"] = _whole(tensors["input_ids"], "input_ids", where)
    tensors["labels"] = _typed_labels(tensors["labels"], model, where)
    if model.config.is_encoder_decoder and tensors["labels"].shape == tensors["input_ids"].shape:
        tensors = _widened(tensors)
    tensors = fit_batch(model, pad_right(tensors, model.config.is_encoder_decoder))
    real, labels = tensors["attention_mask"].bool(), tensors["labels"]
    _check_tokens(tensors["input_ids"], "token id", model, where)
    if not bool(real.any(1).all()):
        raise ValueError(f"{where}: sample {int(real.any(1).int().argmin())} has no token: its mask is all zero")
    if labels.ndim == 1:
        return Batch(tensors, real, real, False, _fingerprints(tensors, real, real, False))
    labelled = labels != IGNORED
    _check_tokens(labels[labelled], "label", model, where)
    _check_labels(labelled, real, model.config.is_encoder_decoder, where)
    has_decoder = bool(model.config.is_encoder_decoder)
    fingerprints = _fingerprints(tensors, real, labelled if has_decoder else real, has_decoder)
    return Batch(tensors, real, labelled, has_decoder, fingerprints)


def as_tensors(batch: Mapping[str, Any], model: Any, where: str) -> dict[str, Tensor]:
    """What the model reads, as tensors: columns that a dataset does not format come as lists."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"{where} is a {type(batch).__name__}: a batch is a dict with the tensors input_ids, attention_mask, labels"
        )
    read = {k: v for k, v in batch.items() if isinstance(v, Tensor) or (v is not None and has_argument(model, k))}
    return {key: _tensor(value, key, where).cpu() for key, value in read.items()}


def _tensor(value: Any, key: str, where: str) -> Tensor:
    try:
        if isinstance(value, list | tuple):
            return torch.stack([torch.as_tensor(each) for each in value])
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{where}: {key} is a {type(value).__name__} that cannot be made a tensor ({error}), and the model reads "
            "it: pad it and make it a tensor, or leave it out"
        ) from error


def _widened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With one more token in the decoder, which has no label: of as many as the encoder's, none are told apart."""
    of_decoder = [k for k, v in tensors.items() if is_decoder_input(k) and v.shape[:2] == tensors["labels"].shape]
    wider = {key: torch.cat([tensors[key], tensors[key][:, -1:]], 1) for key in of_decoder}
    wider["labels"][:, -1] = IGNORED
    return {**tensors, **wider}


def _check_parts(batch: Mapping[str, Tensor], where: str) -> None:
    for key in ("input_ids", "attention_mask", "labels"):
        if key not in batch:
            hint = {
                "attention_mask": "padding would be counted in the statistics; where there is none, pass "
                "torch.ones_like(input_ids)",
                "labels": "calibration backpropagates each sample's loss; use -100 for tokens that do not count",
            }.get(key, "pass token ids of shape (samples, tokens)")
            raise ValueError(f"{where} has no tensor {key!r}: {hint}")
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    if ids.ndim != 2 or not len(ids) or mask.shape != ids.shape or len(labels) != len(ids) or labels.ndim > 2:
        raise ValueError(
            f"{where}: shapes do not fit together: input_ids {tuple(ids.shape)}, attention_mask {tuple(mask.shape)}, "
            f"labels {tuple(labels.shape)}; expected (B, T), (B, T) and (B, T) or (B,) with B at least 1"
        )
    if bool((other := (mask != 0) & (mask != 1)).any()):
        raise ValueError(
            f"{where} has {float(mask[other][0]):g} in its attention_mask: pass 1 for a token and 0 for padding; "
            "calibration could not tell the tokens of an additive mask from its padding"
        )


def _whole(tokens: Tensor, key: str, where: str) -> Tensor:
    """Token ids as int64, which every model and loss takes."""
    if tokens.is_floating_point():
        raise ValueError(f"{where} has {key} of type {tokens.dtype}: token ids are whole numbers, use torch.int64")
    return tokens.long()


def _typed_labels(labels: Tensor, model: Any, where: str) -> Tensor:
    """Token ids and classes as int64, scores as floats."""
    classes = model.config.num_labels
    if labels.ndim == 2:
        return _whole(labels, "labels", where)
    if classes == 1:
        if not bool(labels.isfinite().all()):
            sample = int(labels.isfinite().int().argmin())
            raise ValueError(f"{where}: the score of sample {sample} is {float(labels[sample])}: leave the sample out")
        return labels if labels.is_floating_point() else labels.float()
    if labels.is_floating_point():
        raise ValueError(
            f"{where} has labels of type {labels.dtype}, and the model has {classes} classes: pass their numbers as "
            "torch.int64, or load it with num_labels=1 for scores"
        )
    bad = (labels < 0) | (labels >= classes)
    if bool(bad.any()):
        found = int(labels[bad][0])
        raise ValueError(
            f"{where} has class {found}, the model has {classes}: load it with num_labels={found + 1} or more"
        )
    return labels.long()


def _check_tokens(tokens: Tensor, what: str, model: Any, where: str) -> None:
    known = len(model.get_input_embeddings().weight)
    bad = (tokens < 0) | (tokens >= known)
    if bool(bad.any()):
        raise ValueError(
            f"{where} has {what} {int(tokens[bad][0])}, the model knows 0 to {known - 1}: use the model's own "
            f"tokenizer, and {IGNORED} for labels that do not count"
        )


def _check_predicts(labels: Tensor, model: Any, where: str) -> None:
    """Refuse labels of texts for a model that predicts tokens, and labels of tokens for one that predicts classes."""
    of_texts = any(base.__name__ in TEXT_CLASSIFIERS for base in type(model).__mro__)
    if labels.ndim == 2 and of_texts:
        why = (
            f"one class or score for each text: pass labels of shape ({len(labels)},); several labels of one text are "
            "not supported"
        )
    elif labels.ndim == 1 and not of_texts and output_embeddings(model) is not None:
        why = "tokens: pass a label for each, or load a classifier, tlora.load_model(name, num_labels=...)"
    else:
        return
    raise ValueError(f"{where} has labels {tuple(labels.shape)}, and a {type(model).__name__} predicts {why}")


def _check_labels(labelled: Tensor, real: Tensor, is_encoder_decoder: bool, where: str) -> None:
    # a causal model predicts from the token before, so a label on the first token is never used
    used = labelled if is_encoder_decoder else labelled[:, 1:]
    if not bool(used.any(1).all()):
        sample = int(used.any(1).int().argmin())
        raise ValueError(f"{where}: sample {sample} has no label (all are -100): leave it out or raise max_length")
    if is_encoder_decoder:
        return
    if labelled.shape != real.shape:
        raise ValueError(f"{where}: labels {tuple(labelled.shape)} and input_ids {tuple(real.shape)} differ in shape")
    if bool((labelled & ~real).any()):
        sample = int((labelled & ~real).any(1).int().argmax())
        raise ValueError(f"{where}: sample {sample} has labels on padding: set them to -100 where attention_mask is 0")
