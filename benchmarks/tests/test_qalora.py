"""QA-LoRA against its definition."""

import pytest
import torch

import tlora
from benchmarks.lab.methods import METHODS, seeded_adapt
from benchmarks.tests.helpers import job
from tests.helpers.models import tiny_batch
from tlora.adapters.lora_layers import adapter_layers

GROUPS = {"self_attn.q_proj": 32, "mlp.down_proj": 16}  # of 32 and of 48 features


@pytest.mark.parametrize("projection", GROUPS)
def test_the_adapter_reads_means_of_groups_and_writes_one_column_a_group(projection):
    adapted = seeded_adapt(METHODS["qa-lora"], job())
    layer = adapter_layers(adapted)[f"model.layers.0.{projection}"]
    group, base = GROUPS[projection], layer.get_base_layer()
    parameters = dict(layer.named_parameters())
    a = parameters["lora_A.default.parametrizations.weight.original"]
    assert a.shape == (2, base.in_features // group)
    assert a.requires_grad
    assert 0 < a.abs().max() <= (base.in_features // group) ** -0.5  # drawn as LoRA's, for what it reads
    b = torch.nn.init.normal_(parameters["lora_B.default.weight"].detach())
    x = torch.randn(5, 3, base.in_features)
    pooled = x.unflatten(-1, (-1, group)).mean(-1)
    with torch.no_grad():
        expected = base(x) + layer.scaling["default"] * (pooled @ a.T) @ b.T
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    change = layer.get_delta_weight("default").detach().unflatten(1, (-1, group))
    torch.testing.assert_close(change, change[..., :1].expand_as(change))


def test_it_merges():
    adapted = seeded_adapt(METHODS["qa-lora"], job())
    for layer in adapter_layers(adapted).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    batch = tiny_batch(adapted.get_base_model())
    with torch.no_grad():
        before = adapted(**batch).logits
        torch.testing.assert_close(tlora.merge(adapted)(**batch).logits, before, rtol=1e-4, atol=1e-4)
