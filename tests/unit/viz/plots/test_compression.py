"""What the picture of a compression shows equals its table."""

import dataclasses

import numpy as np
import pytest

import viz
from tests.helpers.pictured import texts
from tests.helpers.results import compression


def test_lines_are_the_curves_and_the_dot_is_the_adapter():
    found = compression()
    ax = viz.plot_compression(found)
    *lines, dot = ax.get_lines()
    curves = found.curves()
    for cut, line in zip(("plain", "task", "uniform"), lines, strict=True):
        curve = curves[curves["cut"] == cut]
        np.testing.assert_allclose(line.get_xydata(), curve[["share", "error"]])
    before, after = found.parameters
    np.testing.assert_allclose(dot.get_xydata(), [(after / before, found.error())])
    assert texts(ax)[:-1] == ["shared, by the weights", "shared, on the task", "one rank for all"]
    for text, line in zip(ax.texts, lines, strict=False):
        assert text.xy[1] == pytest.approx(np.interp(text.xy[0], *line.get_xydata().T))
        assert text.get_color() == line.get_color()


def test_the_headline_says_what_the_others_lose():
    found = compression()
    ax = viz.plot_compression(found)
    title = " ".join(ax.get_title(loc="left").split())
    within = found.curves().query("parameters <= @found.parameters[1]").groupby("cut")["error"].last()
    assert f"of its parameters the adapter loses {viz.style.percent(found.error())}, not " in title
    assert f"{viz.style.percent(within['plain'])} shared by the weights" in title
    assert f"{viz.style.percent(within['uniform'])} with one rank for all" in title
    assert "outputs on the task" in texts(ax)[-1]


def test_without_a_calibration_there_are_two_lines():
    found = compression()
    plain = {name: energies[:1, :1] for name, energies in found.energies.items()}
    ax = viz.plot_compression(dataclasses.replace(found, cuts=["plain"], measures=["plain"], energies=plain))
    assert len(ax.get_lines()) == 3
    assert "share of the weights that is lost" in texts(ax)[-1]
