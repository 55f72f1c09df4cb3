"""The picture of a text: where tokens are drawn, on which colors, and what the title says."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba

import viz
from tests.helpers.results import activations
from viz import style

TEXTS = ["<|im_start|>", "user", "\n", "Set", " the", " fan", " to", " 70", ".", "\n", "fan", "=", "70", "日", "\t"]
VALUES = [0.0, 0.5, -1.0, 0.2, 0.1, 3.0, 0.0, -0.3, 1.0, -4.0, 2.0, 0.0, 0.0, 0.0, 0.0]


def written(ax):
    """The tokens on the axes, with their line and column."""
    tokens = [text for text in ax.texts if text.get_fontfamily()[0] == "DejaVu Sans Mono"]
    return [(text.get_text(), int(text.get_position()[1]), int(text.get_position()[0])) for text in tokens]


def boxes(ax):
    [colored] = [each for each in ax.collections if isinstance(each, PatchCollection)]
    return colored


def test_newlines_and_tabs_are_signs_and_newlines_end_lines():
    shown = written(viz.plot_tokens(TEXTS, VALUES))
    assert [text for text, *_ in shown] == [{"\n": "⏎", "日": "□", "\t": "⇥"}.get(text, text) for text in TEXTS]
    assert [line for _, line, _ in shown] == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    for (text, line, column), (_, after, start) in pairwise(shown):
        assert after > line or start == column + len(text)


def test_colors_are_those_of_the_values_and_zero_is_white():
    colored = boxes(viz.plot_tokens(TEXTS, VALUES))
    expected = style.DIVERGING(0.5 + np.array(VALUES) / (2 * 4.0))
    np.testing.assert_allclose(colored.get_facecolors(), expected)
    assert min(colored.get_facecolors()[0][:3]) > 0.95
    wider = boxes(viz.plot_tokens(TEXTS, VALUES, limit=8))
    np.testing.assert_allclose(wider.get_facecolors(), style.DIVERGING(0.5 + np.array(VALUES) / 16))


def test_the_title_names_both_ends():
    ax = viz.plot_tokens(TEXTS, VALUES, label="z", detail="8.up_proj")
    assert ax.get_title(loc="left") == "Highest at “fan”, +3, lowest at “⏎”, −4"
    assert any("8.up_proj" in text.get_text() for text in ax.texts)
    assert viz.plot_tokens(["a"], [0.0]).get_title(loc="left") == "All values are zero"


@pytest.mark.parametrize("size", [(8, 4), (3, 2), (2, 1)])
def test_a_long_text_wraps_and_shrinks_to_fit_the_user_s_axes(size):
    _, ax = plt.subplots(figsize=size)
    assert viz.plot_tokens(TEXTS * 4, VALUES * 4, ax=ax) is ax
    columns = ax.get_xlim()[1]
    shown = written(ax)
    assert all(column + len(text) <= columns for text, _, column in shown)
    assert len(set(shown)) == len(TEXTS) * 4
    assert ax.get_ylim()[0] > max(line for _, line, _ in shown)


def test_a_long_text_makes_a_figure_as_high_as_it_needs():
    for repeats in (2, 20):
        ax = viz.plot_tokens(TEXTS * repeats, VALUES * repeats)
        ax.figure.canvas.draw()
        points = 72 * ax.get_window_extent().height / ax.figure.dpi / ax.get_ylim()[0]  # of a line
        font = ax.texts[-1].get_fontsize()
        assert font < points < 2 * font, "lines touch, or are far apart"


def test_text_is_legible_on_its_color_also_in_a_dark_style():
    with plt.style.context("dark_background"):
        ax = viz.plot_tokens(TEXTS, VALUES)
    inks = {text.get_text(): to_rgba(text.get_color()) for text in ax.texts}
    assert inks["<|im_start|>"] == (0, 0, 0, 1)
    assert inks["⏎"] == (1, 1, 1, 1)  # the darkest color


@pytest.mark.parametrize(("tokens", "values"), [(["a", "b"], [1.0]), ([], [])])
def test_tokens_without_values_are_refused(tokens, values):
    with pytest.raises(ValueError, match="values"):
        viz.plot_tokens(tokens, values)


@pytest.mark.parametrize("need", [False, True])
def test_both_ends_of_directions_are_those_of_the_table(need):
    found, module = activations(), activations().names[3]
    ax = viz.plot_reads(found, module, directions=2, need=need)
    labels = [f"{kind} {d} {end}" for d in (1, 2) for kind in ("wc", "random") for end in ("+", "−")]
    assert [label.get_text() for label in ax.get_yticklabels()] == labels
    for line, label in enumerate(labels):
        kind, direction, end = label.split()
        rows = found.top(module, int(direction), sign={"−": "-"}.get(end, end), kind=kind, need=need)
        inked = sorted((column, text) for text, at, column in written(ax) if at == line)
        tokens = [text for _, text in inked[1::3]]
        assert tokens == rows["token"].tolist()[: len(tokens)]
        assert tokens or rows.empty
        assert [text for _, text in inked[2::3]] == [f"×{count}" for count in rows["count"][: len(tokens)]]
    shares = found.constant_share("module", need=need).query("module == @module").set_index("kind")["constant"]
    assert style.percent(shares["wc"]) in ax.get_title(loc="left")


def test_another_object_is_refused():
    with pytest.raises(TypeError, match="direction_activations"):
        viz.plot_reads({}, "model.layers.0.mlp.down_proj")
