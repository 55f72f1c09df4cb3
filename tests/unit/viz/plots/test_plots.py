"""What holds for every picture: where it draws, what it says, and that matplotlib's settings are left unchanged."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from itertools import pairwise

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text

import tlora
import viz
from tests.helpers.models import tiny_batch
from tests.helpers.pictured import MODELS, PLOTS, allocation, gradient_capture, texts, training_run
from tests.helpers.results import base, calibration
from tests.helpers.sensitivities import sensitivity
from tlora.subspaces.task_subspaces import task_subspaces
from viz import style

BY_MODEL = [viz.plot_spectrum, viz.plot_sensitivity, viz.plot_alignment, viz.plot_allocation]


@pytest.fixture(autouse=True)
def _settings_are_left_unchanged():
    before = plt.rcParams.copy()
    yield
    assert plt.rcParams.copy() == before


@pytest.mark.parametrize("plot", PLOTS)
def test_it_draws_on_axes_of_the_user_s(plot):
    other, (_, ax) = plt.figure(), plt.subplots()
    numbers, current = plt.get_fignums(), plt.gcf()
    assert plot(PLOTS[plot](), ax=ax) is ax
    assert plt.get_fignums() == numbers
    assert plt.gcf() is current
    assert not other.axes
    assert ax.has_data()


@pytest.mark.parametrize("plot", PLOTS)
def test_it_makes_a_labeled_figure_with_its_finding_as_title(plot):
    ax = plot(PLOTS[plot]())
    assert plt.get_fignums() == [ax.figure.number]
    assert ax.figure.get_figwidth() <= 9
    assert ax.get_title(loc="left")
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert any("smollm2-135m, family_relationships" in text.replace("\n", " ") for text in texts(ax))
    ax.figure.canvas.draw()
    title = next(t for t in ax.findobj(Text) if t.get_text() == ax.get_title(loc="left"))
    boxes = [ax.texts[-1].get_window_extent(), *(part.bbox for part in ax.figure.axes if part.axison)]
    assert not any(title.get_window_extent().overlaps(box) for box in boxes)
    assert not any(boxes[0].overlaps(box) for box in boxes[1:])


@pytest.mark.parametrize("plot", PLOTS)
def test_another_object_and_other_axes_are_refused(plot):
    with pytest.raises(TypeError, match="is a dict: pass"):
        plot({})
    with pytest.raises(TypeError, match=r"plt\.subplots"):
        plot(PLOTS[plot](), ax=plt.subplots(1, 2)[1])


@pytest.mark.parametrize("plot", BY_MODEL)
@pytest.mark.parametrize("model", MODELS)
def test_everything_is_inside_the_figure_and_no_labels_overlap(plot, model):
    ax = plot(PLOTS[plot](model))
    ax.figure.canvas.draw()
    width, height = ax.figure.bbox.size
    for part in ax.figure.axes:
        box = part.get_tightbbox()
        assert (box.x0 >= 0, box.y0 >= 0, box.x1 <= width, box.y1 <= height) == (True,) * 4
    for axis in (ax.xaxis, ax.yaxis):
        labels = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
        assert labels
        assert not any(a.overlaps(b) for a, b in pairwise(labels))


@pytest.mark.parametrize("plot", [viz.plot_attribution, viz.plot_side_effects])
@pytest.mark.parametrize("sample", [99, -99])
def test_a_sample_that_is_not_there_is_refused(plot, sample):
    with pytest.raises(ValueError, match=rf"sample={sample} .* from 0 to \d+$"):
        plot(PLOTS[plot](), sample)


def test_dollar_signs_in_a_name_are_not_a_formula():
    run = training_run()
    meta = dataclasses.replace(run.meta, task="costs_$5_{or_$6")
    ax = viz.plot_training(dataclasses.replace(run, meta=meta))
    ax.figure.canvas.draw()  # a formula would be parsed, and this one cannot be
    assert any("costs_$5_{or_$6" in text for text in texts(ax))


@pytest.mark.slow
def test_importing_viz_leaves_backend_and_settings_unchanged():
    code = (
        "import matplotlib; matplotlib.use('svg'); before = matplotlib.rcParams.copy(); import viz;"
        "assert matplotlib.get_backend() == 'svg'; assert matplotlib.rcParams.copy() == before;"
        "import matplotlib.pyplot as plt; assert plt.get_fignums() == []"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_kind_has_one_color_in_all_pictures():
    shown = []
    for order in (("wc", "random"), ("random", "wc")):
        subspaces = {k: task_subspaces(base(), calibration(), max_rank=2, kind=k, progress=False) for k in order}
        capture = tlora.gradient_capture(base(), [tiny_batch("llama")], subspaces, [1, 2], progress=False)
        ax = viz.plot_alignment(capture)
        shown.append({bars.get_label(): bars.lines[0].get_color() for bars in ax.containers})
    assert shown[0] == shown[1]


def test_settings_of_the_user_change_no_picture():
    made = {plot: make() for plot, make in PLOTS.items()}

    def draw() -> list[bytes]:
        pictures = [viz.Workbench(sensitivity([8.0, 1.0, 3.0, 4.0, 2.0, 6.0]), rank=4)._repr_png_()]
        for plot, result in made.items():
            file = io.BytesIO()
            plot(result).figure.savefig(file, format="png", dpi=40)
            plt.close("all")
            pictures.append(file.getvalue())
        return pictures

    plain = draw()
    for settings in ({"image.origin": "lower", "axes.grid": True}, "dark_background"):
        with plt.style.context(settings):
            assert draw() == plain


def test_lines_are_visible_on_dark_axes():
    with plt.style.context("dark_background"):
        ax = viz.plot_alignment(gradient_capture(), ax=plt.subplots()[1])
        drawn = {line.get_label(): to_rgb(line.get_color()) for line in ax.get_lines()}
        assert drawn["by chance"] == drawn["best possible"] == (1, 1, 1)
        ax = viz.plot_allocation(allocation(), ax=plt.subplots()[1])
        assert to_rgb(ax.figure.axes[1].patches[-1].get_edgecolor()) == (1, 1, 1)


def test_what_a_backend_sets_with_the_first_picture_stays():
    @style.styled
    def first_picture():
        plt.rcParams["interactive"] = True  # as the backend of Jupyter does, without which it shows no later figure

    with plt.rc_context({"interactive": False}):
        first_picture()
        assert plt.rcParams["interactive"]


def test_latex_of_the_user_s_settings_is_not_used():
    with plt.rc_context({"text.usetex": True}):
        ax = viz.plot_training(training_run())
        assert not any(text.get_usetex() for text in ax.figure.findobj(Text))
        assert plt.rcParams["text.usetex"]
