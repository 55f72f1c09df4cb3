"""Padding with another token than the model's own, models that read it, and batches as many samples as tokens long."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.models import singles, tiny_batch, tiny_model
from tests.helpers.padding import decoder, texts
from tlora.training.dataset import Rows
from tlora.training.train import as_task


def calibrate(model: Any, batches: list[dict[str, torch.Tensor]]) -> tlora.Calibration:
    return tlora.calibrate(model, batches, progress=False)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_rows_are_padded_as_the_model_reads_them(padding: str) -> None:
    """Rows that bring their padding: a classifier is measured and trained as on those without."""
    batch = texts((5, 3, 6), padding)
    padded = [{key: value[n].tolist() for key, value in batch.items()} for n in range(3)]
    bare = [
        {"input_ids": batch["input_ids"][n][batch["attention_mask"][n].bool()].tolist(), "labels": padded[n]["labels"]}
        for n in range(3)
    ]
    losses = []
    for rows in (padded, bare):
        model = decoder("llama")
        allocation = tlora.allocate(calibrate(model, singles(batch)).sensitivity, 4)
        run = tlora.train(
            tlora.attach(model, None, allocation), Dataset.from_list(rows), learning_rate=1e-2, batch_size=3, epochs=3,
            logging_steps=1, progress=False,
        )  # fmt: skip
        losses.append([*run.history["loss"].dropna(), run.before["train_loss"], run.after["train_loss"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_rows_spread_over_a_sorted_dataset() -> None:
    rows = Dataset.from_dict({"input_ids": [[i, i] for i in range(100)], "labels": [[i, i] for i in range(100)]})
    seen: list[int] = []

    class Counting(Rows):
        def collate(self, examples: Any) -> dict[str, torch.Tensor]:
            seen.extend(example["input_ids"][0] for example in examples)
            return token_batch

    token_batch = Rows(token_rows(1), 0).collate(list(token_rows(1)))
    Counting(rows, 0).loss(adapted_model(), 3)
    assert seen == [0, 50, 99]


def test_refusals_of_rows() -> None:
    for labels, words in (
        ([[1, 2], [-100, -100], [3, 4]], "row 1 of the dataset"),
        ([[1, 2], [5, -100]], "row 1 of the dataset"),  # nothing predicts a first token
    ):
        rows = Dataset.from_dict({"input_ids": [[1, 2]] * len(labels), "labels": labels})
        with pytest.raises(ValueError, match=words):
            as_task(rows, adapted_model())
    for rows, error, words in (
        (token_rows().select([]), ValueError, "no training samples"),
        (token_rows().remove_columns("labels"), ValueError, "'labels'"),
    ):
        with pytest.raises(error, match=words):
            as_task(rows, adapted_model())  # type: ignore[arg-type]
    masked = {"input_ids": [[1, 2]], "labels": [[5, 6]], "attention_mask": [[1, 0]]}
    with pytest.raises(ValueError, match=r"row 0 .*padding"):
        Rows(Dataset.from_dict(masked), 0)
    Rows(Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[5, -100]]}), 0)
    one_number = Dataset.from_dict({"input_ids": [[5, 6]] * 4, "labels": [[0.5]] * 4})
    assert as_task(one_number, adapted_model("bert")).train is one_number  # a classifier uses it


def test_loss_of_rows_is_the_mean_of_single_rows_in_evaluation_mode() -> None:
    model, rows = adapted_model("bert"), token_rows(5, classes=2)
    expected = 0.0
    with torch.no_grad():
        for row in rows:
            logits = model.eval()(torch.tensor([row["input_ids"]])).logits[0]
            expected -= logits.log_softmax(0)[row["labels"]].item() / 5
    assert Rows(rows, 0).loss(model.train(), 256) == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_attention_masks_pad_and_are_kept() -> None:
    rows = Dataset.from_list(
        [
            {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [0, 1, 1]},
            {"input_ids": [8, 4], "labels": [8, 4], "attention_mask": [1, 1]},
        ]
    )
    batch = Rows(rows, 9).collate(list(rows))
    assert batch["input_ids"].tolist() == [[6, 7, 5], [8, 4, 9]]  # padding on the left goes to the right
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 0]]
    assert batch["labels"].tolist() == [[6, 7, -100], [8, 4, -100]]
    bare = Rows(rows.remove_columns("attention_mask"), 9).collate(list(rows.remove_columns("attention_mask")))
    assert bare["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_what_a_model_takes_beside_ids_is_trained_with() -> None:
    rows = [
        {"input_ids": [5] * n, "token_type_ids": [n % 2] * n, "labels": n % 2, "text": "no input"} for n in (2, 3, 4)
    ]
    model = tiny_model("bert")
    adapted = tlora.attach(model, None, tlora.allocate(calibrate(model, [tiny_batch(model)]).sensitivity, 4))
    read: list[Tensor] = []
    model.bert.embeddings.token_type_embeddings.register_forward_hook(lambda module, args, out: read.append(args[0]))
    options = {"learning_rate": 0.05, "batch_size": 2, "evaluation_limit": 0, "progress": False}
    tlora.train(adapted, Dataset.from_list(rows), **options)
    assert max(int(batch.max()) for batch in read) == 1


def test_labels_of_a_decoder_stay_where_they_are() -> None:
    rows = [
        {"input_ids": [0, 0, 5, 6], "attention_mask": [0, 0, 1, 1], "labels": [11, 12, 13]},
        {"input_ids": [7, 8, 9, 4], "attention_mask": [1, 1, 1, 1], "labels": [14, 15, 16, 17]},
    ]
    batch = Rows(Dataset.from_list(rows), 0, is_encoder_decoder=True).collate(rows)
    assert batch["input_ids"][0].tolist() == [5, 6, 0, 0]
    assert batch["labels"][0].tolist() == [11, 12, 13, -100]
    padded = {"input_ids": [7, 8, 2, 0], "attention_mask": [1, 1, 1, 0], "labels": [5, 6, 9, 2]}
    Rows(Dataset.from_list([padded]), 0, is_encoder_decoder=True)  # as many of its own, and none of them on padding
