"""Panel "Gradient": the part of the gradient of held-out samples that an adapter with a frozen A can follow."""

from __future__ import annotations

from tlora.subspaces.gradient_capture import GradientCapture
from tlora.utils.text import count_text
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Column, Part, chart, intervals, line, percent, table, whole


class CapturePanel(Panel):
    """Captured gradient of all modules together, by kind and rank, between chance and the best possible."""

    name, title = "capture", "Gradient"
    stage = "directions"
    about = "Which part of the gradient of held-out samples an adapter with a frozen A can follow, by kind and rank."
    needs = ("capture",)

    def parts(self) -> list[Part]:
        """A chart and a table."""
        capture: GradientCapture = self.result
        frame = capture.overall()
        kinds = frame.groupby("kind", sort=False)
        lines = [line(str(kind), rows["rank"], rows["captured"], dots=True) for kind, rows in kinds]
        for label, column in (("best possible", "best"), ("by chance", "random")):
            means = frame.groupby("rank")[column].first()
            lines.append(line(label, means.index, means, dash=True))
        columns: list[Column] = [
            ("kind", "subspace", str),
            ("rank", "rank", whole),
            ("captured", "of the squared gradient", percent),
            ("interval", f"{percent(capture.confidence)} interval", str),
            ("random", "by chance", percent),
            ("best", "at best", percent),
        ]
        samples = count_text(len(capture.total), "held-out sample")
        axes = {"label": "rank", "log": True}, {"label": "share of the squared gradient", "percent": True}
        frame = frame.assign(interval=intervals(frame, "low", "high", percent))
        return [
            chart("Gradient captured", lines, *axes),
            table(frame, f"Gradient captured, {samples}", columns),
        ]
