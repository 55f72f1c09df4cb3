"""show: the panels of one result in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from IPython.display import display
from peft import PeftModel

from tlora.calibration.expert_use import ExpertUse
from tlora.explanation.attribution import Attribution
from tlora.explanation.compare_answers import AnswerTable
from tlora.explanation.measure_scales import Rescaling
from tlora.explanation.side_effects import SideEffects
from tlora.results import Result
from tlora.tasks.task import Task
from tlora.utils.front_end import has_front_end
from tlora.utils.validation import check_arguments
from viz.widgets.base import answer_while_busy, refusal_sentence
from viz.widgets.panels.panel import Context
from viz.widgets.panels.registry import make_panels
from viz.widgets.results import RESULT_CLASSES, Results
from viz.widgets.view import WorkbenchView, about_alone


def show(
    result: ExpertUse | AnswerTable | Attribution | SideEffects | Rescaling,
    *,
    adapted: PeftModel | None = None,
    task: Task | None = None,
) -> None:
    """Show the panels of one result in a notebook: those of the workbench, without its map.

    `report` writes the same to a page. Without a front end, such as in a notebook that a tool runs, the table of the
    result is shown in their place.

    Parameters
    ----------
    result : ExpertUse, AnswerTable, Attribution, SideEffects or Rescaling
        From `tlora.expert_use`, `tlora.compare_answers`, `tlora.attribute`, `tlora.side_effects` or
        `tlora.measure_scales`.
    adapted : peft.PeftModel, optional
        The model of answers or of an attribution, with ``task``: the panels then ask the kernel, which takes any row
        or request apart and switches parts of the adapter off. Without it, no kernel is needed once they are shown.
    task : Task, optional
        The task of the result; of a table of requests any task with the tokenizer of the model.

    Raises
    ------
    ValueError
        If ``adapted`` comes without a task, or with another result.

    Examples
    --------
    >>> viz.show(tlora.compare_answers(adapted, task, limit=2, progress=False), adapted=adapted, task=task)
    AnswerTable(... of 2 right, ... before; ... changed)
    """
    check_arguments(show, locals())
    display(ResultView(result, adapted, task))


class ResultView(WorkbenchView):
    """The panels of one result; the browser draws no map without modules."""

    def __init__(self, result: Result, adapted: PeftModel | None = None, task: Task | None = None) -> None:
        self._result = result
        results = Results(**{name: result for name, kind in RESULT_CLASSES.items() if isinstance(result, kind)})
        panels = make_panels(Context(results, show=self._show, adapted=adapted, task=task))
        self._requests = {call: answer for panel in panels for call, answer in panel.requests().items()}
        super().__init__(about=about_alone(results, panels) | {"live": bool(self._requests)})
        self.on_msg(self._answer)
        answer_while_busy(self)

    def _show(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)

    def _answer(self, widget: Any, content: Mapping[str, Any], buffers: Any) -> None:
        """Do what the browser asks for, and say that it is done: the browser sends one request at a time."""
        message = ""
        try:
            self._requests[content["call"]](**content.get("args", {}))
        except (KeyError, ValueError, OSError) as refusal:
            message = refusal_sentence(refusal)
        finally:
            self.current = {"message": message}
            self.send({"answer": content.get("id")})

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """The table is always in it, so that it is there when the notebook is read or exported later."""
        data, metadata = (super()._repr_mimebundle_() if has_front_end() else None) or ({}, {})
        return data | {"text/html": self._result._repr_html_(), "text/plain": repr(self._result)}, metadata

    def __repr__(self) -> str:
        return repr(self._result)
