"""Tokenized rows as a task, for `train`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tlora.models.forward import IGNORED, evaluation_mode, pad_right, to_device


def evenly_spaced_rows(rows: Dataset, count: int) -> Dataset:
    """Return at most ``count`` evenly spaced rows, so that a sorted dataset is not cut to one class."""
    if len(rows) <= count:
        return rows
    return rows.select(np.linspace(0, len(rows) - 1, count).round().astype(int))


@dataclass(frozen=True)
class Rows:
    """A dataset of tokenized rows as a task without held-out samples.

    Attributes
    ----------
    train : datasets.Dataset
        ``input_ids`` and ``labels`` (token ids, or one class index), optionally ``attention_mask``.
    pad_token_id : int
        Token to pad ``input_ids`` with; it is masked.
    unused : int
        Labels at the beginning of a row that are not predicted: 1 for a causal model.
    inputs : tuple of str
        Other columns that the model takes, such as ``token_type_ids``.
    is_encoder_decoder : bool
        Whether labels belong to a decoder, not to the tokens of the row.
    """

    train: Dataset
    pad_token_id: int
    unused: int = 0
    inputs: tuple[str, ...] = ()
    is_encoder_decoder: bool = False

    name = ""
    validation = None

    def __post_init__(self) -> None:
        missing = {"input_ids", "labels"} - set(self.train.column_names)
        if missing:
            raise ValueError(
                f"the dataset has no column {min(missing)!r}, only {self.train.column_names}: tokenize it "
                "first, or make it a task with tlora.load_task(dataset, tokenizer)"
            )
        masked = "attention_mask" in self.train.column_names
        columns = self.train.select_columns(["labels", *["attention_mask"] * masked]).with_format("numpy")
        rows = itertools.chain.from_iterable(zip(*batch.values(), strict=True) for batch in columns.iter(1000))
        for index, (labels, *mask) in enumerate(rows):
            if np.ndim(labels) == 0:
                return  # classes
            together = mask and not self.is_encoder_decoder and len(mask[0]) == len(labels)
            if together and ((labels != IGNORED) & (mask[0] == 0)).any():
                raise ValueError(
                    f"row {index} of the dataset has labels on padding: set them to {IGNORED} if attention_mask is 0"
                )
            if (labels[self.unused :] == IGNORED).all():
                raise ValueError(
                    f"row {index} of the dataset has no label to predict, {labels.tolist()[-8:]} at its end: remove "
                    "the row, or tokenize with a larger max_length so that its answer is not cut off"
                )

    def collate(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad on the right: ids (B, T), mask (B, T), labels (B, T) with -100 or (B,), other columns with 0.

        Padding on the left is moved to the right, as in calibration.
        """
        ids = [torch.as_tensor(example["input_ids"]) for example in examples]
        masks = [
            torch.as_tensor(e.get("attention_mask", torch.ones_like(i))) for e, i in zip(examples, ids, strict=True)
        ]
        labels = [torch.as_tensor(example["labels"]) for example in examples]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence(masks, batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED)
            if labels[0].ndim
            else torch.stack(labels),
            **{name: _padded([torch.as_tensor(example[name]) for example in examples]) for name in self.inputs},
        }
        return pad_right(batch, self.is_encoder_decoder)

    def loss(self, model: PeftModel, limit: int) -> float:
        """Return the mean loss of at most ``limit`` rows, in nats per labeled token, with equal weight for each row."""
        with evaluation_mode(model):
            rows = list(evenly_spaced_rows(self.train, limit))
            # One at a time: a mean over a padded batch would give long rows more weight.
            losses = [model(**to_device(self.collate([row]), model)).loss.item() for row in rows]
        return sum(losses) / len(losses)


def _padded(values: list[Tensor]) -> Tensor:
    return pad_sequence(values, batch_first=True) if values[0].ndim else torch.stack(values)
