"""Tasks known by name, loaded through `datasets` from local files of the hub's columns."""

import json

import datasets
import pytest

from tests.helpers.tokenizers import bytes_tokenizer, words_tokenizer
from tlora.tasks.load import load_task
from tlora.tasks.presets import PRESETS
from tlora.tasks.splits import SPLITS


def turns(i):
    return [
        {"role": "user", "content": f"Say {i}."},
        {"role": "assistant", "content": f"{i}."},
        {"role": "user", "content": "Again."},
        {"role": "assistant", "content": f"{i}, again."},
    ]


# A row of each dataset, as the hub has it.
ROWS = {
    "rotten_tomatoes": lambda i: {"text": f"film {i}", "label": i % 2},
    "imdb": lambda i: {"text": f"a long film {i}", "label": i % 2},
    "gsm8k": lambda i: {
        "question": f"What is {i} + {i}?",
        "answer": f"{i} + {i} = <<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}",
    },
    "math": lambda i: {
        "problem": f"Halve ${i}$.",
        "level": "Level 1",
        "type": "Algebra",
        "solution": f"It is $\\boxed{{\\frac{{{i}}}{{2}}}}$.",
    },
    "metamathqa": lambda i: {
        "type": "GSM_Rephrased",
        "query": f"In other words {i}: how much?",
        "original_question": f"How much is {i // 3}?",
        "response": f"We see.\n#### {i // 3}\nThe answer is: {i // 3}",
    },
    "humaneval": lambda i: {
        "task_id": f"HumanEval/{i}",
        "prompt": f'from typing import List\n\n\ndef f{i}(a: int) -> List[int]:\n    """Twice a, {i} times."""\n',
        "canonical_solution": f"    return [2 * a] * {i}\n",
    },
    "mbpp": lambda i: {
        "task_id": i,
        "text": f"Write a function to add {i}.",
        "code": f"def add(a):\r\n  return a + {i}",
        "test_list": [f"assert add(1) == {i + 1}", f"assert add(LARGE) == LARGE + {i}"],
        "challenge_test_list": [],
    },
    "codefeedback": lambda i: {"query": f"Print {i}.", "answer": f"print({i})", "resource": "x", "lang": "python"},
    "wizardlm": lambda i: {
        "idx": str(i),
        "conversations": [{"from": "human", "value": f"Say {i}."}, {"from": "gpt", "value": f"{i}."}],
    },
    "ultrachat": lambda i: {"prompt": f"Say {i}.", "prompt_id": str(i), "messages": turns(i)},
    "reviews": lambda i: {"text": f"The film of {i} and its {i} actors", "label": i % 2},
    "cola": lambda i: {"sentence": f"film {i}", "label": i % 2, "idx": i},
    "sst2": lambda i: {"sentence": f"film {i}", "label": i % 2, "idx": i},
    "mrpc": lambda i: {"sentence1": f"film {i}", "sentence2": "a film", "label": i % 2, "idx": i},
    "qqp": lambda i: {"question1": f"film {i}?", "question2": "a film?", "label": i % 2, "idx": i},
    "mnli": lambda i: {"premise": f"film {i}", "hypothesis": "a film", "label": i % 3, "idx": i},
    "qnli": lambda i: {"question": f"film {i}?", "sentence": "a film", "label": i % 2, "idx": i},
    "rte": lambda i: {"sentence1": f"film {i}", "sentence2": "a film", "label": i % 2, "idx": i},
    "wnli": lambda i: {"sentence1": f"film {i}", "sentence2": "it", "label": i % 2, "idx": i},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing of a test is left in anybody's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def files(tmp_path):
    """A function that writes a preset's files, one a split of the hub, with rows that share nothing."""

    def written(name, count=24, suffix="jsonl", splits=None):
        paths = {}
        for number, split in enumerate(splits or PRESETS[name].splits.values()):
            rows = [ROWS[name](i) for i in range(number * 1000 + 3, number * 1000 + 3 + count)]
            paths[split] = tmp_path / f"{split}.{suffix}"
            if suffix == "parquet":
                datasets.Dataset.from_list(rows).to_pandas().to_parquet(paths[split])
            else:
                paths[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
        return paths

    return written


def tokenizer_for(name):
    return words_tokenizer() if PRESETS[name].classes else bytes_tokenizer("chatml")


def test_every_preset_is_tested():
    assert set(ROWS) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_loads_from_files_of_the_hubs_columns(name, files):
    task = load_task(name, tokenizer_for(name), data_files=files(name), test=6)
    preset = PRESETS[name]
    assert (task.name, len(task.test)) == (name, 6)
    # A split that there is none of is taken from the training rows; without those there is a test set only.
    taken = sum(len(getattr(task, split)) for split in ("validation", "test") if split not in preset.splits)
    trainable = "train" in preset.splits
    assert len(task.train) == (24 - taken if trainable else 0)
    assert (len(task.validation) > 0) == trainable
    if preset.classes:
        assert (task.kind, task.metric, task.classes) == ("classification", "accuracy", preset.classes)
        assert set(task.test["labels"][:]) == set(range(len(preset.classes)))
    elif task.metric == "loss":
        assert task.score is None
    else:
        # The reference, scored as an answer, is right; another row's is not.
        rows = list(task.test)
        answers = [row["answer"] for row in rows]
        assert task.score(rows[:3], answers[:3]) == {task.metric: [1, 1, 1]}
        assert task.score(rows[:3], answers[3:6]) == {task.metric: [0, 0, 0]}


def test_parquet_files_and_folders_too(files, tmp_path):
    name = "gsm8k"
    paths = files(name, suffix="parquet")
    tokenizer = tokenizer_for(name)
    one = load_task(name, tokenizer, data_files=paths)
    assert list(load_task(name, tokenizer, data_files={k: [str(v)] for k, v in paths.items()}).test) == list(one.test)
    single = load_task(name, tokenizer, data_files=paths["train"])
    assert sum(len(getattr(single, split)) for split in SPLITS) == 24
    folder = tmp_path / "folder"
    folder.mkdir()
    for split, path in paths.items():
        path.rename(folder / f"{split}.parquet")
    assert list(load_task(name, tokenizer, data_files=folder).test) == list(one.test)


def test_labels_in_a_csv_file_are_numbers_too(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "".join(f"film {i},{i % 2}\n" for i in range(20)))
    task = load_task("imdb", words_tokenizer(), data_files=path)
    assert set(task.train["labels"][:]) == {0, 1}
    worded = load_task("imdb", bytes_tokenizer(), architecture="causal", data_files=path)
    assert set(worded.train["answer"][:]) == {"negative", "positive"}


def test_gsm8k_teaches_no_calculator_notes(files):
    task = load_task("gsm8k", bytes_tokenizer(), data_files=files("gsm8k"))
    assert task.test["answer"][0] == "1003 + 1003 = 2006\n#### 2006"
    assert task.tokenizer.decode(task.test[0]["input_ids"]).startswith("What is 1003 + 1003?\n1003 + 1003")


def test_rewordings_of_a_question_stay_in_one_split(files):
    task = load_task("metamathqa", bytes_tokenizer(), data_files=files("metamathqa", count=60), test=12, validation=6)
    originals = {
        split: {int(row["prompt"].split()[3].rstrip(":")) // 3 for row in getattr(task, split)} for split in SPLITS
    }
    assert not originals["train"] & (originals["test"] | originals["validation"])
    assert not originals["validation"] & originals["test"]


@pytest.mark.filterwarnings("ignore:.*max_length")
@pytest.mark.parametrize("chat", [True, False])
def test_code_is_asked_for(chat, files):
    tokenizer = bytes_tokenizer("chatml")
    task = load_task("humaneval", tokenizer, chat=chat, data_files=files("humaneval", count=3))
    rows = list(task.test)
    if chat:
        assert rows[0]["prompt"].startswith("Complete this function.")
        assert rows[0]["answer"].startswith("```python\nfrom typing import List")
    else:
        assert rows[0]["prompt"] == ROWS["humaneval"](3)["prompt"]
        assert tokenizer.decode(rows[0]["input_ids"]).startswith(rows[0]["prompt"] + rows[0]["answer"])


def test_texts_of_the_test_set_are_left_out_of_training(files, tmp_path):
    paths = files("imdb")
    rows = [json.loads(line) for path in paths.values() for line in path.read_text().splitlines()]
    paths["train"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="24 training samples"):
        task = load_task("imdb", words_tokenizer(), data_files=paths)
    assert not set(task.train["text"][:]) & set(task.test["text"][:])


@pytest.mark.parametrize(
    ("name", "file", "content", "error", "named"),
    [
        ("gsm8k", "x.jsonl", '{"question": "a", "reply": "b"}\n' * 5, ValueError, "question, answer"),
        ("sst2", "x.jsonl", '{"sentence": "a", "label": -1}\n' * 5, ValueError, "train of sst2 has the label -1"),
        ("imdb", "x.csv", "text,label\na,0\nb,2\n", ValueError, "train of imdb has the label 2"),
        ("gsm8k", "x.jsonl", '{"question": "a", \n', ValueError, r"x\.jsonl, line 1"),
        ("gsm8k", "x.xlsx", "x", ValueError, r"x\.xlsx"),
        ("gsm8k", "x.jsonl", None, FileNotFoundError, r"x\.jsonl"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, file, content, error, named):
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(error, match=named):
        load_task(name, words_tokenizer(), data_files=tmp_path / file)


@pytest.mark.parametrize(
    ("split", "named"), [("validation", "validation"), ("train", "is not a file")], ids=["unknown split", "folder"]
)
def test_bad_splits_are_refused(tmp_path, files, split, named):
    path = tmp_path if split == "train" else files("gsm8k")["train"]
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        load_task("gsm8k", bytes_tokenizer(), data_files={split: path})


@pytest.mark.parametrize("name", ["gsm8k", "imdb"])
def test_without_the_hub_the_ways_out_are_named(name, monkeypatch):
    def unreachable(*arguments, **_):
        raise ConnectionError(f"Couldn't reach {arguments[0]!r} on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr("tlora.tasks.presets.package_file", lambda *_: None)
    with pytest.raises(ConnectionError, match=rf"{name} .*data_files=") as error:
        load_task(name, bytes_tokenizer())
    packaged = PRESETS[name].packaged is not None
    assert ("make models" in str(error.value)) == packaged


def test_the_hub_is_asked_for_the_right_dataset(monkeypatch, files):
    paths = files("sst2")
    asked = []

    def fake(*arguments):
        asked.append(arguments)
        rows = {split: [json.loads(line) for line in path.read_text().splitlines()] for split, path in paths.items()}
        return datasets.DatasetDict({split: datasets.Dataset.from_list(each) for split, each in rows.items()})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert len(load_task("sst2", words_tokenizer()).test) == 24
    assert asked == [("nyu-mll/glue", "sst2")]


def test_reviews_are_plain_text_whatever_the_template(files):
    tokenizer = bytes_tokenizer("chatml")
    task = load_task("reviews", tokenizer, data_files=files("reviews"))
    row = task.test[0]
    assert tokenizer.decode(row["input_ids"]).startswith(row["answer"])
    assert row["answer"].startswith("The film of 200")
    assert row["labels"] == row["input_ids"]
    assert task.score is None
