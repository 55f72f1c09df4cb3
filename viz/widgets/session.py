"""The session of a workbench on disk: its results, the kept allocation, and what is set and selected."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tlora.adapters.files import TRAINING as TRAINED
from tlora.adapters.files import earlier_files, refuse_other_writer
from tlora.allocation.allocation import Allocation
from tlora.allocation.options import AllocationOptions
from tlora.comparison.race_result import Race
from tlora.results import Result, read_dataclass, result_file
from tlora.subspaces.subspaces import Subspaces
from tlora.training.run import TrainingRun
from tlora.utils.files import check_place, replace_files
from viz.widgets.past_race import PastRace, RacedArm
from viz.widgets.results import RESULT_CLASSES, Results

SESSION = "session.json"


@dataclass(frozen=True)
class Session:
    """What the JSON file of a saved session holds: ``others`` are labels, ``races`` the arms of each race.

    The kept allocation, the directions and the losses of the races are results of their own.
    """

    options: AllocationOptions
    edits: dict[str, int]
    selected: list[str]
    tab: str
    others: list[str]
    races: list[dict[str, RacedArm]] = field(default_factory=list)


def session_results(results: Results, kept: Allocation, races: Sequence[PastRace]) -> dict[str, Result]:
    """The results of a session by the names of their files."""
    others = {f"other-{i}": subspaces for i, subspaces in enumerate(results.others.values())}
    raced = {f"race-{i}": race.result for i, race in enumerate(races)}
    parts = {name: getattr(results, name) for name in RESULT_CLASSES} | others | raced | {"kept": kept}
    return {name: result for name, result in parts.items() if result is not None}


def save_session(path: str | os.PathLike[str], session: Session, parts: dict[str, Result]) -> Path:
    """Write a session to a folder, in place of an earlier one; FileExistsError if it holds something else."""
    check_place(path, "sensitivity.safetensors")
    refuse_other_writer(Path(path, "run"), TRAINED)
    earlier = [
        *map(result_file, (*RESULT_CLASSES, "kept")),
        *(Path("run", file) for file in earlier_files(Path(path, "run"))),
    ]
    numbered = ("other-*.safetensors", "race-*.safetensors")
    earlier += [Path(file.name) for pattern in numbered for file in Path(path).glob(pattern)]
    with replace_files(path, last=SESSION, earlier=earlier) as folder:
        for name, result in parts.items():
            result.save(folder / name)
        (folder / SESSION).write_text(json.dumps(asdict(session), indent=1))
    return Path(path)


def load_session(path: str | os.PathLike[str]) -> tuple[Session, Results, Allocation, list[PastRace]]:
    """Read a session, its results, the kept allocation and the races."""
    folder = Path(path)
    if not (folder / SESSION).is_file():
        raise FileNotFoundError(f"no session in {folder}, which holds no {SESSION}: name a folder of workbench.save()")
    session = read_dataclass(folder / SESSION, Session, upgrade_session)
    places = {
        name: folder / (name if kind is TrainingRun else result_file(name)) for name, kind in RESULT_CLASSES.items()
    }
    parts: dict[str, Any] = {n: kind.load(places[n]) for n, kind in RESULT_CLASSES.items() if places[n].exists()}
    others = {label: Subspaces.load(folder / f"other-{i}") for i, label in enumerate(session.others)}
    races = [PastRace(Race.load(folder / f"race-{i}"), arms) for i, arms in enumerate(session.races)]
    return session, Results(**parts, others=others), Allocation.load(folder / "kept"), races


def upgrade_session(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a session file; versions before `Workbench.plan` kept options and edits together, as ``state``."""
    if "state" not in values:
        return values
    options = {name: value for name, value in values["state"].items() if name not in ("edits", "directions", "kept")}
    rest = {name: value for name, value in values.items() if name != "state"}
    return rest | {"options": options, "edits": values["state"]["edits"]}
