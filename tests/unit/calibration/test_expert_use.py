"""Which experts a task uses: sums over the calibration, counts with an interval, and differences to other text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tlora
from tests.helpers.experts import tiny_mixture
from tests.helpers.models import tiny_batch
from tlora.calibration.expert_use import ExpertUse
from tlora.results import Meta


def _use(per_sample: np.ndarray, other: np.ndarray | None = None, **options) -> ExpertUse:
    count = per_sample.shape[1]
    return ExpertUse(
        modules=["experts"] * count, layers=[0] * count, experts=list(range(count)), tokens=[1] * count,
        per_sample=torch.from_numpy(per_sample).float(), squared_gradient=torch.zeros(count, dtype=torch.float64),
        other=None if other is None else torch.from_numpy(other).float(), confidence=0.95, resamples=200,
        meta=Meta(seed=0), other_meta=None if other is None else Meta(task="prose"), **options,
    )  # fmt: skip


def _calibrate(model, seed=0, **options):
    options = {"target_modules": "experts"} | options
    return tlora.calibrate(model, [tiny_batch("llama", seed=seed)], progress=False, **options)


def test_the_table_sums_the_calibration_by_expert():
    model, batch = tiny_mixture("mixtral", top_k=2), tiny_batch("llama")
    calibration = _calibrate(model, fisher=True)
    frame = tlora.expert_use(calibration).to_frame()
    tokens = int(batch["attention_mask"].sum())
    assert frame.groupby("layer")["tokens"].sum().tolist() == [2 * tokens, 2 * tokens]
    assert frame["share"].sum() == pytest.approx(1)
    row = frame.set_index(["layer", "expert"]).loc[(1, 3)]
    names = [f"model.layers.1.mlp.experts.{key}[3]" for key in ("gate_up_proj", "down_proj")]
    scores = calibration.sensitivity.scores
    entries = {name: target.d_out * target.d_in for name, target in calibration.targets.items()}
    assert row["score"] == pytest.approx(sum(scores[name] * entries[name] for name in names), rel=1e-5)
    assert row["squared_gradient"] == pytest.approx(sum(calibration.fisher[name].trace for name in names))
    assert frame[["other_share", "difference", "low", "high"]].isna().all(axis=None)
    assert tlora.expert_use(_calibrate(model)).to_frame()["squared_gradient"].isna().all()


def test_experts_are_counted_until_they_do_the_share():
    work = np.tile([5.0, 0.0, 3.0, 1.0, 1.0], (4, 1))  # equal samples: nothing varies
    use = _use(work)
    assert [use.count(share) for share in (0.5, 0.51, 0.8, 0.9, 1.0)] == [(n, n, n) for n in (1, 2, 2, 3, 4)]
    assert use.headline == "3 of 5 experts do 90 % of the work (95 %: 3)"
    assert _use(work[:1]).count() == (3, 1, 5)


def test_the_interval_contains_the_count_behind_the_samples():
    """Noise concentrates the work of few samples: a percentile interval would contain the count in none of these."""
    rng = np.random.default_rng(0)
    hits, counts, truths = [], [], []
    for _ in range(40):
        means = rng.gamma(0.5, 1.0, 128)
        noise = rng.gamma(0.5, 2.0, (32, 128)) * (rng.random((32, 128)) > 0.7) / 0.3
        ordered = np.sort(means)[::-1].cumsum()
        truths.append(1 + int((ordered < 0.9 * ordered[-1]).sum()))
        count, low, high = _use(means * noise).count()
        counts.append(count)
        hits.append(low <= truths[-1] <= high)
    assert np.mean(hits) >= 0.8
    assert np.mean(np.array(counts) - truths) == pytest.approx(0, abs=2)


def test_experts_that_do_more_than_on_other_text_are_found_and_no_others():
    rng = np.random.default_rng(1)
    means = rng.gamma(2.0, 1.0, 64)
    more, less = np.eye(64)[[3, 7]].sum(0), np.eye(64)[11]
    false = 0
    for _ in range(20):
        task, prose, same = (means * rng.gamma(4.0, 0.25, (24, 64)) for _ in range(3))
        frame = _use(task * (1 + 3 * more - 0.9 * less), prose).to_frame()
        assert (frame["low"] > 0)[more > 0].all()
        assert (frame["high"] < 0)[less > 0].all()
        false += int(((null := _use(task, same).to_frame())["low"] > 0).any() or (null["high"] < 0).any())
    assert false <= 4, "all intervals hold together in 95 % of the cases"
    means = [part / part.sum() for part in (use.mean(0) for use in (task, same))]
    np.testing.assert_allclose(null["difference"], means[0] - means[1], atol=1e-6)


def test_the_sentence_says_how_many_do_more():
    task = np.tile([6.0, 2.0, 2.0], (3, 1))
    assert _use(task, np.tile([2.0, 2.0, 6.0], (4, 1))).headline.endswith("; 1 do more of it than on prose, 1 do less")


def _dense():
    return _calibrate(tiny_mixture(), target_modules="attention")


def _other_model():
    model = tiny_mixture()
    model.model.layers[0].mlp.experts.down_proj.data.normal_(generator=torch.Generator().manual_seed(5))
    return _calibrate(model)


def _silent():
    model = tiny_mixture()
    torch.nn.init.zeros_(model.lm_head.weight)
    return _calibrate(model)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda own: tlora.expert_use(_dense()), ValueError, "target_modules"),
        (lambda own: tlora.expert_use(own, _other_model()), ValueError, r"down_proj\[0\]"),
        (lambda own: tlora.expert_use(own, _dense()), ValueError, "other"),
        (lambda own: tlora.expert_use(_silent()), ValueError, "zero"),
        (lambda own: tlora.expert_use(own, confidence=95), ValueError, "confidence"),
        (lambda own: tlora.expert_use(own, resamples=0), ValueError, "resamples"),
        (lambda own: tlora.expert_use(own, seed=-1), ValueError, "seed=-1"),
        (lambda own: tlora.expert_use(own).count(90), ValueError, "share"),
        (lambda own: tlora.expert_use(own.sensitivity), TypeError, "calibration"),
    ],
)  # fmt: skip
def test_refusals(call, error, named):
    with pytest.raises(error, match=named):
        call(_calibrate(tiny_mixture()))


def test_other_text_may_be_calibrated_with_more_modules():
    model = tiny_mixture()
    use = tlora.expert_use(_calibrate(model), _calibrate(model, seed=3, target_modules=["attention", "experts"]))
    expected = tlora.expert_use(_calibrate(model, seed=3)).to_frame()["share"]
    np.testing.assert_allclose(use.to_frame()["other_share"], expected, rtol=1e-4)
