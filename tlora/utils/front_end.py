"""Whether a person watches a cell, or a tool runs it and stores what it prints."""

from __future__ import annotations

import sys
from typing import Any


def shell() -> Any:
    """Return the shell of IPython that runs this code, or None; IPython is not imported for it."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def kernel() -> Any:
    """Return the Jupyter kernel that runs this code, or None, also in IPython in a terminal."""
    return getattr(shell(), "kernel", None)


def has_front_end() -> bool:
    """Whether a person can see and move a widget.

    True in a kernel that runs a cell for a person: the front ends of Jupyter all offer to answer ``input()``, and the
    tools that execute a notebook on their own (nbconvert, papermill, nbval) do not.
    """
    running = kernel()
    return running is not None and bool(running.get_parent().get("content", {}).get("allow_stdin", True))
