"""What holds for every widget: a picture and a line, with and without a front end, and that it can be closed."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
import weakref
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import pytest

import viz
from tests.helpers.results import calibration, kinds, subspaces
from tests.helpers.shells import Shell
from viz.widgets import base as widgets


def workbench() -> viz.Workbench:
    return viz.Workbench(calibration(), subspaces(), other=kinds(), rank=2)


ALL: list[Callable[[], Any]] = [workbench, viz.TrainingMonitor]


@pytest.fixture(autouse=True)
def _nothing_reaches_pyplot():
    before = plt.rcParams.copy()
    yield
    assert plt.get_fignums() == []
    assert plt.rcParams.copy() == before


@pytest.mark.parametrize("make", ALL)
def test_outside_of_ipython_display_gives_one_line(make, capsys) -> None:
    widget = make()
    assert capsys.readouterr() == ("", "")
    widget.display()
    assert capsys.readouterr().out == f"{widget.line}\n"
    assert "\n" not in widget.line
    assert 5 < len(widget.line) < 400


@pytest.mark.parametrize("make", ALL)
def test_the_picture_is_white_and_legible(make) -> None:
    picture = plt.imread(io.BytesIO(make()._repr_png_()))
    assert picture[0, 0, :3].min() == 1
    assert picture.shape[1] > 900
    assert picture.min() < 0.5


def test_without_a_front_end_display_gives_picture_and_line(monkeypatch) -> None:
    shown: list[dict[str, str]] = []
    monkeypatch.setattr("IPython.get_ipython", lambda: Shell({"allow_stdin": False}))
    monkeypatch.setattr(widgets, "display", lambda data, raw: shown.append(data))
    widget = workbench()
    widget.display()
    picture, line = shown
    assert b64decode(picture["image/png"]) == widget._repr_png_()
    assert line == {"text/plain": widget.line}
    assert widget._repr_mimebundle_() == picture


@pytest.mark.parametrize("make", ALL)
def test_with_a_front_end_the_picture_is_stored_for_later_readers(make, monkeypatch) -> None:
    monkeypatch.setattr("IPython.get_ipython", lambda: Shell({"allow_stdin": True}))
    widget = make()
    bundle = widget._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.widget.model_id
    assert b64decode(data["image/png"]) == widget._repr_png_()


@pytest.mark.parametrize("make", ALL)
def test_a_closed_widget_is_freed(make) -> None:
    before = set(ipywidgets.widgets.widget._instances)
    widget = make()
    reference = weakref.ref(widget)
    widget.close()
    assert set(ipywidgets.widgets.widget._instances) == before
    del widget
    gc.collect()
    assert reference() is None


NOTEBOOK = """
import viz
from tests.helpers.pictured import sensitivity
workbench = viz.Workbench(sensitivity())
workbench.display()
workbench
"""


@pytest.mark.slow
def test_an_executed_notebook_has_the_picture_and_no_widget(tmp_path) -> None:
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": NOTEBOOK, "outputs": [], "execution_count": None}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    convert = [sys.executable, "-m", "nbconvert", "--execute", "--output-dir", str(tmp_path), str(tmp_path / "a.ipynb")]
    options: dict[str, Any] = {"check": True, "capture_output": True}
    options["env"] = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}
    subprocess.run([*convert, "--to", "notebook", "--output", "b"], **options)
    outputs = json.loads((tmp_path / "b.ipynb").read_text())["cells"][0]["outputs"]
    assert [sorted(output["data"]) for output in outputs] == [
        ["image/png", "text/plain"],
        ["text/plain"],
        ["image/png", "text/plain"],
    ]
