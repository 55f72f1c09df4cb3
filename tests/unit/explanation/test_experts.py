"""Adapters of experts taken apart: against PEFT's own model with some of its B scaled, and finite differences of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset
from torch import Tensor

import tlora
from tests.helpers.experts import FAMILIES, experts_modules, tiny_mixture
from tests.helpers.models import tiny_tokenizer
from tlora.adapters.lora_layers import adapter_layers

pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")

EXPERTS = 4
Scales = Mapping[str, float | list[float]]


def _adapted(family: str = "qwen3_moe", top_k: int = EXPERTS, size: float = 0.05) -> peft.PeftModel:
    """A mixture in float64 with PEFT's LoRA of attention and experts, and a random B.

    With all experts for each token the log-probabilities do not jump while the adapter is scaled.
    """
    model = tiny_mixture(family, top_k).double()
    model.config._experts_implementation = "eager"  # the default one takes no float64
    projections = ["q_proj", "o_proj"] if family != "deepseek_v3" else ["o_proj"]
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=projections, task_type="CAUSAL_LM",
                             target_parameters=["experts.gate_up_proj", "experts.down_proj"])  # fmt: skip
    adapted = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return adapted


def _task(rows: int = 2) -> tlora.Task:
    samples = [("w4 w5 w6", "w7 w8"), ("w9 w10", "w11 w12 w13")][:rows]
    prompts, completions = zip(*samples, strict=True)
    data = Dataset.from_dict({"prompt": [*prompts], "completion": [*completions]})
    return tlora.load_task({"test": data}, tiny_tokenizer())


@contextlib.contextmanager
def _scaled(adapted: peft.PeftModel, scales: Scales) -> Iterator[None]:
    """Inside the block PEFT's B is multiplied, module by module, or expert by expert of a parameter."""
    layers = adapter_layers(adapted)
    before = {name: layers[name].lora_B["default"].weight.data.clone() for name in scales}
    for name, factor in scales.items():
        columns = torch.as_tensor(factor, dtype=torch.float64)
        if columns.ndim:
            columns = columns.repeat(before[name].shape[1] // len(columns))  # by rank, then by expert
        layers[name].lora_B["default"].weight.data = before[name] * columns
    yield
    for name, weight in before.items():
        layers[name].lora_B["default"].weight.data = weight


def _log_probabilities(adapted: peft.PeftModel, task: tlora.Task, row: int, scales: Scales) -> Tensor:
    batch = task.collate([task.test[row]])
    labels = batch.pop("labels")[0]
    with torch.no_grad(), _scaled(adapted, scales):
        logits = adapted(**batch).logits[0].double().log_softmax(-1)
    places = (labels >= 0).nonzero()[:, 0]
    return logits[places - 1, labels[places]]


@pytest.fixture(scope="module", params=["qwen3_moe", "gpt_oss"])
def case(request) -> tuple[peft.PeftModel, tlora.Task, tlora.Attribution]:
    adapted, task = _adapted(request.param), _task()
    found = tlora.attribute(adapted, task, switch_off=["modules", "layers"], answers=False, progress=False)
    return adapted, task, found


def test_the_answer_is_scored_as_peft_computes_it(case):
    adapted, task, found = case
    nothing = dict.fromkeys(found.names, 0.0)
    for row, sample in enumerate(found.samples):
        torch.testing.assert_close(sample.base[0], _log_probabilities(adapted, task, row, nothing))
        torch.testing.assert_close(sample.adapter[0], _log_probabilities(adapted, task, row, {}))
        for label, names in found.switches.items():
            expected = _log_probabilities(adapted, task, row, dict.fromkeys(names, 0.0))
            torch.testing.assert_close(sample.switched[label][0], expected, msg=label)


def test_contributions_add_up_over_modules_experts_and_tokens(case):
    _, _, found = case
    assert found.gap < 0.01
    table = found.experts()
    assert len(table) == 2 * 2 * EXPERTS
    frame = found.to_frame().set_index("module")
    for name, part in table.groupby("module"):
        assert part["expert"].tolist() == [*range(EXPERTS)]
        assert part["contribution"].sum() == pytest.approx(frame["contribution"][name], rel=1e-4, abs=1e-6)
        assert found.by_direction(name)["contribution"].sum() == pytest.approx(frame["contribution"][name], abs=1e-6)
    for sample in found.samples:
        by_module = sample.by_token_read.double().sum(2).T
        torch.testing.assert_close(by_module, sample.by_module[0], rtol=5e-3, atol=5e-3)


def test_the_contribution_of_an_expert_is_the_integral_of_peft_s_derivative(case):
    adapted, task, found = case
    nodes, weights = np.polynomial.legendre.leggauss(12)
    step = 0.03  # norms and routers are computed in float32
    for name in ["model.layers.0.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"]:
        ours = found.samples[0].by_direction[name].double().sum(2)
        for expert in range(EXPERTS):
            total = torch.zeros(len(ours), dtype=torch.float64)
            for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
                ends = []
                for sign in (1, -1):
                    scales: dict = dict.fromkeys(found.names, float(node))
                    scales[name] = [node + sign * step * (number == expert) for number in range(EXPERTS)]
                    ends.append(_log_probabilities(adapted, task, 0, scales))
                total += weight * (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(ours[:, expert], total, rtol=5e-3, atol=5e-5)


@pytest.mark.parametrize("top_k", [2, EXPERTS])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_taken_apart(family, top_k):
    adapted, task = _adapted(family, top_k), _task(1)
    found = tlora.attribute(adapted, task, switch_off="layers", answers=False, progress=False)
    expected = _log_probabilities(adapted, task, 0, {})
    torch.testing.assert_close(found.samples[0].adapter[0], expected)
    for label, names in found.switches.items():
        expected_without = _log_probabilities(adapted, task, 0, dict.fromkeys(names, 0.0))
        torch.testing.assert_close(found.samples[0].switched[label][0], expected_without, msg=label)
    assert found.gap < 0.01 or top_k < EXPERTS, "the router chooses other experts along the way"
    assert adapted.config._experts_implementation != "tlora_observed"
    torch.testing.assert_close(_log_probabilities(adapted, task, 0, {}), expected, rtol=0, atol=0)


def test_a_parameter_cut_to_a_rank_is_that_of_compress():
    adapted, task = _adapted(), _task(1)
    name = "model.layers.1.mlp.experts.down_proj"
    found = tlora.attribute(adapted, task, switch_off=[(name, 1)], answers=False, progress=False)
    naive = copy.deepcopy(adapted)
    layer = adapter_layers(naive)[name]
    whole = layer.get_delta_weight("default").detach()
    u, s, v = torch.linalg.svd(whole, full_matrices=False)
    with torch.no_grad():
        layer.get_param().add_(u[..., :1] * s[..., None, :1] @ v[..., :1, :])
    expected = _log_probabilities(naive, task, 0, {name: 0.0})
    torch.testing.assert_close(found.samples[0].switched[f"{name} rank 1"][0], expected, rtol=1e-5, atol=1e-6)


def test_side_effects_and_scales_are_those_of_the_scaled_adapter(tmp_path):
    adapted, task = _adapted(top_k=2), _task()
    bare = copy.deepcopy(adapted).unload()
    effects = tlora.side_effects(adapted, {"text": task}, explain=1, progress=False)
    for measured in effects.samples:
        for scales, ours in (({}, measured.adapter), (dict.fromkeys(adapter_layers(adapted), 0.0), measured.base)):
            expected = _log_probabilities(adapted, task, measured.number, scales)
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    scales = tlora.measure_scales(adapted, task, {"text": task}, parts="layers", split="test", progress=False)
    for point in scales.points:
        for row in range(2):
            expected = -_log_probabilities(adapted, task, row, point.factors).sum()
            torch.testing.assert_close(point.losses["task"][row], expected, rtol=1e-5, atol=1e-6, msg=point.label)
    half = next(point for point in scales.points if point.label == "scale 0.5")
    scales.save_adapter(tmp_path / "half", half)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(bare), tmp_path / "half").double()
    ours, expected = _log_probabilities(again, task, 0, {}), _log_probabilities(adapted, task, 0, half.factors)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    without = next(point for point in scales.points if point.label == "without layer 0")
    scales.save_adapter(tmp_path / "without", without)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(bare), tmp_path / "without").double()
    ours, expected = _log_probabilities(again, task, 0, {}), _log_probabilities(adapted, task, 0, without.factors)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_experts_that_cannot_be_observed_are_refused():
    adapted = _adapted()
    for module in experts_modules(adapted.get_base_model()).values():
        del module.get_base_layer().is_transposed
    with pytest.raises(ValueError, match=r"mlp\.experts\.down_proj"):
        tlora.attribute(adapted, _task(1), progress=False)
