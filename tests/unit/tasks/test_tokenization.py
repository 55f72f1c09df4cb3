"""What of a sample is learned, against renderings written by hand and token offsets."""

import copy

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.conversations import SIZES, TOKENIZERS, messages, spelled
from tests.helpers.tokenizers import bytes_tokenizer, ended_tokenizer, pieces_tokenizer, words_tokenizer
from tlora.tasks.chat import conversation_segments, end_tokens, tokenize
from tlora.tasks.load import load_task


@pytest.mark.parametrize("chat", [True, False])
def test_the_end_token_is_learned_though_it_is_the_padding_token(chat):
    tokenizer = bytes_tokenizer("chatml")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    data = Dataset.from_dict({"prompt": ["a", "a longer one"], "completion": ["b", "c d e f"]})
    task = load_task(data, tokenizer, chat=chat, **SIZES)
    batch = task.collate(list(task.train))
    last = batch["attention_mask"].sum(1) - 1
    for row in range(2):
        assert batch["labels"][row, last[row]] == tokenizer.eos_token_id
        assert (batch["labels"][row, last[row] + 1 :] == -100).all()
        assert (batch["input_ids"][row, last[row] + 1 :] == tokenizer.eos_token_id).all()


def test_without_a_template_texts_are_joined_as_they_are():
    tokenizer = pieces_tokenizer()
    data = Dataset.from_dict({"prompt": ["What is 1 + 2?"], "completion": [" It is 3."]})
    row = load_task(data, tokenizer, **SIZES).train[0]
    ids, labels = spelled(tokenizer, [("What is 1 + 2?", " It is 3.")], first=[tokenizer.bos_token_id])
    assert row["input_ids"] == [*ids, tokenizer.eos_token_id]
    assert row["labels"] == [*labels, tokenizer.eos_token_id]
    assert row["prompt_length"] == sum(label == -100 for label in labels)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("pair", [("Answer: ", "4"), ("wor", "d"), ("a\n", "\n b"), ("é", "é")])
def test_the_prompt_is_tokenised_as_it_will_be_when_the_model_answers(kind, pair):
    """Also where a token of the joined text would reach over the boundary."""
    tokenizer = TOKENIZERS[kind]()
    data = Dataset.from_dict({"prompt": [pair[0]], "completion": [pair[1]]})
    row = load_task(data, tokenizer, **SIZES).train[0]
    assert row["input_ids"][: row["prompt_length"]] == tokenizer(pair[0])["input_ids"]
    assert row["labels"][: row["prompt_length"]] == [-100] * row["prompt_length"]
    assert row["labels"][row["prompt_length"] :] == row["input_ids"][row["prompt_length"] :]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=6))
def test_labels_decode_to_what_was_said_whatever_is_said(contents):
    """Any text: labels, decoded, are the answers, each with its end."""
    tokenizer = bytes_tokenizer("chatml")
    contents = contents[: len(contents) // 2 * 2]
    turns = messages([(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)])
    ids, labels, starts = tokenize(tokenizer, conversation_segments(tokenizer, turns), end_tokens(tokenizer))
    assert tokenizer.decode([i for i in labels if i != -100]) == "".join(f"{c}<|im_end|>" for c in contents[1::2])
    assert all(label in (index, -100) for index, label in zip(ids, labels, strict=True))
    assert [labels[start] for start in starts] == [ids[start] for start in starts]


def test_an_encoder_decoder_reads_the_prompt_and_writes_the_completion():
    tokenizer = ended_tokenizer()
    data = Dataset.from_dict({"prompt": ["What is it?"], "completion": ["a film"]})
    row = load_task(data, tokenizer, architecture="seq2seq", **SIZES).train[0]
    assert row["input_ids"] == tokenizer("What is it?")["input_ids"]
    assert row["labels"] == tokenizer("a film")["input_ids"]
    assert row["labels"][-1] == row["input_ids"][-1] == tokenizer.eos_token_id


def test_a_pair_of_texts_is_told_apart():
    tokenizer = words_tokenizer()
    data = Dataset.from_dict({"text": ["the film", "a joy"], "text_pair": ["a bore !", "a film"], "label": [0, 1]})
    task = load_task(data, tokenizer, **SIZES)
    batch = task.collate(list(task.train))
    expected = tokenizer(["the film", "a joy"], ["a bore !", "a film"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    for name, values in expected.items():
        assert batch[name].equal(values), name
    assert batch["labels"].tolist() == [0, 1]


def test_truncation_is_counted_and_said_and_samples_without_labels_are_dropped():
    tokenizer = bytes_tokenizer()
    rows = [("ab", "cd"), ("ab", "c" * 50), ("a" * 60, "cd")]
    data = Dataset.from_dict(dict(zip(("prompt", "completion"), map(list, zip(*rows, strict=True)), strict=True)))
    whole = load_task(data, tokenizer, **SIZES)
    lengths = [len(row["input_ids"]) for row in whole.train]
    assert [whole.cuts["train"].truncated, whole.cuts["train"].longest] == [0, max(lengths)]
    with pytest.warns(UserWarning, match=r"max_length=10 .*2 of train \(1 "):
        task = load_task(data, tokenizer, max_length=10, **SIZES)
    assert (task.cuts["train"].truncated, task.cuts["train"].dropped) == (2, 1)
    assert task.cuts["train"].longest == max(lengths)
    for short, long in zip(task.train, whole.train.select([0, 1]), strict=True):
        assert short["input_ids"] == long["input_ids"][:10]
        assert short["labels"] == long["labels"][:10]
    described = task.describe()
    assert described.loc["train", ["samples", "truncated", "dropped"]].tolist() == [2, 2, 1]


def test_encoders_and_encoder_decoders_keep_their_last_token_when_truncated():
    words, ended = words_tokenizer(), ended_tokenizer()
    labeled = Dataset.from_dict({"text": ["a film " * 50, "a joy"], "label": [0, 1]})
    with pytest.warns(UserWarning, match="max_length=8 truncated 1 of train"):
        task = load_task(labeled, words, max_length=8, **SIZES)
    assert (len(task.train[0]["input_ids"]), task.train[0]["input_ids"][-1]) == (8, words.sep_token_id)
    pair = Dataset.from_dict({"prompt": ["a film " * 50], "completion": ["a joy"]})
    with pytest.warns(UserWarning, match="max_length=8 truncated 1 of train"):
        row = load_task(pair, ended, architecture="seq2seq", max_length=8, **SIZES).train[0]
    assert (len(row["input_ids"]), row["input_ids"][-1]) == (8, ended.eos_token_id)


def test_the_default_length_is_what_the_model_reads():
    assert (
        load_task(Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}), words_tokenizer(), **SIZES).max_length == 64
    )
    pair = Dataset.from_dict({"prompt": ["a"], "completion": ["b"]})
    assert load_task(pair, bytes_tokenizer(), **SIZES).max_length == 1024


@pytest.mark.parametrize("build", [bytes_tokenizer, pieces_tokenizer, words_tokenizer, ended_tokenizer])
def test_the_tokenizer_is_left_as_it_was(build):
    tokenizer = build()
    state = copy.deepcopy({k: v for k, v in tokenizer.__dict__.items() if k != "_tokenizer"})
    backend = tokenizer.backend_tokenizer.to_str()
    data = Dataset.from_dict({"prompt": ["a", "b c"], "completion": ["b", "c"]})
    task = load_task(data, tokenizer, **SIZES)
    task.collate(list(task.train), padding_side="left")
    with pytest.warns(UserWarning, match="truncated"):
        load_task(data, tokenizer, max_length=2, architecture="seq2seq", **SIZES)
    assert {k: v for k, v in tokenizer.__dict__.items() if k != "_tokenizer"} == state
    assert tokenizer.backend_tokenizer.to_str() == backend
