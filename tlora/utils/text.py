"""Values as text, for summaries, the command line, panels and pages: sizes, counts, ranges, durations, tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence


def size_text(count: float) -> str:
    """Bytes with three digits and a unit: ``"4.1 kB"``, ``"540 MB"``."""
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def count_text(number: int, noun: str) -> str:
    """A number and its noun: ``"1 sample"``, ``"32 samples"``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def capitalized(text: str) -> str:
    """A text with a capital first letter; the others stay, unlike with `str.capitalize`."""
    return text[:1].upper() + text[1:]


def place_text(layer: int, projection: str, module: str) -> str:
    """The place of a module: ``"layer 3 q_proj"``, or its full name outside of the layers."""
    return f"layer {layer} {projection}" if layer >= 0 else module


def range_text(values: Collection[float], write: Callable[[float], str] = "{:.3g}".format) -> str:
    """The least and the largest of some numbers, as ``write`` writes them: "0.5 to 2", or "1" if they are the same."""
    return " to ".join(dict.fromkeys(map(write, (min(values), max(values)))))


def ranks_text(ranks: Iterable[int]) -> str:
    """Ranks with their noun: "rank 8", or "ranks 2 to 21"."""
    low, high = min(ranks := list(ranks)), max(ranks)
    return f"ranks {low} to {high}" if low < high else f"rank {low}"


def duration_text(seconds: float) -> str:
    """Seconds, minutes or hours: ``"42 s"``, ``"7 min 12 s"``, ``"2 h 5 min"``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def rough_duration_text(seconds: float) -> str:
    """A duration that is only predicted: ``"about 50 seconds"``, ``"about 2 minutes"``."""
    if seconds < 95:
        return f"about {max(10, round(seconds, -1)):.0f} seconds"
    return f"about {round(seconds / 60)} minutes"


def metric_text(name: str, value: float, reference: float = math.nan) -> str:
    """A metric: in percent if it and the value it is compared with are shares, else with four digits."""
    if is_share(name, value) and (math.isnan(reference) or is_share(name, reference)):
        return f"{100 * value:.1f} %"
    return f"{value:.4g}"


def is_share(name: str, value: float) -> bool:
    """Whether a metric of this name and value is a share between 0 and 1."""
    return not any(word in name for word in ("loss", "perplexity")) and 0 <= value <= 1


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in columns, the first aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def facts_text(values: Mapping[str, str]) -> str:
    """Names and values, one per line; empty values are left out."""
    width = max(map(len, values))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in values.items() if value)


def metrics_text(columns: Mapping[str, Mapping[str, float]], corner: str = "") -> str:
    """Metrics side by side in a table with a text in its corner, a dash for those that a column lacks."""
    names = dict.fromkeys(name for metrics in columns.values() for name in metrics)
    rows = [
        [name.replace("_", " "), *(metric_text(name, m[name]) if name in m else "-" for m in columns.values())]
        for name in names
    ]
    return table_text([[corner, *columns], *rows])
