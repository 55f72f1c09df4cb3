"""The page: one HTML file with the workbench and all of its panels, without a kernel and without a network."""

from __future__ import annotations

import html
import json
from string import Template
from typing import Any

from viz.widgets.base import FOLDER, LOOK, SCRIPT
from viz.widgets.results import Results

MAP = """<p>Each cell is a linear layer of the model, or one parameter of all experts of a layer, and its number
the rank of its adapter: how many directions of its input it can read. Red cells have more than a uniform
allocation would give them, blue ones less, by how much the loss depends on the layer. Drag a cell up or
down, or move a slider: the others share the rest of the budget.</p>
"""
"""What a page of a map says first."""


def page_html(results: Results, **state: Any) -> str:
    """The page of a state: the traits of the widget and the ``rule`` of its allocation, as JSON values."""
    data = json.dumps(state, separators=(",", ":")).replace("<", "\\u003c")
    template, style, script = (file.read_text("utf-8") for file in (FOLDER / "workbench.html", LOOK, SCRIPT))
    words = MAP if state["about"]["names"] else ""
    return Template(template).substitute(
        STYLE=style, SCRIPT=script, TITLE=html.escape(results.title), ABOUT=words, DATA=data
    )
