"""Compare the answers of a base and of its adapter, request by request."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from tlora.explanation.attribute import attribute
from tlora.explanation.attribution import Attribution
from tlora.explanation.gated_adapter import GatedAdapter
from tlora.models.forward import IGNORED, evaluation_mode
from tlora.models.weights import model_name
from tlora.results import Meta, Result
from tlora.tasks.evaluation import (
    class_logits,
    decode_answer,
    generate_tokens,
    has_ended,
    token_losses,
    with_written,
)
from tlora.tasks.requests import load_requests
from tlora.tasks.task import Task, architecture_of, check_architecture, classes_of
from tlora.utils.progress import progress_bar
from tlora.utils.text import count_text, rough_duration_text
from tlora.utils.validation import check_arguments, require_index, require_positive_int

logger = logging.getLogger(__name__)
Row = dict[str, Any]


@dataclass(frozen=True)
class ComparedAnswer:
    """One request of an `AnswerTable`.

    Attributes
    ----------
    request : str
        The request, or the text that is classified.
    reference : str or None
        The reference answer, None if there is none.
    base, adapter : str
        Greedy answers of the base and of the adapted model, or the classes that they predict.
    base_right, adapter_right : bool or None
        Whether the task's metric is 1; None without a reference, or if the task has no metric of answers.
    gain : float
        Log-probability of the reference in the adapted model less that in the base, nats; without a reference that of
        the adapter's answer.
    base_cut, adapter_cut : bool
        Whether the answer was as long as the task's longest one and had not ended.
    """

    request: str
    reference: str | None
    base: str
    adapter: str
    base_right: bool | None
    adapter_right: bool | None
    gain: float
    base_cut: bool = False
    adapter_cut: bool = False

    @property
    def changed(self) -> bool:
        """Whether the answers differ, apart from white space at both ends."""
        return self.base.strip() != self.adapter.strip()


class AnswerCounts(NamedTuple):
    """How many answers are right with the adapter and in the base, of those with a mark, and how many changed."""

    right: int
    before: int
    marked: int
    changed: int


def count_answers(answers: Sequence[ComparedAnswer]) -> AnswerCounts:
    """Count the answers that are right; without a reference an answer has no mark."""
    marked = [one for one in answers if one.adapter_right is not None]
    right, before = (sum(bool(getattr(one, name)) for one in marked) for name in ("adapter_right", "base_right"))
    return AnswerCounts(right, before, len(marked), sum(one.changed for one in answers))


@dataclass(frozen=True, repr=False, eq=False)
class AnswerTable(Result):
    """The answers of a base and of its adapter to the same requests; from `tlora.compare_answers`.

    Attributes
    ----------
    answers : list of ComparedAnswer
        One for each request, in the order of the split.
    explained : list of int
        Rows that are taken apart in ``attribution``, in its order.
    attribution : Attribution or None
        The reference answers of these rows by module, or the adapter's answers if there is no reference.
    interrupted : bool
        Whether the comparison was stopped: the rows are then the first ones.
    meta : Meta
        The base model, the task and the number of requests.

    Examples
    --------
    >>> table = tlora.compare_answers(adapted, task, limit=2, explain=[1], progress=False)
    >>> table.to_frame().columns[:5].tolist()
    ['row', 'request', 'base', 'adapter', 'reference']
    >>> len(table.attribution.samples)
    1
    """

    answers: list[ComparedAnswer]
    explained: list[int]
    attribution: Attribution | None
    interrupted: bool
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "row": "number of the request in the table, from 0",
        "request": "the request, or the text that is classified",
        "base": "greedy answer of the base, or its class",
        "adapter": "greedy answer of the adapted model, or its class",
        "reference": "reference answer, missing if there is none",
        "base_right": "whether the metric of the task is 1 for the base, missing without a reference or a metric",
        "adapter_right": "the same for the adapted model",
        "changed": "whether the two answers differ",
        "gain": "nats that the reference gained by the adapter; without a reference, the adapter's answer",
        "base_cut": "whether the base's answer was cut at the length of the task's longest one",
        "adapter_cut": "the same for the adapted model",
    }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per request; see ``columns``."""
        rows = [{"row": n, "changed": one.changed} | vars(one) for n, one in enumerate(self.answers)]
        frame = pd.DataFrame(rows, columns=list(self.columns))
        return frame.astype({"base_right": "boolean", "adapter_right": "boolean"})

    @property
    def newly_right(self) -> list[int]:
        """Rows in which the adapter is right and the base is not."""
        return [n for n, one in enumerate(self.answers) if one.adapter_right and one.base_right is False]

    @property
    def newly_wrong(self) -> list[int]:
        """Rows in which the base is right and the adapter is not."""
        return [n for n, one in enumerate(self.answers) if one.base_right and one.adapter_right is False]

    @property
    def reading_order(self) -> list[int]:
        """Rows in the order to read them: newly wrong, newly right, otherwise changed, then the rest."""
        changed = [n for n, one in enumerate(self.answers) if one.changed]
        return list(dict.fromkeys([*self.newly_wrong, *self.newly_right, *changed, *range(len(self.answers))]))

    @property
    def headline(self) -> str:
        """The totals: answers that are right, how many were before, how many changed, and whether it was stopped."""
        counts = count_answers(self.answers)
        ending = "; interrupted" if self.interrupted else ""
        if not counts.marked:
            gain = np.mean([one.gain for one in self.answers])
            of = count_text(len(self.answers), "answer")
            return f"{counts.changed} of {of} changed, mean gain {gain:+.2f} nats{ending}"
        rest = len(self.answers) - counts.marked
        without = f"; {count_text(rest, 'row')} without reference" if rest else ""
        changes = f"{count_text(counts.changed, 'answer')} changed{without}"
        return f"{counts.right} of {counts.marked} right, {counts.before} before; {changes}{ending}"

    def _summary(self) -> str:
        return self.headline


def compare_answers(
    adapted: PeftModel,
    task_or_requests: Task | Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    split: str = "test",
    limit: int | None = 64,
    explain: Sequence[int] = (),
    batch_size: int = 8,
    progress: bool = True,
) -> AnswerTable:
    """Compare the greedy answers of a base and of its adapter on held-out samples, row by row.

    Parameters
    ----------
    adapted : peft.PeftModel
        A base with one active LoRA adapter, whoever trained it: causal, encoder-decoder or sequence classifier. It is
        not changed.
    task_or_requests : Task or sequence of str
        A task, with its reference answers; or requests (for a classifier texts), which have none.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        The model's, for requests.
    split : str
        Split of the task.
    limit : int, optional
        Most samples of the task, drawn with its seed; all if None. Of requests, the first ones are drawn alike.
    explain : sequence of int
        Rows of the table, from 0, to take apart by `attribute`.
    batch_size : int
        Samples at a time.
    progress : bool
        Show a progress bar.

    Returns
    -------
    AnswerTable
        An interrupt ends the comparison early: the table then has the rows that were done.

    Raises
    ------
    ValueError
        If the adapter is not plain LoRA, the task is for another architecture, requests come without a tokenizer, or
        ``explain`` names a row that is not in the table.

    Notes
    -----
    Right is what `Task.evaluate` counts: an exact match, the verdict of the task's verifier, or the class. If a
    classifier's head is not that of the base, the base answers with the trained head and the adapter at scale 0.

    Examples
    --------
    >>> table = tlora.compare_answers(adapted, ["w4 w5"], tokenizer=tokenizer, progress=False)
    >>> table.headline
    '... of 1 answer changed, mean gain ... nats'
    """
    check_arguments(compare_answers, locals())
    require_positive_int(batch_size, "batch_size")
    gated = GatedAdapter(adapted, "compare_answers")
    if isinstance(task_or_requests, Task):
        task = task_or_requests
        check_architecture(gated.model, task, f"task {task.name!r}")
    elif tokenizer is not None:
        architecture = architecture_of(gated.model)
        classes = classes_of(gated.model) if architecture == "classification" else ()
        task = load_requests(list(task_or_requests), tokenizer, architecture, classes)
    else:
        raise ValueError("requests need a tokenizer: pass the one that tlora.load_model returns, tokenizer=")
    rows = task.rows(split, limit)
    wanted = [require_index(row, "explain", len(rows)) for row in explain]
    answers: list[ComparedAnswer] = []
    scored: list[Row] = []
    attribution, interrupted = None, False
    try:
        _answer_all(gated, task, rows, batch_size, progress, answers, scored)
        if wanted:
            opened = Dataset.from_list([scored[row] for row in wanted], features=rows.features)
            taken_apart = replace(task, test=opened)
            attribution = attribute(adapted, taken_apart, limit=len(wanted), answers=False, progress=progress)
    except KeyboardInterrupt:
        if not answers:
            raise
        interrupted = True
    answers = _mark(task, list(rows.select(range(len(answers)))), answers)
    if attribution is not None:
        said = [
            replace(one, **_answers_and_marks(answers[row]))
            for one, row in zip(attribution.samples, wanted, strict=True)
        ]
        attribution = replace(attribution, samples=said)
    return AnswerTable(
        answers=answers,
        explained=wanted if attribution is not None else [],
        attribution=attribution,
        interrupted=interrupted,
        meta=Meta(model_name(gated.model), task.name, {"split": split, "limit": limit}, task.seed, len(answers)),
    )


def _answer_all(
    gated: GatedAdapter,
    task: Task,
    rows: Dataset,
    batch_size: int,
    progress: bool,
    answers: list[ComparedAnswer],
    scored: list[Row],
) -> None:
    """Append the answers of all rows, batch by batch, and the rows with the answers that their gain is of."""
    began = time.perf_counter()
    answer = _classify if task.kind == "classification" else _write
    with progress_bar(total=len(rows), show=progress, desc="answers of base and adapter", unit="row") as bar:
        for start in range(0, len(rows), batch_size):
            batch = rows.select(range(start, min(start + batch_size, len(rows))))
            fresh, read = answer(gated, task, batch)
            answers += fresh
            scored += read
            bar.update(len(batch))
            if start == 0 and len(rows) > len(batch):
                left = len(rows) - len(batch)
                seconds = (time.perf_counter() - began) * left / len(batch)
                logger.info("%s for the other %s", rough_duration_text(seconds), count_text(left, "row"))


def _write(gated: GatedAdapter, task: Task, rows: Dataset) -> tuple[list[ComparedAnswer], list[Row]]:
    """Let both models answer, and score the reference, or the adapter's answer without one."""
    size, own = len(rows), list(rows)
    with gated.as_base() as base, evaluation_mode(base):
        before = generate_tokens(base, task, rows, size, False)
    with evaluation_mode(gated.peft):
        after = generate_tokens(gated.peft, task, rows, size, False)
    texts = [[decode_answer(task, row, ids) for row, ids in zip(own, each, strict=True)] for each in (before, after)]
    scored = [_scored(task, row, ids, text) for row, ids, text in zip(own, after, texts[1], strict=True)]
    gains = _gains(gated, task, Dataset.from_list(scored, features=rows.features))
    answers = [
        ComparedAnswer(row["prompt"], row["answer"] if row["answer"].strip() else None, first, second, None, None, gain)
        for row, first, second, gain in zip(own, texts[0], texts[1], gains, strict=True)
    ]
    cut = [[not has_ended(task, ids) for ids in each] for each in (before, after)]
    answers = [replace(one, base_cut=a, adapter_cut=b) for one, a, b in zip(answers, *cut, strict=True)]
    return answers, scored


def scored_task(gated: GatedAdapter, task: Task, row: Dataset) -> Task:
    """Return the task of one row as its gain is computed: of the reference, or without one of the adapter's answer."""
    (own,) = row
    if task.kind == "classification":
        _, (scored,) = _classify(gated, task, row)
    elif own["answer"].strip():
        scored = _scored(task, own, (), "")
    else:
        with evaluation_mode(gated.peft):
            (ids,) = generate_tokens(gated.peft, task, row, 1, True)
        scored = _scored(task, own, ids, decode_answer(task, own, ids))
    return replace(task, test=Dataset.from_list([scored], features=row.features))


def _scored(task: Task, row: Row, ids: Sequence[int], text: str) -> Row:
    """The row with labels on its reference alone, or on what the adapter wrote."""
    if not row["answer"].strip():
        return with_written(task, row, ids, text)
    start = 0 if task.architecture == "seq2seq" else row["prompt_length"]
    return row | {"labels": [IGNORED] * start + list(row["labels"][start:])}


def _gains(gated: GatedAdapter, task: Task, rows: Dataset) -> list[float]:
    with gated.as_base() as base, evaluation_mode(base):
        before = token_losses(base, task, rows, len(rows), False)
    with evaluation_mode(gated.peft):
        after = token_losses(gated.peft, task, rows, len(rows), False)
    return [float((old - new).sum()) for old, new in zip(before, after, strict=True)]


def _classify(gated: GatedAdapter, task: Task, rows: Dataset) -> tuple[list[ComparedAnswer], list[Row]]:
    """Let both models predict a class, and score the label, or the adapter's class without one."""
    with gated.as_base() as base, evaluation_mode(base):
        before = class_logits(base, task, rows, len(rows), False).double().log_softmax(1)
    with evaluation_mode(gated.peft):
        after = class_logits(gated.peft, task, rows, len(rows), False).double().log_softmax(1)
    answers, scored = [], []
    for row, old, new in zip(rows, before, after, strict=True):
        first, second = int(old.argmax()), int(new.argmax())
        label = row["labels"] if row["labels"] != IGNORED else second
        text = "\n".join(row[name] for name in ("text", "text_pair") if name in row)
        reference = None if row["labels"] == IGNORED else task.classes[label]
        said = (task.classes[first], task.classes[second])
        answers.append(ComparedAnswer(text, reference, *said, None, None, float(new[label] - old[label])))
        scored.append(row | {"labels": label})
    return answers, scored


def _mark(task: Task, rows: list[Row], answers: list[ComparedAnswer]) -> list[ComparedAnswer]:
    """Mark the answers to requests with a reference as the task's metric does."""
    if task.kind == "classification":
        marks = {n: (a.base == a.reference, a.adapter == a.reference) for n, a in enumerate(answers) if a.reference}
    elif task.score is not None:
        places = [n for n, one in enumerate(answers) if one.reference is not None]
        known = [rows[n] for n in places]
        said = [one.base for one in map(answers.__getitem__, places)]
        said += [one.adapter for one in map(answers.__getitem__, places)]
        right = [value == 1 for value in task.score(known * 2, said)[task.metric]] if places else []
        marks = dict(zip(places, zip(right[: len(places)], right[len(places) :], strict=True), strict=True))
    else:
        marks = {}
    return [
        replace(one, base_right=marks[n][0], adapter_right=marks[n][1]) if n in marks else one
        for n, one in enumerate(answers)
    ]


def _answers_and_marks(one: ComparedAnswer) -> Mapping[str, Any]:
    """What an explained answer holds of the answers of both models."""
    marks = [float(mark) for mark in (one.base_right, one.adapter_right) if mark is not None]
    return {"generated": [one.base, one.adapter], "matches": marks}
