"""What is known of an adapter: the results in its folder, or those that are given."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tlora.adapters.files import ADAPTER_CONFIG
from tlora.allocation.allocation import Allocation
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.results import Meta, Result, result_file
from tlora.subspaces.alignment import Alignment
from tlora.subspaces.gradient_capture import GradientCapture
from tlora.training.run import TrainingRun

# Where `load` looks for a result: name of the field, file, and class.
PLACES: tuple[tuple[str, Path, type[Result]], ...] = (
    ("sensitivity", Path("tlora", "sensitivity"), Sensitivity),
    ("spectrum", Path("tlora", "spectrum"), Spectrum),
    ("alignment", Path("tlora", "alignment"), Alignment),
    ("capture", Path("tlora", "capture"), GradientCapture),
    ("allocation", Path("tlora", "allocation"), Allocation),
    ("run", Path("tlora", "run"), TrainingRun),
)


@dataclass(frozen=True)
class Findings:
    """The results that a page is made of; None where there is none of the kind.

    Attributes
    ----------
    sensitivity, spectrum, alignment, capture, allocation, run : Result or None
        One of each kind.
    folder : str
        The adapter's folder as the reader knows it; ``"adapter"`` where results were given by themselves.
    """

    sensitivity: Sensitivity | None = None
    spectrum: Spectrum | None = None
    alignment: Alignment | None = None
    capture: GradientCapture | None = None
    allocation: Allocation | None = None
    run: TrainingRun | None = None
    folder: str = "adapter"

    @property
    def results(self) -> dict[str, Result]:
        """The results that are there, by field, in the order of the pipeline."""
        values = {name: getattr(self, name) for name, _, _ in PLACES}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def metas(self) -> dict[str, Meta]:
        """Where each result comes from."""
        return {name: result.meta for name, result in self.results.items()}

    @property
    def calibrated(self) -> Meta | None:
        """Where the calibration comes from, as the first result that is of it says."""
        return next(
            (self.metas[name] for name in ("sensitivity", "spectrum", "allocation") if name in self.metas), None
        )

    @property
    def calibration_recipe(self) -> dict[str, Any]:
        """Arguments of the calibration; an allocation has them inside its own."""
        recipe = self.calibrated.recipe if self.calibrated else {}
        return recipe.get("sensitivity", recipe)

    @property
    def model(self) -> str:
        """Name of the base model; that of the last result that has one."""
        return next((meta.model for meta in reversed(self.metas.values()) if meta.model), "")

    @property
    def task(self) -> str:
        """Name of the task; that of the last result that has one."""
        return next((meta.task for meta in reversed(self.metas.values()) if meta.task), "")

    @property
    def title(self) -> str:
        """What the page is about: ``"family_relationships on smollm2-135m"``."""
        return " on ".join(part for part in (self.task, PurePath(self.model).name) if part) or "An adapter"

    @property
    def places(self) -> tuple[dict[str, int], dict[str, str]] | None:
        """Layer and projection of each module, where a result has them."""
        known = self.sensitivity or self.allocation or self.spectrum
        return (known.layers, known.projections) if known else None


def load(folder: str | os.PathLike[str]) -> Findings:
    """Read the results in the folder of an adapter.

    Parameters
    ----------
    folder : path-like
        What ``tlora run`` or ``run.save`` wrote.

    Returns
    -------
    Findings
        With the parts that are there.

    Raises
    ------
    FileNotFoundError
        If the folder holds no adapter, or no result of this package.
    ValueError
        If a result is damaged or of a newer format.
    """
    path = Path(folder)
    if not (path / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(
            f"{path} holds no adapter (there is no {ADAPTER_CONFIG}): name the folder that `tlora run` or run.save() "
            "wrote"
        )
    found: dict[str, Result] = {}
    for name, place, kind in PLACES:
        if result_file(path / place).is_file():
            found[name] = kind.load(path if kind is TrainingRun else path / place)
    if not found:
        raise FileNotFoundError(
            f"{path} holds an adapter, and no results beside it ({path / 'tlora'}): train it with `tlora run`, or save "
            f"what you have there, e.g. allocation.save({str(path / 'tlora' / 'allocation')!r})"
        )
    # A page is handed on: where the folder is on this machine is nobody's business.
    shown = path.resolve().name if path.is_absolute() else path.as_posix()
    return Findings(**found, folder=shown)  # type: ignore[arg-type]


def collect(results: Result | Iterable[Result]) -> Findings:
    """Put results together.

    Parameters
    ----------
    results : Result or iterable of Result
        At most one of each kind.

    Returns
    -------
    Findings

    Raises
    ------
    TypeError
        If something is not a result, or of a kind that no page shows.
    ValueError
        If there is none, or two are of one kind.
    """
    kinds = {kind: name for name, _, kind in PLACES}
    found: dict[str, Result] = {}
    for result in [results] if isinstance(results, Result) else results:
        name = kinds.get(type(result))
        if name is None:
            shown = ", ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"a report shows no {type(result).__name__}: pass results of the kinds {shown}")
        if name in found:
            raise ValueError(f"there are two results of kind {type(result).__name__}: pass one of each")
        found[name] = result
    if not found:
        raise ValueError("there are no results to report on: pass at least one, e.g. the TrainingRun")
    return Findings(**found)  # type: ignore[arg-type]
