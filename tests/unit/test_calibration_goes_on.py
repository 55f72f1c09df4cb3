"""Calibrations that are merged, killed and taken up again, or run by several processes: the numbers of one pass."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tlora
from tests.helpers import FAMILIES, singles, tiny_batch, tiny_model
from tests.launched import in_two_processes
from tests.results import same
from tlora.calibration.batches import prepare
from tlora.calibration.calibration import Calibration

ROOT = Path(__file__).parents[2]
SKETCH = {"covariance": "sketch", "sketch_size": 12}


def batches(model, n=4, **kwargs):
    return [tiny_batch(model, seed=seed, **kwargs) for seed in range(n)]


def calibrate(model, batches, **kwargs):
    return tlora.calibrate(model, batches, gradient=True, progress=False, **kwargs)


def assert_close(one: Calibration, other: Calibration, tolerance=1e-5):
    assert one.names == other.names
    for name in one.names:
        for kept in ("covariance", "gradient"):
            a, b = (getattr(each, kept)[name].dense() for each in (one, other))
            assert float((a - b).norm()) <= tolerance * float(b.norm()), (kept, name)
        assert one.covariance[name].trace == pytest.approx(other.covariance[name].trace, rel=tolerance)
        assert one.covariance[name].rank_bound == other.covariance[name].rank_bound
    torch.testing.assert_close(one.sensitivity.per_sample, other.sensitivity.per_sample, rtol=tolerance, atol=0)
    assert one.sample_fingerprints.tolist() == other.sample_fingerprints.tolist()
    assert one.meta.samples == other.meta.samples == len(one.sensitivity.per_sample)


@pytest.fixture
def small_sketches(monkeypatch):
    monkeypatch.setattr("tlora.calibration.gradient.SKETCH_ABOVE", 1000)
    monkeypatch.setattr("tlora.calibration.gradient.SKETCH_RANK", 8)


# Merged.


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.parametrize("options", [{}, SKETCH], ids=["dense", "sketch"])
def test_two_calibrations_are_one_of_all_samples(family, options, small_sketches):
    model = tiny_model(family)
    first, second, third, fourth = batches(model)
    whole = calibrate(model, [first, second, third, fourth], **options)
    parts = calibrate(model, [first, second], **options), calibrate(model, [third, fourth], **options)
    both = parts[0].merge(parts[1])
    assert_close(both, whole)
    assert both.covariance[both.names[0]] is both.covariances[both.shared[both.names[0]]]


def test_what_was_merged_is_saved_and_merged_again(tmp_path, small_sketches):
    model = tiny_model("llama")
    parts = [calibrate(model, [batch], **SKETCH) for batch in batches(model, 3)]
    both = Calibration.load(parts[0].merge(parts[1]).save(tmp_path / "both"))
    assert same(both, parts[0].merge(parts[1]))
    assert_close(both.merge(parts[2]), calibrate(model, batches(model, 3), **SKETCH))


def finetuned(model):
    other = tiny_model("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight *= 1.01
    return other


def test_the_size_of_a_sketch_that_is_not_made_does_not_matter():
    model = tiny_model("llama")
    one, other = batches(model, 2)
    both = calibrate(model, [one], sketch_size=128).merge(calibrate(model, [other]))
    assert_close(both, calibrate(model, [one, other]))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda m, b: calibrate(m, [b, *batches(m, 1)]), "3 samples are in both"),
        (lambda m, b: calibrate(tiny_model("llama", seed=1), [b]), "another model"),
        (lambda m, b: calibrate(finetuned(m), [b]), "weights of model.layers.1.mlp.up_proj differ by"),
        (lambda m, b: calibrate(m, [b], target_modules=["q_proj"]), "other modules, 14 and 2"),
        (lambda m, b: calibrate(m, [b], tokens="labels"), "tokens='all' and 'labels'"),
        (lambda m, b: calibrate(m, [b], **SKETCH), "covariance='dense' and 'sketch'"),
        (lambda m, b: tlora.calibrate(m, [b], progress=False), "gradient=True and False"),
    ],
)
def test_what_does_not_add_up_is_refused(other, words):
    model = tiny_model("llama")
    one = calibrate(model, batches(model, 1))
    with pytest.raises(ValueError, match=words):
        one.merge(other(model, tiny_batch(model, seed=9)))
    with pytest.raises(TypeError, match="other is a list"):
        one.merge([one])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_is_known_again_in_any_batch(family):
    model = tiny_model(family)
    batch = tiny_batch(model, padding="left")
    together = tlora.calibrate(model, [batch], progress=False).sample_fingerprints
    alone = tlora.calibrate(model, singles(batch)[::-1], progress=False).sample_fingerprints
    assert together.tolist() == alone.tolist()[::-1]
    assert len(set(together.tolist())) == 3


MORE = [("llama", "position_ids"), ("bert", "token_type_ids"), ("t5", "decoder_attention_mask"), ("t5", "weights")]


def with_more(family, key, value, **kwargs):
    """A batch with one more input of its tokens, of the decoder's, or of the samples; padding is marked in it."""
    model = tiny_model(family)
    batch = tiny_batch(model, **kwargs)
    tokens = batch["labels"] != -100 if key.startswith("decoder_") else batch["attention_mask"].bool()
    whole = torch.full((3, 2), 0.5) * value
    return model, batch | {key: whole if key == "weights" else torch.where(tokens, value, 7)}


@pytest.mark.parametrize(("family", "key"), MORE)
def test_a_sample_with_other_inputs_beside_its_ids_is_another(family, key):
    model, batch = with_more(family, key, 1, padding="left")
    found = prepare(batch, model, "batch 0").fingerprints
    values = batch[key].clone()
    values[1][values[1] != 7] = 0
    changed = prepare(batch | {key: values}, model, "batch 0").fingerprints
    assert [a == b for a, b in zip(found, changed, strict=True)] == [True, False, True]
    assert found != prepare(tiny_batch(model, padding="left"), model, "batch 0").fingerprints
    alone = []
    for n, single in enumerate(singles(batch)):
        own = batch[key][n] if key == "weights" else batch[key][n][batch[key][n] != 7]
        alone += prepare(single | {key: own[None]}, model, "batch 0").fingerprints
    assert alone == found


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_without_other_inputs_a_sample_is_known_as_ever(family):
    """By ids and labels, each after their count, so that what was saved before goes on."""
    model = tiny_model(family)
    batch = tiny_batch(model)
    expected = []
    for single in singles(batch):
        digest = hashlib.blake2b(digest_size=8)
        for part in (single["input_ids"], single["labels"]):
            values = part.flatten().tolist()
            digest.update(len(values).to_bytes(8, "big") + np.array(values, dtype=np.float64).tobytes())
        expected.append(int.from_bytes(digest.digest(), "big", signed=True))
    assert prepare(batch, model, "batch 0").fingerprints == expected


def test_corrected_positions_are_no_samples_that_are_done(tmp_path):
    """As where several texts are packed into one row, and each begins at zero."""
    model = tiny_model("llama")
    batch = tiny_batch(model)
    packed = batch | {"position_ids": torch.arange(9).expand(3, -1) % 4}
    calibrate(model, [batch], checkpoint=tmp_path)
    with pytest.raises(ValueError, match="holds 3 samples that are not among these"):
        calibrate(model, [packed], checkpoint=tmp_path)
    one, other = calibrate(model, [batch]), calibrate(model, [packed])
    assert not one.sensitivity.per_sample.equal(other.sensitivity.per_sample)
    assert one.merge(other).meta.samples == 6


# Killed, and taken up again.


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
    assert [folder.name for folder in tmp_path.iterdir()] == [f"samples-{3 * done:09d}"]
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
    drawn = tlora.sketching.sketching_matrix
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
    with pytest.raises(ValueError, match="holds 3 samples that are not among these"):
        calibrate(model, [other], checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another model"):
        calibrate(tiny_model("llama", seed=1), [one, other], checkpoint=tmp_path)
    with pytest.raises(ValueError, match="tokens='all' and 'labels'"):
        calibrate(model, [one, other], checkpoint=tmp_path, tokens="labels")
    with pytest.raises(TypeError, match="which can be read only once"):
        calibrate(model, iter([one, other]), checkpoint=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: name a folder"):
        calibrate(model, [one], checkpoint=tmp_path / "file")


def test_what_a_kill_left_behind_is_cleared(tmp_path):
    model = tiny_model("llama")
    (tmp_path / ".tlora-0123").mkdir(parents=True)
    calibrate(model, batches(model), checkpoint=tmp_path, checkpoint_every=0)
    assert [folder.name for folder in tmp_path.iterdir()] == ["samples-000000012"]


KILLS = """
import os, random, signal, sys, time, torch, tlora
from tests.unit.test_calibration_goes_on import batches
from tests.helpers import tiny_model
torch.set_num_threads(1)
rng, kills = random.Random(0), 0

def calibrate(folder):
    model = tiny_model("llama")
    options = {"gradient": True, "checkpoint": f"{folder}/steps", "checkpoint_every": 0, "progress": False}
    tlora.calibrate(model, batches(model, 60), **options).save(f"{folder}/result")
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
def test_killed_at_random_moments_twenty_times(tmp_path):
    """SIGKILL, wherever it is: in a pass, in a save, between the two."""
    command = [sys.executable, "-c", KILLS, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 20
    model = tiny_model("llama")
    undisturbed = calibrate(model, batches(model, 60))
    results = list(tmp_path.glob("*/result"))
    assert results
    assert all(same(Calibration.load(result), undisturbed) for result in results)


# Several processes.

SCRIPT = """
import accelerate, json, os, sys, torch, tlora
from tests.unit.test_calibration_goes_on import SKETCH, batches
from tests.helpers import tiny_model
folder, what, rank = sys.argv[1], sys.argv[2], int(os.environ["RANK"])
model = tiny_model("t5" if what == "t5" else "llama")
given = batches(model, 5)
options = SKETCH if what == "sketch" else {}
if what == "few":
    given = given[:1]
if what == "other" and rank:
    given = batches(model, 6)[1:]
if what == "unconnected":
    accelerate.PartialState()
try:
    found = tlora.calibrate(model, given, gradient=True, progress=False, checkpoint=folder + "/steps", **options)
    found.save(f"{folder}/{rank}")
    words = ""
except (ValueError, RuntimeError) as error:
    words = str(error)
open(f"{folder}/{rank}.json", "w").write(json.dumps(words))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def launched(folder: Path, what: str) -> list[str]:
    """What two processes ended with, "" for well."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    in_two_processes(script, folder, what)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["dense", "sketch", "t5"])
def test_two_processes_find_what_one_does(what, tmp_path):
    assert launched(tmp_path, what) == ["", ""]
    model = tiny_model("t5" if what == "t5" else "llama")
    alone = calibrate(model, batches(model, 5), **(SKETCH if what == "sketch" else {}))
    found = [Calibration.load(tmp_path / rank) for rank in "01"]
    assert same(*found)
    assert_close(found[0], alone)
    steps = {rank: sorted((tmp_path / "steps" / f"process-{rank}-of-2").iterdir()) for rank in (0, 1)}
    assert [[folder.name for folder in steps[rank]] for rank in (0, 1)] == [
        ["samples-000000009"],
        ["samples-000000006"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("few", "1 batches for 2 processes"),
        ("other", "must be given the same batches"),
        ("unconnected", "2 processes were started, and accelerate knows of 1"),
    ],
)
def test_processes_that_do_not_work_on_one_thing_are_told(what, words, tmp_path):
    assert all(words in error for error in launched(tmp_path, what))
