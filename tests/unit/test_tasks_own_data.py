"""Data of one's own: what a model that learnt its task perfectly would be given, and rows that cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers.processors import TemplateProcessing

import tlora
from tests.commands import QUICK, done, invoke, no_pictures, saved, workplace  # noqa: F401
from tests.helpers import tiny_model
from tests.tokenizers import bytes_tokenizer, ended_tokenizer, words_tokenizer
from tlora.models.loading import _set_padding
from tlora.tasks.evaluation import as_answer
from tlora.tasks.load import load_task, task_files

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
    """The score of a model that writes what it learnt, token by token, and then something else."""
    written = [[label for label in row["labels"] if label != -100] + [5, 6] for row in task.test]
    answers = [as_answer(task, row, tokens) for row, tokens in zip(task.test, written, strict=True)]
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


def test_completions_that_no_model_could_write_are_told(caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_dict({"prompt": [f"What film {i}?" for i in range(20)], "completion": ["joy\nbore"] * 20})
    load_task(rows, words_tokenizer(), architecture="causal")
    assert "a model that writes exactly what it learns scores 0 by exact_match where the answer is 'joy\\nbore'" in (
        caplog.text
    )
    caplog.clear()
    load_task(sums(), bytes_tokenizer())
    assert not caplog.text


def test_words_are_final_answers_too() -> None:
    rows = Dataset.from_dict({"prompt": [f"Capital {i}?" for i in range(20)], "completion": ["Paris"] * 20})
    assert perfect(load_task(rows, bytes_tokenizer(), metric="final_answer")) == 1


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
        learnt = {learnt_of(row, tokenizer) for row in task.train}
        assert learnt == {'now{"city": "Paris"}<|im_end|>', 'now{"a": 1, "b": 2}<|im_end|>'}


def test_an_answer_may_be_a_call_without_words() -> None:
    talk = [("user", "why?"), ("assistant", "because"), ("user", "where?"), ("assistant", "")]
    talks = [
        [{"role": role, "content": f"{said}{i if role == 'user' else ''}"} for role, said in talk] for i in range(20)
    ]
    task = load_task(Dataset.from_dict({"messages": talks}), bytes_tokenizer("chatml"))
    assert set(task.train["answer"][:]) == {""}


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string"}}}}]
CALLING = (
    "{% if tools %}{{ 'tools:' + tools | tojson + '\n' }}{% endif %}"
    "{% for m in messages %}{{ m.role + ':' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name + call.function.arguments | tojson }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def called(arguments: Any, **answer: Any) -> dict[str, Any]:
    """As a provider's file for fine-tuning has it: a call without words, its result, an answer."""
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "How is it in Rome?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "rain", "tool_call_id": "1"},
            {"role": "assistant", "content": "Wet."} | answer,
        ]
    }


def learnt_of(row: dict[str, Any], tokenizer: Any) -> str:
    return str(tokenizer.decode([label for label in row["labels"] if label != -100]))


@pytest.mark.parametrize("kind", ["jsonl", "dataset"])
@pytest.mark.parametrize("as_text", [True, False])
def test_tools_are_shown_and_calls_learnt(kind: str, as_text: bool, tmp_path: Path) -> None:
    """Arguments reach the template as objects, however they are written: so an engine gives them to it."""
    arguments = {"city": "Rome", "day": None} if kind == "jsonl" else {"city": "Rome"}
    tools = json.dumps(TOOLS) if as_text else TOOLS
    rows = [called(json.dumps(arguments) if as_text else arguments) | {"tools": tools}] * 10
    data: Any = Dataset.from_list(rows)
    if kind == "jsonl":
        data = tmp_path / "calls.jsonl"
        plain = [called("{}")] * 10  # without tools
        data.write_text("".join(json.dumps(row) + "\n" for row in rows + plain))
    tokenizer = bytes_tokenizer(CALLING)
    task = load_task(data, tokenizer, validation=0, test=0)
    row, written = task.train[0], json.dumps(arguments)
    assert learnt_of(row, tokenizer) == f"weather{written}<|im_end|>Wet.<|im_end|>"
    assert tokenizer.decode(row["input_ids"]).startswith(f"tools:{json.dumps(TOOLS)}\nuser:How")
    if kind == "jsonl":
        assert tokenizer.decode(task.train[10]["input_ids"]).startswith("user:How")


def test_tools_may_be_in_one_split_alone() -> None:
    rows, other = [called("{}")] * 10, {"messages": [{"role": "user", "content": "?"}, *called("{}")["messages"]]}
    data = {"train": Dataset.from_list([row | {"tools": TOOLS} for row in rows]), "test": Dataset.from_list([other])}
    tokenizer = bytes_tokenizer(CALLING)
    task = load_task(data, tokenizer, validation=0)
    assert tokenizer.decode(task.train[0]["input_ids"]).startswith("tools:")
    assert tokenizer.decode(task.test[0]["input_ids"]).startswith("user:")


def test_a_template_that_writes_no_tools_is_refused() -> None:
    rows = Dataset.from_list([called("{}") | {"tools": TOOLS}] * 10)
    with pytest.raises(ValueError, match=r"train sample 1: the chat template writes no tools.*leave the column tools"):
        load_task(rows, bytes_tokenizer("chatml"), validation=0, test=0)


def test_messages_of_weight_zero_are_read_and_not_learnt() -> None:
    """As in the files that are uploaded to a provider."""
    tokenizer = bytes_tokenizer(CALLING)
    talk = called("{}")["messages"]
    talk[1]["weight"] = 0
    row = load_task(Dataset.from_list([{"messages": talk}] * 10), tokenizer, validation=0, test=0).train[0]
    assert learnt_of(row, tokenizer) == "Wet.<|im_end|>"
    assert "weather{}" in tokenizer.decode(row["input_ids"])
    talk[1]["weight"], talk[3]["weight"] = 1, 0
    row = load_task(Dataset.from_list([{"messages": talk}] * 10), tokenizer, validation=0, test=0).train[0]
    assert learnt_of(row, tokenizer) == "weather{}<|im_end|>"
    assert row["answer"] == ""


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (called("{}", weight=0.5), r"sample 1: weight 0.5: a message is learnt \(1"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
            "to learn",
        ),
        ({"messages": [{"role": "assistant", "content": None}]}, "one with tool_calls may do without"),
        (called("{}") | {"tools": "[{]"}, "tools are no valid JSON"),
        (called("{}") | {"tools": '{"name": "f"}'}, "tools must be a list of JSON schemas"),
    ],
)
def test_what_is_no_conversation_is_refused(row: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_task(Dataset.from_list([row] * 10), bytes_tokenizer(CALLING))


@pytest.mark.parametrize("tools", ["", "null", None, []])
def test_no_tools_and_no_arguments_are_said_in_any_form(tools: Any, tmp_path: Path) -> None:
    row, tokenizer = called(None) | {"tools": tools}, bytes_tokenizer(CALLING)
    file = tmp_path / "calls.jsonl"
    file.write_text(f"{json.dumps(row)}\n" * 10)
    for data in (file, Dataset.from_list([row] * 10)):
        task = load_task(data, tokenizer, validation=0, test=0)
        assert learnt_of(task.train[0], tokenizer) == "weather{}<|im_end|>Wet.<|im_end|>"


def test_samples_in_two_splits_are_told_whatever_their_weights() -> None:
    talk = called("{}")["messages"]
    weighed = [message | ({"weight": 1} if message["role"] == "assistant" else {}) for message in talk]
    splits = {"train": [{"messages": weighed}] * 10, "test": [{"messages": talk}]}
    data = {name: Dataset.from_list(rows) for name, rows in splits.items()}
    with pytest.warns(UserWarning, match="10 training samples are in another split"):
        load_task(data, bytes_tokenizer(CALLING), validation=0)


@pytest.mark.parametrize("form", ["train-{}-of-11", "train-{:05}-of-00011", "train-{:05}-of-00011-0123456789abcdef"])
def test_shards_are_read_in_order_however_they_are_numbered(form: str, tmp_path: Path) -> None:
    rows = sums()
    for part in range(11):
        shard = rows.shard(11, part, contiguous=True)
        shard.to_json(str(tmp_path / f"{form.format(part)}.jsonl"))
    assert load_task(tmp_path, bytes_tokenizer(), validation=0, test=0).train["prompt"][:] == rows["prompt"][:]


def test_shards_may_have_columns_of_their_own(tmp_path: Path) -> None:
    """A bad row is placed in its own shard."""
    rows = [called("{}"), called("{}") | {"tools": json.dumps(TOOLS)}]
    for part, row in enumerate(rows):
        Dataset.from_list([row | {"more": part or None}] * 5).to_parquet(
            tmp_path / f"train-0000{part}-of-00002.parquet"
        )
    tokenizer = bytes_tokenizer(CALLING)
    task = load_task(tmp_path, tokenizer, validation=0, test=0)
    assert [tokenizer.decode(row["input_ids"])[:5] for row in task.train] == ["user:"] * 5 + ["tools"] * 5
    bad = rows[:1] * 4 + [{"messages": [{"role": "user", "content": "?"}]}]
    Dataset.from_list(bad).to_parquet(tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet, sample 5: no message of the assistant"):
        load_task(tmp_path, tokenizer)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_split_may_be_in_shards(suffix: str, tmp_path: Path) -> None:
    """As a folder of the hub has them; all or none."""
    rows = sums()
    for part in range(3):
        shard = rows.shard(3, part, contiguous=True)
        path = str(tmp_path / f"train-0000{part}-of-00003.{suffix}")
        shard.to_parquet(path) if suffix == "parquet" else shard.to_json(path)
    task = load_task(tmp_path, bytes_tokenizer(), validation=0, test=0)
    assert task.train["prompt"][:] == rows["prompt"][:]
    assert len(task_files(str(tmp_path))) == 3
    (tmp_path / f"train.{suffix}").write_bytes(b"[]")
    with pytest.raises(ValueError, match=rf"train-00000-of-00003\.{suffix} and train\.{suffix}, both train"):
        load_task(tmp_path, bytes_tokenizer())
    (tmp_path / f"train.{suffix}").unlink()
    (tmp_path / f"train-00001-of-00003.{suffix}").unlink()
    with pytest.raises(ValueError, match="holds 2 of the 3 shards of train"):
        load_task(tmp_path, bytes_tokenizer())


def test_one_question_is_in_one_split() -> None:
    talks = [
        [{"role": "user", "content": f"question {i % 10}"}, {"role": "assistant", "content": f"answer {i}"}]
        for i in range(100)
    ]
    task = load_task(Dataset.from_dict({"messages": talks}), bytes_tokenizer("chatml"))
    asked = [{row["prompt"] for row in rows} for rows in (task.train, task.validation, task.test)]
    assert not asked[0] & asked[1]
    assert not asked[0] & asked[2]


def csv_of(path: Path, rows: list[str], header: str = "text,label") -> Path:
    path.write_text("\n".join([header, *rows, ""]))
    return path


def test_labels_are_names(tmp_path: Path) -> None:
    rows = [f"film {i},{('good', 'bad ')[i % 2]}" for i in range(20)]
    assert load_task(csv_of(tmp_path / "a.csv", [*rows, "film 20,bad", ""]), words_tokenizer()).classes == (
        "bad",
        "good",
    )
    with pytest.raises(ValueError, match=r"label '' is no class"):
        load_task(csv_of(tmp_path / "b.csv", [*rows, "film 20,"]), words_tokenizer())
    with pytest.raises(ValueError, match=r"two columns are called 'label'"):
        load_task(csv_of(tmp_path / "c.csv", ["film,good,bad"], "text,label,label"), words_tokenizer())


def test_labels_that_training_has_not_are_told(tmp_path: Path) -> None:
    csv_of(tmp_path / "train.csv", [f"film {i},{('good', 'bad')[i % 2]}" for i in range(20)])
    csv_of(tmp_path / "test.csv", [f"movie {i},{('Good', 'Bad')[i % 2]}" for i in range(20)])
    with pytest.warns(
        UserWarning, match=r"test of .* has the label 'Bad', which is in no sample of train \('bad', 'good'\)"
    ):
        assert load_task(tmp_path, words_tokenizer()).classes == ("Bad", "Good", "bad", "good")


@pytest.mark.parametrize(
    ("labels", "expected"), [(["1", "0"], [0, 1]), ([0, 1], [0, 1]), ([0, 2], None), (["no", "1"], None)]
)
def test_names_are_names_where_training_has_a_class_label(labels: list[Any], expected: list[int] | None) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["1", "0"])})
    train = Dataset.from_dict({"text": [f"film {i}" for i in range(8)], "label": [0, 1] * 4}, features=features)
    splits = {"train": train, "test": Dataset.from_dict({"text": ["a joy", "a bore"], "label": labels})}
    if expected is None:
        with pytest.raises(ValueError, match=r"the classes of test are .*, those of train 1, 0"):
            load_task(splits, words_tokenizer())
    else:
        assert load_task(splits, words_tokenizer()).test["labels"][:] == expected


def test_a_classifier_pools_before_the_padding_of_its_tokenizer() -> None:
    config = tiny_model("llama").config
    config.pad_token_id, config.num_labels = 0, 2
    model = transformers.LlamaForSequenceClassification(config).eval()
    tokenizer = words_tokenizer()
    assert tokenizer.pad_token_id != 0 or tokenizer.eos_token_id != 0
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(2)
    _set_padding(model, tokenizer)
    ids = torch.tensor([[5, 6, 7, 2, 2]])
    with torch.no_grad():
        padded = model(ids, attention_mask=(ids != 2).long()).logits
        torch.testing.assert_close(padded, model(ids[:, :3], attention_mask=torch.ones(1, 3).long()).logits)


@pytest.mark.usefixtures("workplace", "no_pictures")
def test_evaluate_tells_of_other_data_than_it_was_trained_on() -> None:
    rows = [f"film {i},{('good', 'bad')[i % 2]}" for i in range(40)]
    csv_of(Path("a.csv"), rows)
    csv_of(Path("b.csv"), [row.replace("bad", "poor") for row in rows])
    done(f"run --model bert --task a.csv {QUICK} --samples 6 --output sorted")
    assert "has changed" not in done("evaluate sorted --task a.csv").stderr
    refused = invoke("evaluate sorted --task b.csv")
    assert (refused.exit_code, "tells bad, good apart" in refused.stderr) == (2, True)
    csv_of(Path("a.csv"), ["one more,good", *rows])
    assert "a.csv has changed since sorted was trained on it" in done("evaluate sorted --task a.csv").stderr
    assert tlora.TrainingRun.load("sorted").meta.recipe["classes"] == ["bad", "good"]
