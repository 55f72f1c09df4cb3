"""Interference: against the outputs of both adapters, hooked in float64, and what two adapters share."""

import numpy as np
import pytest
import scipy.linalg
import torch
from peft.tuners.lora import LoraLayer

import tlora
from tests.helpers.foreign import foreign
from tests.helpers.models import singles, tiny_batch, tiny_model
from tests.helpers.pairs import BASES

TARGETS = {
    "llama": (["q_proj", "down_proj"], ["q_proj", "v_proj"]),
    "gpt2": (["c_attn", "c_proj"], ["c_attn"]),
    "bert": (["query", "output.dense"], ["query"]),
}


def pair(family, **options):
    """Two adapters, the batch of each one's task, and the calibrations."""
    shared = {"fan_in_fan_out": family == "gpt2"}
    configs = [{"r": 2, "lora_alpha": 5}, {"r": 3, "use_rslora": True}]
    models = [
        foreign(tiny_model(family), target_modules=targets, **shared, **config)
        for targets, config in zip(TARGETS[family], configs, strict=True)
    ]
    batches = [tiny_batch(family, seed=seed, lengths=(9, 5, 7)) for seed in (1, 2)]
    known = tuple(tlora.calibrate(tiny_model(family), [batch], progress=False, **options) for batch in batches)
    return models, batches, known


def updates(model):
    """``s B A`` of each module, (d_out, d_in) in float64."""
    layers = {n: m for n, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    return {
        name: (
            m.scaling["default"] * m.lora_B["default"].weight.double() @ m.lora_A["default"].weight.double()
        ).detach()
        for name, m in layers.items()
    }


def added_outputs(family, batch, changes):
    """What each update adds to the outputs of its module on a batch, by hooks on the base: (tokens, d_out)."""
    base, inputs = tiny_model(family).double(), {}
    for name in changes:
        base.get_submodule(name).register_forward_pre_hook(
            lambda _, x, name=name: inputs.setdefault(name, []).append(x[0][0])
        )
    with torch.no_grad():
        for single in singles(batch):
            base(**single)
    return {name: torch.cat(inputs[name]) @ update.T for name, update in changes.items()}


@pytest.mark.parametrize("family", TARGETS)
def test_it_is_the_ratio_of_hooked_outputs(family):
    models, batches, known = pair(family)
    found = tlora.interference(*models, known)
    frame = found.to_frame().set_index("module")
    changes = [updates(model) for model in models]
    assert set(frame.index) == {*changes[0], *changes[1]}
    totals = []
    for task, (batch, column) in enumerate(zip(batches, ("on_first", "on_second"), strict=True)):
        outputs = [added_outputs(family, batch, change) for change in changes]
        own, other = outputs[task], outputs[1 - task]
        for name in frame.index:
            if name not in own:
                assert np.isnan(frame.loc[name, column])
            elif name not in other:
                assert frame.loc[name, column] == 0
            else:
                ratio = float(other[name].square().sum() / own[name].square().sum())
                assert frame.loc[name, column] == pytest.approx(ratio, rel=1e-5)
                cosine = torch.nn.functional.cosine_similarity(own[name].flatten(), other[name].flatten(), dim=0)
                assert frame.loc[name, column.replace("on_", "cosine_")] == pytest.approx(float(cosine), abs=1e-5)
        # The outputs of a weighted sum, beside those of the adapter of the task.
        away = weighted(own, 0.5 - 1, other, 0.25)
        whole = sum(float(x.square().sum()) for x in own.values())
        totals.append(sum(float(x.square().sum()) for x in other.values()) / whole)
        weights = (0.5, 0.25) if task == 0 else (0.25, 0.5)
        expected = sum(float(x.square().sum()) for x in away.values()) / whole
        assert found.disturbance(*weights)[task] == pytest.approx(expected, rel=1e-5)
    assert found.overall == pytest.approx(totals, rel=1e-5)


def weighted(one, a, other, b):
    return {n: a * one.get(n, 0) + b * other.get(n, 0) for n in {**one, **other}}


@pytest.mark.parametrize("options", [{}, {"covariance": "sketch", "sketch_size": 12}], ids=["dense", "sketch"])
def test_an_adapter_beside_itself(options):
    models, _, known = pair("llama", **options)
    found = tlora.interference(models[0], models[0], known)
    frame = found.to_frame()
    for column in ("on_first", "on_second", "cosine_first", "cosine_second", "reads", "writes"):
        assert frame[column].to_numpy() == pytest.approx(1)
    assert frame["same_a"].all()
    assert found.overall == pytest.approx((1, 1))
    assert found.disturbance(1, 0) == pytest.approx((0, 0))
    assert found.disturbance(0, 0) == pytest.approx((1, 1))


def test_sketches_are_close_to_whole_moments():
    models, _, known = pair("llama")
    sketched = pair("llama", covariance="sketch", sketch_size=24)[2]
    one, other = (tlora.interference(*models, each).overall for each in (known, sketched))
    assert other == pytest.approx(one, rel=0.02)


def test_without_calibrations_the_weights_are_compared_and_overlaps_are_of_principal_angles():
    models, _, _ = pair("llama")
    found = tlora.interference(*models)
    assert not found.on_tasks
    first, second = map(updates, models)
    frame = found.to_frame().set_index("module")
    for name in set(first) & set(second):
        a, b = first[name].numpy(), second[name].numpy()
        assert frame.loc[name, "on_first"] == pytest.approx((b**2).sum() / (a**2).sum())
        for column, sides in (("reads", (a.T, b.T)), ("writes", (a, b))):
            spans = [scipy.linalg.orth(side, rcond=1e-6) for side in sides]
            overlap = (np.cos(scipy.linalg.subspace_angles(*spans)) ** 2).mean()
            assert frame.loc[name, column] == pytest.approx(overlap, abs=1e-6)
    alone = frame.loc[[name for name in frame.index if (name in first) != (name in second)]]
    assert len(alone) == 4
    assert alone[["reads", "writes"]].isna().all(axis=None)
    assert not alone["same_a"].any()


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
@pytest.mark.parametrize(("write", "options", "words"), BASES.values(), ids=BASES)
def test_refusals(tmp_path, write, options, words):
    write(tmp_path)
    with pytest.raises(ValueError, match=words):
        tlora.interference(tmp_path / "a", tmp_path / "b", **options)


def test_refusals_of_calibrations():
    models, _, (first, second) = pair("llama")
    few = tlora.calibrate(tiny_model("llama"), [tiny_batch("llama")], target_modules=["q_proj"], progress=False)
    with pytest.raises(ValueError, match="second calibration has no"):
        tlora.interference(*models, (first, few))
    for wrong in ((first, second.sensitivity), first):
        with pytest.raises(TypeError, match="Calibration"):
            tlora.interference(*models, wrong)
    for calibrations in ((), (first,), (first, second, first)):
        with pytest.raises(TypeError, match="calibrations is a tuple: pass a tuple of"):
            tlora.interference(*models, calibrations)
