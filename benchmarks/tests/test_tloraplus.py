"""TLoRA+ against its definition."""

import torch

from benchmarks.lab.methods import METHODS, seeded_adapt
from benchmarks.tests.helpers import RANK, job
from tests.helpers.models import tiny_model
from tlora.adapters.lora_layers import adapter_layers, trainable_parameters
from tlora.models.targets import target_modules


def test_tlora_plus_has_a_third_matrix_and_a_rate_for_it():
    adapted = seeded_adapt(METHODS["tlora+"], job())
    targets = len(target_modules(tiny_model("llama")))
    assert (
        trainable_parameters(adapted) == trainable_parameters(seeded_adapt(METHODS["lora"], job())) + targets * RANK**2
    )
    groups = METHODS["tlora+"].optimizer(RANK, adapted, 1e-3).param_groups
    names = {id(p): n for n, p in adapted.named_parameters()}
    rates = {n: group["lr"] for group in groups for n in (names[id(p)] for p in group["params"])}
    assert {n.split(".")[-1]: rate for n, rate in rates.items()} == {"original": 1e-3, "middle": 16e-3, "weight": 16e-3}

    layer = adapter_layers(adapted)["model.layers.0.mlp.down_proj"]
    parts = dict(layer.named_parameters())
    a, m = (parts[f"lora_A.default.parametrizations.weight.{n}"] for n in ("original", "0.middle"))
    with torch.no_grad():
        for part in (m, parts["lora_B.default.weight"]):
            part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(len(part))))
        x = torch.randn(3, a.shape[1], generator=torch.Generator().manual_seed(0))
        update = parts["lora_B.default.weight"] @ m @ a  # alpha is the rank
        torch.testing.assert_close(layer(x), x @ layer.get_base_layer().weight.T + x @ update.T)
