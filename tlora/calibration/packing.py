"""Rows that hold several samples, one after the other: taken apart, so that each counts as if it were alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tlora.calibration.batches import as_tensors
from tlora.models.forward import IGNORED

_OF_PACKING = ("seq_lens", "seq_lengths", "cu_seqlens", "cu_seq_lens", "cu_seq_lens_q")


@dataclass(frozen=True)
class _Part:
    """Tokens ``start`` to ``end`` of a row."""

    row: int
    start: int
    end: int


def unpacked(batch: Any, model: Any, where: str) -> list[Any]:
    """The batch as it is, or the padded batches of the samples that are in its rows.

    Parameters
    ----------
    batch : mapping
        As for `tlora.calibrate`.
    model : transformers.PreTrainedModel
        The model that will read it.
    where : str
        What to call the batch in an error.

    Returns
    -------
    list of mapping
        Of a packed batch ``input_ids``, ``attention_mask``, ``labels`` and what else there is by token, but for
        ``position_ids``, which the model then counts itself; none is larger than the packed one. Samples without a
        label that counts, which training learns nothing from, and padding are left out.

    Raises
    ------
    ValueError
        If rows are packed and do not say so by their positions.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch or model.config.is_encoder_decoder:
        return [batch]
    if batch.get("position_ids") is None:
        if packed := [key for key in _OF_PACKING if batch.get(key) is not None]:
            raise ValueError(f"{where} has {packed[0]}: pass position_ids too, which start again with each sample")
        return [batch]
    tensors = as_tensors(batch, model, where)
    ids, labels = tensors["input_ids"], tensors.get("labels")
    if ids.ndim != 2 or labels is None or labels.shape != ids.shape:
        return [batch]
    parts = _parts(tensors)
    if parts is None:
        return [batch]
    tensors.setdefault("attention_mask", torch.ones_like(ids))
    tensors["attention_mask"] = tensors["attention_mask"].clamp(max=1)  # some packers number their samples there
    by_token = {k: v for k, v in tensors.items() if v.shape[:2] == ids.shape and k not in ("position_ids", "seq_idx")}
    labelled = [part for part in parts if bool((labels[part.row, part.start + 1 : part.end] != IGNORED).any())]
    return [_padded(by_token, group) for group in _groups(labelled or parts[:1], ids.numel())]


def _parts(tensors: Mapping[str, Tensor]) -> list[_Part] | None:
    """The samples of a packed batch; None of one whose rows are samples."""
    ids, mask, positions = (tensors.get(key) for key in ("input_ids", "attention_mask", "position_ids"))
    assert ids is not None
    if positions is None or positions.shape != ids.shape or (mask is not None and mask.shape != ids.shape):
        return None
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    found = [part for row in range(len(ids)) for part in _of_positions(row, positions[row], real[row])]
    return found if mask is None or len(found) > len(ids) else None


def _of_positions(row: int, positions: Tensor, real: Tensor) -> Iterator[_Part]:
    """By positions that do not go on from those before; what is masked does not count."""
    there = real.nonzero()[:, 0]
    counted = positions[there]
    again = (counted[1:] <= counted[:-1]).nonzero()[:, 0] + 1
    for first, last in pairwise([0, *again.tolist(), len(there)]):
        if last > first:
            yield _Part(row, int(there[first]), int(there[last - 1]) + 1)


def _groups(parts: Iterable[_Part], most: int) -> Iterator[list[_Part]]:
    """As many samples together as make, padded, no more tokens than this."""
    group: list[_Part] = []
    for part in parts:
        longest = max(each.end - each.start for each in (*group, part))
        if group and longest * (len(group) + 1) > most:
            yield group
            group = []
        group.append(part)
    yield group


def _padded(tensors: Mapping[str, Tensor], group: list[_Part]) -> dict[str, Tensor]:
    return {
        key: pad_sequence(
            [value[part.row, part.start : part.end] for part in group],
            batch_first=True,
            padding_value=IGNORED if key == "labels" else 0,
        )
        for key, value in tensors.items()
    }
