"""Experts as targets: their names and shapes, and a model that computes the same while they are observed."""

from __future__ import annotations

import logging

import pytest
import torch

import tlora
from tests.helpers import families
from tests.helpers.experts import FAMILIES, as_linear, experts_modules, tiny_mixture
from tests.helpers.models import tiny_batch, tiny_model
from tlora.models.hooks import observe_gradients
from tlora.models.targets import target_modules
from tlora.models.weights import base_modules, weight


@pytest.mark.parametrize("family", FAMILIES)
def test_each_expert_is_a_target_of_the_shape_that_it_computes(family):
    model = tiny_mixture(family)
    targets = target_modules(model, "experts")
    modules = experts_modules(model)
    assert len(targets) == 2 * 2 * 4
    width = modules["model.layers.0.mlp.experts" if family != "granitemoe" else next(iter(modules))].down_proj
    inner = width.shape[1] if family == "gpt_oss" else width.shape[2]
    for target in targets.values():
        gate_up = "gate_up_proj" in target.name
        assert (target.d_out, target.d_in) == ((2 * inner, 32) if gate_up else (32, inner))
        assert target.part == "experts"
        module = modules[target.name.rpartition(".")[0]]
        key, _, number = target.name.rpartition(".")[2].rstrip("]").partition("[")
        expected = as_linear(getattr(module, key)[int(number)], module)
        torch.testing.assert_close(weight(base_modules(model)[target.name]), expected.detach(), rtol=0, atol=0)


def test_words_names_and_patterns_select_experts_by_parameter(caplog):
    model = tiny_mixture()
    with caplog.at_level(logging.WARNING, logger="tlora"):
        assert {t.part for t in target_modules(model).values()} == {"attention"}
    assert 'target_modules="experts"' in caplog.text
    caplog.clear()
    both = target_modules(model, ["attention", "experts"])
    assert len(both) == 2 * (4 + 8)
    assert not caplog.records
    layers = [target.layer for target in both.values()]
    assert layers == sorted(layers), "model order"
    assert len(target_modules(model, ["experts.down_proj"])) == 8
    assert len(target_modules(model, r".*\.1\..*experts\.gate_up_proj")) == 4
    assert list(target_modules(model, list(both))) == list(both)


def _quantized():
    model = tiny_mixture()
    module = experts_modules(model)["model.layers.0.mlp.experts"]
    module.gate_up_proj = torch.nn.Parameter(module.gate_up_proj.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return model


def _parallel():
    model = tiny_mixture()
    experts_modules(model)["model.layers.1.mlp.experts"]._is_expert_parallel = True
    return model


@pytest.mark.parametrize(
    ("model", "select", "named"),
    [
        (lambda: families.tiny_model("causal", "llama4_text"), "experts", "Llama4TextExperts"),
        (_quantized, "experts", "model.layers.0.mlp.experts.gate_up_proj"),
        (_parallel, ["attention", "experts"], "model.layers.1.mlp.experts"),
        (lambda: tiny_model("llama"), "experts", "LlamaForCausalLM"),
        (tiny_mixture, ["model.layers.0.mlp.experts.down_proj[1]"], r"down_proj\[0\]"),
        (tiny_mixture, ["experts", "nonsense"], "nonsense"),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_name(model, select, named):
    with pytest.raises(ValueError, match=named):
        target_modules(model(), select)


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_observed_model_computes_the_same(family, top_k):
    model = tiny_mixture(family, top_k)
    batch = tiny_batch("llama")
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    expected = model(**inputs).logits
    with observe_gradients(model, target_modules(model, "experts"), lambda *_: None, lambda *_: None):
        logits = model(**inputs).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real])


@pytest.mark.parametrize("before", ["eager", "batched_mm", None])
def test_the_implementation_of_experts_is_restored_after_an_error(before):
    model = tiny_mixture()
    model.config._experts_implementation = before
    batch = tiny_batch("llama")
    unlabeled = batch | {"labels": torch.full_like(batch["labels"], -100)}
    with pytest.raises(ValueError, match="no label"):
        tlora.calibrate(model, [batch, unlabeled], progress=False, target_modules="experts")
    assert model.config._experts_implementation == before
