"""Leave out what libraries log about our own doing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def filtered_logs(is_kept: Callable[[logging.LogRecord], bool], *names: str) -> Iterator[None]:
    """Inside the block the loggers of these names let through only the records that are kept."""
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(is_kept)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_kept)
