"""What holds for every picture: where it draws, and that nothing of matplotlib is left changed."""

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
from tlora.allocation.footprint import size_text
from tlora.subspaces.task_subspaces import task_subspaces
from viz import style

BY_MODEL = [viz.plot_spectrum, viz.plot_sensitivity, viz.plot_alignment, viz.plot_allocation]


@pytest.mark.parametrize("plot", PLOTS)
def test_draws_on_the_axes_it_is_given_and_leaves_settings_and_figures_alone(plot):
    other, (_, ax) = plt.figure(), plt.subplots()
    before, numbers, current = plt.rcParams.copy(), plt.get_fignums(), plt.gcf()
    assert plot(PLOTS[plot](), ax=ax) is ax
    assert plt.rcParams.copy() == before
    assert plt.get_fignums() == numbers
    assert plt.gcf() is current
    assert not other.axes
    assert ax.has_data()


@pytest.mark.parametrize("plot", PLOTS)
def test_makes_a_figure_of_its_own_where_it_is_given_no_axes(plot):
    before = plt.rcParams.copy()
    ax = plot(PLOTS[plot]())
    assert plt.get_fignums() == [ax.figure.number]
    assert plt.rcParams.copy() == before
    assert ax.figure.get_figwidth() <= 9
    assert ax.get_title(loc="left")
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert any("smollm2-135m, family_relationships" in text.replace("\n", " ") for text in texts(ax))


@pytest.mark.parametrize("plot", PLOTS)
def test_settings_are_put_back_after_an_error_too(plot):
    before = plt.rcParams.copy()
    with pytest.raises(TypeError):
        plot("adapter/")
    assert plt.rcParams.copy() == before
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("plot", "words"),
    [
        (viz.plot_spectrum, r"expected a Spectrum, got a dict: pass calibration\.spectrum\(\)"),
        (viz.plot_sensitivity, r"expected a Sensitivity, got a dict: pass calibration\.sensitivity"),
        (viz.plot_alignment, r"expected a GradientCapture, got a dict: pass the result of tlora\.align"),
        (viz.plot_allocation, r"expected an Allocation, got a dict: pass tlora\.allocate"),
        (viz.plot_training, r"expected a TrainingRun, got a dict: pass the result of tlora\.train"),
    ],
)
def test_another_object_is_refused_with_what_to_pass(plot, words):
    with pytest.raises(TypeError, match=words):
        plot({})


@pytest.mark.parametrize("plot", PLOTS)
def test_axes_that_are_none_are_refused(plot):
    with pytest.raises(TypeError, match=r"expected an Axes, got a ndarray.*plt\.subplots"):
        plot(PLOTS[plot](), ax=plt.subplots(1, 2)[1])


@pytest.mark.parametrize("plot", BY_MODEL)
@pytest.mark.parametrize("model", MODELS)
def test_everything_is_inside_the_figure_and_no_layer_labels_overlap(plot, model):
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


@pytest.mark.parametrize("plot", PLOTS)
def test_headline_covers_nothing(plot):
    ax = plot(PLOTS[plot]())
    ax.figure.canvas.draw()
    title = next(t for t in ax.findobj(Text) if t.get_text() == ax.get_title(loc="left"))
    boxes = [ax.texts[-1].get_window_extent(), *(part.bbox for part in ax.figure.axes if part.axison)]
    assert not any(title.get_window_extent().overlaps(box) for box in boxes)
    assert not any(boxes[0].overlaps(box) for box in boxes[1:])


def test_dollar_signs_in_a_name_are_no_formula():
    run = training_run()
    meta = dataclasses.replace(run.meta, task="costs_$5_{or_$6")
    ax = viz.plot_training(dataclasses.replace(run, meta=meta))
    ax.figure.canvas.draw()  # a formula would be parsed, and this one cannot be
    assert any("costs_$5_{or_$6" in text for text in texts(ax))


@pytest.mark.slow
def test_importing_viz_leaves_backend_and_settings_alone():
    code = (
        "import matplotlib; matplotlib.use('svg'); before = matplotlib.rcParams.copy(); import viz;"
        "assert matplotlib.get_backend() == 'svg'; assert matplotlib.rcParams.copy() == before;"
        "import matplotlib.pyplot as plt; assert plt.get_fignums() == []"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.01234, "0.0123"),
        (1.234, "1.2"),
        (12.34, "12.3"),
        (1234, "1,230"),
        (1.2e7, "1.2e+07"),
        (0, "0"),
        (2e-6, "2e-06"),
    ],
)
def test_number(value, words):
    assert style.number(value) == words


@pytest.mark.parametrize(("share", "words"), [(0.0312, "3.1 %"), (0.4249, "42 %"), (0.0999, "10 %"), (0, "0 %")])
def test_percent(share, words):
    assert style.percent(share) == words


def test_joined_says_a_common_beginning_once():
    assert style.join_labels(["encoder.q", "encoder.k", "encoder.k", "o"]) == "encoder.q, k, o"
    assert style.join_labels(["q_proj", "k_proj"]) == "q_proj, k_proj"


def test_colours_and_dashes_tell_twenty_lines_apart():
    looks = list(zip(style.colors(20), style.dashes(20), strict=True))
    assert len(set(looks)) == 20


def test_a_kind_has_one_colour_in_all_pictures():
    shown = []
    for order in (("wc", "random"), ("random", "wc")):
        subspaces = {k: task_subspaces(base(), calibration(), max_rank=2, kind=k, progress=False) for k in order}
        capture = tlora.gradient_capture(base(), [tiny_batch("llama")], subspaces, [1, 2], progress=False)
        ax = viz.plot_alignment(capture)
        shown.append({bars.get_label(): bars.lines[0].get_color() for bars in ax.containers})
    assert shown[0] == shown[1]


@pytest.mark.parametrize("settings", [{"image.origin": "lower", "axes.grid": True}, "dark_background"])
def test_settings_of_the_user_change_no_picture(settings):
    def drawn() -> list[bytes]:
        explorers = [
            viz.Workbench(sensitivity([8.0, 1.0, 3.0, 4.0, 2.0, 6.0]), rank=4),
            viz.SpectrumExplorer(calibration()),
        ]
        found = [it._repr_png_() for it in explorers]
        for plot, make in PLOTS.items():
            file = io.BytesIO()
            plot(make()).figure.savefig(file, format="png", dpi=40)
            found.append(file.getvalue())
        return found

    plain = drawn()
    with plt.style.context(settings):
        assert drawn() == plain


def test_lines_that_a_legend_names_are_seen_on_dark_paper():
    with plt.style.context("dark_background"):
        ax = viz.plot_alignment(gradient_capture(), ax=plt.subplots()[1])
        drawn = {line.get_label(): to_rgb(line.get_color()) for line in ax.get_lines()}
        assert drawn["by chance"] == drawn["best possible"] == (1, 1, 1)
        ax = viz.plot_allocation(allocation(), ax=plt.subplots()[1])
        assert to_rgb(ax.figure.axes[1].patches[-1].get_edgecolor()) == (1, 1, 1)
    plt.close("all")


def test_numbers_are_rounded_before_their_form_is_chosen():
    assert [style.number(x) for x in (999.4, 999.7, 1234)] == ["999", "1,000", "1,230"]
    assert [size_text(x) for x in (999, 999_700, 999_700_000)] == ["999 bytes", "1 MB", "1 GB"]


def test_what_a_backend_sets_when_the_first_picture_starts_it_stays():
    @style.styled
    def first_picture():
        plt.rcParams["interactive"] = True  # as the backend of Jupyter does, without which it shows no later figure

    with plt.rc_context({"interactive": False}):
        first_picture()
        assert plt.rcParams["interactive"]


def test_settings_are_put_back_after_an_error():
    @style.styled
    def broken():
        assert plt.rcParams["legend.frameon"] is False
        raise KeyError

    before = plt.rcParams.copy()
    with pytest.raises(KeyError):
        broken()
    assert plt.rcParams.copy() == before


def test_latex_of_the_users_settings_is_none_of_the_pictures():
    with plt.rc_context({"text.usetex": True}):
        ax = viz.plot_training(training_run())
        assert not any(text.get_usetex() for text in ax.figure.findobj(Text))
        assert plt.rcParams["text.usetex"]
