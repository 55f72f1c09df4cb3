"""Numbers, labels and looks that all pictures share."""

import numpy as np
import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb

from viz import style


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.01234, "0.0123"), (1.234, "1.2"), (12.34, "12.3"), (999.4, "999"), (999.7, "1,000"), (1234, "1,230"),
        (1.2e7, "1.2e+07"), (0, "0"), (2e-6, "2e-06"), (float("nan"), "\u2013"),
    ],
)  # fmt: skip
def test_number(value, words):
    assert style.number(value) == words


@pytest.mark.parametrize(
    ("share", "words"), [(0.985, "99 %"), (0.0312, "3.1 %"), (0.4249, "42 %"), (0.0999, "10 %"), (0, "0 %")]
)
def test_percent(share, words):
    assert style.percent(share) == words


def test_settings_are_restored_after_an_error():
    @style.styled
    def broken():
        assert style.plt.rcParams["legend.frameon"] is False
        raise KeyError

    before = style.plt.rcParams.copy()
    with pytest.raises(KeyError):
        broken()
    assert style.plt.rcParams.copy() == before


@pytest.mark.parametrize(
    ("centers", "moved"),
    [
        ([0.5, 0.9], [0.5, 0.9]),
        ([0.5, 0.5], [0.5, 0.6]),  # the first is lower
        ([0.0, 0.01, 0.5], [0.05, 0.15, 0.5]),
        ([1.0, 0.5, 0.98], [0.95, 0.5, 0.85]),
    ],
)
def test_names_are_moved_apart_and_keep_their_order(centers, moved):
    assert style.spread(centers, [0.1] * len(centers)) == pytest.approx(moved)


@pytest.mark.parametrize("count", [3, 4])
def test_up_to_three_lines_are_named_at_their_ends(count):
    ax = style.axes(None, 6, 3)
    lines = [ax.plot([1, 2], [0, n], label=f"line {n}")[0] for n in range(count)]
    style.name_lines(ax)
    names = [text.get_text() for text in ax.texts]
    if count > 3:
        assert not names
        assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"line {n}" for n in range(count)]
        return
    assert ax.get_legend() is None
    assert names == ["line 0", "line 1", "line 2"]
    assert [text.get_color() for text in ax.texts] == [line.get_color() for line in lines]
    ax.figure.canvas.draw()
    for text, line in zip(ax.texts, lines, strict=True):
        x, y = ax.transData.transform(line.get_xydata()[-1])
        box = text.get_window_extent()
        assert x < box.x0 < x + 15
        assert box.y0 < y < box.y1


def test_text_on_a_cell_is_readable():
    def luminance(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for map_ in (style.SEQUENTIAL, style.DIVERGING):
        for share in np.linspace(0, 1, 50):
            face = map_(share)
            light, dark = sorted((luminance(face[:3]), luminance(style.ink_on(face))), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_lines_are_neither_red_nor_blue():
    """These colors mean more and less."""
    for color in style.colors(10):
        hue, saturation, _ = rgb_to_hsv(color)
        assert saturation < 0.1 or not (hue < 0.03 or hue > 0.95 or 0.53 < hue < 0.72)


def test_a_name_is_above_its_line_where_no_other_line_is_near():
    ax = style.axes(None, 6, 3)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.plot([0, 0.4, 1], [0.5, 0.5, 0], label="lower")
    ax.plot([0, 0.4, 1], [0.6, 0.6, 0.6], label="upper")
    style.name_lines(ax, above=True)
    (lower, at), (upper, top) = (text.xy for text in ax.texts)
    assert lower > 0.5  # where the lines are apart
    assert at == pytest.approx(np.interp(lower, [0.4, 1], [0.5, 0]))
    assert top == pytest.approx(0.6)
    assert 0 < upper < 1
