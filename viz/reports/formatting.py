"""Numbers in words, as the pages write them."""

from __future__ import annotations

import math

from tlora.allocation.footprint import size_text
from viz import style

MINUS, DASH = "\u2212", "\u2013"


def number(value: float) -> str:
    """A number with two or three significant digits; a dash if it is missing."""
    return DASH if math.isnan(value) else style.number(value).replace("-", MINUS)


def whole(value: float) -> str:
    """A whole number, thousands set apart; a dash if it is missing."""
    return DASH if math.isnan(value) else f"{int(value):,}".replace("-", MINUS)


def percent(share: float) -> str:
    """A share in percent; a dash if it is missing."""
    return DASH if math.isnan(share) else style.percent(share).replace(" ", "\u00a0").replace("-", MINUS)


def size(count: int) -> str:
    """Bytes in decimal units: ``"1.23 MB"``."""
    return size_text(count).replace(" ", "\u00a0")


def duration(seconds: float) -> str:
    """Seconds, or minutes and hours where there are many."""
    if seconds < 120:
        return f"{seconds:.3g}\u00a0s"
    minutes = round(seconds / 60)
    return f"{minutes}\u00a0min" if minutes < 120 else f"{minutes // 60}\u00a0h {minutes % 60}\u00a0min"


def metric(name: str, value: float | None, beside: float | None = None) -> str:
    """A metric as it is read: shares in percent where the one beside it is one too, all others as they are."""
    if value is None or math.isnan(value):
        return DASH
    if is_share(name, value) and (beside is None or math.isnan(beside) or is_share(name, beside)):
        return f"{100 * value:.1f}\u00a0%"
    return f"{value:.4g}".replace("-", MINUS)


def is_share(name: str, value: float) -> bool:
    """Whether a metric is one to be read in percent: no loss, and from 0 to 1."""
    return not any(word in name for word in ("loss", "perplexity")) and 0 <= value <= 1


def worded(name: str) -> str:
    """The name of a metric or a option in words."""
    return name.replace("_", " ")


def several(count: int, noun: str) -> str:
    """A count and its noun, in the plural where it is one: ``"1 sample"``, ``"32 samples"``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
