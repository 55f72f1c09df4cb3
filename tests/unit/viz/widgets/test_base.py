"""What holds for every widget: a state, controls that change it, a picture that follows, somebody there or not."""

import dataclasses
import gc
import io
import json
import os
import subprocess
import sys
import weakref
from base64 import b64decode
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

import tlora
import viz
from tests.helpers.pictured import spectrum
from tests.helpers.results import base, calibration, subspaces
from tests.helpers.sensitivities import sensitivity as scored
from tlora.subspaces.task_subspaces import task_subspaces
from viz.widgets import base as widgets
from viz.widgets.canvas import Headline


@cache
def weight_subspaces() -> Any:
    return task_subspaces(base(), calibration(), max_rank=8, kind="w", progress=False)


def spectrum_explorer() -> viz.SpectrumExplorer:
    return viz.SpectrumExplorer(calibration(), subspaces(), weight_subspaces())


def alignment_explorer() -> viz.AlignmentExplorer:
    return viz.AlignmentExplorer(subspaces(), weight_subspaces(), calibrated_random(), progress=False)


@cache
def calibrated_random() -> Any:
    return task_subspaces(base(), calibration(), max_rank=8, kind="random", progress=False)


MOVES: dict[Callable[[], Any], dict[str, list[Any]]] = {
    spectrum_explorer: {"layer": [1], "projection": ["down_proj", "v_proj"], "kind": ["w", "wc"], "rank": [1, 8, 3]},
    alignment_explorer: {"right": ["random"], "left": ["w"], "rank": [1, 8, 5]},
}
"""Values to set, control by control; each changes the picture."""
EXPLORERS = list(MOVES)
ALL = [*EXPLORERS, viz.TrainingMonitor]


@pytest.fixture(autouse=True)
def _nothing_reaches_pyplot():
    before = plt.rcParams.copy()
    yield
    assert plt.get_fignums() == []
    assert plt.rcParams.copy() == before


def pixels(png: bytes) -> np.ndarray:
    return plt.imread(io.BytesIO(png))


@pytest.mark.parametrize("make", ALL)
def test_building_shows_nothing_and_makes_a_picture(make, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", lambda *args, **kwargs: shown.append(args))
    widget = make()
    assert not shown
    assert capsys.readouterr() == ("", "")
    picture = pixels(widget.image.value)
    assert picture.shape[1] == pytest.approx(float(widget.image.layout.width.removesuffix("px")) * 1.5, abs=2)
    assert picture.min() < 0.5 < picture.max()


@pytest.mark.parametrize("make", ALL)
def test_state_is_frozen(make):
    state = make().state
    for field in dataclasses.fields(state):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(state, field.name, None)


@pytest.mark.parametrize("make", EXPLORERS)
def test_every_move_changes_the_picture_and_the_state(make):
    explorer = make()
    for name, values in MOVES[make].items():
        for value in values:
            state, picture = explorer.state, explorer.image.value
            explorer.controls[name].value = value
            assert explorer.image.value != picture, (name, value)
            assert explorer.state != state
            assert explorer.message.value == ""


@pytest.mark.parametrize("make", EXPLORERS)
def test_a_picture_changed_in_place_is_the_one_drawn_afresh(make):
    """Nothing of the states on the way is left: compared pixel by pixel with a widget that went there at once."""
    wandered, direct = make(), make()
    for name, values in MOVES[make].items():
        for value in values:
            wandered.controls[name].value = value
    direct._ask(**{f.name: getattr(wandered.state, f.name) for f in dataclasses.fields(wandered.state)})
    assert direct.state == wandered.state
    np.testing.assert_array_equal(pixels(direct.image.value), pixels(wandered.image.value))


@pytest.mark.parametrize("make", EXPLORERS)
def test_going_back_gives_the_same_bytes(make):
    explorer = make()
    name = "rank"
    there = explorer.controls[name].value
    before, state = explorer.image.value, explorer.state
    explorer.controls[name].value = 3
    explorer.controls[name].value = there
    assert (explorer.image.value, explorer.state) == (before, state)


@pytest.mark.parametrize("make", EXPLORERS)
def test_the_same_state_gives_the_same_result(make):
    explorer = make()
    assert repr(explorer.result(explorer.state)) == repr(explorer.result(explorer.state))


@pytest.mark.parametrize("make", ALL)
def test_render_draws_on_the_axes_it_is_given(make):
    widget = make()
    figure, ax = plt.subplots()
    before = widget.image.value
    assert widget.render(widget.state, ax) is ax
    figure.canvas.draw()
    assert ax.get_figure() is figure
    assert widget.image.value == before
    assert not any(artist.get_animated() for artist in figure.findobj())
    plt.close(figure)


@pytest.mark.parametrize("make", ALL)
def test_on_dark_axes_texts_are_light(make):
    with plt.style.context("dark_background"):
        figure, ax = plt.subplots(figsize=(9, 4.5))
        widget = make()
        busy = {"status": "training"} if hasattr(widget.state, "status") else {}
        widget.render(dataclasses.replace(widget.state, **busy), ax)
        figure.canvas.draw()
        written = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        outside = [text for text in written if not getattr(text, "arrow_patch", None) and not text.get_path_effects()]
        dark = {text.get_text() for text in outside if sum(to_rgb(text.get_color())) < 0.6}
        assert not dark
        assert not any(panel.get_facecolor()[:3] == (1, 1, 1) for panel in figure.axes if panel.axison)
    plt.close(figure)


@pytest.mark.parametrize("part", ["result", "_update"])
@pytest.mark.parametrize("make", EXPLORERS)
def test_an_error_that_is_no_refusal_is_not_swallowed(make, part, monkeypatch):
    explorer = make()

    def broken(*args: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(explorer, part, broken)
    with pytest.raises(RuntimeError, match="broken"):
        explorer.controls["rank"].value = 3


@pytest.mark.parametrize("make", EXPLORERS)
def test_a_refusal_is_shown_as_text_and_goes_away(make, monkeypatch):
    explorer = make()
    state, picture, result = explorer.state, explorer.image.value, explorer.result

    def refuse(asked: Any) -> Any:
        if asked.rank == 3:
            raise ValueError("rank 3 is <odd>: take 4")
        return result(asked)

    monkeypatch.setattr(explorer, "result", refuse)
    explorer.controls["rank"].value = 3
    assert "rank 3 is &lt;odd&gt;: take 4" in explorer.message.value
    assert 'role="alert"' in explorer.message.value
    assert (explorer.state, explorer.image.value) == (state, picture)
    explorer.controls["rank"].value = 4
    assert explorer.message.value == ""
    assert explorer.state.rank == 4


@pytest.mark.parametrize("make", ALL)
def test_every_control_can_be_reached_and_says_what_it_is(make):
    """All controls are in what is shown, none is taken out of the order of Tab, each has a label or a tooltip."""
    widget = make()
    inside = [part for part in parts(widget.widget) if hasattr(part, "disabled")]
    assert set(map(id, getattr(widget, "controls", {}).values())) <= set(map(id, inside))
    assert inside
    for control in inside:
        assert control.tabbable is not False
        assert control.description.strip() or control.tooltip


def parts(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    return [widget, *(part for child in getattr(widget, "children", ()) for part in parts(child))]


class Shell:
    """What `get_ipython` gives in a kernel."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.kernel = self
        self.content = content

    def get_parent(self) -> dict[str, Any]:
        return {"content": self.content} if self.content else {}


@pytest.mark.parametrize(
    ("shell", "answer"),
    [
        (None, False),
        (object(), False),  # IPython in a terminal
        (Shell({"allow_stdin": True}), True),  # JupyterLab, Notebook, VS Code
        (Shell({"allow_stdin": False}), False),  # nbconvert, papermill, nbval
        (Shell({}), True),
    ],
)
def test_a_front_end_is_where_somebody_answers(shell, answer, monkeypatch):
    monkeypatch.setattr(widgets, "get_ipython", lambda: shell)
    assert widgets.front_end() is answer


@pytest.mark.parametrize("make", ALL)
def test_outside_of_ipython_display_gives_one_line(make, capsys):
    widget = make()
    widget.display()
    assert capsys.readouterr().out == f"{widget.line}\n"
    assert "\n" not in widget.line
    assert 5 < len(widget.line) < 400


@pytest.mark.parametrize("make", EXPLORERS)
def test_without_a_front_end_display_gives_picture_and_line(make, monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "get_ipython", lambda: Shell({"allow_stdin": False}))
    monkeypatch.setattr(widgets, "display", lambda data, raw: shown.append(data))
    widget = make()
    widget.display()
    picture, line = shown
    assert b64decode(picture["image/png"]) == widget.image.value
    assert line == {"text/plain": widget.line}
    assert widget._repr_mimebundle_() == picture
    assert widget._repr_png_() == widget.image.value


@pytest.mark.parametrize("make", EXPLORERS)
def test_with_a_front_end_the_picture_goes_along_for_later_readers(make, monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "get_ipython", lambda: Shell({"allow_stdin": True}))
    monkeypatch.setattr(widgets, "display", lambda data: shown.append(data))
    widget = make()
    widget.display()
    assert shown == [widget]
    bundle = widget._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.widget.model_id
    assert b64decode(bundle["image/png"]) == widget.image.value


NOTEBOOK = """
import viz
from tests.helpers.pictured import sensitivity
explorer = viz.Workbench(sensitivity())
explorer.display()
explorer
"""


@pytest.mark.slow
def test_an_executed_notebook_has_the_picture_and_no_widget(tmp_path):
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
    subprocess.run([*convert, "--to", "html", "--output", "c"], **options)
    page = (tmp_path / "c.html").read_text()
    assert page.count('<img alt="No description has been provided for this image"') == 2
    assert "Ranks from" in page


def test_spectrum_explorer_takes_a_spectrum_alone():
    assert viz.SpectrumExplorer(spectrum()).state.kind == "covariance"


def test_dollar_signs_in_a_headline_are_no_formula():
    figure = Figure()
    headline = Headline(figure.add_subplot())
    headline.write("costs_$5_{or_$6", "a {$1} and $2")
    FigureCanvasAgg(figure).draw()  # a formula would be parsed, and these cannot be
    assert headline.detail.get_text() == "a {$1} and $2"


def test_headlines_of_widgets_end_within_the_picture():
    headline = Headline(plt.figure(figsize=(9, 4)).add_subplot())
    headline.write("a finding", "a task with a very long name " * 9)
    assert headline.detail.get_text().endswith(" …")
    assert headline.detail.get_window_extent().x1 <= headline.detail.figure.bbox.x1
    plt.close("all")


def test_a_closed_explorer_is_freed():
    it = viz.Workbench(scored([8.0, 1.0, 3.0, 4.0, 2.0, 6.0]), rank=4)
    seen = weakref.ref(it)
    it.close()
    del it
    gc.collect()
    assert seen() is None


def test_closing_leaves_no_widget():
    before = set(ipywidgets.widgets.widget._instances)
    viz.Workbench(scored([8.0, 1.0, 3.0, 4.0, 2.0, 6.0]), rank=4).close()
    viz.TrainingMonitor().close()
    assert set(ipywidgets.widgets.widget._instances) == before


def test_bases_that_are_too_few_are_named_as_what_to_raise():
    few = task_subspaces(base(), calibration(), max_rank=2, progress=False)
    with pytest.raises(ValueError, match=r"make subspaces of more than 2 directions, tlora\.task_subspaces\("):
        viz.Workbench(calibration().sensitivity, few, rank=4)


def test_arguments_of_explorers_are_checked():
    scores = calibration().sensitivity
    with pytest.raises(TypeError, match="subspaces is a Calibration"):
        viz.Workbench(scores, calibration())
    with pytest.raises(TypeError, match="exclude_modules=None: pass module names"):
        tlora.allocate(scores, rank=4, exclude_modules=None)
    assert "alpha=16.0" in viz.Workbench(scores, rank=4, alpha=np.float64(16)).code()
    sides = [task_subspaces(base(), calibration(), max_rank=2, kind=kind, progress=False) for kind in ("wc", "w")]
    with pytest.raises(ValueError, match="2 sides are called a, b, b"):
        viz.AlignmentExplorer(*sides, labels=["a", "b", "b"])
