"""Panel "Answers": what base and adapter answer to the same requests, and which of these answers are right."""

from __future__ import annotations

from typing import Any

from tlora.explanation.compare_answers import AnswerTable
from tlora.utils.text import place_text
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Part, shorten, shorten_all

MODULES = 5
"""Modules that are named of an answer, those that contributed most."""


class AnswerTablePanel(Panel):
    """A table of both answers to each request; a row opens as a conversation."""

    name, title = "answers", "Answers"
    stage = "answers"
    about = "What base and adapter answer to the same requests; right is what the metric of the task counts."
    needs = ("answers",)

    def parts(self) -> list[Part]:
        """One part: the totals, and the rows in the order to read them."""
        table: AnswerTable = self.result
        apart = _taken_apart(table)
        rows = [_row(table, n) | {"apart": apart.get(n)} for n in table.reading_order]
        return [{"kind": "answer_table", "sentence": f"{table.headline}.", "rows": rows}]


def _row(table: AnswerTable, n: int) -> dict[str, Any]:
    one = table.answers[n]
    marks = {
        name: None if mark is None else bool(mark)
        for name, mark in (("base_right", one.base_right), ("adapter_right", one.adapter_right))
    }
    texts = {"request": one.request, "base": one.base, "adapter": one.adapter, "reference": one.reference}
    return {"row": n, **texts, **marks, "changed": one.changed, "gain": shorten(one.gain, 5)}


def _taken_apart(table: AnswerTable) -> dict[int, dict[str, Any]]:
    """By row, what each token of its answer gained, and what the largest modules contributed; nats."""
    attribution = table.attribution
    if attribution is None:
        return {}
    places = [place_text(target.layer, target.projection, target.name) for target in attribution.targets.values()]
    rows = {}
    for n, one in zip(table.explained, attribution.samples, strict=True):
        tokens = [one.tokens[position] for position in one.positions]
        contributions = one.by_module[0].sum(0)
        order = contributions.abs().argsort(descending=True)[:MODULES].tolist()
        rows[n] = {
            "tokens": list(zip(tokens, shorten_all(one.rise[0], 4), strict=True)),
            "modules": [(places[k], shorten(float(contributions[k]))) for k in order],
        }
    return rows
