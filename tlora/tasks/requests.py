"""Load requests that need no reference answer: texts, or all rows of a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from tlora.models.forward import IGNORED
from tlora.tasks.load import load_task
from tlora.tasks.sources import PlacedRow, read_path, read_placed_rows
from tlora.tasks.task import Task

ANSWER_LENGTH = 64
"""Most tokens of a greedy answer to a request if no reference shows how long answers are."""
_UNKNOWN = "?"
"""Stands in the place of a reference until the rows are tokenized."""


def load_requests(
    source: str | os.PathLike[str] | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    architecture: str,
    classes: Sequence[str] = (),
    **options: Any,
) -> Task:
    """Load requests as the test samples of a task, each with its reference answer if it has one.

    Parameters
    ----------
    source : path-like or sequence of str
        A file, of which ``completion`` or ``label`` may be missing in some rows or in all; or the requests themselves.
    tokenizer : transformers.PreTrainedTokenizerBase
        The model's.
    architecture : str
        Of the model; see `Task`.
    classes : sequence of str
        Names of the classes of a classifier, in the order of their indices.
    **options
        As for `load_task`.

    Returns
    -------
    Task
        ``answer`` is empty in a row without a reference; of a classifier ``labels`` is -100.

    Raises
    ------
    ValueError
        If a row has no request, or a label is not among the classes.
    """
    request = "text" if architecture == "classification" else "prompt"
    placed: list[PlacedRow]
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        placed = read_placed_rows(path)
    else:
        path, placed = Path("requests"), [(f"request {n}", {request: text}) for n, text in enumerate(source)]
    if placed and "messages" in placed[0][1]:  # a conversation holds its own references
        rows = read_path(path).splits["train"]
        return replace(load_task({"test": rows}, tokenizer, architecture=architecture, **options), name=_name(path))
    if architecture == "classification":
        return _load_texts(path, placed, tokenizer, classes, options)
    prompts = [_request(row, "prompt", where) for where, row in placed]
    references = [_text(row.get("completion")) for _, row in placed]
    rows = Dataset.from_dict({"prompt": prompts, "completion": [text or _UNKNOWN for text in references]})
    options |= {} if any(references) else {"metric": "loss"}
    task = load_task({"test": rows}, tokenizer, architecture=architecture, **options)
    unknown = {prompt for prompt, text in zip(prompts, references, strict=True) if not text}
    blank = [row | {"answer": ""} if _is_unknown(row, unknown) else row for row in task.test]
    room = task.max_new_tokens if any(references) else ANSWER_LENGTH
    return _with_rows(replace(task, max_new_tokens=room), path, blank)


def _load_texts(
    path: Path,
    placed: Sequence[PlacedRow],
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[str],
    options: Mapping[str, Any],
) -> Task:
    names = [name for name in ("text", "text_pair") if placed and name in placed[0][1]] or ["text"]
    labels = [_label(row.get("label"), classes, where) for where, row in placed]
    columns: dict[str, Any] = {name: [_request(row, name, where) for where, row in placed] for name in names}
    columns["label"] = [0 if label == IGNORED else label for label in labels]
    rows = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=list(classes)))
    task = load_task({"test": rows}, tokenizer, architecture="classification", **options)
    pairs = zip(task.test, labels, strict=True)
    return _with_rows(task, path, [row | {"labels": label} for row, label in pairs])


def _with_rows(task: Task, path: Path, rows: list[dict[str, Any]]) -> Task:
    return replace(task, name=_name(path), test=Dataset.from_list(rows, features=task.test.features))


def _name(path: Path) -> str:
    return path.name.partition(".")[0]


def _is_unknown(row: Mapping[str, Any], unknown: set[str]) -> bool:
    return row["answer"] == _UNKNOWN and row["prompt"] in unknown


def _request(row: Mapping[str, Any], name: str, where: str) -> str:
    if not isinstance(row.get(name), str) or not row[name].strip():
        others = ", ".join(row) or "(none)"
        raise ValueError(f"{where}: {name!r} is {row.get(name)!r:.60} (columns {others}): every row needs a request")
    return str(row[name])


def _text(value: Any) -> str:
    return "" if value is None or not str(value).strip() else str(value)


def _label(value: Any, classes: Sequence[str], where: str) -> int:
    """The index of a class by its name, or by its number if classes have other names; -100 if there is none."""
    text = _text(value).strip()
    if not text:
        return IGNORED
    if text in classes:
        return list(classes).index(text)
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    raise ValueError(f"{where}: label {text!r} is not among the classes of the adapter, {', '.join(classes)}")
