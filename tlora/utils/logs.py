"""Leave out what libraries say that a user can do nothing about."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def without_noise() -> Iterator[None]:
    """Inside the block, no bars and notes of transformers, and no warnings of PEFT about our own calls.

    It uses a deprecated name of transformers, and compares patterns with modules alone, not with parameters of experts.
    """
    verbosity, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # whether the patterns match is checked by `check_ranks_and_scalings`
            warnings.filterwarnings("ignore", r"The following rank_pattern keys|.*alpha_pattern keys", RuntimeWarning)
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()


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
