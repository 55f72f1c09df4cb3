"""Bundles the browser code, `viz/browser/`, into the files that Python reads, `widgets.js` and `scenes.js`.

    python -m tests.helpers.bundle             # write them, and the glossary that they hold
    python -m tests.helpers.bundle --check     # fail if they would be written differently
    python -m tests.helpers.bundle --watch     # write them after every edit until interrupted, but their first lines

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
BUNDLES = [ROOT / "viz" / "widgets" / name for name in ("widgets.js", "scenes.js")]
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
    """The first line of a bundle."""
    return f"// Written by `make bundle` from viz/browser/, do not edit. SHA-256 of the sources: {digest()}\n"


def glossary() -> str:
    """The sentences that the widgets show, as JSON."""
    return json.dumps(explanations(), indent=2, ensure_ascii=False) + "\n"


def esbuild(folder: Path, *options: str) -> None:
    """Have esbuild write the bundles, but their first lines, to a folder; while it watches, until this process ends."""
    deno = Path(sysconfig.get_path("scripts"), "deno")
    command = [deno, "task", "--quiet", "bundle", f"--outdir={folder}", *options]
    with subprocess.Popen(command, cwd=SOURCES, stdin=subprocess.PIPE) as process:
        if process.wait():
            raise SystemExit(process.returncode)


def bundles() -> dict[Path, str]:
    """The text of each bundle."""
    with tempfile.TemporaryDirectory() as folder:
        esbuild(Path(folder))
        return {file: head() + Path(folder, file.name).read_text("utf-8") for file in BUNDLES}


def main() -> None:
    if sys.argv[1:] == ["--watch"]:
        return esbuild(BUNDLES[0].parent, "--watch")
    if sys.argv[1:] != ["--check"]:
        GLOSSARY.write_text(glossary(), "utf-8")
        for file, text in bundles().items():
            file.write_text(text, "utf-8")
    elif GLOSSARY.read_text("utf-8") != glossary() or {file: file.read_text("utf-8") for file in BUNDLES} != bundles():
        raise SystemExit(f"{GLOSSARY.name} or a bundle is not what its sources give: make bundle")


if __name__ == "__main__":
    main()
