"""Calibrations that are merged, killed and taken up again, or run by several processes: the numbers of one pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tlora
from tests.helpers.calibrations import SKETCH, assert_close, batches, calibrate
from tests.helpers.models import singles, tiny_batch, tiny_model
from tests.helpers.results import same
from tlora.calibration.calibration import Calibration

ROOT = Path(__file__).parents[3]


class Killed(BaseException):
    pass


def until(given, n):
    yield from given[:n]
    raise Killed


class Breaking(list):
    """A list whose first reading is broken off after so many batches."""

    def __init__(self, items, n):
        super().__init__(items)
        self.n = n

    def __iter__(self):
        return until(list(super().__iter__()), self.n)


@pytest.mark.parametrize("options", [{}, SKETCH], ids=["dense", "sketch"])
@pytest.mark.parametrize("done", [1, 3])
def test_it_goes_on_to_the_same_bytes(options, done, tmp_path, small_sketches):
    model = tiny_model("llama")
    given = batches(model)
    undisturbed = calibrate(model, given, **options)
    with pytest.raises(Killed):
        calibrate(model, Breaking(given, done), checkpoint=tmp_path, checkpoint_every=0, **options)
    assert [folder.name for folder in tmp_path.iterdir()] == [f"samples-{3 * done:09d}.safetensors"]
    seen = []
    handle = model.register_forward_pre_hook(lambda *_: seen.append(1) if torch.is_grad_enabled() else None)
    resumed = calibrate(model, given, checkpoint=tmp_path, **options)
    handle.remove()
    assert len(seen) == 4 - done, "what is done is not run again"
    assert same(resumed, undisturbed)
    assert same(calibrate(model, given, checkpoint=tmp_path, **options), undisturbed), "when all is done, too"


def test_it_goes_on_with_the_random_matrices_that_it_was_begun_with(tmp_path, small_sketches, monkeypatch):
    """Another version of torch may draw others, and a sum of products with both is a sketch of nothing."""
    model = tiny_model("llama")
    given = batches(model)
    undisturbed = calibrate(model, given, **SKETCH)
    calibrate(model, given[:2], checkpoint=tmp_path, **SKETCH)
    drawn = tlora.numerics.sketching.sketching_matrix
    monkeypatch.setattr("tlora.numerics.sketching.sketching_matrix", lambda d, size: drawn(d, size, seed=1))
    assert not calibrate(model, given, **SKETCH).sketching["32.12"].equal(undisturbed.sketching["32.12"])
    assert same(calibrate(model, given, checkpoint=tmp_path, **SKETCH), undisturbed)


def test_samples_are_added_in_other_batches_and_order(tmp_path):
    model = tiny_model("llama")
    given = batches(model)
    calibrate(model, given[:2], checkpoint=tmp_path)
    more = [sample for batch in given[::-1] for sample in singles(batch)]
    assert_close(calibrate(model, more, checkpoint=tmp_path), calibrate(model, more))


def test_a_sample_that_is_given_twice_counts_twice(tmp_path):
    model = tiny_model("llama")
    one, other = batches(model, 2)
    calibrate(model, [one, other], checkpoint=tmp_path)
    assert_close(calibrate(model, [one, other, one], checkpoint=tmp_path), calibrate(model, [one, other, one]))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    model = tiny_model("llama")
    one, other = batches(model, 2)
    calibrate(model, [one], checkpoint=tmp_path)
    (tmp_path / "file").touch()
    refused = [
        ((model, [other]), {}, "3 samples"),
        ((tiny_model("llama", seed=1), [one, other]), {}, "another model"),
        ((model, [one, other]), {"tokens": "labels"}, "tokens='all' and 'labels'"),
        ((model, [one]), {"checkpoint": tmp_path / "file"}, "is a file"),
    ]
    for arguments, options, named in refused:
        with pytest.raises(ValueError, match=named):
            calibrate(*arguments, **{"checkpoint": tmp_path} | options)


KILLS = """
import os, random, signal, sys, time, torch, tlora
from tests.unit.calibration.test_checkpoint import batches
from tests.helpers.models import tiny_model
torch.set_num_threads(1)
rng, kills = random.Random(0), 0

def calibrate(folder):
    model = tiny_model("llama")
    options = {"gradient": True, "fisher": True, "checkpoint": f"{folder}/steps", "checkpoint_every": 0}
    tlora.calibrate(model, batches(model, 60), progress=False, **options).save(f"{folder}/result")
    os._exit(0)

while kills < 20:
    folder = f"{sys.argv[1]}/{kills}"
    ended = False
    while not ended:
        child = os.fork()
        if child == 0:
            calibrate(folder)
        time.sleep(rng.uniform(0.1, 0.8))
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), status
        ended = status == 0
        kills += not ended
print(kills)
"""


@pytest.mark.slow
@pytest.mark.posix
def test_killed_at_random_moments_twenty_times(tmp_path):
    """SIGKILL, wherever it is: in a pass, in a save, between the two."""
    command = [sys.executable, "-c", KILLS, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 20
    model = tiny_model("llama")
    undisturbed = calibrate(model, batches(model, 60))
    results = list(tmp_path.glob("*/result.safetensors"))
    assert results
    assert all(same(Calibration.load(result), undisturbed) for result in results)


def test_a_calibration_of_ones_own_is_no_checkpoint(tmp_path: Path) -> None:
    """Saved by hand under names that begin as those of checkpoints do."""
    model = tiny_model("llama")
    samples = [tiny_batch(model, lengths=[6], seed=seed) for seed in range(5)]
    for count in (2, 3):
        tlora.calibrate(model, samples[:count], progress=False).save(tmp_path / f"samples-{count}")
    tlora.calibrate(model, samples, checkpoint=tmp_path, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"samples-{name}.safetensors" for name in ("000000005", "2", "3")
    ]
    assert len(tlora.Calibration.load(tmp_path / "samples-000000005").sample_fingerprints) == 5
