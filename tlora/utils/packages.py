"""Installed packages: versions of the libraries that affect results, and the extra that holds a missing package."""

from __future__ import annotations

import contextlib
import importlib.util
from importlib.metadata import PackageNotFoundError, version


def library_versions() -> dict[str, str]:
    """Versions of the libraries that affect a result's numbers, by distribution name."""
    versions = {}
    for name in ("tlora", "torch", "transformers", "peft", "datasets"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def require(module: str, extra: str) -> None:
    """Refuse to continue without a module, naming the extra of ``pyproject.toml`` that installs it."""
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f"{module} is not installed: run `pip install -e '.[{extra}]'`", name=module)
