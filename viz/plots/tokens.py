"""Pictures of tokens on the colors of their values: a text, and both ends of a module's directions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import CenteredNorm
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter
from mpl_toolkits.axes_grid1 import make_axes_locatable
from torch import Tensor

from tlora.explanation.direction_activations_result import DirectionActivations
from tlora.utils.validation import check_arguments
from viz import style

FONTS = ["DejaVu Sans Mono", "DejaVu Sans"]
"""They come with matplotlib: a picture of a text is the same everywhere."""
FONT_SIZE, SMALLEST = 9.0, 5.0
"""Points of the text, and of the text on axes that are too small for it."""
BEFORE = 12
"""Characters of the text before a token."""
CHARACTER, LINE = 0.64, 1.65
"""Width of a character, rounded up to whole pixels at 100 dots an inch, and height of a line, in font sizes."""
WHITESPACE = {"\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d"}
"""How whitespace other than spaces is written."""
UNKNOWN = "\u25a1"
"""Written for a character that the fonts do not have."""
CHARACTERS = 600
"""Most characters on a strip: of a longer text the end is drawn, from the first token with a value at the latest."""
STRIP, GAP = 1.7, 0.25
"""Inches of a strip of tokens, and between it and the axes below."""


class Place(NamedTuple):
    """Where a token is drawn: its line, its first column and its number of columns."""

    line: int
    column: int
    width: int


@style.styled
def plot_tokens(
    tokens: Iterable[str],
    values: Iterable[float],
    *,
    label: str = "value",
    detail: str = "",
    limit: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a text token by token, each on the color of its value; zero is white.

    Parameters
    ----------
    tokens : iterable of str
        The tokens' texts, with their leading spaces. A newline is drawn as a sign and ends the line.
    values : iterable of float
        One for each token.
    label : str
        What the values are, with their unit.
    detail : str
        Line below the title, such as where the text comes from.
    limit : float, optional
        Absolute value of the darkest colors, to compare pictures; by default the largest one of ``values``.
    ax : matplotlib.axes.Axes, optional
        Where to draw, in a smaller font if needed; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes, in columns of characters and lines of text. Their title names the tokens with the highest and the
        lowest value.

    Raises
    ------
    ValueError
        If there are not as many values as tokens, or none.

    Examples
    --------
    >>> viz.plot_tokens(["hall", ".", "fan", "=", "on"], [0.2, 3.1, -0.4, -2.0, 0.1], label="z")
    <Axes: title={'left': 'Highest at “.”, +3.1, lowest at “=”, −2'}>
    """
    check_arguments(plot_tokens, locals())
    texts, numbers = list(tokens), np.array([float(value) for value in values])
    if len(texts) != len(numbers) or not texts:
        raise ValueError(f"{len(texts)} tokens and {len(numbers)} values: pass one value for each token, at least one")
    shown = [visible(text) for text in texts]
    is_own = ax is None
    ax = style.axes(ax, 8.6, 1.5)
    norm = CenteredNorm(0, halfrange=limit or float(np.abs(numbers).max()) or 1.0)
    ax.set_axis_off()
    _color_bar(ax, norm, label)
    style.headline(ax, _headline(shown, numbers), detail)
    style.figure_of(ax).draw_without_rendering()  # gives the axes their size, with the title above
    width, height = (extent / style.figure_of(ax).dpi for extent in ax.bbox.size)
    lines = draw_tokens(ax, texts, numbers, norm, (width, math.inf if is_own else height))
    if is_own:
        style.figure_of(ax).set_figheight(1.5 - height + lines * LINE * FONT_SIZE / 72)
    return ax


@style.styled
def plot_reads(
    activations: DirectionActivations,
    module: str,
    *,
    kinds: Iterable[str] | None = None,
    directions: int = 3,
    need: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw the tokens at both ends of a module's first directions, kind by kind, next to random directions.

    Parameters
    ----------
    activations : DirectionActivations
        From `tlora.direction_activations`.
    module : str
        Full module name.
    kinds : iterable of str, optional
        Labels of subspaces; all by default.
    directions : int
        Number of directions.
    need : bool
        Weigh by the norm of the gradient at the module's output: what is read and needed.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes: a line for each end, the furthest token first with the text before it and its count, on the color of
        its value relative to the furthest one of both ends. The title says how much is on constant tokens.

    Examples
    --------
    >>> activations = tlora.direction_activations(model, subspaces, task.calibration(8), tokenizer=tokenizer,
    ...                                           progress=False)
    >>> viz.plot_reads(activations, "model.layers.1.mlp.down_proj").get_ylabel()
    'kind, direction, end'
    """
    check_arguments(plot_reads, locals())
    labels = activations.kinds if kinds is None else list(kinds)
    lines = [
        (f"{kind} {direction} {style.MINUS if end == '-' else end}", rows[rows["end"] == end])
        for direction in range(1, directions + 1)
        for kind in labels
        for rows in [activations.top(module, direction, kind=kind, need=need)]
        for end in "+-"
    ]
    ax = style.axes(ax, 8.6, 0.9 + len(lines) * LINE * FONT_SIZE / 72)
    ax.set(
        yticks=np.arange(len(lines)) + 0.5, yticklabels=[label for label, _ in lines], ylim=(len(lines), 0), xticks=[]
    )
    ax.set(xlabel="tokens, the furthest first, with the text before and the count", ylabel="kind, direction, end")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    _reads_headline(ax, activations, module, labels, need)
    columns = int(72 * style.inches(ax) / (CHARACTER * FONT_SIZE))
    ax.set_xlim(0, columns)
    for pair in range(0, len(lines), 2):  # the two ends of one direction
        furthest = max((rows["value"].abs().max() for _, rows in lines[pair : pair + 2] if len(rows)), default=1.0)
        for number in (pair, pair + 1):
            _draw_end(ax, number, lines[number][1], CenteredNorm(0, halfrange=furthest), columns)
    return ax


def _draw_end(ax: Axes, line: int, rows: pd.DataFrame, norm: CenteredNorm, columns: int) -> None:
    """Write as many tokens of one end as fit into the line."""
    tokens, values, places, column = [], [], [], 0
    for row in rows.itertuples():
        before, token, times = visible(row.before)[-BEFORE:], visible(row.token), f"\u00d7{row.count}"
        if column + len(before + token + times) > columns:
            break
        for text, at in ((before, column), (times, column + len(before + token))):
            _write(ax, text, at, line, FONT_SIZE, **style.ink(0.6))
        tokens.append(token)
        values.append(row.value)
        places.append(Place(line, column + len(before), len(token)))
        column += len(before + token + times) + 2
    if tokens:
        _draw(ax, tokens, np.array(values), places, norm, FONT_SIZE)


def _reads_headline(ax: Axes, activations: DirectionActivations, module: str, kinds: list[str], need: bool) -> None:
    table = activations.constant_share("module", need=need).query("module == @module").set_index("kind")
    shares = ", ".join(f"{kind} {style.percent(table.loc[kind, 'constant'])}" for kind in kinds)
    module_text = f"Layer {activations.layers[module]} {activations.projections[module]}"
    detail = style.sentence(
        f"they are {style.percent(table['tokens'].iloc[0])} of the tokens",
        "weighted by need" if need else "",
        style.source(activations.meta),
    )
    style.headline(ax, f"{module_text}: share of z\u00b2 on constant tokens: {shares}", detail)


def draw_tokens(
    ax: Axes,
    texts: Sequence[str],
    values: np.ndarray,
    norm: CenteredNorm,
    inches: tuple[float, float],
) -> int:
    """Draw tokens into axes of this width and height, in the largest font in which all fit; return the lines."""
    shown = [visible(text) for text in texts]
    size, places = _arrange(texts, shown, *inches)
    lines = places[-1].line + 1
    ax.set(xlim=(0, int(72 * inches[0] / (CHARACTER * size))), ylim=(lines, 0))
    _draw(ax, shown, values, places, norm, size)
    return lines


def append_strip(ax: Axes) -> Axes:
    """Make room for a strip of tokens above axes."""
    strip = make_axes_locatable(ax).append_axes("top", STRIP, pad=GAP)
    strip.set_axis_off()
    return strip


def strip_limit(values: Tensor) -> float:
    """The value of the darkest color on a strip."""
    return float(values.abs().max()) or 1.0


def draw_strip(strip: Axes, tokens: Sequence[str], positions: Sequence[int], values: Tensor, width: float) -> None:
    """Draw the end of a text on a strip of this width in inches; tokens that are not at ``positions`` have no color."""
    shown = np.zeros(len(tokens))
    shown[list(positions)] = values.numpy()
    lengths = list(itertools.accumulate(map(len, reversed(tokens))))
    start = min(sum(length > CHARACTERS for length in lengths), positions[0])
    texts = list(tokens[start:])
    shown = shown[start:]
    if start:
        texts, shown = ["…", *texts], np.concatenate([[0.0], shown])
    draw_tokens(strip, texts, shown, CenteredNorm(0, halfrange=strip_limit(values)), (width, STRIP))


def visible(token: str) -> str:
    """The text of a token as one line: newlines and tabs are signs, and so is what the fonts do not have."""
    return "".join(WHITESPACE.get(c, c if c in (" ", "\xa0") or _has_glyph(c) else UNKNOWN) for c in token) or " "


@cache
def _has_glyph(character: str) -> bool:
    return character.isprintable() and any(get_font(findfont(font)).get_char_index(ord(character)) for font in FONTS)


def _arrange(texts: Sequence[str], shown: Sequence[str], width: float, height: float) -> tuple[float, list[Place]]:
    """The largest font size at which all tokens fit into these inches, and the place of each."""
    size = FONT_SIZE
    while True:
        places = _wrap(texts, shown, int(72 * width / (CHARACTER * size)))
        if size <= SMALLEST or (places[-1].line + 1) * LINE * size <= 72 * height:
            return size, places
        size -= 0.5


def _wrap(texts: Sequence[str], shown: Sequence[str], columns: int) -> list[Place]:
    places = []
    line = column = 0
    for text, token in zip(texts, shown, strict=True):
        if column and column + len(token) > columns:
            line, column = line + 1, 0
        places.append(Place(line, column, len(token)))
        column += len(token)
        if text.endswith("\n"):
            line, column = line + 1, 0
    return places


def _draw(
    ax: Axes,
    shown: Sequence[str],
    values: np.ndarray,
    places: Sequence[Place],
    norm: CenteredNorm,
    size: float,
) -> None:
    colors = style.DIVERGING(norm(values))
    boxes = [Rectangle((place.column, place.line + 0.08), place.width, 0.84) for place in places]
    ax.add_collection(PatchCollection(boxes, facecolors=colors, edgecolors="0.85", linewidths=0.4))
    for token, place, color in zip(shown, places, colors, strict=True):
        _write(ax, token, place.column, place.line, size, color=style.ink_on(color))


def _write(ax: Axes, text: str, column: int, line: int, size: float, **look: Any) -> None:
    at = (column, line + 0.68)
    ax.text(*at, text, family=FONTS, fontsize=size, va="baseline", clip_on=True, parse_math=False, **look)


def _color_bar(ax: Axes, norm: CenteredNorm, label: str) -> None:
    bar = style.figure_of(ax).colorbar(ScalarMappable(norm, style.DIVERGING), ax=ax, pad=0.015, fraction=0.03, aspect=6)
    ends = float(norm.halfrange or 1)
    bar.ax.yaxis.set_major_locator(FixedLocator([-ends, 0, ends]))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.signed(value)))
    bar.set_label(label)
    bar.outline.set_visible(False)


def _headline(shown: Sequence[str], values: np.ndarray) -> str:
    ends = {"Highest": int(values.argmax()), "lowest": int(values.argmin())}
    parts = [f"{end} at “{shown[n].strip() or shown[n]}”, {style.signed(values[n])}" for end, n in ends.items()]
    return ", ".join(parts) if values.any() else "All values are zero"
