"""Scripts that are run by several processes, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def in_processes(count: int, script: Path, *arguments: object) -> None:
    """Run a script so often at once on the CPU, one thread each, and see that all end well."""
    ended(started(count, script, *arguments, folder=ROOT))


def started(count: int, *line: object, folder: Path) -> subprocess.Popen[str]:
    """What one would type after ``python``, in a folder, in so many processes; in one without a launcher."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, line)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it has said on stdout and stderr when it ends well, which it does within ten minutes."""
    try:
        said, told = process.communicate(timeout=600)
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0, told[-3000:]
    return said, told
