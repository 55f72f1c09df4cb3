"""Statistics of every module while it trains, against dense definitions."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.adapted import adapted_model, token_rows
from tlora.adapters.lora_layers import adapter_layers, lora_updates
from tlora.training.callbacks import ModuleRecorder, module_statistics
from tlora.training.dataset import Rows
from tlora.training.train import train

ARGUMENTS: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 16, "progress": False, "evaluation_limit": 0}


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_statistics_are_those_of_the_dense_update(scale: float) -> None:
    rng = np.random.default_rng(0)
    b, a = scale * rng.normal(size=(20, 5)) * [4, 2, 1, 1, 0.1], rng.normal(size=(5, 12))
    norm, rank = module_statistics(torch.from_numpy(b).float(), torch.from_numpy(a @ a.T).float(), 0.25).tolist()
    sigma = np.linalg.svd(b, compute_uv=False)
    assert norm == pytest.approx(0.25 * np.linalg.norm(b @ a), rel=1e-5)
    assert rank == pytest.approx((sigma**2).sum() ** 2 / (sigma**4).sum(), rel=1e-5)


def test_statistics_of_a_zero_b() -> None:
    assert module_statistics(torch.zeros(6, 3), torch.eye(3), 1.0).tolist() == [0, 0]


@pytest.mark.parametrize(("family", "train_a"), [("llama", False), ("llama", True), ("gpt2", False), ("bert", False)])
def test_last_record_describes_the_trained_model(family: str, train_a: bool) -> None:
    model = adapted_model(family)
    for layer in adapter_layers(model).values():
        layer.frozen_peft_weight_names = {} if train_a else layer.frozen_peft_weight_names
        layer.lora_A["default"].requires_grad_(train_a)
    run = train(model, token_rows(classes=2 if family == "bert" else 0), epochs=3, **ARGUMENTS)
    last = run.module_history[run.module_history["step"] == 3].set_index("module")
    assert list(last.index) == list(run.ranks)
    assert run.frozen_a != train_a
    for name, row in last.iterrows():
        layer = model.get_base_model().get_submodule(name)
        weight = layer.get_base_layer().weight.detach().double().numpy()
        a, b = (part["default"].weight.detach().double().numpy() for part in (layer.lora_A, layer.lora_B))
        update = np.linalg.norm(layer.scaling["default"] * b @ a)
        sigma = np.linalg.svd(b, compute_uv=False)
        assert row["update_norm"] == pytest.approx(update / np.linalg.norm(weight), rel=1e-4)
        assert row["effective_rank"] == pytest.approx((sigma**2).sum() ** 2 / (sigma**4).sum(), rel=1e-4)


def test_gradient_norms_are_those_of_the_step() -> None:
    rows = token_rows(8)
    reference = adapted_model()
    batch = Rows(rows, 0).collate(list(rows))
    reference(**batch).loss.backward()
    expected = [module.b.grad.norm().item() for module in lora_updates(reference).values()]
    run = train(adapted_model(), rows, max_grad_norm=1e9, max_steps=1, warmup_steps=0, **ARGUMENTS)
    assert run.module_history["gradient_norm"].tolist() == pytest.approx(expected, rel=1e-4)
    assert run.history["grad_norm"].item() == pytest.approx(np.linalg.norm(expected), rel=1e-4)
    clipped = train(adapted_model(), rows, max_grad_norm=1e-3, max_steps=1, warmup_steps=0, **ARGUMENTS)
    assert np.linalg.norm(clipped.module_history["gradient_norm"]) == pytest.approx(1e-3, rel=1e-2)


def test_records_the_first_the_last_and_every_tenth_step() -> None:
    run = train(adapted_model(), token_rows(), max_steps=23, **ARGUMENTS)
    assert run.module_history["step"].unique().tolist() == [1, 10, 20, 23]
    dense = train(adapted_model(), token_rows(), max_steps=5, callbacks=[ModuleRecorder(every=2)], **ARGUMENTS)
    assert dense.module_history["step"].unique().tolist() == [1, 2, 4, 5]


def test_accumulated_steps_are_one_step() -> None:
    options = ARGUMENTS | {"batch_size": 4, "gradient_accumulation_steps": 4, "epochs": 2}
    run = train(adapted_model(), token_rows(), callbacks=[ModuleRecorder(every=1)], **options)
    whole = train(adapted_model(), token_rows(), epochs=2, callbacks=[ModuleRecorder(every=1)], **ARGUMENTS)
    assert run.module_history["step"].unique().tolist() == [1, 2]
    norms = (frame["gradient_norm"].to_numpy() for frame in (run.module_history, whole.module_history))
    np.testing.assert_allclose(*norms, rtol=1e-4)


def test_a_subclass_sees_each_record_as_it_comes() -> None:
    class Watching(ModuleRecorder):
        seen: list[float]

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            super().on_step_end(args, state, control, **kwargs)
            self.seen = [*getattr(self, "seen", []), float(self.latest["update_norm"].max())]

    watching = Watching(every=1)
    history = train(adapted_model(), token_rows(), max_steps=3, callbacks=[watching], **ARGUMENTS).module_history
    assert watching.seen == history.groupby("step")["update_norm"].max().tolist()
    assert watching.to_frame().equals(history)
    again = train(adapted_model(), token_rows(), max_steps=3, callbacks=[watching], **ARGUMENTS)
    assert again.module_history.equals(history)


def test_frozen_b_has_no_gradient_and_an_update_of_zero_no_share() -> None:
    model = adapted_model()
    frozen, zero, *others = lora_updates(model)
    lora_updates(model)[frozen].b.requires_grad_(False)
    model.get_base_model().get_submodule(zero).get_base_layer().weight.data.zero_()
    records = train(model, token_rows(), epochs=2, **ARGUMENTS).module_history.set_index("module")
    assert records.loc[frozen, "gradient_norm"].isna().all()
    assert records.loc[zero, "update_norm"].isna().all()
    assert records.loc[others, ["gradient_norm", "update_norm"]].notna().all(axis=None)


def test_recording_does_not_change_training() -> None:
    class Nothing(ModuleRecorder):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None: ...

    options = ARGUMENTS | {"max_steps": 6}
    recorded = train(adapted_model(), token_rows(), callbacks=[ModuleRecorder(every=1)], **options)
    plain = train(adapted_model(), token_rows(), callbacks=[Nothing()], **options)
    assert recorded.history.equals(plain.history)
    assert len(plain.module_history) == 0
