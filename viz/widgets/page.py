"""The page: one HTML file with the workbench and all of its panels, without a kernel and without a network."""

from __future__ import annotations

import html
import json
from string import Template
from typing import Any

from viz.widgets.base import read_browser_file
from viz.widgets.curves import CHARTS, LOOK
from viz.widgets.results import Results

SCRIPTS = ("panels", "reads", "attribution", "race", "workbench")
SCRIPT = CHARTS + "".join(read_browser_file(f"{name}.js") for name in SCRIPTS)


def page_html(results: Results, **state: Any) -> str:
    """The page of a state: ``about``, ``shown``, ``steps`` and the traits of the widget, as JSON values."""
    data = json.dumps(state, separators=(",", ":")).replace("<", "\\u003c")
    template = Template(read_browser_file("workbench.html"))
    return template.substitute(STYLE=LOOK, SCRIPT=SCRIPT, TITLE=html.escape(results.title), DATA=data)
