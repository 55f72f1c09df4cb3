"""Print the versions of the libraries that decide what is computed, and of which pip has newer ones.

Run as ``python -m tests.helpers.versions``; without a network it prints the versions alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

from packaging.version import Version

LIBRARIES = ("torch", "transformers", "peft", "datasets")


def newest(library: str) -> str | None:
    """Return the newest version that pip finds for this Python; None if no index answers."""
    options = ["--json", "--disable-pip-version-check", "--timeout=5", "--retries=0"]
    command = [sys.executable, "-m", "pip", "index", "versions", library, *options]
    ran = subprocess.run(command, capture_output=True, text=True)
    return json.loads(ran.stdout)["latest"] if ran.returncode == 0 else None


def main() -> None:
    """Print one line of versions, and a second one if there are newer ones."""
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    print("with", ", ".join(f"{library} {version}" for library, version in versions.items()))
    available = {library: newest(library) for library in LIBRARIES}
    newer = [
        f"{name} {latest}"
        for name, latest in available.items()
        if latest and Version(Version(latest).public) > Version(Version(versions[name]).public)  # 2.15.0 is 2.15.0+cpu
    ]
    if newer:
        print("newer:", ", ".join(newer))
    if None in available.values():
        print("whether there are newer ones is unknown: no package index answered")


if __name__ == "__main__":
    main()
