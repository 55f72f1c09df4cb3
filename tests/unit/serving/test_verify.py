"""Measuring an export leaves the model as it was."""

from pathlib import Path

import tlora
from tests.helpers.adapted import condition
from tests.helpers.foreign import BATCH, foreign
from tests.helpers.models import tiny_model
from tlora.serving.verify import export_difference


def test_measuring_an_export_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = foreign(tiny_model("llama"), layers_to_transform=[1])
    path = tlora.export(model, tmp_path / "x")
    model.train().get_base_model().model.layers[0].eval()  # as a part may be held without dropout
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    before = condition(model)
    assert export_difference(model, path, [BATCH])[0] < 1e-5
    assert condition(model) == before
