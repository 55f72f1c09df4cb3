"""Panel "Answers": what base and adapter answer to the same requests, and which of these answers are right."""

from __future__ import annotations

from tlora.explanation.compare_answers import AnswerTable
from viz.widgets.panels.answers import row_values
from viz.widgets.panels.live_panel import LivePanel
from viz.widgets.panels.parts import Part


class AnswerTablePanel(LivePanel):
    """A table of both answers to each request; a row opens as a conversation, and a kernel takes it apart."""

    name, title = "answers", "Answers"
    stage = "answers"
    about = "What base and adapter answer to the same requests; right is what the metric of the task counts."
    needs = ("answers",)

    def parts(self) -> list[Part]:
        """One part: the totals, and the rows in the order to read them."""
        table: AnswerTable = self.result
        attribution = table.attribution
        samples = dict(zip(table.explained, attribution.samples, strict=True)) if attribution else {}
        rows = [row_values(n, table.answers[n], attribution, samples.get(n)) for n in table.reading_order]
        part = {"kind": "answer_table", "sentence": f"{table.headline}.", "rows": rows, "live": self.is_live}
        return [part]
