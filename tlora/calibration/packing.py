"""Packed rows, which hold several samples: split them, so that each sample counts as if it were alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tlora.calibration.batches import to_tensors
from tlora.models.forward import IGNORED

_PACKING_KEYS = ("seq_lens", "seq_lengths", "cu_seqlens", "cu_seq_lens", "cu_seq_lens_q")


class _Span(NamedTuple):
    """The tokens of one sample: ``start`` to ``end`` of a row."""

    row: int
    start: int
    end: int


def unpack_batch(batch: Any, model: Any, label: str) -> list[Any]:
    """Split a packed batch into padded batches of its samples, none of them larger; return others unchanged.

    ``label`` names the batch in errors. Samples without a label that counts are left out: training learns nothing from
    them. ``position_ids`` are left out too: the model counts positions itself.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch or model.config.is_encoder_decoder:
        return [batch]
    if batch.get("position_ids") is None:
        if packed := [key for key in _PACKING_KEYS if batch.get(key) is not None]:
            raise ValueError(f"{label} has {packed[0]}: pass position_ids too, which start again with each sample")
        return [batch]
    tensors = to_tensors(batch, model, label)
    ids, labels = tensors["input_ids"], tensors.get("labels")
    if ids.ndim != 2 or labels is None or labels.shape != ids.shape:
        return [batch]
    spans = _sample_spans(tensors)
    if spans is None:
        return [batch]
    tensors.setdefault("attention_mask", torch.ones_like(ids))
    tensors["attention_mask"] = tensors["attention_mask"].clamp(max=1)  # some packers number their samples there
    by_token = {k: v for k, v in tensors.items() if v.shape[:2] == ids.shape and k not in ("position_ids", "seq_idx")}
    labeled = [span for span in spans if bool((labels[span.row, span.start + 1 : span.end] != IGNORED).any())]
    return [_pad(by_token, group) for group in _group(labeled or spans[:1], ids.numel())]


def _sample_spans(tensors: Mapping[str, Tensor]) -> list[_Span] | None:
    """The samples of a packed batch; None if each row is one sample."""
    ids, mask, positions = tensors["input_ids"], tensors.get("attention_mask"), tensors["position_ids"]
    if positions.shape != ids.shape or (mask is not None and mask.shape != ids.shape):
        return None
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    spans = [span for row in range(len(ids)) for span in _row_spans(row, positions[row], real[row])]
    return spans if mask is None or len(spans) > len(ids) else None


def _row_spans(row: int, positions: Tensor, real: Tensor) -> Iterator[_Span]:
    """A new sample starts where positions do not increase; masked tokens do not count."""
    tokens = real.nonzero()[:, 0]
    counted = positions[tokens]
    starts = (counted[1:] <= counted[:-1]).nonzero()[:, 0] + 1
    for first, last in pairwise([0, *starts.tolist(), len(tokens)]):
        if last > first:
            yield _Span(row, int(tokens[first]), int(tokens[last - 1]) + 1)


def _group(spans: Iterable[_Span], most: int) -> Iterator[list[_Span]]:
    """Groups of samples that have at most this many tokens when padded."""
    group: list[_Span] = []
    for span in spans:
        longest = max(each.end - each.start for each in (*group, span))
        if group and longest * (len(group) + 1) > most:
            yield group
            group = []
        group.append(span)
    yield group


def _pad(tensors: Mapping[str, Tensor], group: list[_Span]) -> dict[str, Tensor]:
    return {
        key: pad_sequence(
            [value[span.row, span.start : span.end] for span in group],
            batch_first=True,
            padding_value=IGNORED if key == "labels" else 0,
        )
        for key, value in tensors.items()
    }
