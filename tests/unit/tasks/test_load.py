"""Data of one's own: what a model that learned its task perfectly would be given, and rows that cannot be meant."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

import tlora
from tests.helpers.models import tiny_model, tiny_tokenizer
from tests.helpers.tokenizers import bytes_tokenizer, ended_tokenizer, words_tokenizer
from tlora.tasks.evaluation import decode_answer
from tlora.tasks.load import digest_task, load_task, load_task_for_model

THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant<|channel|>final<|message|>' }}"
    "{{ m.content + '<|im_end|>' }}{% else %}{{ '<|im_start|>' + m.role + '<|message|>' + m.content + '<|im_end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)


def sums(answer: str = "{}") -> Dataset:
    answers = [answer.format(i + 1) for i in range(40)]
    return Dataset.from_dict({"prompt": [f"What is {i} + 1?" for i in range(40)], "completion": answers})


def perfect(task: Any) -> float:
    """The score of a model that writes what it learned, token by token, and then something else."""
    written = [[label for label in row["labels"] if label != -100] + [5, 6] for row in task.test]
    answers = [decode_answer(task, row, tokens) for row, tokens in zip(task.test, written, strict=True)]
    scores = task.score(task.test, answers)[task.metric]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("template", ["chatml", THINKING, CHANNELS])
def test_what_a_template_writes_around_an_answer_is_no_part_of_it(template: str) -> None:
    tokenizer = bytes_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|channel|>", "<|message|>"]})
    assert perfect(load_task(sums(), tokenizer)) == 1
    assert perfect(load_task("chain_sum", tokenizer, train=4, validation=2, test=4)) == 1


@pytest.mark.parametrize("answer", ["h", "think", "im_end", "<think>"])
def test_an_answer_may_say_what_the_template_says(answer: str) -> None:
    assert perfect(load_task(sums(answer), bytes_tokenizer(THINKING), metric="exact_match")) == 1


def test_what_an_encoder_decoder_writes_first_is_no_part_of_an_answer() -> None:
    """BART writes a token of the beginning."""
    tokenizer = ended_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    single = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = single
    task = load_task(sums(), tokenizer, architecture="seq2seq")
    assert task.test["labels"][0][0] == bos
    assert perfect(task) == 1


def test_special_tokens_of_ones_own_are_answers_and_no_ends() -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<yes>", "<no>"]})
    rows = Dataset.from_dict({"prompt": [f"Is {i} even?" for i in range(40)], "completion": ["<yes>", "<no>"] * 20})
    task = load_task(rows, tokenizer)
    assert task.stop_ids == (tokenizer.eos_token_id,)
    assert all(row["labels"][-1] == tokenizer.eos_token_id for row in task.train)
    assert perfect(task) == 1


def test_a_sample_that_is_cut_off_behind_a_special_token_stops_no_other() -> None:
    tokenizer = bytes_tokenizer("chatml")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<sep>"]})
    rows = sums("the number<sep>is {}")
    whole = load_task(rows, tokenizer)
    row = whole.train[0]
    behind = row["input_ids"].index(tokenizer.convert_tokens_to_ids("<sep>")) + 1
    with pytest.warns(UserWarning, match="truncated"):
        cut = load_task(rows, tokenizer, max_length=behind)
    assert tokenizer.convert_tokens_to_ids("<sep>") not in cut.stop_ids
    assert perfect(whole) == 1


def test_warns_of_completions_that_no_model_could_write(caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_dict({"prompt": [f"What film {i}?" for i in range(20)], "completion": ["joy\nbore"] * 20})
    load_task(rows, words_tokenizer(), architecture="causal")
    assert "scores 0 by exact_match" in caplog.text
    caplog.clear()
    load_task(sums(), bytes_tokenizer())
    assert not caplog.text


def test_objects_keep_their_own_keys(tmp_path: Path) -> None:
    """In a table each would get those of all others, with nulls."""
    arguments = [{"city": "Paris"}, {"a": 1, "b": 2}] * 10
    calls = [[{"function": {"name": "f", "arguments": each}}] for each in arguments]
    messages = [
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "now", "tool_calls": call}]
        for i, call in enumerate(calls)
    ]
    file = tmp_path / "calls.jsonl"
    file.write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages))
    template = (
        "{% for m in messages %}{{ m.role + ':' + m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}{{ '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    tokenizer = bytes_tokenizer(template)
    for data in (file, Dataset.from_dict({"messages": messages})):
        task = load_task(data, tokenizer)
        learned = {learned_of(row, tokenizer) for row in task.train}
        assert learned == {'now{"city": "Paris"}<|im_end|>', 'now{"a": 1, "b": 2}<|im_end|>'}


def learned_of(row: dict[str, Any], tokenizer: Any) -> str:
    return str(tokenizer.decode([label for label in row["labels"] if label != -100]))


def save_tiny(folder: Path, family: str) -> Path:
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{4 + (start + 7 * n) % 60}" for n in range(count))


@pytest.mark.parametrize(("family", "most"), [("gpt2", 64), ("llama", 64), ("bert", 80)])
def test_a_task_is_cut_to_what_the_model_reads(tmp_path: Path, family: str, most: int) -> None:
    """The tokenizer was never told."""
    folder, data = save_tiny(tmp_path / family, family), tmp_path / "data.jsonl"
    rows = [{"text": words(200, n), "label": n % 2} for n in range(12)]
    if family != "bert":
        rows = [{"prompt": words(9, n), "completion": words(200, n)} for n in range(12)]
    Dataset.from_list(rows).to_json(data)
    for load in (
        lambda: tlora.load_task(str(data), tlora.load_model(folder)[1]),
        lambda: load_task_for_model(str(folder), str(data)),
    ):
        with pytest.warns(UserWarning, match=f"max_length={most} truncated"):
            task = load()
        assert task.max_length == most
        assert {len(ids) for ids in task.train["input_ids"][:]} == {most}


def test_a_length_that_cuts_every_answer_is_refused_with_a_way_out() -> None:
    data = Dataset.from_dict({"prompt": ["a" * 60], "completion": ["b"]})
    with pytest.raises(ValueError, match="max_length=5 ") as error:
        load_task(data, bytes_tokenizer(), max_length=5, validation=0, test=0)
    enough = int(str(error.value).partition("sample has ")[2].partition(" ")[0])
    assert len(load_task(data, bytes_tokenizer(), max_length=enough, validation=0, test=0).train) == 1


def test_answers_of_an_encoder_decoder_have_a_limit_of_their_own() -> None:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 64}
    config = transformers.BartConfig(max_position_embeddings=40, **sizes, **heads)
    model = transformers.BartForConditionalGeneration(config).eval()
    ids = torch.full((1, 5), 7)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full((1, 41), 7)}
    with pytest.raises(ValueError, match=r"41 tokens, .* 40, by model\.decoder"):
        tlora.calibrate(model, [batch], progress=False)
    short = batch | {"labels": batch["labels"][:, :40]}
    assert tlora.calibrate(model, [short], progress=False).meta.samples == 1


def test_the_digest_of_a_task_depends_on_files_that_replace_those_of_a_hub(tmp_path):
    assert digest_task("rotten_tomatoes", {}) == {}
    files = [tmp_path / split / "train.csv" for split in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("text,label")
    one, other = map(str, files)
    for data_files in (str(tmp_path / "a"), one, {"train": one, "test": other}, {"train": [one, other]}):
        before = digest_task("sst2", {"data_files": data_files})
        assert before.keys() == {"task"}
        files[0].write_text(f"text,label,{data_files}")
        assert digest_task("sst2", {"data_files": data_files}) != before
