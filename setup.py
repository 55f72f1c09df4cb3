"""The description on PyPI: the README, whose pictures and links lead to the repository at this version.

Everything else is in `pyproject.toml`. `TLORA_URL` is the address of the repository; the workflow `release` sets it.
Without it links stay as they are, relative to the repository.
"""

import os
import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
RELATIVE = re.compile(r"(!?\[[^][]*\]\()(?!#|\w+:)([^)]+)\)")


def description(url: str | None) -> str:
    """The README; with absolute links if the repository has an address."""
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    if not url:
        return readme
    version = re.search(r'__version__ = "(.+)"', (HERE / "tlora" / "__init__.py").read_text(encoding="utf-8"))[1]

    def absolute(link: re.Match[str]) -> str:
        return f"{link[1]}{url}/{'raw' if link[1].startswith('!') else 'blob'}/v{version}/{link[2]})"

    return RELATIVE.sub(absolute, readme)


setup(long_description=description(os.environ.get("TLORA_URL")), long_description_content_type="text/markdown")
