"""Which tokens of packaged and own texts are measured."""

import pytest

import tlora
from tests.helpers.models import tiny_tokenizer
from tests.helpers.tokenizers import TEMPLATES, bytes_tokenizer, pieces_tokenizer
from tlora.tasks.load_texts import PACKAGED, code_pieces, conversations, paragraphs


def measured(task: tlora.Task, number: int) -> str:
    """The text of the labeled tokens."""
    row = task.test[number]
    assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))
    return task.tokenizer.decode([label for label in row["labels"] if label != -100])


@pytest.mark.parametrize("template", [None, *TEMPLATES])
def test_packaged_sets(template):
    tokenizer = bytes_tokenizer(template)
    texts = tlora.load_texts(tokenizer)
    assert list(texts) == ["prose", "code", "chat", *(["template"] if template else [])]
    for name, wanted in {"prose": paragraphs(PACKAGED / "prose.txt"), "code": code_pieces()}.items():
        for number, text in enumerate(wanted):
            row = texts[name].test[number]
            assert tokenizer.decode(row["input_ids"]) == text  # no token for an end
            assert row["labels"] == [-100, *row["input_ids"][1:]]
    for number, row in enumerate(conversations()):
        assert measured(texts["chat"], number).strip().startswith(row["completion"])
    for name, task in texts.items():
        assert (task.name, task.kind, task.architecture) == (name, "generation", "causal")


@pytest.mark.parametrize("template", TEMPLATES)
def test_of_the_template_only_what_it_writes_is_measured(template):
    tokenizer = bytes_tokenizer(template)
    task = tlora.load_texts(tokenizer, "template")["template"]
    for number, row in enumerate(conversations()):
        prompt, answer = row["prompt"], row["completion"]
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer.decode(task.test[number]["input_ids"]) == rendered
        before, _, rest = rendered.partition(prompt)
        frame = "".join((before + rest.replace(answer, "", 1)).split())
        found = "".join(measured(task, number).split())  # a space may be in one token with the content
        assert frame.endswith(found)
        assert len(found) > len(frame) / 3


def test_a_token_of_the_beginning_is_read_and_not_measured():
    tokenizer = pieces_tokenizer()
    row = tlora.load_texts(tokenizer, mine=["mother father"])["mine"].test[0]
    assert row["input_ids"] == tokenizer("mother father")["input_ids"]
    assert row["input_ids"][0] == tokenizer.bos_token_id
    assert row["labels"] == [-100, *row["input_ids"][1:]]


def test_own_files_and_texts(tmp_path):
    (tmp_path / "notes.txt").write_text("w4 w5\nw6 w7\n\n\nw8 w9\n")
    rows = [f'{{"prompt": "w4 w{n}", "completion": "w5"}}\n' for n in range(4, 34)]
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    files = (tmp_path / "notes.txt", tmp_path / "pairs.jsonl")
    texts = tlora.load_texts(tiny_tokenizer(), *files, own=["w4 w5", "w6"])
    assert list(texts) == ["notes", "pairs", "own"]
    assert [measured(texts["notes"], n) for n in (0, 1)] == ["w5 w6 w7", "w9"]
    assert len(texts["own"].test) == 1  # one token predicts nothing
    assert texts["pairs"].metric == "exact_match"


@pytest.mark.parametrize(
    ("sources", "own", "error", "named"),
    [
        (["template"], {}, ValueError, "template"),
        (["nowhere.txt"], {}, FileNotFoundError, "nowhere.txt"),
        (["nowhere"], {}, ValueError, "nowhere"),
        (["code", "elsewhere/code.txt"], {}, ValueError, "two sets .* 'code'"),
        (["code"], {"code": ["w4 w5"]}, ValueError, "two sets .* 'code'"),
        ([], {"mine": ["w4"]}, ValueError, "mine"),
    ],
)
def test_what_is_no_text_is_refused(sources, own, error, named):
    with pytest.raises(error, match=named):
        tlora.load_texts(tiny_tokenizer(), *sources, **own)
