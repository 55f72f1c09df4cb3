"""show: the panels of one result in a notebook."""

from __future__ import annotations

from typing import Any

from IPython.display import display

from tlora.calibration.expert_use import ExpertUse
from tlora.explanation.attribution import Attribution
from tlora.explanation.compare_answers import AnswerTable
from tlora.explanation.measure_scales import Rescaling
from tlora.explanation.side_effects import SideEffects
from tlora.results import Result
from tlora.utils.front_end import has_front_end
from tlora.utils.validation import check_arguments
from viz.widgets.results import RESULT_CLASSES, Results
from viz.widgets.view import WorkbenchView, about_alone


def show(result: ExpertUse | AnswerTable | Attribution | SideEffects | Rescaling) -> None:
    """Show the panels of one result in a notebook: those of the workbench, without its map.

    No kernel is needed once they are shown. `report` writes the same to a page. Without a front end, such as in a
    notebook that a tool runs, the table of the result is shown in their place.

    Parameters
    ----------
    result : ExpertUse, AnswerTable, Attribution, SideEffects or Rescaling
        From `tlora.expert_use`, `tlora.compare_answers`, `tlora.attribute`, `tlora.side_effects` or
        `tlora.measure_scales`.

    Examples
    --------
    >>> viz.show(tlora.compare_answers(adapted, task, limit=2, progress=False))
    AnswerTable(... of 2 right, ... before; ... changed)
    """
    check_arguments(show, locals())
    display(ResultView(result))


class ResultView(WorkbenchView):
    """The panels of one result; the browser draws no map without modules."""

    def __init__(self, result: Result) -> None:
        self._result = result
        results = Results(**{name: result for name, kind in RESULT_CLASSES.items() if isinstance(result, kind)})
        super().__init__(about=about_alone(results))

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """The table is always in it, so that it is there when the notebook is read or exported later."""
        data, metadata = (super()._repr_mimebundle_() if has_front_end() else None) or ({}, {})
        return data | {"text/html": self._result._repr_html_(), "text/plain": repr(self._result)}, metadata

    def __repr__(self) -> str:
        return repr(self._result)
