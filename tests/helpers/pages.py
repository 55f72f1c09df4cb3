"""The pages of docs as programs: their blocks of code run from top to bottom, on tiny models in place of real ones.

The language of a block says what happens to it: ``python`` runs, and so do the commands of ours in ``sh``; ``yaml``
becomes the file that its first line names. ``text`` is output, ``bash`` is for programs that are not installed here.
"""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from tests.helpers.commands import done

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = [path for path in DOCS.rglob("*.md") if path.relative_to(DOCS).parts[0] not in ("reference", "notebooks")]
"""All pages but those that the build copies or makes."""
_BLOCK = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.M | re.S)


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block, directives too."""
    return [(language.strip(), textwrap.dedent(block)) for _, language, block in _BLOCK.findall(text)]


def run(text: str, where: str, **given: Any) -> dict[str, Any]:
    """Run the blocks of a page in the current folder, with these names given; returns all names there are then."""
    names = dict(given)
    for language, block in blocks(text):
        if language == "python":
            exec(compile(block, where, "exec"), names)
        elif language == "sh":
            for line in commands(block):
                execute(line)
        elif language == "yaml":
            file = Path(block.splitlines()[0].removeprefix("# "))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block)
    return names


def commands(block: str) -> list[str]:
    """Lines to type, without comments; one that ends in a backslash goes on."""
    lines = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines())
    return [shlex.join(line) for line in lines if line]


def execute(line: str) -> None:
    """Run a command of ours or of lm-eval; of others see that there is what they ask for."""
    program, rest = line.split(maxsplit=1)
    if program == "tlora":
        done(rest)
    elif program == "lm_eval":
        from lm_eval import tasks
        from lm_eval.__main__ import cli_evaluate

        own = partial(tasks.TaskManager, include_defaults=False)  # to read its thousands of tasks takes 17 s
        with mock.patch.object(sys, "argv", shlex.split(line)), mock.patch.object(tasks, "TaskManager", own):
            cli_evaluate()
    elif program == "make":
        assert re.search(rf"^{rest}:", (ROOT / "Makefile").read_text(), re.M), line
    else:
        assert program == "pip", f"{line}: a block of other programs is called bash"
        extra, group = re.search(r"\[(\w+)\]", rest), re.search(r"--group (\w+)", rest)
        for asked in filter(None, (extra, group)):
            assert re.search(rf"^{asked[1]} = \[", (ROOT / "pyproject.toml").read_text(), re.M), line
