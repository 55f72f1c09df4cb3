"""Constant tokens: those marked on hand-made ids, and the same marks however the samples are put into batches."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import tlora
from tests.helpers.calibrations import assert_close, calibrate
from tests.helpers.models import singles, tiny_batch, tiny_model
from tlora.calibration.batches import Batch
from tlora.calibration.constant_tokens import find_constant_tokens
from tlora.calibration.forward_backward import prepare_batches

BOS, SYSTEM, USER, TURN, BOT, END, LINE = range(3, 10)

# Rows of (id, is labeled, is constant)
Row = list[tuple[int, bool, bool]]


def tokens(ids: list[int], *, labeled: bool = False, constant: bool = False) -> Row:
    return [(token, labeled, constant) for token in ids]


def template(*ids: int, labeled: bool = False) -> Row:
    return tokens([*ids], labeled=labeled, constant=True)


def request(*ids: int) -> Row:
    return tokens([*ids])


def answer(*ids: int) -> Row:
    return tokens([*ids], labeled=True)


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


MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
SIDES = {
    "input_ids": torch.tensor([[BOS, 20, 21, END, 60], [BOS, 22, 21, 23, END]]),
    "attention_mask": MASK,
    "labels": torch.tensor([[40, 30, 31, 32, LINE, END], [40, 33, LINE, END, -100, -100]]),
}
TEXTS = {
    "input_ids": torch.tensor([[BOS, 20, 21, END, 60], [BOS, 22, 23, 21, END]]),
    "attention_mask": MASK,
    "labels": torch.tensor([0, 1]),
}


def test_an_encoder_and_its_decoder_are_compared_apart() -> None:
    """The decoder reads a start token, then each label one position later; nothing reads the last one."""
    (found,) = marked(tiny_model("t5"), [SIDES])
    assert found.constant.int().tolist() == [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]
    assert found.target_constant.int().tolist() == [[1, 1, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0]]


def test_a_text_to_classify_is_one_run() -> None:
    (found,) = marked(tiny_model("bert"), [TEXTS])
    assert found.constant.int().tolist() == [[1, 0, 1, 1, 0], [1, 0, 0, 1, 1]]


def chats(side: str = "right") -> dict[str, Tensor]:
    return padded(CASES["chat"], side)[0]


NAIVE: dict[str, tuple[dict[str, Tensor], list[list[int]], list[list[int]]]] = {
    "llama": (chats(), [[3, 4, 5, 8, 9], [3, 4, 7], [3, 4, 7, 8, 9]], []),
    "gpt2": (chats("left"), [[3, 4, 5, 8, 9], [3, 4, 7], [3, 4, 7, 8, 9]], []),
    "bert": (TEXTS, [[1], [1, 2]], []),
    "t5": (SIDES, [[1, 2], [1, 2, 3]], [[2, 3, 4], [2]]),
}
"""A batch of each family, and the places that count in each sample, in the encoder and in the decoder."""


@pytest.mark.parametrize("family", NAIVE)
def test_statistics_are_those_of_the_tokens_that_differ(family: str) -> None:
    """Covariance and mean gradient by hooks and NumPy on one sample at a time; the sensitivity is of all tokens."""
    model, (batch, places, target_places) = tiny_model(family), NAIVE[family]
    found = calibrate(model, [batch], tokens="task")
    x: dict[str, list[np.ndarray]] = {name: [] for name in found.names}
    d: dict[str, list[np.ndarray]] = {name: [] for name in found.names}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            counted = target_places if "decoder" in name and not is_read_from_the_encoder(name) else places
            rows = counted[len(x[name])]
            x[name].append(inputs[0].detach().double().flatten(0, -2).numpy()[rows])
            output.register_hook(lambda g: d[name].append(g.double().flatten(0, -2).numpy()[rows]))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in found.names]
    for sample in singles(batch):
        model(**sample).loss.backward()
    for handle in handles:
        handle.remove()
    count = len(places)
    for name in found.names:
        centered = [rows - rows.mean(0) for rows in x[name]]
        covariance = sum(rows.T @ rows for rows in centered) / count
        assert distance(found.covariance[name].dense(), covariance) < 1e-5, name
        assert found.covariance[name].rank_bound == sum(len(rows) - 1 for rows in x[name])
        gradient = sum(d_n.T @ x_n for d_n, x_n in zip(d[name], x[name], strict=True)) / count
        assert distance(found.gradient[name].dense(), gradient) < 1e-5, name
    assert found.sensitivity.per_sample.equal(calibrate(model, [batch]).sensitivity.per_sample)


def distance(found: Tensor, expected: np.ndarray) -> float:
    """Relative to the size of what is expected, which may be zero."""
    return float(np.linalg.norm(found.double().numpy() - expected) / (np.linalg.norm(expected) + 1e-12))


def is_read_from_the_encoder(name: str) -> bool:
    return "EncDecAttention.k" in name or "EncDecAttention.v" in name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_are_the_same_in_any_layout(layout: str) -> None:
    model, rows = tiny_model("llama"), CASES["conversations"]
    expected = calibrate(model, alone(rows), tokens="task")
    found = calibrate(model, LAYOUTS[layout](rows), tokens="task")
    assert found.meta.recipe == expected.meta.recipe
    if layout != "all labeled":  # where a label more makes it another sample
        assert_close(found, expected, 1e-4)


def test_the_result_says_what_was_left_out() -> None:
    model, (batch, _, _) = tiny_model("llama"), NAIVE["llama"]
    found = calibrate(model, [batch], tokens="task")
    assert found.meta.recipe["constant_tokens"] == {
        "prefixes": {"prompt": [BOS, SYSTEM, USER], "answers": []},
        "suffixes": {"prompt": [TURN, BOT], "answers": [END]},
    }
    assert found.meta.recipe["left_out"] == [18, 31]
    assert "58 %" in repr(found)


def other_chats() -> dict[str, Tensor]:
    """Other samples in the same template."""
    batch = chats()
    ids = batch["input_ids"].where((batch["input_ids"] < 20) | (batch["input_ids"] == 60), batch["input_ids"] + 20)
    return batch | {"input_ids": ids, "labels": torch.where(batch["labels"] == -100, -100, ids)}


def test_statistics_add_up_if_the_same_tokens_were_left_out(tmp_path: Any) -> None:
    model = tiny_model("llama")
    parts = [calibrate(model, [batch], tokens="task") for batch in (chats(), other_chats())]
    whole = calibrate(model, [chats(), other_chats()], tokens="task")
    assert_close(parts[0].merge(parts[1]), whole)
    assert parts[0].merge(parts[1]).meta.recipe == whole.meta.recipe
    calibrate(model, [chats()], tokens="task", checkpoint=tmp_path)
    resumed = calibrate(model, [chats(), other_chats()], tokens="task", checkpoint=tmp_path)
    assert_close(resumed, whole)
    assert resumed.meta.recipe == whole.meta.recipe


def test_other_constant_tokens_and_nothing_to_compare_are_refused(tmp_path: Any) -> None:
    model, random = tiny_model("llama"), tiny_batch("llama")
    one = calibrate(model, [chats()], tokens="task", checkpoint=tmp_path)
    with pytest.raises(ValueError, match="the other calibration leaves out other tokens"):
        one.merge(calibrate(model, [random], tokens="task"))
    with pytest.raises(ValueError, match=r"the checkpoint in .* leaves out other tokens"):
        calibrate(model, [chats(), random], tokens="task", checkpoint=tmp_path)
    single = {key: value[:1] for key, value in chats().items()}
    for batches in ([single], [single, single]):
        with pytest.raises(ValueError, match="no two of these differ"):
            tlora.calibrate(model, batches, tokens="task", progress=False)
