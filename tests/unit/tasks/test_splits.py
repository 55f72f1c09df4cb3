"""Data of one's own: what a model that learned its task perfectly would be given, and rows that cannot be meant."""

import pytest
from datasets import Dataset

from tests.helpers.conversations import CALLING, called
from tests.helpers.tokenizers import bytes_tokenizer
from tlora.tasks.load import load_task


def test_samples_in_two_splits_are_told_whatever_their_weights() -> None:
    talk = called("{}")["messages"]
    weighed = [message | ({"weight": 1} if message["role"] == "assistant" else {}) for message in talk]
    splits = {"train": [{"messages": weighed}] * 10, "test": [{"messages": talk}]}
    data = {name: Dataset.from_list(rows) for name, rows in splits.items()}
    with pytest.warns(UserWarning, match="10 training samples"):
        load_task(data, bytes_tokenizer(CALLING), validation=0)


def test_one_question_is_in_one_split() -> None:
    talks = [
        [{"role": "user", "content": f"question {i % 10}"}, {"role": "assistant", "content": f"answer {i}"}]
        for i in range(100)
    ]
    task = load_task(Dataset.from_dict({"messages": talks}), bytes_tokenizer("chatml"))
    asked = [{row["prompt"] for row in rows} for rows in (task.train, task.validation, task.test)]
    assert not asked[0] & asked[1]
    assert not asked[0] & asked[2]
