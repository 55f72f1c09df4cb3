"""The benchmark for a card runs from end to end, at sizes that say nothing, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_script_for_a_card_runs_on_the_cpu(tmp_path: Path) -> None:
    environment = os.environ | {"SMALL": "1", "PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    script = ROOT / "benchmarks" / "gpu.sh"
    ran = subprocess.run([script], cwd=tmp_path, capture_output=True, text=True, timeout=1800, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    for said in (
        "the authors' procedure: ",
        "calibration, sketched: ",
        "full SVD / ours = ",
        "tlora-paper: ",
    ):
        assert said in ran.stdout, said
    stages = json.loads((tmp_path / "card.json").read_text())["stages"]
    assert list(stages) == [
        "calibration, covariances sketched", "subspaces", "attach", "training B", "training A and B"
    ]  # fmt: skip
    assert all(stage["seconds"] > 0 and stage["bytes"] > 0 for stage in stages.values())
