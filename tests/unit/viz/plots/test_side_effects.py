"""The bars, the strip and the points are those of the tables."""

import numpy as np
import pytest

import viz
from tests.helpers.pictured import effects, rescaling, texts


def test_bars_are_the_changes_of_the_sets():
    found = effects()
    ax = viz.plot_side_effects(found)
    sets = found.sets().sort_values("loss_change", ascending=False, ignore_index=True)
    assert sets["set"].tolist() == ["code", "prose"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(sets["loss_change"].tolist())
    assert [label.get_text() for label in ax.get_yticklabels()] == sets["set"].tolist()
    (lines,) = ax.collections
    ends = [segment[:, 0].tolist() for segment in lines.get_segments()]
    assert ends[0] == pytest.approx([sets.loc[0, "loss_change"]] * 2)  # one text: no interval
    assert ends[1] == pytest.approx(sets.loc[1, ["low", "high"]].tolist())


@pytest.mark.parametrize("sample", [0, 2])
def test_the_strip_shows_the_tokens_of_the_text(sample):
    found = effects()
    strip = viz.plot_side_effects(found, sample).figure.axes[1]
    assert [text.get_text().strip("\u23ce") for text in strip.texts] == [
        token.strip("\n") for token in found.samples[sample].tokens
    ]


def test_points_are_the_losses_and_the_best_is_marked():
    found = rescaling()
    ax = viz.plot_rescaling(found)
    frame = found.to_frame()
    scaled = frame[frame["kind"] == "scale"]
    line = ax.lines[0]
    np.testing.assert_allclose(line.get_xdata(), scaled.loc[scaled["set"] == "code", "change"])
    np.testing.assert_allclose(line.get_ydata(), scaled.loc[scaled["set"] == "task", "loss"])
    marked = next(each for each in ax.lines if each.get_fillstyle() == "none")
    assert marked.get_ydata() == pytest.approx([found.loss(found.best, "task")])
    assert found.best.label in ax.get_title(loc="left").lower()


def test_points_are_named_without_a_legend():
    found = rescaling()
    ax = viz.plot_rescaling(found)
    assert ax.get_legend() is None
    scales = [f"{n / 8:.3g}" for n in range(8)]
    assert texts(ax)[:-1] == [
        *scales,
        "scale 1",
        "several parts left out",
        "one part left out",
        f"limit {found.limit:g}",
    ]
