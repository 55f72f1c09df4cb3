"""Panel "Answers": what base and adapter answer to the same requests, and which of these answers are right."""

from __future__ import annotations

from typing import Any

from tlora.explanation.compare_answers import AnswerTable
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Part, shorten


class AnswerTablePanel(Panel):
    """A table of both answers to each request; a row opens as a conversation."""

    name, title = "answers", "Answers"
    stage = "answers"
    about = "What base and adapter answer to the same requests; right is what the metric of the task counts."
    needs = ("answers",)

    def parts(self) -> list[Part]:
        """One part: the totals, and the rows in the order to read them."""
        table: AnswerTable = self.result
        tokens = _token_gains(table)
        rows = [_row(table, n) | {"tokens": tokens.get(n)} for n in table.reading_order]
        return [{"kind": "answer_table", "sentence": f"{table.headline}.", "rows": rows}]


def _row(table: AnswerTable, n: int) -> dict[str, Any]:
    one = table.answers[n]
    marks = {
        name: None if mark is None else bool(mark)
        for name, mark in (("base_right", one.base_right), ("adapter_right", one.adapter_right))
    }
    texts = {"request": one.request, "base": one.base, "adapter": one.adapter, "reference": one.reference}
    return {"row": n, **texts, **marks, "changed": one.changed, "gain": shorten(one.gain, 5)}


def _token_gains(table: AnswerTable) -> dict[int, list[tuple[str, float | None]]]:
    """Each token of the answers that were taken apart, and what it gained, by row; nats."""
    samples = table.attribution.samples if table.attribution is not None else []
    return {
        n: [
            (one.tokens[position], shorten(gain))
            for position, gain in zip(one.positions, one.rise[0].tolist(), strict=True)
        ]
        for n, one in zip(table.explained, samples, strict=True)
    }
