"""Calibrations that are merged, killed and taken up again, or run by several processes: the numbers of one pass."""

import hashlib

import numpy as np
import pytest
import torch

import tlora
from tests.helpers.calibrations import SKETCH, assert_close, batches, calibrate
from tests.helpers.models import FAMILIES, singles, tiny_batch, tiny_model
from tests.helpers.results import same
from tlora.calibration.batches import prepare_batch
from tlora.calibration.calibration import Calibration


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
    samples = zip(batches(model, 2), (128, 256), strict=True)
    one, other = (tlora.calibrate(model, [batch], sketch_size=size, progress=False) for batch, size in samples)
    assert one.merge(other).meta.samples == 6


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda m, b: calibrate(m, [b, *batches(m, 1)]), "3 samples are in both"),
        (lambda m, b: calibrate(tiny_model("llama", seed=1), [b]), "another model"),
        (lambda m, b: calibrate(finetuned(m), [b]), "up_proj"),
        (lambda m, b: calibrate(m, [b], target_modules=["q_proj"]), "other modules"),
        (lambda m, b: calibrate(m, [b], tokens="labels"), "tokens="),
        (lambda m, b: calibrate(m, [b], **SKETCH), "covariance="),
        (lambda m, b: tlora.calibrate(m, [b], progress=False), "gradient="),
    ],
)
def test_what_does_not_add_up_is_refused(other, words):
    model = tiny_model("llama")
    one = calibrate(model, batches(model, 1))
    with pytest.raises(ValueError, match=words):
        one.merge(other(model, tiny_batch(model, seed=9)))
    with pytest.raises(TypeError, match=r"other is a list: pass other\[0\]"):
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
    found = prepare_batch(batch, model, "batch 0").fingerprints
    values = batch[key].clone()
    values[1][values[1] != 7] = 0
    changed = prepare_batch(batch | {key: values}, model, "batch 0").fingerprints
    assert [a == b for a, b in zip(found, changed, strict=True)] == [True, False, True]
    assert found != prepare_batch(tiny_batch(model, padding="left"), model, "batch 0").fingerprints
    alone = []
    for n, single in enumerate(singles(batch)):
        own = batch[key][n] if key == "weights" else batch[key][n][batch[key][n] != 7]
        alone += prepare_batch(single | {key: own[None]}, model, "batch 0").fingerprints
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
    assert prepare_batch(batch, model, "batch 0").fingerprints == expected
