"""What is installed: versions of the libraries that decide the numbers, and which extra has what is missing."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide a result's numbers, by distribution name."""
    found = {}
    for name in ("tlora", "torch", "transformers", "peft", "datasets"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
