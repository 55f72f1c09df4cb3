"""What of a sample is learned, against renderings written by hand and token offsets."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.helpers.conversations import CALLING, SIZES, TOKENIZERS, TOOLS, called, messages, spelled
from tests.helpers.tokenizers import TEMPLATES, UNSTABLE, bytes_tokenizer, ended_tokenizer
from tlora.tasks.load import load_task

SINGLE = [("user", "What is 1 + 2?"), ("assistant", "It is 3.")]
MULTIPLE = [
    ("user", "Hello"),
    ("assistant", "Who is there?"),
    ("user", "  Me, said the fox\n"),
    ("assistant", "I do not\nknow you"),
    ("user", "Why?"),
    ("assistant", "Because."),
]
CONVERSATIONS = {
    "single": SINGLE,
    "system": [("system", "You answer in verse."), *SINGLE],
    "multiple": MULTIPLE,
    "unanswered": [*MULTIPLE, ("user", "And now?")],
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", ["chatml", "instruct"])
def test_all_that_the_assistant_says_is_learned_and_nothing_else(template, kind, conversation):
    tokenizer = TOKENIZERS[kind](template)
    turns = messages(CONVERSATIONS[conversation])
    row = load_task(Dataset.from_dict({"messages": [turns]}), tokenizer, **SIZES).train[0]
    ids, labels = spelled(tokenizer, TEMPLATES[template][1](turns))
    assert row["input_ids"] == ids
    assert row["labels"] == labels
    assert sum(label != -100 for label in labels) > 3
    # The rendering by hand is the template's, up to what follows the last answer.
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert rendered.startswith("".join(text for piece in TEMPLATES[template][1](turns) for text in piece))


def test_where_the_template_ends_no_turn_the_end_token_is_added_to_the_last():
    tokenizer = bytes_tokenizer("headed")
    turns = messages(MULTIPLE)
    row = load_task(Dataset.from_dict({"messages": [turns]}), tokenizer, **SIZES).train[0]
    pieces = TEMPLATES["headed"][1](turns)
    # The line break after a turn is part of it here: nothing else says that it is over.
    pieces = [(before.removeprefix("\n"), said + "\n") for before, said in pieces]
    ids, labels = spelled(tokenizer, pieces)
    assert row["input_ids"] == [*ids, tokenizer.eos_token_id]
    assert row["labels"] == [*labels, tokenizer.eos_token_id]


def test_prompt_and_completion_are_a_conversation_of_one_turn():
    tokenizer = bytes_tokenizer("chatml")
    pair = Dataset.from_dict({"prompt": ["What is 1 + 2?"], "completion": ["It is 3."]})
    turn = Dataset.from_dict({"messages": [messages(SINGLE)]})
    one, other = (load_task(data, tokenizer, **SIZES).train[0] for data in (pair, turn))
    assert one["input_ids"] == other["input_ids"]
    assert one["labels"] == other["labels"]
    assert (one["prompt"], one["answer"]) == ("What is 1 + 2?", "It is 3.")


PHI = (  # as Phi's: each turn has its end, and the whole has another
    "{% for message in messages %}{{ '<s>' + message.role + '\n' + message.content + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_what_ends_the_whole_conversation_ends_no_turn(conversation):
    tokenizer, turns = bytes_tokenizer(PHI), messages(CONVERSATIONS[conversation])
    task = load_task(Dataset.from_dict({"messages": [turns]}), tokenizer, **SIZES)
    pieces, before = [], ""
    for turn in turns:
        if turn["role"] == "assistant":
            pieces.append((f"{before}<s>assistant\n", f"{turn['content']}</s>"))
            before = "\n"
        else:
            before += f"<s>{turn['role']}\n{turn['content']}</s>\n"
    ids, labels = spelled(tokenizer, pieces)
    assert task.train[0]["input_ids"] == ids
    assert task.train[0]["labels"] == labels
    assert tokenizer.convert_tokens_to_ids("</s>") in task.stop_ids


def test_a_conversation_is_cut_to_the_turns_that_fit():
    tokenizer = bytes_tokenizer("chatml")
    data = Dataset.from_dict({"messages": [messages(MULTIPLE)]})
    whole = load_task(data, tokenizer, **SIZES).train[0]
    second = whole["labels"].index(-100, [label != -100 for label in whole["labels"]].index(True))
    with pytest.warns(UserWarning, match="truncated 1 of train"):
        row = load_task(data, tokenizer, max_length=second, **SIZES).train[0]
    assert row["labels"] == whole["labels"][:second]
    assert row["answer"] == "Who is there?"
    assert row["prompt_length"] < second


def learned_of(row: dict[str, Any], tokenizer: Any) -> str:
    return str(tokenizer.decode([label for label in row["labels"] if label != -100]))


@pytest.mark.parametrize("kind", ["jsonl", "dataset"])
@pytest.mark.parametrize("as_text", [True, False])
def test_tools_are_shown_and_calls_learned(kind: str, as_text: bool, tmp_path: Path) -> None:
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
    assert learned_of(row, tokenizer) == f"weather{written}<|im_end|>Wet.<|im_end|>"
    assert tokenizer.decode(row["input_ids"]).startswith(f"tools:{json.dumps(TOOLS)}\nuser:How")
    if kind == "jsonl":
        assert tokenizer.decode(task.train[10]["input_ids"]).startswith("user:How")


def test_messages_of_weight_zero_are_read_and_not_learned() -> None:
    """As in the files that are uploaded to a provider."""
    tokenizer = bytes_tokenizer(CALLING)
    talk = called("{}")["messages"]
    talk[1]["weight"] = 0
    row = load_task(Dataset.from_list([{"messages": talk}] * 10), tokenizer, validation=0, test=0).train[0]
    assert learned_of(row, tokenizer) == "Wet.<|im_end|>"
    assert "weather{}" in tokenizer.decode(row["input_ids"])
    talk[1]["weight"], talk[3]["weight"] = 1, 0
    row = load_task(Dataset.from_list([{"messages": talk}] * 10), tokenizer, validation=0, test=0).train[0]
    assert learned_of(row, tokenizer) == "weather{}<|im_end|>"
    assert row["answer"] == ""


REFUSED = [
    (called("{}", weight=0.5), "weight"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}, "weight"),
    ({"messages": [{"role": "assistant", "content": None}]}, "content"),
    (called("{}") | {"tools": "[{]"}, "tools"),
    (called("{}") | {"tools": '{"name": "f"}'}, "tools"),
]


@pytest.mark.parametrize(("row", "named"), REFUSED)
def test_rows_that_are_no_conversation_are_refused(row: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"sample 1: .*{named}"):
        load_task(Dataset.from_list([row] * 10), bytes_tokenizer(CALLING))


@pytest.mark.parametrize("tools", ["", "null", None, []])
def test_no_tools_and_no_arguments_are_said_in_any_form(tools: Any, tmp_path: Path) -> None:
    row, tokenizer = called(None) | {"tools": tools}, bytes_tokenizer(CALLING)
    file = tmp_path / "calls.jsonl"
    file.write_text(f"{json.dumps(row)}\n" * 10)
    for data in (file, Dataset.from_list([row] * 10)):
        task = load_task(data, tokenizer, validation=0, test=0)
        assert learned_of(task.train[0], tokenizer) == "weather{}<|im_end|>Wet.<|im_end|>"


@pytest.mark.parametrize(
    ("tokenizer", "options", "row", "named"),
    [
        (
            bytes_tokenizer(UNSTABLE),
            {},
            {"messages": messages(MULTIPLE)},
            r"train sample 1: .*tokenizer\.chat_template",
        ),
        (bytes_tokenizer("{{ raise_exception('no') }}"), {}, {"messages": messages(SINGLE)}, "train sample 1: .*: no"),
        (bytes_tokenizer("chatml"), {}, called("{}") | {"tools": TOOLS}, "train sample 1: .*tools"),
        (bytes_tokenizer(), {}, {"messages": messages(SINGLE)}, "messages need a chat template"),
        (bytes_tokenizer("chatml"), {"chat": False}, {"messages": messages(SINGLE)}, "chat=False"),
        (ended_tokenizer(), {"architecture": "seq2seq"}, {"messages": messages(SINGLE)}, "encoder-decoder"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_is_refused(
    tokenizer: Any, options: dict[str, Any], row: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        load_task(Dataset.from_list([row]), tokenizer, **SIZES, **options)
