"""Progress bars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def progress_bar(items: Iterable[Any] | None = None, *, show: bool, **options: Any) -> tqdm:
    """A bar of tqdm over the items; none without ``show``, nor where the environment has ``TQDM_DISABLE=1``."""
    return tqdm(items, **options) if show else tqdm(items, disable=True, **options)
