"""Rows that hold several samples, one after the other: taken apart, so that each counts as if it were alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tlora.calibration.batches import as_tensors
from tlora.models.forward import IGNORED

_LENGTHS = ("seq_lens", "seq_lengths")
_STARTS = ("cu_seqlens", "cu_seq_lens", "cu_seq_lens_q")


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
        If lengths or starts do not fit the rows.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch or model.config.is_encoder_decoder:
        return [batch]
    if all(batch.get(key) is None for key in (*_LENGTHS, *_STARTS, "position_ids")):
        return [batch]
    tensors = as_tensors(batch, model, where)
    ids, labels = tensors["input_ids"], tensors.get("labels")
    if ids.ndim != 2 or labels is None or labels.shape != ids.shape:
        return [batch]
    parts = _parts(batch, tensors, where)
    if parts is None:
        return [batch]
    tensors.setdefault("attention_mask", torch.ones_like(ids))
    by_token = {k: v for k, v in tensors.items() if v.shape[:2] == ids.shape and k not in ("position_ids", "seq_idx")}
    labelled = [part for part in parts if bool((labels[part.row, part.start + 1 : part.end] != IGNORED).any())]
    return [_padded(by_token, group) for group in _groups(labelled or parts[:1], ids.numel())]


def _parts(batch: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> list[_Part] | None:
    """The samples of a packed batch; None of one whose rows are samples."""
    ids, mask, positions = (tensors.get(key) for key in ("input_ids", "attention_mask", "position_ids"))
    assert ids is not None
    rows, width = ids.shape
    for key in _LENGTHS:
        if batch.get(key) is not None:
            return _of_lengths(batch[key], rows, width, f"{where}: {key}")
    for key in _STARTS:
        if batch.get(key) is not None:
            return _of_starts(torch.as_tensor(batch[key]).tolist(), rows, width, f"{where}: {key}")
    if positions is None or positions.shape != ids.shape or (mask is not None and mask.shape != ids.shape):
        return None
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    found = [part for row in range(rows) for part in _of_positions(row, positions[row], real[row])]
    return found if mask is None or len(found) > rows else None


def _of_lengths(lengths: Any, rows: int, width: int, what: str) -> list[_Part]:
    """By the tokens of each sample, of each row; what is left of a row is padding."""
    by_row = [torch.as_tensor(each).flatten().tolist() for each in lengths]
    if rows == 1:
        by_row = [[length for each in by_row for length in each]]
    if len(by_row) != rows or max(map(sum, by_row)) > width or min(map(min, by_row)) < 0:
        raise ValueError(f"{what} does not fit {rows} rows of {width} tokens: pass the tokens of each sample, by row")
    ends = [(row, *pair) for row, each in enumerate(by_row) for pair in pairwise(accumulate(each, initial=0))]
    return [_Part(*place) for place in ends if place[2] > place[1]]


def _of_starts(starts: list[int], rows: int, width: int, what: str) -> list[_Part]:
    """By where each sample starts among the tokens of all rows, and where the last one ends."""
    parts = [_Part(start // width, start % width, start % width + end - start) for start, end in pairwise(starts)]
    if not parts or min(p.start for p in parts) < 0 or any(p.end > width or p.row >= rows for p in parts):
        raise ValueError(
            f"{what} does not fit {rows} rows of {width} tokens: pass where each sample starts among all of them, and "
            "where the last one ends"
        )
    return [part for part in parts if part.end > part.start]


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
