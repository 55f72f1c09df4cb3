"""Choices and defaults that Python functions and the command line share, in a file that needs no torch."""

from typing import Final, Literal

Tokens = Literal["all", "labels"]
Kept = Literal["dense", "sketch"]
Kind = Literal["wc", "w", "c", "wc_half", "g", "g_whitened", "random"]
Budget = Literal["ranks", "parameters"]
Scaling = Literal["nominal", "allocated"]
Rows = Literal["orthonormal", "variance", "whitened"]
Format = Literal["peft", "gguf", "merged"]

BATCH_SIZE = 8
"""Samples at once: of a calibration, of a training step, and of what `tlora.estimate` counts."""

DEFAULT_RECIPE: Final = "lora"
"""The recipe of ``tlora run``, by the rule of benchmarks/quality/STUDY.md."""

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
"""Learning rates that a search begins with."""


def default_rows(kind: str | None) -> Rows | None:
    """Length of the rows of A that goes with a kind of subspaces; None where there are none and A is random."""
    if kind is None:
        return None
    return "whitened" if kind == "g_whitened" else "variance"
