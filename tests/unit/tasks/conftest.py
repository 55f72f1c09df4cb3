"""Tasks and models that the tests of this folder share."""

from __future__ import annotations

import pytest

from tests.helpers.models import tiny_model
from tests.helpers.rows import labeled, pairs
from tests.helpers.tokenizers import bytes_tokenizer, ended_tokenizer, words_tokenizer
from tlora.tasks.load import load_task


@pytest.fixture(scope="module")
def tokenizer():
    return bytes_tokenizer("chatml")


@pytest.fixture(scope="module")
def task(tokenizer):
    return load_task(pairs(), tokenizer, train=6, validation=2, test=4)


@pytest.fixture(scope="module")
def llama(tokenizer):
    return tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256, eos_token_id=2, pad_token_id=2)


@pytest.fixture(scope="module")
def encoded():
    return load_task(labeled(), words_tokenizer(), train=6, validation=2, test=4)


@pytest.fixture(scope="module")
def seq2seq():
    tokenizer = ended_tokenizer()
    task = load_task(pairs(), tokenizer, architecture="seq2seq", train=6, validation=2, test=4)
    return task, tiny_model("t5", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
