"""report: the workbench's page of an adapter's folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlora.calibration.expert_use import ExpertUse
from tlora.explanation.attribution import Attribution
from tlora.explanation.compare_answers import AnswerTable
from tlora.explanation.direction_activations_result import DirectionActivations
from tlora.explanation.measure_scales import Rescaling
from tlora.explanation.side_effects import SideEffects
from tlora.results import Result
from tlora.utils.files import replace_file
from tlora.utils.validation import check_arguments
from viz.widgets.page import page_html
from viz.widgets.panels.panel import Context
from viz.widgets.panels.registry import make_panels
from viz.widgets.results import RESULT_CLASSES, Results, load_results
from viz.widgets.view import about_alone
from viz.widgets.workbench import Workbench

FILE = "report.html"


def report(
    folder: str | os.PathLike[str] | ExpertUse | AnswerTable | Attribution | SideEffects | Rescaling,
    output: str | os.PathLike[str] | None = None,
    *,
    activations: DirectionActivations | None = None,
    answers: AnswerTable | None = None,
    attribution: Attribution | None = None,
    effects: SideEffects | None = None,
    rescaling: Rescaling | None = None,
) -> Path:
    """Write one HTML page on an adapter: its data, spectra, sensitivity, allocation, training, and how to repeat it.

    The page is that of the workbench and needs neither kernel nor network. For results in memory, use
    ``viz.Workbench(...).page(path)``.

    Parameters
    ----------
    folder : path-like, ExpertUse, AnswerTable, Attribution, SideEffects or Rescaling
        The folder of an adapter, as ``tlora run`` or ``run.save`` leaves it; or one of these results, for a page on it
        alone.
    output : path-like, optional
        File to write; ``report.html`` in the folder by default. An earlier file is replaced.
    activations : DirectionActivations, optional
        From `tlora.direction_activations` on the base model: adds the panel Reads, which holds the text of samples.
    answers : AnswerTable, optional
        From `tlora.compare_answers`: adds the panel Answers, which holds the text of samples, and Attribution if rows
        were taken apart.
    attribution : Attribution, optional
        From `tlora.attribute` on the adapted model: adds the panel Attribution, which holds the text of samples.
    effects : SideEffects, optional
        From `tlora.side_effects`: adds the panel Side effects, which holds the texts.
    rescaling : Rescaling, optional
        From `tlora.measure_scales`: adds the curve over the adapter's scale to that panel.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    FileNotFoundError
        If the folder holds no adapter, or no results.
    ValueError
        If ``output`` is not an HTML file.

    Examples
    --------
    >>> import tempfile
    >>> folder = run.save(tempfile.mkdtemp() + "/adapter")
    >>> viz.report(folder).name
    'report.html'
    """
    arguments = locals()
    check_arguments(report, arguments)
    more: dict[str, Any] = {name: arguments[name] for name in RESULT_CLASSES if name in arguments}
    if isinstance(folder, Result):
        more |= {name: folder for name, kind in RESULT_CLASSES.items() if isinstance(folder, kind)}
        results, path = Results(**more), Path(FILE)
    else:
        results, path = replace(load_results(folder), **more), Path(folder, FILE)
    path = path if output is None else Path(output)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"output={str(path)!r}: the report is a web page, end its name with .html")
    if results.sensitivity or results.allocation:
        return Workbench.from_results(results).page(path, texts=True)
    with replace_file(path) as file:
        about = about_alone(results, make_panels(Context(results)))
        file.write_text(page_html(results, about=about), encoding="utf-8")
    return path
