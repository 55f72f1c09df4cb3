"""Pictures and widgets agree with the numbers they show, whatever settings the user has."""

from __future__ import annotations

import dataclasses
import gc
import io
import weakref

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

import tlora
import viz
from tests.pictured import PLOTS, allocation, gradient_capture, spectrum
from tests.results import base, calibration
from tests.sensitivities import sensitivity
from tests.unit.test_widgets_training import train
from tlora.allocation.footprint import size_text
from tlora.subspaces.subspaces import task_subspaces
from viz import style
from viz.plots.allocation import finding
from viz.widgets.training import MonitorState, places


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    plt.close("all")


def tied() -> tlora.Allocation:
    return tlora.allocate(sensitivity([8.0, 1.0, 8.0, 1.0, 8.0, 1.0]), rank=4, max_rank=6)


def test_a_plan_is_told_with_its_ties_and_what_is_left_out():
    assert finding(tied()).endswith("most to 3 modules")
    plan = tlora.allocate(sensitivity([8.0, 1.0, 3.0, 4.0, 2.0, 6.0]), rank=4, ranks=False, exclude=["k_proj"])
    assert finding(plan) == "Every module that is not excluded gets rank 6"


def test_energy_of_known_directions_is_no_share_of_all():
    """The matrix has more than four: all of what four hold of what four hold is no 100 %."""
    known = viz.SpectrumExplorer(task_subspaces(base(), calibration(), max_rank=4, progress=False), rank=4)
    assert known.line.startswith("The first 4 directions hold 100 % of the known energy and ")
    assert viz.SpectrumExplorer(calibration(), rank=4).line.count("known") == 0


def test_a_median_over_inputs_of_many_lengths_holds_no_less_the_more_directions():
    some = spectrum("30 layers")
    own = {name: name for name in some.inputs}
    values = {name: torch.linspace(2, 1, length) for length, name in enumerate(own, 6)}
    many = dataclasses.replace(
        some, inputs=own, eigenvalues=values, traces={n: float(v.sum()) for n, v in values.items()}
    )
    many = dataclasses.replace(many, dimensions={name: len(v) for name, v in values.items()})
    for line in viz.plot_spectrum(many).get_lines():
        assert (np.diff(np.asarray(line.get_ydata(), float)) > -1e-9).all()
    shortest = min(map(len, values.values()))
    singles = [line for line in viz.plot_spectrum(many, view="eigenvalues").get_lines() if len(line.get_xdata()) > 2]
    assert max(max(line.get_xdata()) for line in singles) < shortest + len(own)
    assert all((np.diff(np.asarray(line.get_ydata(), float)) < 1e-9).all() for line in singles)


def test_steps_that_were_not_logged_were_done_all_the_same():
    run = train(steps=3, logging_steps=50)
    silent = dataclasses.replace(run, before={"loss": 2.0}, after={"loss": 1.0})
    assert silent.steps == 3
    (diamonds,) = [line for line in viz.plot_training(silent).get_lines() if line.get_marker() == "D"]
    assert diamonds.get_xdata().tolist() == [0, silent.steps]


def test_encoder_and_decoder_are_told_apart_where_their_names_begin_alike():
    names = [f"model.{side}.layers.0.fc1" for side in ("encoder", "decoder")]
    assert [role for _, role in places(tuple(names))] == ["encoder.fc1", "decoder.fc1"]


def test_a_kind_has_one_colour_in_all_pictures():
    shown = []
    for order in (("wc", "random"), ("random", "wc")):
        subspaces = {k: task_subspaces(base(), calibration(), max_rank=2, kind=k, progress=False) for k in order}
        energy = tlora.captured_energy(base(), calibration(), subspaces, ranks=[1, 2], progress=False)
        ax = viz.plot_alignment(energy)
        shown.append({bars.get_label(): bars.lines[0].get_color() for bars in ax.containers})
    assert shown[0] == shown[1]


@pytest.mark.parametrize("settings", [{"image.origin": "lower"}, {"axes.grid": True}, "dark_background"])
def test_settings_of_the_user_change_no_picture(settings):
    def drawn() -> list[bytes]:
        explorers = [
            viz.AllocationExplorer(None, sensitivity([8.0, 1.0, 3.0, 4.0, 2.0, 6.0]), rank=4),
            viz.SpectrumExplorer(calibration()),
        ]
        found = [it.image.value for it in explorers]
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


def test_headlines_of_widgets_end_within_the_picture():
    long = sensitivity([8.0, 1.0, 3.0, 4.0, 2.0, 6.0])
    long = dataclasses.replace(long, meta=dataclasses.replace(long.meta, task="a task with a very long name " * 9))
    it = viz.AllocationExplorer(None, long, rank=4)
    text = it._drawn.headline.detail
    assert text.get_text().endswith(" …")
    assert text.get_window_extent().x1 <= it._canvas.figure.bbox.x1


def test_numbers_are_rounded_before_their_form_is_chosen():
    assert [style.number(x) for x in (999.4, 999.7, 1234)] == ["999", "1,000", "1,230"]
    assert [size_text(x) for x in (999, 999_700, 999_700_000)] == ["999 bytes", "1 MB", "1 GB"]


def test_a_closed_monitor_does_not_stop_training():
    monitor = viz.TrainingMonitor()
    assert monitor.cost == 0
    ipywidgets.Widget.close_all()
    assert train(monitor, steps=2).steps == 2


def test_a_closed_explorer_is_freed():
    it = viz.AllocationExplorer(None, sensitivity([8.0, 1.0, 3.0, 4.0, 2.0, 6.0]), rank=4)
    seen = weakref.ref(it)
    it.close()
    del it
    gc.collect()
    assert seen() is None


def test_closing_leaves_no_widget():
    before = set(ipywidgets.widgets.widget._instances)
    viz.AllocationExplorer(None, sensitivity([8.0, 1.0, 3.0, 4.0, 2.0, 6.0]), rank=4).close()
    viz.TrainingMonitor().close()
    assert set(ipywidgets.widgets.widget._instances) == before


def experts(count: int) -> tuple[str, ...]:
    return tuple(f"model.layers.{i}.mlp.experts.{e}.{p}_proj" for i in range(2) for e in range(count) for p in "ab")


def test_legends_of_a_monitor_are_within_the_figure_and_apart():
    modules = experts(12)
    updates = tuple(np.linspace(0.01, 0.02, len(modules)))
    state = MonitorState("training", 1, 2, losses=((1, 1.0),), modules=modules, updates=updates)
    ax = viz.TrainingMonitor().render(state, plt.subplots(figsize=(8, 4.4))[1])
    ax.figure.canvas.draw()
    legends = [part.get_legend() for part in (ax, *ax.figure.axes) if part.get_legend()]
    boxes = {id(legend): legend.get_window_extent() for legend in legends}
    assert len(boxes) == 2
    assert not boxes.popitem()[1].overlaps(boxes.popitem()[1])
    assert max(legend.get_window_extent().x1 for legend in legends) <= ax.figure.bbox.x1
    assert [text.get_text() for text in legends[-1].get_texts()][-2:] == ["8.b_proj", "and 6 more"]


def test_what_is_shown_can_be_chosen_while_something_else_cannot_be_met():
    it = viz.AllocationExplorer(None, sensitivity([8.0, 1.0, 3.0, 4.0, 2.0, 6.0]), rank=4)
    it.controls["max_rank"].value = 2
    assert "room for" in it.message.value
    it.controls["view"].value = "change since the kept plan"
    assert it.state.view == "change since the kept plan"
    assert "room for" in it.message.value


def test_bases_that_are_too_few_are_named_as_what_to_raise():
    few = task_subspaces(base(), calibration(), max_rank=2, progress=False)
    with pytest.raises(ValueError, match=r"make subspaces of more than 2 directions, tlora\.task_subspaces\("):
        viz.AllocationExplorer(few, calibration().sensitivity, rank=4)


def test_arguments_of_explorers_are_checked():
    scores = calibration().sensitivity
    with pytest.raises(TypeError, match="subspaces are a Calibration"):
        viz.AllocationExplorer(calibration(), scores)
    with pytest.raises(TypeError, match="exclude=None: pass module names"):
        tlora.allocate(scores, rank=4, exclude=None)
    assert "alpha=16.0" in viz.AllocationExplorer(None, scores, rank=4, alpha=np.float64(16)).code()
    sides = [task_subspaces(base(), calibration(), max_rank=2, kind=kind, progress=False) for kind in ("wc", "w")]
    with pytest.raises(ValueError, match="2 sides are called a, b, b"):
        viz.AlignmentExplorer(*sides, labels=["a", "b", "b"])
