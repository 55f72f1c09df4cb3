"""What is installed: versions of the libraries that decide the numbers, and which extra has what is missing."""

from __future__ import annotations

import contextlib
import importlib.util
from importlib.metadata import PackageNotFoundError, version


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide a result's numbers, by distribution name."""
    found = {}
    for name in ("tlora", "torch", "transformers", "peft", "datasets"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def require(module: str, extra: str) -> None:
    """Refuse to go on without a package that a core installation leaves out.

    Parameters
    ----------
    module : str
        Name to import it by.
    extra : str
        Extra of ``pyproject.toml`` that it belongs to.

    Raises
    ------
    ModuleNotFoundError
        If it is not installed; the message has the command that installs it.
    """
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(f"{module} is not installed: run `pip install -e '.[{extra}]'`", name=module)
