"""Mutation testing: one change at a time to modules that everything rests on, which their unit tests must notice.

cosmic-ray makes the mutants and keeps the record; tests are run by `forked.py`, in a copy of the project, so that a
mutant costs a fork and not the import of torch. Mutants of annotations are left out, and so are those operators that
hardly ever make another valid program (shifts of floats, ``is`` for ``==``). Run it with ``make mutation``;
``docs/mutation.md`` says what survived, and why.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import cosmic_ray.plugins
from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_code
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult

ROOT = Path(__file__).parents[2]
COPIED = ("tlora", "viz", "tests")
LONGEST = 30  # seconds of processor time of a mutant's tests, several times what they need: it is killed then
TESTS = {
    "tlora/allocation/allocate.py": ["allocation"],
    "tlora/allocation/allocation.py": ["allocation"],
    "tlora/numerics/linalg.py": ["numerics/test_linalg.py"],
    "tlora/subspaces/task_subspaces.py": ["subspaces/test_subspaces.py"],
    "tlora/subspaces/subspaces.py": ["subspaces/test_subspaces.py"],
    "tlora/results.py": ["test_results.py", "utils/test_files.py"],
    "tlora/utils/files.py": ["utils/test_files.py", "test_results.py"],
}
LEFT_OUT = re.compile(
    r"ReplaceComparisonOperator_.*(Is|IsNot)$"
    r"|ReplaceBinaryOperator_(BitOr|BitAnd|BitXor|LShift|RShift)_|ReplaceBinaryOperator_.*_(?!Add$|Sub$|Mul$|Div$)\w+$"
    r"|ReplaceUnaryOperator_.*_Invert"
)

Run = Callable[[str], bool]


@contextmanager
def forked(python: str, copy: Path, tests: list[str]) -> Iterator[Run]:
    """Whether the tests pass in the copy, with another source of the module each time."""
    arguments = ["-p", "no:cacheprovider", "-x", "-q", *(f"tests/unit/{test}" for test in tests)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [python, str(ROOT / "tests" / "slow" / "forked.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin
        assert process.stdout
        commands, codes = process.stdin, process.stdout

        def run(module: str) -> bool:
            for compiled in copy.rglob(f"__pycache__/{Path(module).stem}.*.pyc"):
                compiled.unlink()  # a mutant of the same size and second would not be compiled again
            order = {"folder": str(copy), "arguments": arguments, "seconds": LONGEST}
            print(json.dumps(order), file=commands, flush=True)
            return int(codes.readline()) == 0

        yield run


def annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations begin and end, as (line, column)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(part, ast.expr):
                end = (part.end_lineno or part.lineno, part.end_col_offset or 0)
                found.append(((part.lineno, part.col_offset), end))
    return found


def wanted(item: WorkItem, source: str, places: list[tuple[tuple[int, int], tuple[int, int]]]) -> bool:
    """Whether the mutant is another program, as far as can be said beforehand."""
    mutation = item.mutations[0]
    line, column = mutation.start_pos
    inside = any(start <= (line, column) < end for start, end in places)
    marker = source.splitlines()[line - 1][column:].startswith("*,")  # of arguments that are passed by name
    return not inside and not marker and not LEFT_OUT.search(mutation.operator_name)


def mutant(source: str, mutation: MutationSpec) -> str | None:
    """The source with one change; None where there is nothing to change."""
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**mutation.operator_args)
    changed = mutate_code(source, operator, mutation.occurrence)
    return None if changed == source else changed


def prepare(module: str, db: WorkDB) -> None:
    """List the mutants, once."""
    if db.num_work_items:
        return
    source = (ROOT / module).read_text()
    init([ROOT / module], db, {})
    places = annotations(source)
    kept = [item for item in db.work_items if wanted(item, source, places)]
    db.clear()
    db.add_work_items(kept)


def work(module: str, db: WorkDB, run: Run, copy: Path, until: float) -> None:
    """Test the mutants that have not been killed yet, until time is up: there may be more tests than last time."""
    source = (ROOT / module).read_text()
    assert run(module), f"the tests of {module} fail without a change: see {copy / 'output.txt'}"
    done = {job for job, result in db.results if result.test_outcome != TestOutcome.SURVIVED}
    left = [item for item in db.work_items if item.job_id not in done]
    left.sort(key=lambda item: (item.mutations[0].operator_name, item.mutations[0].occurrence))
    Random(0).shuffle(left)  # what is done when time is up is a fair sample
    for item in left:
        if time.monotonic() > until:
            print(f"{module}: time is up, the same command goes on", file=sys.stderr)
            return
        changed = mutant(source, item.mutations[0])
        if changed is None:
            db.set_result(item.job_id, WorkResult(worker_outcome=WorkerOutcome.NO_TEST))
            continue
        (copy / module).write_text(changed)
        outcome = TestOutcome.SURVIVED if run(module) else TestOutcome.KILLED
        (copy / module).write_text(source)
        result = WorkResult(worker_outcome=WorkerOutcome.NORMAL, test_outcome=outcome)
        db.set_result(item.job_id, result)


def tell(module: str, db: WorkDB) -> None:
    """How many were killed, and a line for each that was not."""
    source = (ROOT / module).read_text()
    results = dict(db.results)
    tested = [item for item in db.work_items if (r := results.get(item.job_id)) and r.test_outcome is not None]
    survived = [item for item in tested if results[item.job_id].test_outcome == TestOutcome.SURVIVED]
    killed = len(tested) - len(survived)
    share = 100 * killed / max(1, len(tested))
    print(f"{module}: {killed} of {len(tested)} mutants killed ({share:.1f} %), {db.num_work_items} there are")
    for item in survived:
        mutation = item.mutations[0]
        line = mutation.start_pos[0] - 1
        changed = (mutant(source, mutation) or source).splitlines()
        before = source.splitlines()[line].strip()
        after = changed[line].strip() if line < len(changed) else ""
        print(f"  {line + 1}: {before}\n   {' ' * len(str(line + 1))} {after}   ({mutation.operator_name})")


def main() -> None:
    """Mutate the modules named, all by default."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("modules", nargs="*", default=list(TESTS))
    parser.add_argument("--python", required=True, help="a Python with the project's dependencies")
    parser.add_argument("--minutes", type=float, default=1e6, help="of each module; the same command goes on")
    parser.add_argument("--record", type=Path, default=ROOT / "build", help="folder of the records")
    options = parser.parse_args()
    options.record.mkdir(parents=True, exist_ok=True)
    for module in options.modules:
        until = time.monotonic() + 60 * options.minutes
        version = hashlib.sha256((ROOT / module).read_bytes()).hexdigest()[:8]
        record = options.record / f"mutation-{Path(module).stem}-{version}.sqlite"
        with use_db(record, WorkDB.Mode.create) as db, tempfile.TemporaryDirectory() as folder:
            prepare(module, db)
            copy = Path(folder)
            for name in COPIED:
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", copy)
            with forked(options.python, copy, TESTS[module]) as run:
                work(module, db, run, copy, until)
            tell(module, db)


if __name__ == "__main__":
    main()
