"""What all widgets share: controls that change a frozen state, a picture that follows, a way to show both."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import anywidget
import ipywidgets
from IPython.core.getipython import get_ipython
from IPython.display import display
from matplotlib.axes import Axes

from viz.plots import heatmap
from viz.widgets.canvas import Canvas

State = TypeVar("State")
Result = TypeVar("Result")

WIDTH = heatmap.WIDTH
"""Inches of a widget's picture, 96 pixels each on the page."""


def front_end() -> bool:
    """Whether there is somebody who can see and move a widget.

    True in a kernel that runs a cell for a person: the front ends of Jupyter all offer to answer ``input()``,
    and the tools that execute a notebook on their own (nbconvert, papermill, nbval) do not.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent().get("content", {}).get("allow_stdin", True))


class _Shield(anywidget.AnyWidget):
    """Keeps keys that are meant for a control from the shortcuts of JupyterLab; takes no room itself."""

    _esm = """export default { render({ el }) {
        el.style.display = "none";
        const mark = () => {
            if (!el.isConnected) return requestAnimationFrame(mark);
            el.closest(".widget-vbox").dataset.lmSuppressShortcuts = "true";
        };
        mark();
    } }"""


def stack(*parts: ipywidgets.Widget) -> ipywidgets.VBox:
    """Parts of a widget from top to bottom; what is typed there stays there."""
    return ipywidgets.VBox([*parts, _Shield()])


class Shown(ABC):
    """Something that is a widget where there is a front end, and a picture with a line of text elsewhere."""

    widget: ipywidgets.DOMWidget
    """All that is shown."""

    image: ipywidgets.Image
    """The picture, as PNG bytes in ``image.value``."""

    @property
    @abstractmethod
    def line(self) -> str:
        """The picture in one line of text."""

    def display(self) -> None:
        """Show the widget; where there is no front end for it, its picture and one line of text."""
        if front_end() or get_ipython() is None:
            display(self)
            return
        display(self._picture(), raw=True)
        display({"text/plain": self.line}, raw=True)

    def close(self) -> None:
        """Take the widget off the page and free what it holds; ipywidgets keeps every widget until it is closed."""
        _close(self.widget)

    def _paper(self, width: float, height: float) -> Canvas:
        """A canvas of this many inches, or what a headline needs; shown at its size where the page is wide enough."""
        width = max(width, WIDTH)
        self.image.layout.width, self.image.layout.max_width = f"{96 * width:.0f}px", "100%"
        return Canvas(width, height)

    def _picture(self) -> dict[str, str]:
        return {"image/png": b64encode(self._repr_png_()).decode("ascii"), "text/plain": self.line}

    def _repr_png_(self) -> bytes:
        return self.image.value

    def _answer_while_busy(self) -> None:
        """Have the controls answer while a cell runs, where kernel and front end have subshells.

        ipykernel answers where a widget was last changed, which may be the thread that is busy with the cell. With
        this it answers in the subshell that the front end asks, as JupyterLab does from 4.4 on.
        """
        for part in _parts(self.widget):
            if part.comm is not None:
                part.comm._reply_subshell_for = lambda data, asked: asked

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]:
        """The picture is always in it, so that it is there when the notebook is read or exported later."""
        bundle = self.widget._repr_mimebundle_() if front_end() else {}
        if isinstance(bundle, tuple):  # of anywidget, with metadata
            return bundle[0] | self._picture(), bundle[1]
        return bundle | self._picture()

    def __repr__(self) -> str:
        return self.line


class Explorer(Shown, Generic[State, Result]):
    """A picture of a result that follows its controls.

    Attributes
    ----------
    state : dataclass
        Frozen; what the picture shows. Where the controls ask for something impossible, it stays as it was.
    controls : dict of ipywidgets.Widget
        By what they control; setting ``.value`` of one is the same as moving it.
    image : ipywidgets.Image
        The picture, as PNG bytes in ``image.value``.
    widget : ipywidgets.VBox
        All that is shown.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self._asked = state
        self._result = self.result(state)
        self.controls: dict[str, Any] = {}
        self.message = ipywidgets.HTML()
        self.message.add_class("tlora-message")
        self.image = ipywidgets.Image(format="png")

    @abstractmethod
    def result(self, state: State) -> Result:
        """What ``state`` stands for: nothing else decides it."""

    @abstractmethod
    def render(self, state: State, ax: Axes) -> Axes:
        """Draw ``state`` on ``ax``."""

    @abstractmethod
    def _refresh(self) -> None:
        """Bring picture, texts and controls up to ``state`` and ``_result``."""

    def _watch(self, **controls: Any) -> None:
        """Add controls whose values are fields of the state, each named after its field."""
        for name, control in controls.items():
            control.observe(lambda change, name=name: self._ask(**{name: change["new"]}), "value")
        self.controls |= controls

    def _ask(self, **changes: Any) -> None:
        """Change the state, or say why that cannot be and keep what there is."""
        self._asked = replace(self._asked, **changes)  # type: ignore[type-var]
        try:
            result = self.result(self._asked)
        except (KeyError, ValueError) as refusal:
            # A KeyError as text has quotation marks around it.
            self.message.value = alert(str(refusal.args[0] if refusal.args else refusal))
            return
        self.message.value = ""
        self.state, self._result = self._asked, result
        self._refresh()


def _parts(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    """A widget and all that is in it, the innermost first."""
    for child in getattr(widget, "children", ()):
        yield from _parts(child)
    yield widget


def _close(widget: ipywidgets.Widget) -> None:
    """Close a widget and all that is in it."""
    for inner in list(_parts(widget)):
        inner.unobserve_all()
        for part in (getattr(inner, "style", None), inner.layout, inner):
            if part is not None:
                part.close()


def alert(text: str) -> str:
    """A sentence that a screen reader speaks when it appears, and that stands out in light and dark themes."""
    colour = "var(--jp-error-color1, #c62828)"
    return (
        f'<div role="alert" style="border-left: 3px solid {colour}; padding: 2px 8px; line-height: 1.35">'
        f"{html.escape(text)}</div>"
    )


def row(*controls: ipywidgets.Widget) -> ipywidgets.HBox:
    """Controls side by side, on more lines where the page is narrow."""
    return ipywidgets.HBox(controls, layout={"flex_flow": "row wrap", "max_width": f"{96 * WIDTH:.0f}px"})


def choice(description: str, options: Sequence[Any], value: Any, tooltips: Sequence[str]) -> ipywidgets.ToggleButtons:
    """Buttons of which one is down: reached by Tab, pressed with Enter."""
    return ipywidgets.ToggleButtons(
        options=options,
        value=value,
        description=f"{description}\u00a0\u00a0",  # a gap
        tooltips=tooltips,
        style={"button_width": "auto", "description_width": "initial"},
        layout={"display": "flex", "width": "max-content", "margin": "2px 18px 2px 2px"},
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A small table in HTML, numbers to the right; its colours are those of the page."""

    def cell(tag: str, text: str, place: int) -> str:
        return f"<{tag} style='text-align: {'right' if place else 'left'}'>{html.escape(text)}</{tag}>"

    lines = [("th", heads), *(("td", row) for row in rows)]
    body = "".join(f"<tr>{''.join(cell(tag, t, i) for i, t in enumerate(line))}</tr>" for tag, line in lines)
    return f"<table style='border-spacing: 14px 1px; margin-left: -14px; line-height: 1.4'>{body}</table>"
