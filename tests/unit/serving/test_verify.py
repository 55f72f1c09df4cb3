"""Adapters that other trainers made: what of them the base holds, what has no place in it, and who reads them."""

from pathlib import Path

import torch

import tlora
from tests.helpers.adapted import adapted_model
from tests.helpers.foreign import BATCH, foreign
from tests.helpers.models import tiny_batch, tiny_model
from tlora.serving.verify import export_difference


def test_measuring_an_export_leaves_the_names_of_the_model(tmp_path: Path) -> None:
    model = foreign(tiny_model("llama"), layers_to_transform=[1])
    names = [name for name, _ in model.named_parameters()]
    path = tlora.export(model, tmp_path / "x")
    assert export_difference(model, path, [BATCH])[0] < 1e-5
    assert [name for name, _ in model.named_parameters()] == names


def test_comparing_an_export_leaves_what_is_trainable(tmp_path: Path) -> None:
    model = adapted_model()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    before = [parameter.requires_grad for parameter in model.parameters()]
    batch = {name: value for name, value in tiny_batch(tiny_model("llama")).items() if name != "labels"}
    export_difference(model, tlora.export(model, tmp_path / "there"), [batch])
    assert [parameter.requires_grad for parameter in model.parameters()] == before


def test_measuring_an_export_leaves_modes_alone(tmp_path: Path) -> None:
    model = adapted_model()
    tlora.export(model, tmp_path / "e")
    model.train()
    held = model.get_base_model().model.layers[0].eval()  # as somebody may hold a part without dropout
    before = [module.training for module in model.modules()]
    ids = torch.tensor([[3, 9, 12]])
    export_difference(model, tmp_path / "e", [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    assert [module.training for module in model.modules()] == before
    assert not held.training
