"""An adapted model behind the panel "Attribution": parts switched off, ranks cut, requests of the reader's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
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
from tlora.explanation.attribution import Attribution, ExplainedAnswer
from tlora.explanation.gated_adapter import GatedAdapter, Variant
from tlora.tasks.evaluation import predict
from tlora.tasks.task import Task
from tlora.utils.progress import report_progress
from viz.widgets.panels.answers import answer_values, nats, switch_key
from viz.widgets.panels.parts import bar

POINTS = 8
"""Quadrature points of a first try for a request: half of what `tlora.attribute` takes, for half the time."""


class LiveAttribution:
    """Scores and answers of an adapted model with a part of its adapter changed, and more answers taken apart.

    ``report`` is called with what the browser shows of the reader's own requests, also in the thread that explains one.
    """

    def __init__(
        self,
        adapted: PeftModel,
        task: Task,
        attribution: Attribution,
        calibration: Calibration | None,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._adapted, self._task, self._calibration, self._report = adapted, task, calibration, report
        self._gated = GatedAdapter(adapted, "attribute")
        self._names = attribution.names
        self._rows = self._find_rows(attribution)
        self._prepared: dict[int, PreparedAnswer] = {}
        self._choices: dict[int, Tensor] = {}
        self._own: list[dict[str, Any]] = []
        self._thread: threading.Thread | None = None

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
        """Take the answer to a request apart in a thread."""
        if self._thread is not None and self._thread.is_alive():
            raise ValueError("An answer is being taken apart already: wait for it")
        self._thread = threading.Thread(target=self._explain, args=(prompt, answer), daemon=True)
        self._thread.start()

    def _explain(self, prompt: str, answer: str | None) -> None:
        said = f"Taking the answer to \u201c{prompt}\u201d apart"

        def report(words: str, done: int, total: int | None) -> None:
            values = {"said": said, "running": True, "bar": bar(words, done, total), "samples": self._own}
            self._report(values)

        report("", 0, None)
        try:
            with report_progress(report):
                found = attribute(self._adapted, prompt, answer, tokenizer=self._task.tokenizer, points=POINTS)
        except (ValueError, RuntimeError) as refusal:  # in a thread nobody else would see it
            self._report({"said": str(refusal), "running": False, "samples": self._own})
            return
        self._rows.append(self._as_request(found.samples[0]))
        self._own = [*self._own, *answer_values(found, found.samples)]
        self._report({"said": found.sentence, "running": False, "samples": self._own})

    def _find_rows(self, attribution: Attribution) -> list[tuple[Task, Dataset]]:
        """The row of each sample in its task, or in a task of its own."""
        meta = attribution.meta
        rows: Any = []
        if meta.task == self._task.name and meta.samples:
            rows = self._task.rows(meta.recipe["split"], meta.recipe["limit"])
        found = []
        for number, one in enumerate(attribution.samples):
            is_there = number < len(rows) and one.prompt in (rows[number].get("prompt"), rows[number].get("text"))
            found.append((self._task, rows.select([number])) if is_there else self._as_request(one))
        return found

    def _as_request(self, one: ExplainedAnswer) -> tuple[Task, Dataset]:
        task = request_task(self._gated, self._task.tokenizer, one.prompt, one.answer, one.ids)
        return task, task.test

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
