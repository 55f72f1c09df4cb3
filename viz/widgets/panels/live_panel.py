"""LivePanel: a panel whose answers an adapted model takes apart, if a kernel has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from viz.widgets.panels.panel import Panel


class LivePanel(Panel):
    """A panel of answers: what was taken apart in one of them is shown in all."""

    answers: ClassVar[tuple[str, ...]] = ("explaining", "explained")

    @property
    def is_live(self) -> bool:
        """Whether the adapted model is there."""
        return self.context.adapted is not None

    def requests(self) -> Mapping[str, Callable[..., None]]:
        """Take a row of the table or a request of the reader's own apart, and stop."""
        if not self.is_live:
            return {}
        return {"explain": self._explain, "explain_row": self._explain_row, "stop_explaining": self._stop}

    def page_state(self, answers: Mapping[str, Any]) -> dict[str, Any]:
        """What the kernel has taken apart."""
        return {"explained": answers["explained"]}

    def _explain(self, prompt: str, answer: str | None) -> None:
        self.context.live.explain(prompt, answer)

    def _explain_row(self, row: int) -> None:
        self.context.live.explain_row(row)

    def _stop(self) -> None:
        self.context.live.stop_explaining()
