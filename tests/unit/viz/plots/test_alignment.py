"""What the pictures of alignment show equals the tables of their results."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

import viz
from tests.helpers.pictured import MODELS, alignment, captured_energy, cells, gradient_capture, layer_alignment, texts
from tests.helpers.results import base, calibration
from tlora.subspaces.subspaces import task_subspaces
from viz import style


def title(ax):
    return ax.get_title(loc="left").replace("\n", " ")


def detail(ax):
    return texts(ax)[-1].replace("\n", " ")


CURVES = {"gradient": gradient_capture, "energy": captured_energy}
OTHERS = {**CURVES, "layers": lambda: layer_alignment(30)}


@pytest.mark.parametrize("model", MODELS)
def test_cells_are_the_overlaps(model):
    result = alignment(model)
    ax = viz.plot_alignment(result)
    projections, layers = MODELS[model]
    expected = [[result.overlap[f"layers.{layer}.{p}"] for layer in range(layers)] for p in projections]
    np.testing.assert_allclose(cells(ax), expected)
    mesh = ax.collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0, 1)
    marks = [line.get_ydata()[0] for line in ax.figure.axes[1].lines]
    assert sorted(marks) == sorted(set(result.random.values()))


def test_the_marks_of_chance_stand_beside_the_colour_bar():
    ax = viz.plot_alignment(layer_alignment(2))
    ax.figure.canvas.draw()
    bar = ax.figure.axes[1]
    (mark,) = bar.lines
    box = mark.get_window_extent()
    middle = bar.transData.transform((0, mark.get_ydata()[0]))[1]
    assert ax.bbox.x1 < box.x0 < box.x1 <= bar.bbox.x0 + 0.5
    assert (box.y0 + box.y1) / 2 == pytest.approx(middle, abs=0.5)
    assert bar.get_ylabel() == "overlap (arrow: by chance)"
    assert viz.plot_alignment(alignment("30 layers")).figure.axes[1].get_ylabel() == "overlap (arrows: by chance)"


def test_the_title_says_how_much_and_the_cells_in_percent():
    result = alignment("30 layers")
    ax = viz.plot_alignment(result)
    overlaps = result.overlap
    assert title(ax) == f"wc and g overlap by {style.percent(np.mean(list(overlaps.values())))} on average at rank 8"
    top = max(overlaps, key=overlaps.__getitem__)
    assert f"{style.percent(overlaps[top])} (layer {result.layers[top]} {result.projections[top]})" in detail(ax)
    assert "by chance 0.52 % to 1.4 %" in detail(ax)
    assert texts(ax)[:-1] == [f"{100 * value:.0f}" for value in overlaps.values()]
    assert len(texts(viz.plot_alignment(alignment("80 layers")))) == 1


@pytest.mark.parametrize("layers", [2, 30, 80])
def test_pairs_of_layers(layers):
    result = layer_alignment(layers)
    ax = viz.plot_alignment(result)
    np.testing.assert_allclose(cells(ax), result.overlap)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the diagonal falls
    assert ax.get_xlabel() == ax.get_ylabel() == "layer"
    apart = result.overlap[~torch.eye(layers, dtype=torch.bool)].mean()
    assert title(ax) == f"Layers overlap by {style.percent(float(apart))} on average in q_proj at rank 8"
    assert "by chance 1.4 %" in detail(ax)
    assert "kind wc" in detail(ax)
    assert texts(ax)[:-1] == (["100", "85", "85", "100"] if layers == 2 else [])


@pytest.mark.parametrize("source", CURVES)
@pytest.mark.parametrize("ranks", [(8,), (8, 32), (2, 4, 8, 16, 32, 64)])
def test_curves_are_the_shares_with_their_intervals(source, ranks):
    result = CURVES[source]("30 layers", ranks)
    ax = viz.plot_alignment(result)
    table = result.overall()
    drawn = {bars.get_label(): bars for bars in ax.containers}
    assert set(drawn) == set(result.kinds)
    for kind, bars in drawn.items():
        rows = table[table["kind"] == kind]
        line, _, (segments,) = bars
        np.testing.assert_allclose(line.get_xydata(), rows[["rank", "captured"]])
        ends = np.array([segment[:, 1] for segment in segments.get_segments()])
        np.testing.assert_allclose(ends, rows[["low", "high"]], atol=1e-12)
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["by chance"].get_ydata(), table.groupby("rank")["random"].first())
    best = table.groupby("rank")["best"].first() if source == "gradient" else [1] * len(ranks)
    np.testing.assert_allclose(lines["best possible"].get_ydata(), best)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    shares = table[table["rank"] == ranks[-1]].set_index("kind")["captured"]
    assert [label.split(" (")[0] for label in labels] == [
        "best possible",
        *shares.sort_values(ascending=False).index,
        "by chance",
    ]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [str(rank) for rank in ranks]


def test_chance_is_seen_on_the_kind_that_holds_what_chance_gives():
    ax = viz.plot_alignment(captured_energy())
    kinds = {bars.get_label(): bars.lines[0] for bars in ax.containers}
    chance = next(line for line in ax.lines if line.get_label() == "by chance")
    broad = kinds.pop("random")
    assert all(broad.get_zorder() < line.get_zorder() < chance.get_zorder() for line in kinds.values())
    assert all(broad.get_linewidth() > 2 * line.get_linewidth() for line in [chance, *kinds.values()])
    assert len(set(to_rgb(broad.get_color()))) == 1  # a grey


def test_curves_of_many_ranks_label_the_ends():
    ax = viz.plot_alignment(gradient_capture(ranks=tuple(range(1, 41))))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "40"]


def test_the_titles_of_the_curves():
    capture, energy = gradient_capture(), captured_energy()
    table = capture.overall().query("rank == 8").set_index("kind")
    ax = viz.plot_alignment(capture)
    shares = [style.percent(table.loc[kind, "captured"]) for kind in ("g", "c", "wc", "wc_half")]
    expected = "At rank 8, g holds {} of the held-out gradient, c {}, wc {}, wc_half {}".format(*shares)
    assert title(ax) == expected
    assert "14 modules together, bars: 95 % intervals" in detail(ax)
    assert "at best 95 %, by chance 1.4 %" in detail(ax)
    ax = viz.plot_alignment(energy)
    assert title(ax).startswith("At rank 8, g holds ")
    assert "of the best energy of W C, c " in title(ax)
    assert "median of 14 modules, bars: middle half" in detail(ax)


@pytest.mark.parametrize("source", OTHERS)
def test_it_draws_where_it_is_told_and_leaves_the_settings_alone(source):
    before, (figure, ax) = plt.rcParams.copy(), plt.subplots()
    assert viz.plot_alignment(OTHERS[source](), ax=ax) is ax
    assert plt.rcParams.copy() == before
    assert plt.get_fignums() == [figure.number]
    assert ax.has_data()


@pytest.mark.parametrize("source", OTHERS)
def test_everything_is_inside_the_figure(source):
    ax = viz.plot_alignment(OTHERS[source]())
    ax.figure.canvas.draw()
    width, height = ax.figure.bbox.size
    for part in ax.figure.axes:
        box = part.get_tightbbox()
        assert (box.x0 >= 0, box.y0 >= 0, box.x1 <= width, box.y1 <= height) == (True,) * 4
    for axis in (ax.xaxis, ax.yaxis):
        labels = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
        assert not any(a.overlaps(b) for a, b in pairwise(labels))
    assert ax.figure.get_figwidth() <= 9
    assert "smollm2-135m, family_relationships" in detail(ax)


def test_energy_of_known_directions_is_no_share_of_all():
    """The matrix has more than four: all of what four hold of what four hold is no 100 %."""
    known = viz.SpectrumExplorer(task_subspaces(base(), calibration(), max_rank=4, progress=False), rank=4)
    assert known.line.startswith("The first 4 directions hold 100 % of the known energy and ")
    assert viz.SpectrumExplorer(calibration(), rank=4).line.count("known") == 0
