"""The page: one HTML file with the workbench and all of its panels, without a kernel and without a network."""

from __future__ import annotations

import html
import json
from string import Template
from typing import Any

from viz.widgets.base import FOLDER, LOOK, SCRIPT
from viz.widgets.results import Results


def page_html(results: Results, **state: Any) -> str:
    """The page of a state: the traits of the widget and the ``rule`` of its allocation, as JSON values."""
    data = json.dumps(state, separators=(",", ":")).replace("<", "\\u003c")
    template, style, script = (file.read_text("utf-8") for file in (FOLDER / "workbench.html", LOOK, SCRIPT))
    return Template(template).substitute(STYLE=style, SCRIPT=script, TITLE=html.escape(results.title), DATA=data)
