"""Check that two versions of the package compute the same numbers to the last bit.

Each version runs the same stages in a process of its own, on the packaged SmolLM2-135M: calibration, subspaces,
allocation, training, `tlora run`, and all that is computed from a trained adapter; also a recorded session of the
workbench. The digests of every tensor, number and exported file are then compared. A third run, of the second version
with another seed, must differ in each stage: a comparison that cannot fail proves nothing.

    git worktree add ../before v0.0
    python -m benchmarks.same_numbers ../before .
    python -m benchmarks.same_numbers ../before . --stage compress combine

`stages.py` computes the numbers; a name that differs between the versions is written at its top.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

STAGES = Path(__file__).with_name("stages.py")
Digests = Mapping[str, str]


def compute_digests(checkout: Path, stages: Sequence[str] = (), seed: int = 0) -> dict[str, str]:
    """Digests by name of what a checkout computes, in a process that imports this checkout's code."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "digests.json")
        call = [sys.executable, STAGES, output, f"--seed={seed}", *(["--stage", *stages] if stages else [])]
        subprocess.run(call, cwd=checkout, env=environment, check=True)
        return json.loads(output.read_text())


def differing(before: Digests, after: Digests) -> list[str]:
    """Names of the digests that differ; a name that only one side has is among them."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def count_equal(before: Digests, after: Digests) -> dict[str, tuple[int, int]]:
    """Numbers of equal and of all digests, by stage."""
    different, stages = set(differing(before, after)), {}
    for name in [*before, *(name for name in after if name not in before)]:
        stage = name.partition(":")[0]
        equal, total = stages.get(stage, (0, 0))
        stages[stage] = equal + (name not in different), total + 1
    return stages


def complaints(before: Digests, after: Digests, reseeded: Digests) -> list[str]:
    """Return what is wrong: digests that differ, and stages that are the same with another seed."""
    found = [f"{name} differs" for name in differing(before, after)]
    unchanged = [stage for stage, (equal, total) in count_equal(after, reseeded).items() if equal == total]
    return found + [f"{stage} is the same with another seed, so it shows nothing" for stage in unchanged]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of the earlier version")
    parser.add_argument("after", type=Path, help="a checkout of the later version")
    parser.add_argument("--stage", nargs="+", default=[], help="stages to compare, by default all")
    options = parser.parse_args()
    before, after = (compute_digests(checkout, options.stage) for checkout in (options.before, options.after))
    reseeded = compute_digests(options.after, options.stage, seed=1)
    print(f"{'stage':<24} {'equal':>12} {'with another seed':>20}")
    unchanged = count_equal(after, reseeded)
    for stage, (equal, total) in count_equal(before, after).items():
        same, _ = unchanged.get(stage, (0, 0))
        print(f"{stage:<24} {f'{equal} of {total}':>12} {f'{same} of {total}':>20}")
    if found := complaints(before, after, reseeded):
        sys.exit("\n".join([*found[:10], *(["..."] if len(found) > 10 else [])]))


if __name__ == "__main__":
    main()
