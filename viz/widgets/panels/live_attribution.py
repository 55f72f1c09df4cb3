"""An adapted model behind the answers: parts switched off, ranks cut, rows and requests of the reader's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch import Tensor

from tlora.adapters.compression import Compression
from tlora.calibration.calibration import Calibration
from tlora.explanation.attribute import (
    PreparedAnswer,
    almost_whole,
    attribute,
    choice_texts,
    leave_out,
    rank_cut,
    request_task,
)
from tlora.explanation.attribution import Attribution
from tlora.explanation.compare_answers import AnswerTable, ComparedAnswer, scored_task
from tlora.explanation.gated_adapter import GatedAdapter, Variant
from tlora.results import Meta
from tlora.tasks.evaluation import predict
from tlora.tasks.task import Task
from tlora.utils.progress import StoppedError, progress_bar, report_progress
from tlora.utils.text import rough_duration_text
from viz.widgets.panels.answers import answer_values, nats, row_values, switch_key
from viz.widgets.panels.parts import bar

POINTS = 8
"""Quadrature points of a first try for an answer: half of what `tlora.attribute` takes, for half the time."""


class LiveAttribution:
    """Scores and answers of an adapted model with a part of its adapter changed, and more answers taken apart.

    ``show`` is called with the traits of the browser that change, also in the thread that takes an answer apart:
    ``explaining`` is how that stands, ``explained`` what is done.
    """

    def __init__(
        self,
        adapted: PeftModel,
        task: Task,
        attribution: Attribution | None,
        table: AnswerTable | None,
        calibration: Calibration | None,
        show: Callable[..., None],
    ) -> None:
        self._adapted, self._task, self._calibration, self._show = adapted, task, calibration, show
        self._gated = GatedAdapter(adapted, "attribute")
        self._names = list(self._gated.ranks)
        if attribution is not None and attribution.names != self._names:
            raise ValueError("the attribution is of another adapter: pass adapted= the model that it was made with")
        self._rows = [] if attribution is None else self._find_rows(attribution)
        self._table = table
        self._prepared: dict[int, PreparedAnswer] = {}
        self._choices: dict[int, Tensor] = {}
        self._explained: dict[str, list[dict[str, Any]]] = {"samples": [], "rows": []}
        self._own = 0
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def switch(self, sample: int, ranks: Mapping[int, int]) -> dict[str, Any]:
        """Score an answer with some modules cut to these ranks, 0 to leave them out; modules by number."""
        prepared = self._prepare(sample)
        scores = self._gated.changed_scores(prepared.answer, self._variant(ranks))
        return {
            "sample": sample,
            "key": switch_key(ranks),
            "values": nats(scores.values),
            "unchanged": (scores.choices == self._choices[sample]).int().tolist(),
            "choices": choice_texts(self._task, scores.choices),
        }

    def regenerate(self, sample: int, ranks: Mapping[int, int]) -> str:
        """Return the greedy answer with the same modules cut."""
        task, row = self._rows[sample]
        with self._gated.changed(self._variant(ranks)) as model:
            return str(predict(model, task, row)["prediction"][0])

    def explain(self, prompt: str, answer: str | None) -> None:
        """Take the answer to a request of the reader's own apart in a thread."""

        def write() -> Task:
            return request_task(self._gated, self._task.tokenizer, prompt, answer, progress=True)

        self._begin(None, f"Taking the answer to \u201c{prompt}\u201d apart", write, answer)

    def explain_row(self, row: int) -> None:
        """Take a row of the table apart in a thread: its reference, or without one the adapter's answer."""
        assert self._table is not None  # else there are no rows
        self._begin(row, f"Taking row {row} apart", lambda: self._row_task(row))

    def stop_explaining(self) -> None:
        """Give the answer up that is being taken apart."""
        self._stopping.set()

    def _begin(self, row: int | None, said: str, prepare: Callable[[], Task], reference: str | None = None) -> None:
        if self._thread is not None and self._thread.is_alive():
            raise ValueError("An answer is being taken apart already: stop it, or wait")
        self._stopping.clear()
        self._thread = threading.Thread(target=self._explain, args=(row, said, prepare, reference), daemon=True)
        self._thread.start()

    def _explain(self, row: int | None, said: str, prepare: Callable[[], Task], reference: str | None) -> None:
        def report(words: str, done: int, total: int | None) -> None:
            self._show(explaining={"row": row, "running": True, "said": said, "bar": bar(words, done, total)})

        outcome = ""
        try:
            report("", 0, None)
            with report_progress(report, self._stopping):
                task = prepare()
                said = f"{said}, {rough_duration_text(self._predict_seconds(task))}"
                report("", 0, None)
                found = attribute(self._adapted, task, limit=1, points=POINTS, answers=row is None)
            outcome = found.sentence
            self._add(row, task, found, reference)
        except StoppedError:
            outcome = "Stopped."
        except (ValueError, RuntimeError) as refusal:  # in a thread nobody else would see it
            outcome = str(refusal)
        self._show(explaining={"row": row, "running": False, "said": outcome})

    def _predict_seconds(self, task: Task) -> float:
        """How long it takes to integrate over all points, by one of them."""
        answer = PreparedAnswer.from_row(self._gated, task, task.test[0]).answer
        began = time.perf_counter()
        with progress_bar(total=1, desc="timing one point", show=True) as one:
            self._gated.contributions(answer, 1, one)
        return POINTS * (time.perf_counter() - began)

    def _add(self, row: int | None, task: Task, found: Attribution, reference: str | None) -> None:
        """Show an answer that was taken apart, which can then be switched as those that are stored."""
        (sample,) = found.samples
        if row is None:
            self._own += 1
            row, (base, adapter) = -self._own, sample.generated
            one = ComparedAnswer(sample.prompt, reference, base, adapter, None, None, float(sample.rise[0].sum()))
        else:
            assert self._table is not None
            one = self._table.answers[row]
            sample = replace(sample, generated=[one.base, one.adapter])
        self._rows.append((task, task.test))
        self._explained = {
            "samples": [*self._explained["samples"], *answer_values(found, [sample])],
            "rows": [*self._explained["rows"], row_values(row, one, found, sample)],
        }
        self._show(explained=self._explained)

    def _row_task(self, row: int) -> Task:
        """The row of the table as its gain is computed; a request that the task does not have is tokenized again."""
        assert self._table is not None
        one = self._table.answers[row]
        found = self._in_task(self._table.meta, [answer.request for answer in self._table.answers])[row]
        if found is None:
            return request_task(self._gated, self._task.tokenizer, one.request, one.reference, progress=True)
        return scored_task(self._gated, self._task, found)

    def _find_rows(self, attribution: Attribution) -> list[tuple[Task, Dataset]]:
        """The row of each sample in its task, or in a task of its own."""
        places = self._in_task(attribution.meta, [one.prompt for one in attribution.samples])
        found = []
        for row, one in zip(places, attribution.samples, strict=True):
            if row is not None:
                found.append((self._task, row))
            else:
                task = request_task(self._gated, self._task.tokenizer, one.prompt, one.answer, one.ids)
                found.append((task, task.test))
        return found

    def _in_task(self, meta: Meta, requests: Sequence[str]) -> list[Dataset | None]:
        """The row of the task that each request is, None if it is not there."""
        rows: Any = []
        if meta.task == self._task.name and meta.samples:
            rows = self._task.rows(meta.recipe["split"], meta.recipe["limit"])
        return [
            rows.select([n]) if n < len(rows) and request in _requests_of(rows[n]) else None
            for n, request in enumerate(requests)
        ]

    def _prepare(self, sample: int) -> PreparedAnswer:
        if sample not in self._prepared:
            task, row = self._rows[sample]
            self._prepared[sample] = PreparedAnswer.from_row(self._gated, task, row[0])
            self._choices[sample] = self._gated.scores(self._prepared[sample].answer).choices
        return self._prepared[sample]

    def _variant(self, ranks: Mapping[int, int]) -> Variant:
        names = {self._names[k]: rank for k, rank in ranks.items()}
        out = dict(leave_out(self._gated, [name for name, rank in names.items() if rank == 0]))
        return out | {n: rank_cut(self._gated, self._almost_whole, n, rank) for n, rank in names.items() if rank}

    @cached_property
    def _almost_whole(self) -> Compression:
        return almost_whole(self._adapted, self._calibration)


def _requests_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """How a row of a task may be quoted: its request, its text, or both texts of a pair."""
    texts = [row[name] for name in ("text", "text_pair") if name in row]
    return row.get("prompt"), row.get("text"), "\n".join(texts)
