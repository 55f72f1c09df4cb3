"""Both models' answers against what PEFT and the task compute on their own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tlora
from tests.helpers.adapted import condition
from tests.helpers.exact_adapters import adapter, task, values
from tests.helpers.models import tiny_tokenizer
from tlora.explanation import compare_answers as module
from tlora.explanation.compare_answers import AnswerTable
from tlora.tasks.requests import load_requests

FAMILIES = ["llama", "gpt2", "t5", "bert"]


def compare(model, rows, **options) -> AnswerTable:
    return tlora.compare_answers(model, rows, progress=False, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_what_both_models_answer_and_gain(family):
    model, rows = adapter(family), task(family)
    before = condition(model)
    table = compare(model, rows, batch_size=2)
    assert condition(model) == before
    after, gained = rows.predict(model), [values(model, rows, row)[0].sum() for row in rows.test]
    with model.disable_adapter():
        base, start = rows.predict(model), [values(model, rows, row)[0].sum() for row in rows.test]
    frame = table.to_frame()
    assert frame["base"].tolist() == base["prediction"].tolist()
    assert frame["adapter"].tolist() == after["prediction"].tolist()
    assert frame["reference"].tolist() == after["answer"].tolist()
    assert frame["adapter_right"].tolist() == (after[rows.metric] == 1).tolist()
    assert frame["base_right"].tolist() == (base[rows.metric] == 1).tolist()
    np.testing.assert_allclose(frame["gain"], np.subtract(gained, start), rtol=1e-4, atol=1e-5)


def test_an_answer_that_had_not_ended_is_cut():
    model, rows, room = adapter("llama"), task("llama"), 4
    prompts = [torch.tensor([row["input_ids"][: row["prompt_length"]]]) for row in rows.test]

    def written() -> list[list[int]]:
        options = {"max_new_tokens": room, "do_sample": False, "eos_token_id": None}
        return [model.generate(input_ids=ids, **options)[0, ids.shape[1] :].tolist() for ids in prompts]

    after = written()
    with model.disable_adapter():
        before = written()
    stop = after[0][-1]
    table = compare(model, replace(rows, max_new_tokens=room, stop_ids=(stop,)))
    cut = [one.adapter_cut for one in table.answers]
    assert cut == [stop not in ids for ids in after]
    assert [one.base_cut for one in table.answers] == [stop not in ids for ids in before]
    assert len(set(cut)) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_without_reference_the_gain_is_that_of_the_adapters_answer(family):
    model, tokenizer = adapter(family), tiny_tokenizer()
    requests = ["w4 w7 w10 w6", "w5 w8"]
    table = compare(model, requests, tokenizer=tokenizer, explain=[1])
    assert all(one.reference is None and one.adapter_right is None for one in table.answers)
    assert "right" not in table.headline
    assert table.to_frame()["adapter_right"].isna().all()
    for text, one in zip(requests, table.answers, strict=True):
        if not one.adapter.strip():  # `attribute` refuses to explain nothing
            continue
        explained = tlora.attribute(model, text, tokenizer=tokenizer, progress=False, answers=False)
        assert one.gain == pytest.approx(float(explained.samples[0].rise[0].sum()), abs=1e-4)
    assert table.attribution.samples[0].prompt == requests[1]
    assert table.attribution.rise == pytest.approx(table.answers[1].gain, abs=1e-4)  # losses are in float32
    assert table.attribution.samples[0].generated == [table.answers[1].base, table.answers[1].adapter]


def test_an_interrupt_keeps_the_rows_that_are_done(monkeypatch):
    model, rows, calls = adapter("llama"), task("llama"), []
    whole, generate = compare(model, rows), module.generate_tokens

    def interrupted(*args):
        calls.append(args)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return generate(*args)

    monkeypatch.setattr(module, "generate_tokens", interrupted)
    table = compare(model, rows, batch_size=1, explain=[2])
    assert table.interrupted
    assert table.answers[0].adapter == whole.answers[0].adapter
    assert (len(table.answers), table.explained, table.attribution) == (1, [], None)
    with pytest.raises(KeyboardInterrupt):
        compare(model, rows)


def test_totals_count_marks_and_changes():
    model, rows = adapter("llama"), task("llama")
    table = compare(model, rows)
    texts = [("x", "y", False, True), ("y", "x", True, False), ("z", " z\n", None, None)]
    fields = ("base", "adapter", "base_right", "adapter_right")
    answers = [
        replace(one, **dict(zip(fields, each, strict=True))) for one, each in zip(table.answers, texts, strict=True)
    ]
    table = replace(table, answers=answers)
    assert table.headline == "1 of 2 right, 1 before; 2 answers changed; 1 row without reference"
    assert (table.newly_right, table.newly_wrong) == ([0], [1])


def test_a_file_may_have_references_in_some_rows(tmp_path: Path):
    file, tokenizer = tmp_path / "mine.jsonl", tiny_tokenizer()
    file.write_text('{"prompt": "w4 w5", "completion": "w6 w7"}\n{"prompt": "w8"}\n')
    rows = load_requests(file, tokenizer, "causal")
    assert (rows.name, rows.test["answer"][:]) == ("mine", ["w6 w7", ""])
    assert rows.max_new_tokens == 3  # the two words and the end
    table = compare(adapter("llama"), rows)
    assert [one.adapter_right is None for one in table.answers] == [False, True]
    file.write_text('{"text": "w4 w5", "label": "b"}\n{"text": "w8"}\n')
    assert load_requests(file, tokenizer, "classification", ["a", "b"]).test["labels"][:] == [1, -100]
    file.write_text('{"text": "w4 w5", "label": "c"}\n')
    with pytest.raises(ValueError, match="'c' is not among the classes"):
        load_requests(file, tokenizer, "classification", ["a", "b"])
    file.write_text('{"completion": "w4 w5"}\n')
    with pytest.raises(ValueError, match="line 1: 'prompt' is None"):
        load_requests(file, tokenizer, "causal")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: compare(adapter("llama"), ["w4"]), "tokenizer"),
        (lambda: compare(adapter("llama"), task("bert")), "architecture"),
        (lambda: compare(adapter("llama"), task("llama"), explain=[3]), "explain"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, words):
    with torch.no_grad(), pytest.raises((ValueError, IndexError), match=words):
        call()
