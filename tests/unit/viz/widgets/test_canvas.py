"""What holds for every widget: a state, controls that change it, a picture that follows, somebody there or not."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from viz.widgets.canvas import Canvas, Numbers


@pytest.fixture(autouse=True)
def _nothing_reaches_pyplot():
    before = plt.rcParams.copy()
    yield
    assert plt.get_fignums() == []
    assert plt.rcParams.copy() == before


def pixels(png: bytes) -> np.ndarray:
    return plt.imread(io.BytesIO(png))


def test_numbers_are_where_a_text_would_be():
    """The ink of a number has the middle that matplotlib gives to a text of the same size."""

    def ink(draw: Callable[[Any], Any]) -> np.ndarray:
        canvas = Canvas(2, 2)
        ax = canvas.axes(0, 0, 0, 0)
        ax.set(xlim=(0, 2), ylim=(0, 2))
        ax.set_axis_off()
        draw(ax)
        return np.argwhere(pixels(canvas.png([]))[..., 0] < 0.5)

    def number(ax: Any) -> None:
        Numbers(ax, [(0.5, 1.5)]).write(["28"], 20.0, ["black"])

    ours, theirs = ink(number), ink(lambda ax: ax.text(0.5, 1.5, "28", size=20, ha="center", va="center_baseline"))
    assert len(ours) == pytest.approx(len(theirs), rel=0.1)
    np.testing.assert_allclose(ours.mean(0), (72, 72), atol=2)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=3)


def test_canvas_draws_what_stays_only_once_a_key():
    canvas = Canvas(2, 1)
    ax = canvas.axes(0.2, 0.2, 0.2, 0.2)
    (line,) = ax.plot([0, 1], [0, 1])
    first = canvas.png([line], "a")
    ax.set_facecolor("0.9")
    assert canvas.png([line], "a") == first
    assert canvas.png([line], "b") != first
    assert canvas.png([line], "a") == first
    line.set_ydata([1, 0])
    assert canvas.png([line], "a") != first
    assert len(pixels(first)) == 144
