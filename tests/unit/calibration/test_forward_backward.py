"""Models whose pass would give wrong statistics are refused by name and left unchanged."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.results import base, subspaces
from tlora.utils.progress import report_progress


def condition(model: nn.Module) -> list[Any]:
    """What a refusal must leave as it was."""
    modules = [(n, type(m), m.training, len(m._forward_hooks)) for n, m in model.named_modules()]
    return [modules, [(n, p.requires_grad, p.grad is None) for n, p in model.named_parameters()]]


def test_calibration_is_without_dropout() -> None:
    batch = tiny_batch("bert")
    still, dropping = (
        tlora.calibrate(m, [batch], progress=False) for m in (tiny_model("bert"), tiny_model("bert").train())
    )
    assert still.sensitivity.per_sample.equal(dropping.sensitivity.per_sample)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda batches: tlora.calibrate(base(), batches), "calibrating"),
        (lambda batches: tlora.gradient_capture(base(), batches, {"wc": subspaces()}, ranks=[2]), "gradient capture"),
        (lambda batches: tlora.direction_activations(base(), subspaces(), batches, need=True), "reading"),
    ],
)
def test_the_bar_counts_what_is_run_down_to_modules(call: Callable[[Any], Any], words: str) -> None:
    heard: list[Any] = []
    with report_progress(lambda *bar: heard.append(bar)):
        call([tiny_batch("llama"), tiny_batch("llama", seed=1)])
    modules = len(subspaces().shapes)
    assert heard[0] == (words, 0, 2)
    assert heard[-1] == (f"{words}, backward, {modules} of {modules} modules", 2, 2)


def test_the_bar_moves_within_a_forward_pass() -> None:
    model, heard = tiny_model("llama"), list[str]()
    model.model.layers[1].register_forward_pre_hook(lambda *_: time.sleep(0.4))
    with report_progress(lambda words, *_: heard.append(words)):
        tlora.calibrate(model, [tiny_batch("llama")])
    assert "calibrating, forward, 8 of 14 modules" in heard


class _NoGraph(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_a_checkpoint_of_ones_own_changes_no_score() -> None:
    """The modules in it run again in the backward pass: seen again, they would wait for gradients that never come."""
    plain, model = tiny_model("llama"), tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.forward = partial(checkpoint, layer.mlp.forward, use_reentrant=False)
    one, other = (tlora.calibrate(m, [tiny_batch("llama")], progress=False) for m in (plain, model))
    torch.testing.assert_close(one.sensitivity.per_sample, other.sensitivity.per_sample)


class _NowAndThen(nn.Module):
    """An MLP that hands its two readers one tensor, and from the second pass on two."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.mlp = mlp
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        other = x.clone() if self.passes > 1 else x
        return self.mlp.down_proj(self.mlp.act_fn(self.mlp.gate_proj(x)) * self.mlp.up_proj(other))


class _Checkpointed(nn.Module):
    """A block that recomputes whatever the mode, as code outside transformers does; no gradient reaches into it."""

    gradient_checkpointing = True

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self.gradient_checkpointing:
            return checkpoint(partial(self.block, **kwargs), x, use_reentrant=True)
        return self.block(x, **kwargs)


def test_checkpointing_that_ignores_the_mode_is_off_during_calibration() -> None:
    plain, model = tiny_model("llama"), tiny_model("llama")
    model.model.layers = nn.ModuleList(_Checkpointed(block) for block in model.model.layers)
    expected = tlora.calibrate(plain, [tiny_batch("llama")], progress=False)
    with pytest.warns(UserWarning, match="LlamaForCausalLM has no blocks that transformers checkpoints"):
        found = tlora.calibrate(model, [tiny_batch("llama")], progress=False)
    assert found.sensitivity.per_sample.equal(expected.sensitivity.per_sample)
    for one, other in zip(found.covariance.values(), expected.covariance.values(), strict=True):
        assert one.dense().equal(other.dense())
    assert all(block.gradient_checkpointing for block in model.model.layers)


def without_a_graph() -> Any:
    model = tiny_model("llama")
    model.model.layers[1].mlp = _NoGraph(model.model.layers[1].mlp)
    return model


def with_a_pass_under(context: Callable[[], Any]) -> Any:
    model = tiny_model("llama")
    model.model.forward = context()(model.model.forward)
    return model


def with_a_call_that_leads_nowhere() -> Any:
    """Its module's score would be zero, or that of the other calls."""
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp
    forward = mlp.forward
    mlp.forward = lambda x: (mlp.up_proj(x), forward(x))[1]
    return model


def with_a_draft() -> Any:
    """A model that carries another one: full names of the first are suffixes of names of the second."""
    model = tiny_model("llama")
    model.draft = tiny_model("llama", seed=1)
    return model


def with_an_input_shared_now_and_then() -> Any:
    model = tiny_model("llama")
    model.model.layers[0].mlp = _NowAndThen(model.model.layers[0].mlp)
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (without_a_graph, r"layers\.1\.mlp\.inner\.gate_proj.*torch\.no_grad"),
        (partial(with_a_pass_under, torch.no_grad), r"q_proj, which runs without a graph"),
        (partial(with_a_pass_under, torch.inference_mode), r"q_proj, which runs without a graph"),
        (with_a_call_that_leads_nowhere, r"model\.layers\.1\.mlp\.up_proj receives no gradient"),
        (with_a_draft, r"draft\.model\.layers\.0\.self_attn\.q_proj did not run"),
        (with_an_input_shared_now_and_then, r"layers\.0\.mlp\.mlp\.up_proj shares its input with .*gate_proj"),
    ],
)
def test_a_module_without_a_gradient_or_an_input_of_its_own_is_named(make: Callable[[], Any], words: str) -> None:
    model = make()
    before = condition(model)
    with pytest.raises(RuntimeError, match=words):
        tlora.calibrate(model, [tiny_batch("llama")] * 2, progress=False)
    assert condition(model) == before
