"""scenes: the page that explains LoRA while one plays, without a kernel and without a network."""

from __future__ import annotations

import html
import os
from pathlib import Path
from string import Template

from IPython.display import HTML

from tlora.utils.files import replace_file
from tlora.utils.validation import check_arguments
from viz.widgets.base import FOLDER, LOOK

HEIGHT = "46rem"
"""Height of the frame in a notebook."""


def scenes(output: str | os.PathLike[str] | None = None) -> Path | HTML:
    """Three scenes that explain LoRA: what an adapter reads, what training does with it, where its rank should go.

    Each leads through five or six steps, with a picture to drag and a question to answer before the next step shows
    it. Everything is computed in the page from a seed, which the reader may change; no kernel and no network is needed.

    Parameters
    ----------
    output : path-like, optional
        HTML file to write; an earlier one is replaced. Without it, the page is shown in the notebook.

    Returns
    -------
    pathlib.Path or IPython.display.HTML
        The file, or the page in a frame.

    Raises
    ------
    ValueError
        If ``output`` is not an HTML file.

    Examples
    --------
    >>> import tempfile
    >>> viz.scenes(tempfile.mkdtemp() + "/scenes.html").name
    'scenes.html'
    """
    check_arguments(scenes, locals())
    if output is None:
        frame = f'<iframe title="LoRA in three scenes" style="width: 100%; height: {HEIGHT}; border: 0"'
        return HTML(f'<div>{frame} srcdoc="{html.escape(page())}"></iframe></div>')
    if (path := Path(output)).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"output={str(path)!r}: the scenes are a web page, end its name with .html")
    with replace_file(path) as file:
        file.write_text(page(), encoding="utf-8")
    return path


def page() -> str:
    """The page, with its style and its script in it."""
    names = ("scenes.html", "scenes.css", "scenes.js")
    template, style, script = ((FOLDER / name).read_text("utf-8") for name in names)
    return Template(template).substitute(STYLE=LOOK.read_text("utf-8") + style, SCRIPT=script)
