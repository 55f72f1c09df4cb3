"""Every point against the merged model with other scalings, and what is written against the model that was measured."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

import tlora
from tests.helpers.adapted import logits
from tests.helpers.exact_adapters import SMOOTH, adapter, exact_norms, layers, task
from tests.helpers.models import tiny_model, tiny_tokenizer
from tlora.explanation.measure_scales import Rescaling

FAMILIES = ["llama", "gpt2", "t5"]


def texts(family: str) -> dict[str, tlora.Task]:
    if family == "t5":
        return {"other": task(family)}
    return tlora.load_texts(tiny_tokenizer(), mine=["w4 w5 w6 w7 w8", "w9 w10", "w4 w9 w4"], more=["w11 w12 w13"])


def measure(family: str, **options: Any) -> tuple[PeftModel, tlora.Task, Rescaling]:
    model, own = adapter(family), task(family)
    return model, own, tlora.measure_scales(model, own, texts(family), split="test", progress=False, **options)


def merged(family: str, factors: dict[str, float]) -> Any:
    """The base with each module's update added, times its factor, by PEFT."""
    model = adapter(family)
    for name, layer in layers(model).items():
        layer.scaling["default"] *= factors[name]
    return model.merge_and_unload()


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_merged_models(family):
    model, own, rescaling = measure(family, parts="layers")
    sets = {"task": own} | texts(family)
    assert [p.label for p in rescaling.points[:9]] == [f"scale {t / 8:.3g}" for t in range(9)]
    for point in rescaling.points[1::3]:
        for name, each in sets.items():
            loss = each.evaluate(merged(family, point.factors))["loss"]
            assert rescaling.loss(point, name) == pytest.approx(loss, rel=1e-5)
    for name, losses in rescaling.base.items():
        assert losses.equal(rescaling.points[0].losses[name])  # scale 0 changes nothing
        assert rescaling.loss(rescaling.points[8], name) == pytest.approx(sets[name].evaluate(model)["loss"], rel=1e-6)


def test_leaving_out_a_module_is_the_model_without_it():
    model, own, rescaling = measure("llama", parts="modules")
    parts = {point.label: point for point in rescaling.points if point.kind == "part"}
    assert set(parts) == {f"without {name}" for name in layers(model)}
    name = next(iter(layers(model)))
    layers(model)[name].scaling["default"] = 0.0
    assert rescaling.loss(parts[f"without {name}"], "task") == pytest.approx(own.evaluate(model)["loss"], rel=1e-6)


@pytest.mark.parametrize("only", ["layer 1", "v_proj"])
def test_scaling_one_part_leaves_the_others_as_trained(only):
    model, own, rescaling = measure("llama", only=only)
    point = rescaling.points[4]
    assert point.label == f"scale 0.5 of {only}"
    assert point.scale == 0.5
    part = [name for name in layers(model) if f".{only.replace('layer ', 'layers.')}." in f".{name}."]
    assert 0 < len(part) < len(layers(model))
    for name in part:
        layers(model)[name].scaling["default"] *= 0.5
    assert rescaling.loss(point, "task") == pytest.approx(own.evaluate(model)["loss"], rel=1e-6)


def test_parts_are_left_out_in_the_order_of_their_exact_costs():
    model, _, rescaling = measure("llama", parts="modules")
    whole, sets = rescaling.points[8], ("mine", "more")

    def cost(name: str) -> float:
        (point,) = [point for point in rescaling.points if point.label == f"without {name}"]
        change = {each: rescaling.loss(point, each) - rescaling.loss(whole, each) for each in ("task", *sets)}
        return change["task"] + np.mean([change[each] for each in sets])

    order = sorted(layers(model), key=cost)
    several = [point for point in rescaling.points if point.kind == "left out"]
    assert len(several) == 7
    for point in several:
        gone = [name for name, factor in point.factors.items() if factor == 0]
        assert set(gone) == set(order[: len(gone)])
        assert set(point.factors.values()) <= {0.0, 1.0}


@pytest.mark.parametrize("limit", [None, 0.0, 0.02, 10.0])
def test_the_best_point_is_within_the_limit(limit):
    _, _, rescaling = measure("gpt2", limit=limit)
    frame = rescaling.to_frame()
    changes = frame[frame["set"] != "task"].groupby("point", sort=False)["change"].max()
    losses = frame[frame["set"] == "task"].set_index("point")["loss"]
    allowed = losses[changes <= (np.inf if limit is None else limit)]
    assert rescaling.best.label == allowed.idxmin()


PATTERNS: dict[str, dict[str, Any]] = {
    "llama": {"target_modules": ["q_proj", "v_proj", "down_proj", "embed_tokens"]},
    "gpt2": {"use_rslora": False},
    "t5": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_the_model_that_was_measured(family, tmp_path):
    model, own = adapter(family, **PATTERNS[family]), task(family)
    rescaling = tlora.measure_scales(model, own, texts(family), split="test", parts="projections", progress=False)
    rescaling = tlora.load_result(rescaling.save(tmp_path / "rescaling"))
    rows = own.collate(list(own.test))
    for point in (rescaling.points[3], rescaling.points[9], rescaling.points[-1]):
        folder = rescaling.save_adapter(tmp_path / "adapter", point)
        base = exact_norms(tiny_model(family, **SMOOTH.get(family, {})))
        loaded = tlora.load_adapter(folder, base).double().eval()
        for name, layer in layers(model).items():
            layer.scaling["default"] = rescaling.scalings[name] * point.factors[name]
        torch.testing.assert_close(logits(loaded, rows), logits(model.eval(), rows), rtol=1e-5, atol=1e-5)
        assert set(layers(loaded)) == {name for name, factor in point.factors.items() if factor}
        again = PeftModel.from_pretrained(exact_norms(tiny_model(family, **SMOOTH.get(family, {}))), folder)
        assert own.evaluate(again)["loss"] == pytest.approx(rescaling.loss(point, "task"), rel=1e-4)


def test_nothing_is_written_of_the_base_or_over_another_adapter(tmp_path):
    model, _, rescaling = measure("llama", limit=0.0)
    with pytest.raises(ValueError, match="scale 0"):
        rescaling.save_adapter(tmp_path / "new", rescaling.points[0])
    assert not (tmp_path / "new").exists()
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    before = Path(tmp_path, "theirs", "adapter_model.safetensors").read_bytes()
    with pytest.raises(FileExistsError):
        rescaling.save_adapter(tmp_path / "theirs", rescaling.points[4])
    assert Path(tmp_path, "theirs", "adapter_model.safetensors").read_bytes() == before


def test_an_adapter_that_makes_its_task_worse_at_every_scale_is_not_one_for_a_higher_limit(tmp_path):
    _, _, rescaling = measure("llama", limit=10.0)
    counts = rescaling.counts["task"]
    for slope, said in ((1, "at no scale"), (-1, "raise the limit")):
        points = [
            replace(point, losses=point.losses | {"task": counts * (2.0 + slope * point.scale)})
            for point in rescaling.points
        ]
        with pytest.raises(ValueError, match=said):
            replace(rescaling, points=points).save_adapter(tmp_path / "new", points[0])


@pytest.mark.parametrize(
    ("options", "named"), [({"limit": -0.1}, "limit"), ({"parts": "heads"}, "heads"), ({"only": "it"}, "it")]
)
def test_options_that_make_no_sense_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        measure("llama", **options)


def test_a_set_of_texts_is_not_called_as_the_task_is():
    texts_of_that_name = {"task": task("llama")}
    with pytest.raises(ValueError, match="'task'"):
        tlora.measure_scales(
            adapter("llama", target_modules=["q_proj"]), task("llama"), texts_of_that_name, progress=False
        )


def test_a_result_without_a_point_within_the_limit_can_be_shown():
    """As the last line of a cell, where what was measured would be lost with an error."""
    rescaling = replace(measure("llama", limit=0.0)[2], limit=-math.inf)
    for shown in (repr(rescaling), rescaling._repr_html_()):
        assert "no point is within limit=-inf" in shown
    with pytest.raises(ValueError, match="raise the limit, or pass a point"):
        _ = rescaling.best


def test_a_head_that_changes_other_text_by_itself():
    model = adapter("llama", target_modules=["q_proj"], modules_to_save=["lm_head"], rank_pattern={})
    rescaling = tlora.measure_scales(model, task("llama"), texts("llama"), limit=0.0, split="test", progress=False)
    assert not rescaling.base["mine"].equal(rescaling.points[0].losses["mine"])
    if min(map(rescaling.lost, rescaling.points)) > 0:
        with pytest.raises(ValueError, match="limit"):
            _ = rescaling.best
