"""The picture of a spectrum: curves, bands, effective ranks, and truncated spectra."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import viz
from tests.helpers.experts import routed
from tests.helpers.pictured import META, spectrum, texts
from tests.helpers.targets import named, target
from tlora.calibration.spectrum import Spectrum
from viz import style


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


def test_each_input_gets_a_curve_where_there_are_few():
    result = spectrum("2 layers")
    ax = viz.plot_spectrum(result)
    lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert len(lines) == 2 * 5
    line = lines["layer 1 q_proj, k_proj, v_proj"]
    expected = result.curves(["layers.1.q_proj"])
    np.testing.assert_array_equal(line.get_xdata(), expected["direction"])
    np.testing.assert_allclose(line.get_ydata(), expected["cumulative"])


def test_many_inputs_are_summed_up_by_projection():
    result = spectrum("30 layers")
    ax = viz.plot_spectrum(result, view="eigenvalues")
    lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["q_proj, k_proj, v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    shares = [v / v.sum() for n, v in result.eigenvalues.items() if n.endswith("down_proj")]
    np.testing.assert_allclose(lines["down_proj"].get_ydata(), np.median(shares, axis=0), rtol=1e-5)
    assert len(ax.collections) == 5  # the bands


@pytest.mark.parametrize("view", ["variance", "effective_rank"])
def test_all_experts_of_a_parameter_are_one_line_without_those_that_read_nothing(view):
    result = routed(experts=16).spectrum()
    assert 0 in result.effective_rank.values()
    ax = viz.plot_spectrum(result, view=view)
    lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["q_proj, k_proj, v_proj", "o_proj", "experts.gate_up_proj", "experts.down_proj"]
    if view == "effective_rank":
        by_layer = [
            [r for n, r in result.effective_rank.items() if f"layers.{layer}.mlp.experts.down_proj" in n and r]
            for layer in (0, 1)
        ]
        np.testing.assert_allclose(lines["experts.down_proj"].get_ydata(), [np.median(ranks) for ranks in by_layer])
    assert not ax.get_title(loc="left").startswith("Effective rank 0 ")


def test_effective_ranks_over_layers():
    result = spectrum("30 layers")
    ax = viz.plot_spectrum(result, view="effective_rank")
    line = next(line for line in ax.lines if line.get_label() == "o_proj")
    expected = [result.effective_rank[f"layers.{layer}.o_proj"] for layer in range(30)]
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_spectrum_of_selected_modules():
    result = spectrum("30 layers")
    ax = viz.plot_spectrum(result, modules=["layers.3.k_proj"])
    assert next(line.get_label() for line in ax.lines) == "layer 3 k_proj"
    rank = style.number(result.effective_rank["layers.3.k_proj"])
    assert ax.get_title(loc="left") == f"The effective rank of layer 3 k_proj is {rank} of 40"


def test_long_curves_are_thinned_and_keep_their_ends():
    values = torch.arange(1, 5001).float() ** -1
    one = named(target("m", 0, "o"))
    result = Spectrum(one, {"m": values}, {"m": float(values.sum())}, {"m": 5000}, {"m": "m"}, "covariance", META)
    x = viz.plot_spectrum(result).lines[0].get_xdata()
    assert len(x) <= 151
    assert (x[0], x[-1]) == (1, 5000)


@pytest.mark.parametrize(
    ("trace", "k", "words"),
    [(None, 40, ""), (None, 4, "upper bounds"), (float("nan"), 4, "lower bounds")],
)
def test_a_truncated_spectrum_says_which_way_its_figures_err(trace, k, words):
    ax = viz.plot_spectrum(spectrum(k=k, trace=trace))
    assert words in texts(ax)[-1]
    assert ("bounds" in texts(ax)[-1]) == bool(words)
    assert ("known directions" in ax.get_ylabel()) == (words == "lower bounds")


def test_an_input_without_variance_is_no_unknown_trace():
    some = spectrum("30 layers")
    dead = "layers.3.down_proj"
    ax = viz.plot_spectrum(
        dataclasses.replace(
            some,
            eigenvalues=some.eigenvalues | {dead: torch.zeros(40)},
            traces=some.traces | {dead: 0.0},
        )
    )
    assert "bounds" not in texts(ax)[-1]


def test_a_single_direction_is_a_point():
    ax = viz.plot_spectrum(spectrum(k=1))
    curves = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert len(curves) == 10
    assert {line.get_marker() for line in curves} == {"o"}


def test_bad_choices_for_a_spectrum_are_refused():
    with pytest.raises(ValueError, match="view is 'log'"):
        viz.plot_spectrum(spectrum(), view="log")
    with pytest.raises(KeyError, match=r"nowhere.*layers\.0\.q_proj"):
        viz.plot_spectrum(spectrum(), modules=["nowhere"])
    with pytest.raises(ValueError, match="modules is empty"):
        viz.plot_spectrum(spectrum(), modules=[])
    assert not plt.get_fignums()


@pytest.mark.parametrize("view", ["variance", "effective_rank"])
def test_a_legend_of_many_inputs_is_as_long_as_there_is_room(view):
    targets = named(*(target(f"layers.{layer}.p{n}", layer, f"p{n}") for layer in range(2) for n in range(30)))
    values = torch.arange(1, 9).flip(0).float()
    found = Spectrum(
        targets, dict.fromkeys(targets, values), dict.fromkeys(targets, 36.0), dict.fromkeys(targets, 8),
        {name: name for name in targets}, "covariance", META,
    )  # fmt: skip
    ax = viz.plot_spectrum(found, view=view)
    ax.figure.canvas.draw()
    assert [text.get_text() for text in ax.get_legend().get_texts()][-1] == "and 13 more"
    box = ax.get_legend().get_window_extent()
    assert ax.figure.bbox.y0 <= box.y0
    assert box.x1 <= ax.figure.bbox.x1
    assert style.inches(ax) > 4
