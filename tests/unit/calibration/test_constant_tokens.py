"""Constant tokens: those marked on hand-made ids, and the same marks however the samples are put into batches."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tests.helpers.models import tiny_model
from tlora.calibration.batches import Batch
from tlora.calibration.constant_tokens import find_constant_tokens
from tlora.calibration.forward_backward import prepare_batches

BOS, SYSTEM, USER, TURN, BOT, END, LINE = range(3, 10)

# Rows of (id, is labeled, is constant)
Row = list[tuple[int, bool, bool]]


def told(ids: list[int], *, labeled: bool = False, constant: bool = False) -> Row:
    return [(token, labeled, constant) for token in ids]


def template(*ids: int, labeled: bool = False) -> Row:
    return told([*ids], labeled=labeled, constant=True)


def request(*ids: int) -> Row:
    return told([*ids])


def answer(*ids: int) -> Row:
    return told([*ids], labeled=True)


HEAD, MIDDLE, LAST = template(BOS, SYSTEM, USER), template(TURN, BOT), template(END, labeled=True)
NEXT = template(LINE, USER)
CASES: dict[str, list[Row]] = {
    "chat": [
        HEAD + request(20, 21, 22) + MIDDLE + answer(30, 31) + LAST,
        HEAD + request(23, 22) + MIDDLE + answer(32) + LAST,
        HEAD + request(20, 24) + MIDDLE + answer(33, 31, 30) + LAST,
    ],
    "conversations": [
        HEAD + request(20) + MIDDLE + answer(30) + LAST + NEXT + request(21, 22) + MIDDLE + answer(31) + LAST,
        HEAD + request(23, 24) + MIDDLE + answer(32, 33) + LAST,
        HEAD + request(25) + MIDDLE + answer(30, 31) + LAST + NEXT + request(26) + MIDDLE + answer(33) + LAST,
    ],
    "a template that goes on after the answer": [
        HEAD
        + request(20)
        + MIDDLE
        + answer(30)
        + LAST
        + NEXT
        + request(21)
        + MIDDLE
        + answer(31)
        + LAST
        + template(LINE),
        HEAD
        + request(22)
        + MIDDLE
        + answer(32)
        + LAST
        + NEXT
        + request(23)
        + MIDDLE
        + answer(33)
        + LAST
        + template(LINE),
    ],
    "one later prompt has nothing to compare with": [
        HEAD + request(20) + MIDDLE + answer(30) + LAST + request(LINE, USER, 21, TURN) + answer(31) + LAST,
        HEAD + request(22) + MIDDLE + answer(32) + LAST,
    ],
    "identical prompts": [
        template(BOS, 20, 21) + answer(30) + LAST,
        template(BOS, 20, 21) + answer(31, 32) + LAST,
    ],
    "a request that repeats the template": [
        template(SYSTEM, USER) + template(TURN) + answer(30, END),
        template(SYSTEM, USER) + request(SYSTEM, USER) + template(TURN) + answer(31, 32),
    ],
    "an empty request": [
        HEAD + MIDDLE + answer(30, 30),
        HEAD + request(USER, TURN) + MIDDLE + answer(31),
    ],
    "texts with a first token": [
        template(BOS) + answer(20, 21, 22),
        template(BOS) + answer(23, 21),
    ],
    "texts that have nothing in common": [request(20) + answer(21, 22), request(23) + answer(24, 25, 26)],
}


def sample(row: Row) -> dict[str, Tensor]:
    ids = torch.tensor([token for token, _, _ in row])
    labels = torch.tensor([token if labeled else -100 for token, labeled, _ in row])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def padded(rows: list[Row], side: str) -> list[dict[str, Tensor]]:
    samples, padding = [sample(row) for row in rows], {"input_ids": 60, "attention_mask": 0, "labels": -100}
    columns = {key: [each[key] for each in samples] for key in padding}
    return [
        {k: pad_sequence(v, batch_first=True, padding_value=padding[k], padding_side=side) for k, v in columns.items()}
    ]


def alone(rows: list[Row]) -> list[dict[str, Tensor]]:
    return [padded([row], "right")[0] for row in rows]


def packed(rows: list[Row]) -> list[dict[str, Tensor]]:
    """One row, in which the first token of each sample has no label, as packing leaves it."""
    samples = [sample(row) for row in rows]
    for each in samples:
        each["labels"][0] = -100
        each["position_ids"] = torch.arange(len(each["labels"]))
    return [{key: torch.cat([each[key] for each in samples])[None] for key in samples[0] if key != "attention_mask"}]


def all_labeled(rows: list[Row]) -> list[dict[str, Tensor]]:
    """Texts whose first token has a label too, which nothing predicts."""
    batches = alone(rows)
    for batch in batches:
        batch["labels"][0, 0] = batch["input_ids"][0, 0]
    return batches


LAYOUTS = {
    "left": lambda rows: padded(rows, "left"),
    "right": lambda rows: padded(rows, "right"),
    "alone": alone,
    "packed": packed,
    "all labeled": all_labeled,
}


def marked(model: Any, batches: list[dict[str, Tensor]]) -> list[Batch]:
    prepared = list(prepare_batches(model, batches))
    constant = find_constant_tokens(prepared)
    return [constant.mark(batch) for batch in prepared]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_what_the_template_adds_is_marked_in_any_layout(case: str, layout: str) -> None:
    rows = CASES[case]
    batches = marked(tiny_model("llama"), LAYOUTS[layout](rows))
    found = [mask[real].tolist() for batch in batches for mask, real in zip(batch.constant, batch.real, strict=True)]
    assert found == [[constant for _, _, constant in row] for row in rows]
    assert not any(bool((batch.constant & ~batch.real).any()) for batch in batches)


def test_an_encoder_and_its_decoder_are_compared_apart() -> None:
    """The decoder reads a start token, then each label one position later; nothing reads the last one."""
    batch = {
        "input_ids": torch.tensor([[BOS, 20, 21, END, 60], [BOS, 22, 21, 23, END]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
        "labels": torch.tensor([[40, 30, 31, 32, LINE, END], [40, 33, LINE, END, -100, -100]]),
    }
    (found,) = marked(tiny_model("t5"), [batch])
    assert found.constant.int().tolist() == [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert found.target_constant.int().tolist() == [[1, 1, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0]]


def test_a_text_to_classify_is_one_run() -> None:
    batch = {
        "input_ids": torch.tensor([[BOS, 20, 21, END, 60], [BOS, 22, 23, 21, END]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
        "labels": torch.tensor([0, 1]),
    }
    (found,) = marked(tiny_model("bert"), [batch])
    assert found.constant.int().tolist() == [[1, 0, 1, 1, 0], [1, 0, 0, 1, 1]]
    assert found.select([1]).constant.int().tolist() == [[1, 0, 0, 1, 1]]
    assert [single.constant.int().tolist() for single in found.singles()] == [[[1, 0, 1, 1]], [[1, 0, 0, 1, 1]]]
