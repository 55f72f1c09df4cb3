"""Progress bars."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def is_shown(show: bool) -> bool:
    """Whether bars are shown: not where the environment has ``TQDM_DISABLE=1``, which tqdm overlooks in notebooks."""
    return show and not os.environ.get("TQDM_DISABLE")


def progress_bar(items: Iterable[Any] | None = None, *, show: bool, **options: Any) -> tqdm:
    """A bar of tqdm over the items, if it is shown."""
    return tqdm(items, disable=not is_shown(show), **options)
