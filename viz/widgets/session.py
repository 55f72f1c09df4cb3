"""The session of a workbench on disk: its results, the kept allocation, and what is set and selected."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tlora.adapters.files import TRAINING as TRAINED
from tlora.adapters.files import earlier_files, refuse_other_writer
from tlora.allocation.allocation import Allocation
from tlora.allocation.options import AllocationOptions
from tlora.results import Result, read_dataclass, result_file
from tlora.subspaces.subspaces import Subspaces
from tlora.training.run import TrainingRun
from tlora.utils.files import check_place, replace_files
from viz.widgets.results import RESULT_CLASSES, Results

SESSION = "session.json"


@dataclass(frozen=True)
class Session:
    """What the JSON file of a saved session holds: ``others`` are labels.

    The kept allocation and the directions are results of their own.
    """

    options: AllocationOptions
    edits: dict[str, int]
    selected: list[str]
    tab: str
    others: list[str]


def session_results(results: Results, kept: Allocation) -> dict[str, Result]:
    """The results of a session by the names of their files."""
    others = {f"other-{i}": subspaces for i, subspaces in enumerate(results.others.values())}
    parts = {name: getattr(results, name) for name in RESULT_CLASSES} | others | {"kept": kept}
    return {name: result for name, result in parts.items() if result is not None}


def save_session(path: str | os.PathLike[str], session: Session, parts: dict[str, Result]) -> Path:
    """Write a session to a folder, in place of an earlier one; FileExistsError if it holds something else."""
    check_place(path, "sensitivity.safetensors")
    refuse_other_writer(Path(path, "run"), TRAINED)
    earlier = [
        *map(result_file, (*RESULT_CLASSES, "kept")),
        *(Path("run", file) for file in earlier_files(Path(path, "run"))),
    ]
    earlier += [Path(file.name) for file in Path(path).glob("other-*.safetensors")]
    with replace_files(path, last=SESSION, earlier=earlier) as folder:
        for name, result in parts.items():
            result.save(folder / name)
        (folder / SESSION).write_text(json.dumps(asdict(session), indent=1))
    return Path(path)


def load_session(path: str | os.PathLike[str]) -> tuple[Session, Results, Allocation]:
    """Read a session, its results and the kept allocation."""
    folder = Path(path)
    session = read_dataclass(folder / SESSION, Session, upgrade_session)
    places = {
        name: folder / (name if kind is TrainingRun else result_file(name)) for name, kind in RESULT_CLASSES.items()
    }
    parts: dict[str, Any] = {n: kind.load(places[n]) for n, kind in RESULT_CLASSES.items() if places[n].exists()}
    others = {label: Subspaces.load(folder / f"other-{i}") for i, label in enumerate(session.others)}
    return session, Results(**parts, others=others), Allocation.load(folder / "kept")


def upgrade_session(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a session file; versions before `Workbench.plan` kept options and edits together, as ``state``."""
    if "state" not in values:
        return values
    options = {name: value for name, value in values["state"].items() if name not in ("edits", "directions", "kept")}
    rest = {name: value for name, value in values.items() if name != "state"}
    return rest | {"options": options, "edits": values["state"]["edits"]}
