"""TalkLoRA against its definition."""

import pytest
import torch

from benchmarks.lab.methods import METHODS, seeded_adapt
from benchmarks.tests.helpers import job
from tlora.adapters.lora_layers import adapter_layers


@pytest.fixture
def adapted():
    return seeded_adapt(METHODS["talklora"], job(rank=8))


def test_a_layer_is_the_mixture_of_its_definition(adapted):
    """Token by token and expert by expert, in loops."""
    layer = adapter_layers(adapted)["model.layers.1.mlp.down_proj"]
    experts, a = layer.lora_B["default"], layer.lora_A["default"].weight
    torch.nn.init.normal_(experts.weight)
    base, x = layer.get_base_layer(), torch.randn(2, 3, 48)
    with torch.no_grad():
        found = layer(x)
        for sample in range(2):
            for token in range(3):
                h = a @ x[sample, token]
                heads = [h[2 * i : 2 * i + 2] for i in range(4)]
                heard = [sum(experts.talk[i, j] * heads[j] for j in range(4)) for i in range(4)]
                weights = torch.softmax(experts.router @ torch.cat(heard), 0)
                expected = base(x[sample, token])
                for i in range(4):
                    columns = experts.weight[:, 2 * i : 2 * i + 2]
                    expected = expected + weights[i] * columns @ (experts.mixers[i] @ heads[i])
                torch.testing.assert_close(found[sample, token], expected, rtol=1e-4, atol=1e-4)


def test_layers_of_a_projection_share_b_and_nothing_else(adapted):
    layers = adapter_layers(adapted)
    one, other = (layers[f"model.layers.{n}.mlp.down_proj"].lora_B["default"] for n in (0, 1))
    assert one.weight is other.weight
    assert one.weight is not layers["model.layers.0.self_attn.o_proj"].lora_B["default"].weight
    for name in ("mixers", "talk", "router"):
        assert not torch.equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).abs().min() > 0
    assert not one.weight.any()
