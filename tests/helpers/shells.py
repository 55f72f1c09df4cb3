"""A kernel as IPython gives it."""

from __future__ import annotations

from typing import Any


class Shell:
    """What `get_ipython` gives in a kernel."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.kernel = self
        self.content = content

    def get_parent(self) -> dict[str, Any]:
        return {"content": self.content} if self.content else {}
