"""Batches, and what a model is measured at, against loops over single samples without padding."""

import pickle

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import tlora
from tests.helpers.models import tiny_model, tiny_tokenizer
from tests.helpers.rows import single_losses
from tests.helpers.tokenizers import words_tokenizer
from tlora.tasks.evaluation import batch_by_length
from tlora.tasks.load import load_task


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded_and_masked(task, side):
    rows = list(task.train)
    batch = task.collate(rows, padding_side=side)
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    width = max(len(row["input_ids"]) for row in rows)
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(len(rows), width)}
    for i, row in enumerate(rows):
        length = len(row["input_ids"])
        real = slice(width - length, None) if side == "left" else slice(length)
        expected = torch.zeros(width, dtype=torch.int64)
        expected[real] = 1
        assert batch["attention_mask"][i].equal(expected)
        assert batch["input_ids"][i, real].tolist() == row["input_ids"]
        assert batch["labels"][i, real].tolist() == row["labels"]
        assert (batch["labels"][i][expected == 0] == -100).all()


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_padding_on_either_side_gives_the_same_loss(task, tokenizer, family):
    model = tiny_model(family, vocab_size=len(tokenizer), max_position_embeddings=256)
    rows = list(task.train)
    expected = sum(total for total, _ in single_losses(model, rows)) / sum(n for _, n in single_losses(model, rows))
    for side in ("left", "right"):
        with torch.no_grad():
            loss = model(**task.collate(rows, padding_side=side)).loss.item()
        assert loss == pytest.approx(expected, rel=1e-5), side


def test_calibration_batches_come_from_training_and_are_always_the_same(task):
    def samples(batches):
        return {
            tuple(ids[mask.bool()].tolist())
            for batch in batches
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        }

    budgeted = task.calibration(6, batch_size=6, max_tokens=2 * max(len(row["input_ids"]) for row in task.train))
    assert samples(budgeted) == samples(task.calibration(6))
    assert 1 < len(budgeted) < 6
    batches = task.calibration(6, batch_size=2)
    assert samples(batches) == {tuple(row["input_ids"]) for row in task.train}
    assert samples(task.calibration(3)) < samples(batches)
    assert (batches.task, batches.seed) == (task.name, task.seed)
    again = task.calibration(6, batch_size=2)
    assert all(a[key].equal(b[key]) for a, b in zip(batches, again, strict=True) for key in a)
    assert [len(batch["input_ids"]) for batch in batches] == [2, 2, 2]
    lengths = [batch["attention_mask"].sum(1).tolist() for batch in batches]
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat, reverse=True)


@pytest.mark.parametrize(
    ("samples", "options", "named"),
    [
        (7, {}, "samples=7 asks for more than the 6"),
        (0, {}, "samples=0"),
        (2, {"batch_size": 0}, "batch_size=0"),
        (6, {"max_tokens": 0}, "max_tokens=0"),
    ],
)
def test_bad_numbers_of_calibration_samples_are_refused(task, samples, options, named):
    with pytest.raises(ValueError, match=named):
        task.calibration(samples, **options)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 7), st.none() | st.integers(1, 200))
def test_batches_by_length_hold_each_sample_once_within_their_limits(lengths, size, most):
    batches = batch_by_length(lengths, size, most)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= size
        width = max(lengths[i] for i in batch)
        assert most is None or len(batch) == 1 or width * len(batch) <= most
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)


def test_a_limit_draws_the_same_samples_of_all_classes(bert):
    data = Dataset.from_dict({"text": [f"{i} film" for i in range(300)], "label": [0] * 150 + [1] * 150})
    task = load_task(data, words_tokenizer(), test=100)
    one, again = (task.predict(bert, limit=20) for _ in range(2))
    assert one["text"].tolist() == again["text"].tolist()
    assert len(one) == 20
    assert 3 < (one["answer"] == "1").sum() < 17  # sorted by class, the first 20 would be all of one


@pytest.fixture(scope="module")
def bert():
    return tiny_model("bert", vocab_size=200, num_labels=2)


def test_a_task_shows_itself(task, encoded, tokenizer):
    assert repr(task) == "Task(dataset: generation, 6/2/4 train/validation/test samples, metric exact_match)"
    page = task._repr_html_()
    assert "<table" in page
    assert (
        f"<b>{tokenizer.decode([i for i in task.train[0]['labels'] if i != -100])}".replace("|>", "|&gt;").replace(
            "<|", "&lt;|"
        )
        in page
    )
    assert "&rarr; <b>" in encoded._repr_html_()
    described = task.describe()
    assert described.index.tolist() == ["train", "validation", "test"]
    assert described["samples"].tolist() == [6, 2, 4]
    rows = list(task.train)
    assert described.loc["train", "tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert described.loc["train", "labeled"] == sum(label != -100 for row in rows for label in row["labels"])
    assert described.loc["train", "longest"] == max(len(row["input_ids"]) for row in rows)


def answers() -> Dataset:
    return Dataset.from_list([{"prompt": f"w{5 + n} w9", "completion": f"w{5 + n}"} for n in range(24)])


@pytest.mark.parametrize("metric", ["exact_match", "final_answer", "loss"])
def test_a_task_goes_to_other_processes(metric: str) -> None:
    """As training with workers does where processes are spawned."""
    task = tlora.load_task(answers(), tiny_tokenizer(), metric=metric)
    again = pickle.loads(pickle.dumps(task))
    assert again.train.to_dict() == task.train.to_dict()
    if task.score is not None:
        rows = list(task.test)
        assert again.score(rows, ["w5"] * len(rows)) == task.score(rows, ["w5"] * len(rows))


def test_a_part_of_the_batches_knows_where_it_is_from() -> None:
    task = tlora.load_task(answers(), tiny_tokenizer(), seed=7)
    batches = task.calibration(8, batch_size=2)
    half = batches[:2]
    assert half == [batches[0], batches[1]]
    found = tlora.calibrate(tiny_model("llama"), half, progress=False)
    assert (found.meta.task, found.meta.seed, found.meta.samples) == (task.name, 7, 4)
