"""Every kind of result, by the name that its file holds, and `load_result`, which reads any of them."""

from __future__ import annotations

import os
from pathlib import Path

from tlora.adapters.combine import Combination
from tlora.adapters.compression import Compression
from tlora.adapters.extraction import Extraction
from tlora.adapters.files import RUN
from tlora.allocation.allocation import Allocation
from tlora.calibration.calibration import Calibration
from tlora.calibration.expert_use import ExpertUse
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.comparison.race_result import Race
from tlora.explanation.attribution import Attribution
from tlora.explanation.compare_answers import AnswerTable
from tlora.explanation.direction_activations_result import DirectionActivations
from tlora.explanation.interference import Interference
from tlora.explanation.measure_scales import Rescaling
from tlora.explanation.side_effects import SideEffects
from tlora.recipes import Plan
from tlora.resources.estimate import ResourceEstimate
from tlora.results import Result, read_result, result_file
from tlora.serving.inspection import Inspection
from tlora.serving.survival import Survival
from tlora.subspaces.alignment import Alignment
from tlora.subspaces.gradient_capture import GradientCapture
from tlora.subspaces.subspaces import Subspaces
from tlora.training.run import TrainingRun
from tlora.utils.validation import check_arguments

LOADABLE: dict[str, type[Result]] = {
    kind.__name__: kind
    for kind in (
        ResourceEstimate,
        Calibration,
        Spectrum,
        Sensitivity,
        ExpertUse,
        Subspaces,
        Alignment,
        GradientCapture,
        Allocation,
        Plan,
        TrainingRun,
        Extraction,
        Compression,
        Combination,
        Inspection,
        Survival,
        DirectionActivations,
        Attribution,
        AnswerTable,
        SideEffects,
        Rescaling,
        Interference,
        Race,
    )
}
"""In the order of the pipeline."""


def load_result(path: str | os.PathLike[str]) -> Result:
    """Read a result that ``save`` wrote, of whatever kind: the file names its class.

    Parameters
    ----------
    path : path-like
        The file, with or without ``.safetensors``, or the folder that a `TrainingRun` was saved in.

    Returns
    -------
    Result
        An instance of the class that was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a result, of another format, truncated or damaged.

    Examples
    --------
    >>> file = calibration.sensitivity.save("sensitivity")
    >>> tlora.load_result(file).names == calibration.names
    True
    """
    check_arguments(load_result, locals())
    run = Path(path, RUN)
    file = run if run.is_file() else result_file(path)
    result = read_result(file, LOADABLE)
    return TrainingRun.load(file.parents[1]) if isinstance(result, TrainingRun) else result  # with its adapter
