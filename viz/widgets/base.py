"""What all widgets share: a widget for a front end, and a picture with a line of text for everything else."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from base64 import b64encode
from pathlib import Path
from typing import Any

import anywidget
from IPython.display import display
from matplotlib.figure import Figure

from tlora.utils.front_end import has_front_end, kernel, shell
from tlora.utils.text import capitalized

FOLDER = Path(__file__).parent
SCRIPT, LOOK = FOLDER / "widgets.js", FOLDER / "widgets.css"
"""What runs in the browser, bundled from ``viz/browser``, and its style."""
DPI = 144
"""Pixels per inch of a picture: one and a half of what a browser shows, so that text is sharp on dense screens too."""


def for_widget(file: Path) -> Path | str:
    """What a widget is given of a file: its text, or the file itself while one works on it.

    An edit of the file is then seen without a new kernel, but anywidget keeps every widget that has it alive.
    """
    return file if os.environ.get("ANYWIDGET_HMR") == "1" else file.read_text("utf-8")


def hears_while_busy() -> bool:
    """Whether the kernel can answer a widget while a cell runs: ipykernel 7 has subshells."""
    return "kernel subshells" in getattr(kernel(), "kernel_info", {}).get("supported_features", ())


def answer_while_busy(widget: anywidget.AnyWidget) -> None:
    """Have the controls of a widget answer while a cell runs, if kernel and front end have subshells.

    ipykernel answers where a widget was last changed, which may be the thread that is busy with the cell. With this it
    answers in the subshell that the front end asks, as JupyterLab does from 4.4 on.
    """
    if widget.comm is not None:
        widget.comm._reply_subshell_for = lambda data, asked: asked


def refusal_sentence(refusal: Exception) -> str:
    """What a widget says of a request that was refused."""
    return as_sentence(str(refusal.args[-1] if refusal.args else refusal))


def as_sentence(refusal: str) -> str:
    """A refusal as a sentence of its own; the name of an argument, a module or a file keeps its first letter."""
    is_word = refusal.split(" ")[0].rstrip(",:").isalpha()
    return capitalized(refusal) if is_word else refusal


class PicturedWidget(ABC):
    """A widget if there is a front end, else a picture and a line of text."""

    widget: anywidget.AnyWidget
    """All that is shown."""

    @property
    @abstractmethod
    def line(self) -> str:
        """The picture in one line of text."""

    @abstractmethod
    def _repr_png_(self) -> bytes:
        """The picture as PNG bytes."""

    def display(self) -> None:
        """Show the widget; without a front end, its picture and one line of text."""
        if has_front_end() or shell() is None:
            display(self)
            return
        display(self._picture(), raw=True)
        display({"text/plain": self.line}, raw=True)

    def close(self) -> None:
        """Take the widget off the page and free what it holds; ipywidgets keeps every widget until it is closed."""
        self.widget.unobserve_all()
        self.widget.layout.close()
        self.widget.close()

    def _picture(self) -> dict[str, str]:
        return {"image/png": b64encode(self._repr_png_()).decode("ascii"), "text/plain": self.line}

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]:
        """The picture is always in it, so that it is there when the notebook is read or exported later."""
        if not has_front_end():
            return self._picture()
        data, metadata = self.widget._repr_mimebundle_() or ({}, {})
        return data | self._picture(), metadata

    def __repr__(self) -> str:
        return self.line


def png_bytes(figure: Figure) -> bytes:
    """A figure that pyplot does not manage, as PNG bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()
