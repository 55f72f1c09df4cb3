"""What Python functions and the command line take by default, in a file that needs no torch."""

from typing import Final

BATCH_SIZE = 8
"""Samples at once: of a calibration, of a training step, and of what `tlora.estimate` counts."""

DEFAULT_RECIPE: Final = "tlora"
"""The recipe of ``tlora run``, the README and the quickstart."""
