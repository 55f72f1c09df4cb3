"""Panel: what one panel of the workbench shows of the results, and what it answers to the browser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from peft import PeftModel

from tlora.allocation.allocation import Allocation
from tlora.calibration.calibration import Calibration
from tlora.subspaces.alignment import Alignment
from tlora.tasks.task import Task
from viz.widgets.panels.live_attribution import LiveAttribution
from viz.widgets.panels.parts import Part
from viz.widgets.results import TEXTS, Results, fields_with


@dataclass(frozen=True)
class Context:
    """What panels are made from.

    Attributes
    ----------
    results : Results
        What is known.
    names : sequence of str
        Full names of the modules on the map, in model order; empty without a map.
    alignments : sequence of Alignment
        The pairs of the subspaces among the results.
    texts : bool
        Whether the text of samples may be shown.
    show : callable, optional
        Sets traits of the widget by name: ``show(reading=...)``. None in a page, where no kernel answers.
    adapted : peft.PeftModel, optional
        The model that answers requests about its adapter, with ``task`` and perhaps ``calibration``.
    """

    results: Results
    names: Sequence[str] = ()
    alignments: Sequence[Alignment] = ()
    texts: bool = True
    show: Callable[..., None] | None = None
    adapted: PeftModel | None = None
    task: Task | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.adapted is not None and (self.task is None or not (self.results.answers or self.results.attribution)):
            raise ValueError(
                "adapted= needs task=, and answers=tlora.compare_answers(adapted, task) or "
                "attribution=tlora.attribute(adapted, task): pass them too"
            )

    @cached_property
    def live(self) -> LiveAttribution:
        """What answers requests about the adapter, for all panels."""
        assert self.adapted is not None  # else there are no requests
        assert self.task is not None
        assert self.show is not None
        known = self.results.attribution, self.results.answers
        return LiveAttribution(self.adapted, self.task, *known, self.calibration, self.show)

    def has(self, field: str) -> bool:
        """Whether a result, by its field in `Results`, is known and may be shown."""
        return bool(getattr(self.results, field)) and (self.texts or field not in fields_with(TEXTS))


class Panel:
    """A panel of the workbench, of its page and of the report.

    A subclass is one panel; ``registry.py`` lists it. Its parts are made by the functions of ``parts.py``; a part of
    another kind is drawn by a file in ``viz/browser/panels/``.

    Attributes
    ----------
    name, title : str
        What identifies the panel, and its heading.
    stage : str
        The stage of the method, by its name in ``stages.py``, whose view has the panel; by default the one of the map.
    about : str
        Stands above the parts; its first sentence explains the heading.
    needs : tuple of str
        Fields of `Results`: without any of them there is no panel.
    needs_map : bool
        Whether there is no panel without a map.
    follows_allocation : bool
        Whether `parts_of` takes the place of `parts`, and is asked again at each drag. A page without a kernel keeps
        the parts of the allocation that it was written with, and says so. There is no such panel without a map; it has
        no ``needs``, for the allocation of the map is not among the results.
    answers : tuple of str
        Traits of the widget that its requests set.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    stage: ClassVar[str] = "allocation"
    about: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    needs_map: ClassVar[bool] = False
    follows_allocation: ClassVar[bool] = False
    answers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, context: Context) -> None:
        self.context, self.results = context, context.results

    @classmethod
    def is_possible(cls, context: Context) -> bool:
        """Whether what the panel needs is known."""
        return (not cls.needs or any(map(context.has, cls.needs))) and (
            bool(context.names) or not (cls.needs_map or cls.follows_allocation)
        )

    @classmethod
    def has_texts(cls) -> bool:
        """Whether it shows the text of samples, of a result that it needs: it is then made again for a page."""
        return not set(cls.needs).isdisjoint(fields_with(TEXTS))

    @cached_property
    def values(self) -> dict[str, Any] | None:
        """What the browser draws, as JSON values; None if there is nothing to show."""
        parts = self.parts()
        if not parts and not self.follows_allocation:
            return None
        texts = {"name": self.name, "title": self.title, "stage": self.stage, "about": self.about}
        return texts | {"parts": parts}

    @property
    def result(self) -> Any:
        """The first result that it needs of those that are known."""
        return next(getattr(self.results, name) for name in self.needs if self.context.has(name))

    def parts(self) -> list[Part]:
        """What is shown below each other; a panel without parts is left out."""
        return []

    def parts_of(self, allocation: Allocation) -> list[Part]:
        """What is shown of the allocation on the map, for a panel that follows it."""
        raise NotImplementedError

    def show(self, **values: Any) -> None:
        """Set traits of the widget, in answer to a request."""
        assert self.context.show is not None  # only a kernel is asked
        self.context.show(**values)

    def requests(self) -> Mapping[str, Callable[..., None]]:
        """What the browser can ask for while the panel is open, by the name of the request."""
        return {}

    def page_state(self, answers: Mapping[str, Any]) -> dict[str, Any]:
        """What a page holds in place of a kernel, by name; ``answers`` are those that the kernel has given."""
        return {}
