"""Packed rows give the statistics of their samples, each run alone."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import tlora
from tests.helpers.calibrations import assert_close, calibrate
from tests.helpers.models import tiny_batch, tiny_model
from tlora.calibration.packing import unpack_batch

LENGTHS = (7, 4, 9, 5)


def rows(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[dict[str, list[int]]]:
    """Samples without padding, of a prompt and its completion."""
    batch = tiny_batch("llama", lengths, seed=seed)
    return [
        {key: batch[key][n, :length].tolist() for key in ("input_ids", "labels")} for n, length in enumerate(lengths)
    ]


def alone(samples: list[dict[str, list[int]]]) -> list[dict[str, Tensor]]:
    tensors = [{key: torch.tensor([values]) for key, values in row.items()} for row in samples]
    return [row | {"attention_mask": torch.ones_like(row["input_ids"])} for row in tensors]


def one_row(samples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    return {key: torch.tensor([[token for row in samples for token in row[key]]]) for key in ("input_ids", "labels")}


def positions(*lengths: int) -> Tensor:
    return torch.cat([torch.arange(length) for length in lengths])


def of_trl(samples: list[dict[str, list[int]]]) -> Mapping[str, Any]:
    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=16)(samples)


def of_transformers(samples: list[dict[str, list[int]]]) -> Mapping[str, Any]:
    return DataCollatorWithFlattening(return_flash_attn_kwargs=True)(samples)


def by_positions(samples: list[dict[str, list[int]]]) -> Mapping[str, Any]:
    return one_row(samples) | {"position_ids": positions(*LENGTHS)[None]}


def numbered(samples: list[dict[str, list[int]]]) -> Mapping[str, Any]:
    """With the sample's number in the mask, as axolotl's collator has it."""
    numbers = torch.cat([torch.full((length,), n + 1) for n, length in enumerate(LENGTHS)])
    return by_positions(samples) | {"attention_mask": numbers[None]}


def masked(samples: list[dict[str, list[int]]]) -> Mapping[str, Any]:
    """With a mask of ones, padding on the left, and positions of it that start again too."""
    padding = {"input_ids": 0, "labels": -100}
    row = {k: torch.nn.functional.pad(v, (3, 0), value=padding[k]) for k, v in one_row(samples).items()}
    places = torch.cat([torch.tensor([1, 1, 1]), positions(*LENGTHS)])[None]
    return row | {"attention_mask": (torch.arange(places.shape[1]) > 2).long()[None], "position_ids": places}


@pytest.mark.parametrize("pack", [of_trl, of_transformers, by_positions, numbered, masked])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("tokens", ["all", "labels"])
def test_packed_equals_alone(pack: Any, family: str, tokens: Any) -> None:
    model = tiny_model(family)
    expected = calibrate(model, alone(rows()), tokens=tokens)
    assert_close(calibrate(model, [pack(rows())], tokens=tokens), expected)


def test_positions_that_go_on_are_no_packing() -> None:
    """Padding, and a token that is masked within a text, are none either."""
    model = tiny_model("llama")
    batch = tiny_batch(model, padding="left")
    batch["attention_mask"][2, 4] = 0
    batch["labels"][2, 4] = -100
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    assert unpack_batch(batch, model, "batch 0") == [batch]


def test_a_long_sample_among_short_ones_does_not_pad_them_all() -> None:
    model, lengths = tiny_model("llama"), (3, 3, 3, 40, 3, 3)
    batch = one_row(rows(lengths)) | {"position_ids": positions(*lengths)[None]}
    parts = unpack_batch(batch, model, "batch 0")
    assert [part["input_ids"].shape for part in parts] == [(3, 3), (1, 40), (2, 3)]


def test_what_nothing_is_learned_from_is_left_out() -> None:
    model, samples = tiny_model("llama"), rows()
    samples[1]["labels"] = [-100] * 4
    expected = calibrate(model, alone([samples[0], *samples[2:]]))
    assert_close(calibrate(model, [by_positions(samples)]), expected)
    for sample in samples:
        sample["labels"] = [-100] * len(sample["labels"])
    with pytest.raises(ValueError, match="batch 0: sample 0"):
        tlora.calibrate(model, [by_positions(samples)], progress=False)


@pytest.mark.parametrize("key", ["seq_lens", "cu_seqlens"])
def test_packed_rows_without_positions_are_refused(key: str) -> None:
    """They would count as one sample."""
    batch = one_row(rows()) | {key: torch.tensor(LENGTHS), "attention_mask": torch.ones(1, sum(LENGTHS))}
    with pytest.raises(ValueError, match=f"batch 0 .*{key}.*position_ids"):
        tlora.calibrate(tiny_model("llama"), [batch], progress=False)
