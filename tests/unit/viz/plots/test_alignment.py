"""What the pictures of alignment show equals the tables of their results."""

import numpy as np
import pytest

import viz
from tests.helpers.pictured import MODELS, alignment, cells, gradient_capture, texts
from viz import style


def title(ax):
    return ax.get_title(loc="left").replace("\n", " ")


def detail(ax):
    return texts(ax)[-1].replace("\n", " ")


@pytest.mark.parametrize("model", MODELS)
def test_cells_are_the_overlaps(model):
    result = alignment(model)
    ax = viz.plot_alignment(result)
    projections, layers = MODELS[model]
    expected = [[result.overlap[f"layers.{layer}.{p}"] for layer in range(layers)] for p in projections]
    np.testing.assert_allclose(cells(ax), expected)
    mesh = ax.collections[0]
    shown = [*result.overlap.values(), *result.random.values()]
    assert (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx((min(shown), max(shown)))
    marks = [line.get_ydata()[0] for line in ax.figure.axes[1].lines]
    assert sorted(marks) == sorted(set(result.random.values()))


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


@pytest.mark.parametrize("ranks", [(8,), (8, 32), (2, 4, 8, 16, 32, 64)])
def test_curves_are_the_shares_with_their_intervals(ranks):
    result = gradient_capture("30 layers", ranks)
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
    np.testing.assert_allclose(lines["best possible"].get_ydata(), table.groupby("rank")["best"].first())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    shares = table[table["rank"] == ranks[-1]].set_index("kind")["captured"]
    assert [label.split(" (")[0] for label in labels] == [
        "best possible",
        *shares.sort_values(ascending=False).index,
        "by chance",
    ]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [str(rank) for rank in ranks]


def test_the_title_of_the_curves_ranks_the_kinds():
    capture = gradient_capture()
    table = capture.overall().query("rank == 8").set_index("kind")
    ax = viz.plot_alignment(capture)
    shares = [style.percent(table.loc[kind, "captured"]) for kind in ("g", "c", "wc", "wc_half")]
    assert title(ax) == "At rank 8, g holds {} of the held-out gradient, c {}, wc {}, wc_half {}".format(*shares)
    assert "14 modules together, bars: 95 % intervals" in detail(ax)
    assert "at best 95 %, by chance 1.4 %" in detail(ax)
