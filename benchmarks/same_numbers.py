"""Check that two versions of the package compute the same numbers to the last bit.

Each version runs the demo in a process of its own: calibration on 16 samples, subspaces, allocation, and training with
evaluation, on the packaged SmolLM2-135M. The digests of every tensor and number are then compared. A third run, of the
second version with another seed, must differ: a comparison that cannot fail proves nothing.

    git worktree add ../before v0.0
    python -m benchmarks.same_numbers ../before .
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

STEPS = 12
"""Training steps: enough for every parameter to move many times."""

PROGRAM = """
import hashlib, json, sys
import torch, tlora

data, steps, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
digests = {}


def note(name, value):
    if isinstance(value, torch.Tensor):
        values = value.detach().cpu().contiguous()
        content = str((values.dtype, tuple(values.shape))).encode() + values.view(torch.uint8).numpy().tobytes()
        digests[name] = hashlib.sha256(content).hexdigest()
    else:
        digests[name] = repr(value)


model, tokenizer = tlora.load_model("smollm2-135m")
task = tlora.load_task(data, tokenizer, seed=seed)
calibration = tlora.calibrate(model, task.calibration(16), gradient=True, progress=False)
for name in calibration.names:
    note(f"calibration: covariance of {name}", calibration.covariance[name].dense())
    note(f"calibration: gradient of {name}", calibration.gradient[name].dense())
note("calibration: sensitivity", calibration.sensitivity.per_sample)
for kind in ("wc", "g", "random"):
    subspaces = tlora.task_subspaces(model, calibration, max_rank=32, kind=kind, seed=seed, progress=False)
    for name, basis in subspaces.bases.items():
        note(f"subspaces: {kind} of {name}", basis)
    for name, values in subspaces.singular_values.items():
        note(f"subspaces: singular values of {kind} of {name}", values)
subspaces = tlora.task_subspaces(model, calibration, max_rank=32, seed=seed, progress=False)
for budget in ("ranks", "parameters"):
    allocation = tlora.allocate(calibration.sensitivity, rank=8, max_rank=32, budget=budget)
    note(f"allocation: ranks by {budget}", allocation.ranks)
    note(f"allocation: scalings by {budget}", allocation.scalings)
allocation = tlora.allocate(calibration.sensitivity, rank=8, max_rank=32)
adapted = tlora.attach(model, subspaces, allocation, seed=seed)
options = {"learning_rate": 2e-3, "batch_size": 4, "max_steps": steps, "evaluation_limit": 16, "logging_steps": 1}
run = tlora.train(adapted, task, seed=seed, progress=False, **options)
note("training: losses", run.to_frame()["loss"].tolist())
note("training: before", run.before)
note("training: after", run.after)
for name, tensor in run.adapter.items():
    note(f"training: {name}", tensor)
json.dump(digests, sys.stdout)
"""


def compute_digests(checkout: Path, seed: int = 0) -> dict[str, str]:
    """Digests by name of what a checkout computes, in a process that imports this checkout's code."""
    arguments = [sys.executable, "-c", PROGRAM, "notebooks/data/smart_home", str(STEPS), str(seed)]
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "TQDM_DISABLE": "1"}
    ran = subprocess.run(arguments, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def compare(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Numbers of equal and of all digests, by stage; a name that only one side has counts as different."""
    stages: dict[str, tuple[int, int]] = {}
    for name in before.keys() | after.keys():
        stage = name.split(":")[0]
        equal, total = stages.get(stage, (0, 0))
        stages[stage] = equal + (before.get(name) == after.get(name)), total + 1
    return dict(sorted(stages.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of the earlier version")
    parser.add_argument("after", type=Path, help="a checkout of the later version")
    options = parser.parse_args()
    before, after = compute_digests(options.before), compute_digests(options.after)
    other = compute_digests(options.after, seed=1)
    print(f"{'stage':<12} {'equal':>12} {'with another seed':>20}")
    for stage, (equal, total) in compare(before, after).items():
        same, _ = compare(after, other)[stage]
        print(f"{stage:<12} {f'{equal} of {total}':>12} {f'{same} of {total}':>20}")
    differing = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if differing:
        sys.exit(f"different: {', '.join(differing[:5])}{' ...' if len(differing) > 5 else ''}")


if __name__ == "__main__":
    main()
