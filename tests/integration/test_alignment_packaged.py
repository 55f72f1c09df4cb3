"""Alignment and gradient capture on a real model and task."""

from __future__ import annotations

import pytest

import tlora

pytestmark = pytest.mark.packaged


@pytest.fixture(scope="module")
def calibrated(smollm):
    """The attention of SmolLM2 on four samples, and four held-out ones."""
    model, tokenizer = smollm
    task = tlora.load_task("family_relationships", tokenizer)
    calibration = tlora.calibrate(model, task.calibration(4), gradient=True, target_modules="attention", progress=False)
    held_out = [task.collate(list(task.validation.select(range(4))))]
    return model, calibration, held_out


@pytest.mark.slow
def test_what_tlora_reads_holds_more_of_the_gradient_than_chance_gives(calibrated):
    model, calibration, held_out = calibrated
    subspaces = {
        kind: tlora.task_subspaces(model, calibration, max_rank=8, kind=kind, progress=False)
        for kind in ("wc", "g", "random")
    }
    found = tlora.gradient_capture(model, held_out, subspaces, [8], progress=False)
    shares = found.overall().set_index("kind")
    assert shares.loc["random", "captured"] == pytest.approx(8 / 576, rel=0.3)
    assert shares.loc["random", "random"] == pytest.approx(8 / 576)
    assert shares.loc["wc", "low"] > 10 * 8 / 576
    assert shares.loc["g", "low"] > shares.loc["wc", "high"]
    assert (shares["captured"] < shares["best"]).all()
    overlap = tlora.align(subspaces["wc"], subspaces["random"], 8).to_frame()
    assert overlap["overlap"].mean() == pytest.approx(8 / 576, rel=0.3)
