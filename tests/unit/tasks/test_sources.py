"""Files and datasets as tasks: what is read, what is refused, and that splits share nothing."""

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.conversations import CALLING, TOOLS, called
from tests.helpers.tokenizers import bytes_tokenizer, words_tokenizer
from tlora.tasks.load import load_task, task_files
from tlora.tasks.sources import read_dataset, read_path
from tlora.tasks.splits import SPLITS, deal_splits

PAIRS = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(10)]
LABELLED = [{"text": f"film {i}", "label": ("bad", "good")[i % 2]} for i in range(10)]


def write(path, rows):
    """Rows in the format that the name says."""
    if path.name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        Dataset.from_list(rows).to_pandas().to_csv(path, index=False)
    else:
        Dataset.from_list(rows).to_pandas().to_parquet(path)
    return path


@pytest.mark.parametrize("rows", [PAIRS, LABELLED])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, suffix, rows):
    source = read_path(write(tmp_path / f"data{suffix}", rows))
    assert source.name == "data"
    if rows is LABELLED:
        assert source.classes == ("bad", "good")
        rows = [{"text": row["text"], "label": source.classes.index(row["label"])} for row in rows]
    assert list(source.splits["train"]) == rows


def test_a_folder_has_one_file_a_split(tmp_path):
    write(tmp_path / "train.jsonl", PAIRS[:5])
    write(tmp_path / "dev.csv", PAIRS[5:7])
    write(tmp_path / "test.parquet", PAIRS[7:])
    (tmp_path / "README.md").write_text("about")
    task = load_task(f"{tmp_path}/", bytes_tokenizer())
    assert [len(getattr(task, split)) for split in SPLITS] == [5, 2, 3]
    write(tmp_path / "val.jsonl", PAIRS[:1])
    with pytest.raises(ValueError, match=r"dev\.csv, val\.jsonl for validation"):
        load_task(tmp_path, bytes_tokenizer())
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        load_task(tmp_path / "empty", bytes_tokenizer())


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_text_is_read_as_it_is_written(tmp_path, suffix):
    """Tables guess numbers, dates and gaps."""
    rows = [{"prompt": "NA", "completion": "2020-01-01"}, {"prompt": "1.50", "completion": "2021-01-01"}]
    rows.append({"prompt": "a\r\nb\u2028c", "completion": "007"})
    rows.append({"prompt": "a" * 200_000, "completion": "b\nc, d"})
    assert list(read_path(write(tmp_path / f"a{suffix}", rows)).splits["train"]) == rows


def with_classes(names, labels, first=0):
    """A split of its own ClassLabel, as each has that was encoded by itself; with texts that no other has."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    texts = [f"w{first + number}" for number in range(len(labels))]
    return Dataset.from_dict({"text": texts, "label": [names.index(label) for label in labels]}, features=features)


@pytest.mark.parametrize("names", [["b", "c"], ["c", "b", "a"], ["a", "b", "c"], ["c", "unused", "b"]])
def test_classes_are_those_of_training_by_name(names):
    train, test = with_classes(["a", "b", "c"], "abca"), with_classes(names, "bc", first=4)
    for splits in ({"train": train, "test": test}, {"test": test, "train": train}):
        source = read_dataset(splits)
        assert source.classes == ("a", "b", "c")
        assert source.splits["train"]["label"][:] == [0, 1, 2, 0]
        assert source.splits["test"]["label"][:] == [1, 2]
        assert source.splits["test"].features["label"].names == ["a", "b", "c"]


def test_classes_that_training_lacks_are_refused():
    splits = {"test": with_classes(["b", "d"], "bd"), "train": with_classes(["a", "b", "c"], "ab")}
    with pytest.raises(ValueError, match=r"test .*'d'.* train"):
        read_dataset(splits)
    del splits["train"]
    assert read_dataset(splits).classes == ("b", "d")
    with pytest.raises(ValueError, match=r"test .*'d'.* validation"):
        read_dataset({"validation": with_classes(["a", "b"], "ab")} | splits)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["--1", "2", "--1", "2"], ("--1", "2")),
        (["b", "a", "b", "c"], ("a", "b", "c")),
        ([10, 2, 10, 2], ("2", "10")),
        (["10", "2", "10", "2"], ("2", "10")),
        ([True, False, True, True], ("False", "True")),
    ],
)
def test_labels_become_indices_in_order(labels, classes):
    source = read_dataset(Dataset.from_dict({"text": list("wxyz"), "label": labels}))
    assert source.classes == classes
    assert [source.classes[i] for i in source.splits["train"]["label"][:]] == [str(label) for label in labels]


def test_labels_of_all_splits_are_numbered_together():
    texts = {"train": ["good", "bad ", "bad"], "test": ["Bad"]}
    data = {split: Dataset.from_dict({"text": labels, "label": labels}) for split, labels in texts.items()}
    with pytest.warns(UserWarning, match=r"test .*'Bad'.* train"):
        source = read_dataset(data)
    assert source.classes == ("Bad", "bad", "good")
    assert source.splits["train"]["label"][:] == [2, 1, 1]


def test_classes_may_be_written_in_words():
    task = load_task(Dataset.from_list(LABELLED), bytes_tokenizer("chatml"), architecture="causal")
    assert (task.kind, task.metric, task.num_labels) == ("generation", "accuracy", None)
    assert set(task.train["answer"][:]) == {"bad", "good"}
    assert task.train["prompt"][0].endswith("\n\nAnswer with one of: bad, good.")
    many = Dataset.from_list([{"text": f"film {i}", "label": ("bad", "good")[i % 2]} for i in range(40)])
    balanced = load_task(many, bytes_tokenizer(), architecture="causal", train=4, test=2)
    assert sorted(balanced.test["answer"][:]) == ["bad", "good"]


GOOD = '{"prompt": "a", "completion": "b"}\n'
BAD_FILES = [
    ("a.jsonl", GOOD + '\n{"prompt": \n', "line 3"),
    ("a.jsonl", GOOD + "[1]\n", "line 2"),
    ("a.jsonl", GOOD + '{"prompt": "a"}\n', "line 2.*'completion'"),
    ("a.jsonl", '{"prompt": "a", "completion": 5}\n', "line 1.*'completion'"),
    ("a.jsonl", '{"prompt": "a", "completion": " "}\n', "line 1.*'completion'"),
    ("a.jsonl", '{"question": "a", "reply": "b"}\n', "question, reply"),
    ("a.jsonl", '{"text": "a", "label": 0.5}\n', "line 1: label 0.5.*regression"),
    ("a.jsonl", '{"text": "a", "label": -1}\n', "line 1: label -1"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n', "column"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 1}\n', "labels"),
    ("a.jsonl", '{"messages": "hello"}\n', "line 1: messages"),
    ("a.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n', "line 1: .*assistant"),
    ("a.jsonl", '{"text": "a", "text_pair": "b", "label": 0}\n{"text": "a", "label": 1}\n', "line 2: 'text_pair'"),
    ("a.jsonl", '{"text": "a", "label": 0}\n{"text": "a", "text_pair": "b", "label": 1}\n', "line 2: 'text_pair'"),
    ("a.jsonl.gz", GOOD, r"a\.jsonl\.gz"),
    ("a.jsonl.gz", gzip.compress(GOOD.encode(), mtime=0)[:-9], r"a\.jsonl\.gz"),
    ("a.jsonl", "\n\n", "no rows"),
    ("a.json", '[{"prompt": "a", "completion": "b"}, 3]', "element 2"),
    ("a.json", '[{"prompt": "a",\n "completion": }]', "line 2"),
    ("a.csv", "prompt,completion\na,b\nc\n", "sample 2: 'completion'"),
    ("a.csv", "", r"a\.csv"),
    ("a.csv", "prompt,completion\na,b\nc,d,e\n", r"a\.csv.*line 3"),
    ("a.csv", "prompt,completion\na,b,c\nd,e,f\n", r"a\.csv.*more fields"),
    ("a.csv", b"text,label\n\xff\xfe,b\n", r"a\.csv.*UTF-8"),
    ("a.csv", "text,label\nfilm,bad\nfilm,\n", "sample 2: label ''"),
    ("a.parquet", "PAR1 but not really", r"a\.parquet"),
    ("a.xlsx", "x", r"a\.xlsx"),
]


@pytest.mark.parametrize(("name", "content", "named"), BAD_FILES)
def test_a_bad_file_is_refused_with_the_place(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=named):
        load_task(tmp_path / name, bytes_tokenizer("chatml"))


def test_what_a_dataset_is_asked_for_as_does_not_matter():
    rows = Dataset.from_dict({"text": ["w4", "w5", "w6", "w7"], "label": [0, 1, 0, 1]})
    task = load_task(rows.with_format("numpy"), words_tokenizer(), validation=1, test=1)
    assert task.classes == ("0", "1")


def test_a_pair_of_texts_is_read_in_all_rows_or_none(tmp_path):
    pairs = [{"text": f"w{n}", "text_pair": ("", "w5")[n % 2], "label": n % 2} for n in range(6)]
    path = write(tmp_path / "a.jsonl", pairs)
    assert read_path(path).splits["train"]["text_pair"][:] == [row["text_pair"] for row in pairs]
    for missing in (None, ""):
        rows = [row | {"text_pair": missing} for row in pairs]
        assert "text_pair" not in read_path(write(tmp_path / "b.jsonl", rows)).splits["train"].column_names
    rows = [{"text": "a", "label": 0, "text_pair": None}, {"text": "b", "label": 1, "text_pair": None}]
    assert read_dataset(Dataset.from_list(rows)).splits["train"].column_names == ["text", "label"]
    with pytest.raises(ValueError, match="train, sample 2: 'text_pair'"):
        read_dataset(Dataset.from_list([pairs[1], rows[1]]))
    with pytest.raises(ValueError, match="different columns"):
        read_dataset({"train": Dataset.from_list(pairs), "test": Dataset.from_list(rows)})


@pytest.mark.parametrize(
    ("data", "error", "named"),
    [
        (5, TypeError, "int"),
        ([{"prompt": "a"}], TypeError, "list"),
        ({"train": [1]}, TypeError, "'train'"),
        ("./nowhere", FileNotFoundError, "nowhere"),
        ({}, ValueError, "train, validation and test"),
        (DatasetDict(other=Dataset.from_list(PAIRS)), ValueError, "other"),
        (Dataset.from_dict({"a": [1]}), ValueError, "columns a"),
        (Dataset.from_dict({"prompt": [], "completion": []}), ValueError, "no rows"),
        (Dataset.from_dict({"prompt": ["a", None], "completion": ["b", "c"]}), ValueError, "train, sample 2: 'prompt'"),
        (Dataset.from_dict({"text": ["a", "b"], "label": [0.0, 1.5]}), ValueError, "regression"),
        ({"train": Dataset.from_list(PAIRS), "test": Dataset.from_list(LABELLED)}, ValueError, "different columns"),
    ],
)
def test_bad_data_is_refused(data, error, named):
    with pytest.raises(error, match=named):
        load_task(data, bytes_tokenizer())


@pytest.mark.parametrize(
    ("rows", "arguments", "named"),
    [
        (PAIRS, {"tokenizer": "smollm2-135m"}, "tokenizer"),
        (PAIRS, {"architecture": "encoder"}, "architecture .*encoder"),
        (PAIRS, {"architecture": "classification"}, "labels"),
        (PAIRS, {"metric": "bleu"}, "metric .*bleu"),
        (PAIRS, {"max_length": 1}, "max_length=1"),
        (PAIRS, {"test": -1}, "test=-1"),
        (PAIRS, {"train": 11}, "train=11"),
        (PAIRS, {"test": 11}, "test=11"),
        (PAIRS, {"options": {"size": 3}}, "options"),
        (PAIRS, {"data_files": "x.jsonl"}, "data_files"),
        (LABELLED, {"metric": "loss"}, "metric='loss'"),
        (PAIRS[:1], {}, "validation=0"),
        (PAIRS[:2], {}, "validation=0"),
        (PAIRS[:1], {"validation": 0}, "test=0"),
        (PAIRS[:3], {"test": 2}, "validation=0"),
        (PAIRS[:1], {"train": 0}, "test=0 and validation=0"),
        ([{"prompt": "Write.", "completion": str(i)} for i in range(20)], {}, "test=0"),
    ],
)
def test_bad_arguments_are_refused(rows, arguments, named):
    with pytest.raises((TypeError, ValueError), match=named):
        load_task(Dataset.from_list(rows), **{"tokenizer": bytes_tokenizer()} | arguments)


texts = st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.sampled_from("xyz")), max_size=30).map(
    lambda rows: [*rows, *((prompt, "x") for prompt in "abcdefgh")]
)


@settings(deadline=None, max_examples=60)
@given(texts, st.integers(0, 3), st.integers(0, 3), st.integers(0, 99))
def test_no_prompt_is_in_two_splits(rows, validation, test, seed):
    """Samples with one prompt stay together, none is lost, and sizes are as asked where that is possible."""
    data = Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in rows])
    sizes = {"train": None, "validation": validation, "test": test}
    counts = {prompt: sum(p == prompt for p, _ in rows) for prompt, _ in rows}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that groups do not add up to
        found = deal_splits({"train": data}, sizes, seed, ["prompt"], leave_out_shared=False)
    prompts = {split: set(found[split]["prompt"][:]) for split in SPLITS}
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]
    assert sum(map(len, found.values())) == len(rows)
    for split in ("validation", "test"):
        assert (len(found[split]) > 0) == (sizes[split] > 0)
        assert len(found[split]) <= max(sizes[split], *counts.values())
        if max(counts.values()) == 1:
            assert len(found[split]) == sizes[split]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(4, 30), min_size=2, max_size=4), st.data())
def test_every_class_keeps_its_share(counts, data):
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    rows = Dataset.from_dict({"text": [str(i) for i in range(len(labels))], "label": labels})
    test = data.draw(st.integers(1, len(labels) // 3))
    found = deal_splits({"train": rows}, dict.fromkeys(SPLITS) | {"test": test}, 0, ["text"], leave_out_shared=False)
    assert len(found["test"]) == test
    for label, count in enumerate(counts):
        share = sum(each == label for each in found["test"]["label"][:])
        assert abs(share - test * count / len(labels)) < 1


def test_given_splits_are_kept_and_cut_to_size():
    data = {"train": Dataset.from_list(PAIRS[:6]), "test": Dataset.from_list(PAIRS[6:])}
    sizes = {"train": 3, "validation": 1, "test": 2}
    found = deal_splits(data, sizes, 0, ["prompt"], leave_out_shared=False)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 3, "validation": 1, "test": 2}
    assert set(found["test"]["prompt"][:]) <= {row["prompt"] for row in PAIRS[6:]}
    assert set(found["validation"]["prompt"][:]) <= {row["prompt"] for row in PAIRS[:6]}


def test_only_a_test_set():
    task = load_task({"test": Dataset.from_list(PAIRS)}, bytes_tokenizer())
    assert [len(getattr(task, split)) for split in SPLITS] == [0, 0, 10]
    with pytest.raises(ValueError, match=r"0 training samples.*needs a training split"):
        task.calibration(1)


@pytest.mark.parametrize("leave_out", [False, True])
def test_samples_in_two_given_splits_are_said_or_left_out(leave_out):
    parts = {"train": PAIRS, "validation": PAIRS[:4], "test": PAIRS[2:6]}
    said = "left out of {}" if leave_out else "kept: metrics on held-out samples will be too good"
    with pytest.warns(UserWarning, match="in another split") as warned:
        found = deal_splits(
            {split: Dataset.from_list(rows) for split, rows in parts.items()},
            dict.fromkeys(SPLITS),
            0,
            ["prompt"],
            leave_out_shared=leave_out,
        )
    expected = [(2, "validation", "validation"), (6, "training", "training")]
    assert [str(each.message) for each in warned] == [
        f"{count} {name} samples are in another split too; {said.format(place)}" for count, name, place in expected
    ]
    assert [len(found[split]) for split in SPLITS] == ([4, 2, 4] if leave_out else [10, 4, 4])


def test_samples_with_one_text_stay_together():
    same = Dataset.from_list([{"prompt": "Write.", "completion": str(i)} for i in range(20)])
    assert len(load_task(same, bytes_tokenizer(), test=0, validation=0).train) == 20
    twice = Dataset.from_list(PAIRS[:5] * 2)
    with pytest.warns(UserWarning, match="test has 2 samples, not 3"):
        assert len(load_task(twice, bytes_tokenizer(), test=3, validation=0).test) == 2


@pytest.mark.parametrize(
    ("count", "sizes", "found"),
    [
        (3, {}, [1, 1, 1]),
        (1, {"train": 0, "validation": 0}, [0, 0, 1]),
        (2, {"test": 1, "validation": 1}, [0, 1, 1]),
    ],
)
def test_just_enough_to_split(count, sizes, found):
    task = load_task(Dataset.from_list(PAIRS[:count]), bytes_tokenizer(), **sizes)
    assert [len(getattr(task, split)) for split in SPLITS] == found


def test_the_same_call_gives_the_same_task_and_another_seed_another():
    data = Dataset.from_list([{"prompt": f"What is {i}?", "completion": str(i)} for i in range(100)])
    one, again, other = (load_task(data, bytes_tokenizer(), seed=seed) for seed in (1, 1, 2))
    for split in SPLITS:
        assert list(getattr(one, split)) == list(getattr(again, split))
    assert set(one.test["prompt"][:]) != set(other.test["prompt"][:])
    assert all(a[key].equal(b[key]) for a, b in zip(one.calibration(8), again.calibration(8), strict=True) for key in a)


def test_the_metric_may_be_chosen():
    data = Dataset.from_list([{"prompt": "2 + 2", "completion": "#### 4"}] * 3)
    task = load_task(data, bytes_tokenizer(), metric="final_answer", test=0, validation=0)
    assert task.score(list(task.train), ["4", "the answer is 4.", "5"]) == {"exact_match": [1, 1, 0]}
    assert load_task(data, bytes_tokenizer(), metric="loss", test=0, validation=0).score is None


def sums(answer: str = "{}") -> Dataset:
    answers = [answer.format(i + 1) for i in range(40)]
    return Dataset.from_dict({"prompt": [f"What is {i} + 1?" for i in range(40)], "completion": answers})


def test_a_bad_row_is_placed_in_its_own_shard(tmp_path: Path) -> None:
    """Shards may have columns of their own."""
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
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet, sample 5: no assistant message"):
        load_task(tmp_path, tokenizer)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_split_may_be_in_shards(suffix: str, tmp_path: Path) -> None:
    """As a folder of the hub has them; all or none."""
    rows = sums()
    for part in range(11):
        shard = rows.shard(11, part, contiguous=True)
        path = str(tmp_path / f"train-{part}-of-11.{suffix}")
        shard.to_parquet(path) if suffix == "parquet" else shard.to_json(path)
    task = load_task(tmp_path, bytes_tokenizer(), validation=0, test=0)
    assert task.train["prompt"][:] == rows["prompt"][:]
    assert len(task_files(str(tmp_path))) == 11
    (tmp_path / f"train.{suffix}").write_bytes(b"[]")
    with pytest.raises(ValueError, match=rf"train\.{suffix}"):
        load_task(tmp_path, bytes_tokenizer())
    (tmp_path / f"train.{suffix}").unlink()
    (tmp_path / f"train-1-of-11.{suffix}").unlink()
    with pytest.raises(ValueError, match="all 11 shards"):
        load_task(tmp_path, bytes_tokenizer())


@pytest.mark.parametrize(
    ("labels", "expected"), [(["1", "0"], [0, 1]), ([0, 1], [0, 1]), ([0, 2], None), (["no", "1"], None)]
)
def test_names_are_names_where_training_has_a_class_label(labels: list[Any], expected: list[int] | None) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["1", "0"])})
    train = Dataset.from_dict({"text": [f"film {i}" for i in range(8)], "label": [0, 1] * 4}, features=features)
    splits = {"train": train, "test": Dataset.from_dict({"text": ["a joy", "a bore"], "label": labels})}
    if expected is None:
        with pytest.raises(ValueError, match="classes of test"):
            load_task(splits, words_tokenizer())
    else:
        assert load_task(splits, words_tokenizer()).test["labels"][:] == expected
