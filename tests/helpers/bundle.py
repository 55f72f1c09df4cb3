"""Bundles the browser code, `viz/browser/`, into the one file that Python reads, `viz/widgets/widgets.js`.

    python -m tests.helpers.bundle             # write it, and the glossary that it holds
    python -m tests.helpers.bundle --check     # fail if it would be written differently
    python -m tests.helpers.bundle --watch     # write it after every edit until interrupted, without its first line

Needs deno, which fetches esbuild from npm the first time, in the version of ``deno.lock``.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from viz.glossary import explanations

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "viz" / "browser"
BUNDLE = ROOT / "viz" / "widgets" / "widgets.js"
GLOSSARY = SOURCES / "glossary.json"


def digest() -> str:
    """The SHA-256 of the sources and their names."""
    whole = hashlib.sha256()
    for file in sorted([*SOURCES.rglob("*.js"), *SOURCES.rglob("*.json")]):
        name = file.relative_to(SOURCES).as_posix()
        if not name.startswith("tests/"):
            whole.update(f"{name}\0{file.read_text('utf-8')}\0".encode())
    return whole.hexdigest()


def head() -> str:
    """The first line of the bundle."""
    return f"// Written by `make bundle` from viz/browser/, do not edit. SHA-256 of the sources: {digest()}\n"


def glossary() -> str:
    """The sentences that the widgets show, as JSON."""
    return json.dumps(explanations(), indent=2, ensure_ascii=False) + "\n"


def esbuild(output: Path, *options: str) -> None:
    """Have esbuild write the bundle, but its first line, to a file; while it watches, until this process ends."""
    deno = Path(sysconfig.get_path("scripts"), "deno")
    command = [deno, "task", "--quiet", "bundle", f"--outfile={output}", *options]
    with subprocess.Popen(command, cwd=SOURCES, stdin=subprocess.PIPE) as process:
        if process.wait():
            raise SystemExit(process.returncode)


def bundle() -> str:
    """The bundle."""
    with tempfile.TemporaryDirectory() as folder:
        esbuild(output := Path(folder, "widgets.js"))
        return head() + output.read_text("utf-8")


def main() -> None:
    if sys.argv[1:] == ["--watch"]:
        return esbuild(BUNDLE, "--watch")
    if sys.argv[1:] != ["--check"]:
        GLOSSARY.write_text(glossary(), "utf-8")
        BUNDLE.write_text(bundle(), "utf-8")
    elif GLOSSARY.read_text("utf-8") != glossary() or BUNDLE.read_text("utf-8") != bundle():
        raise SystemExit(f"{BUNDLE.relative_to(ROOT)} is not what its sources give: make bundle")


if __name__ == "__main__":
    main()
