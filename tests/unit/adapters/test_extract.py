"""Adapters extracted from full fine-tunes: planted differences, a dense SVD, dense weighted least squares, logits."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy.linalg import fractional_matrix_power
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

import tlora
from tests.helpers.fine_tuned import fine_tune
from tests.helpers.gguf_models import tensors_of, write_model
from tests.helpers.jobs import task
from tests.helpers.models import singles, tiny_batch, tiny_model, tiny_tokenizer
from tests.helpers.quantized import needs_bitsandbytes
from tlora.adapters.extraction import Extraction
from tlora.models.weights import weight

MODULES = list(tlora.target_modules(tiny_model("llama")))
OTHERS = ["embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm"]
"""All other modules with weights."""


def changes(base, tuned) -> dict[str, np.ndarray]:
    """The change of each linear weight, (d_out, d_in)."""
    after = dict(tuned.named_modules())
    before = {name: module for name, module in base.named_modules() if name in tlora.target_modules(base)}
    return {n: (weight(after[n]) - weight(m)).double().detach().numpy() for n, m in before.items()}


def updates(adapter) -> dict[str, np.ndarray]:
    return {name: update.matrix().double().numpy() for name, update in adapter.lora.updates.items()}


def logits(model, family="llama") -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tiny_batch(family, seed=5)).logits


def reload(extraction: Extraction, folder, family="llama", **config) -> PeftModel:
    return tlora.load_adapter(extraction.save_adapter(folder), tiny_model(family, **config))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_a_planted_difference_comes_back(tmp_path, family):
    base, tuned = tiny_model(family), fine_tune(family, rank=5)
    extraction = tlora.extract(base, tuned, 5, progress=False)
    for name, planted in changes(base, tuned).items():
        assert np.linalg.norm(updates(extraction)[name] - planted) < 1e-3 * np.linalg.norm(planted)
    assert extraction.held["plain"] == pytest.approx(1, abs=1e-6)
    assert relative(logits(reload(extraction, tmp_path, family), family), logits(tuned, family)) < 1e-4


def test_a_planted_difference_comes_back_from_products_alone():
    """A matrix too wide for the start to span it, so that the iteration has to find the directions."""
    wide = {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4}
    base, tuned = tiny_model("llama", **wide), fine_tune("llama", rank=16, **wide)
    extraction = tlora.extract(base, tuned, 16, progress=False)
    for name, planted in changes(base, tuned).items():
        assert np.linalg.norm(updates(extraction)[name] - planted) < 1e-3 * np.linalg.norm(planted)


def test_plain_is_the_truncated_svd():
    base, tuned = tiny_model("llama"), fine_tune()
    extraction = tlora.extract(base, tuned, 3, progress=False)
    table = extraction.to_frame().set_index("module")
    for name, dense in changes(base, tuned).items():
        u, s, v = np.linalg.svd(dense)
        best = (u[:, :3] * s[:3]) @ v[:3]
        assert np.linalg.norm(updates(extraction)[name] - best) < 1e-4 * np.linalg.norm(dense)
        assert table.loc[name, "energy"] == pytest.approx((s[:3] ** 2).sum() / (s**2).sum(), rel=1e-5)
        assert np.isnan(table.loc[name, "task_energy"])


@pytest.mark.parametrize("options", [{}, {"covariance": "sketch", "sketch_size": 12}], ids=["dense", "sketch"])
def test_on_the_task_it_is_the_weighted_optimum(options):
    base, tuned = tiny_model("llama"), fine_tune()
    calibration = tlora.calibrate(base, singles(tiny_batch("llama", seed=3)), progress=False, **options)
    extraction = tlora.extract(base, tuned, 3, calibration=calibration, progress=False)
    table = extraction.to_frame().set_index("module")
    for name, dense in changes(base, tuned).items():
        moment = calibration.covariance[name].second_moment().dense().double().numpy()
        outputs = dense @ np.real(fractional_matrix_power(moment + 1e-12 * np.eye(len(moment)), 0.5))
        u, s, _ = np.linalg.svd(outputs)
        lost = dense - updates(extraction)[name]
        assert np.trace(lost @ moment @ lost.T) <= 1.001 * (s[3:] ** 2).sum()
        best = u[:, :3] @ u[:, :3].T @ dense
        assert np.linalg.norm(updates(extraction)[name] - best) < 1e-2 * np.linalg.norm(best)
        assert table.loc[name, "task_energy"] == pytest.approx((s[:3] ** 2).sum() / (s**2).sum(), rel=1e-3)


def test_of_full_rank_it_is_the_fine_tune_and_without_its_norms_the_base_with_the_rest(tmp_path):
    base, tuned = tiny_model("llama"), fine_tune()
    adapted = reload(tlora.extract(base, tuned, 64, progress=False), tmp_path / "linear")
    assert relative(logits(adapted), logits(tuned)) < 1e-4
    everything = fine_tune(others=True)
    extraction = tlora.extract(base, everything, 64, progress=False)
    expected = tiny_model("llama")
    with torch.no_grad():
        for name in MODULES:
            expected.get_submodule(name).weight.copy_(everything.get_submodule(name).weight)
    assert relative(logits(reload(extraction, tmp_path / "part")), logits(expected)) < 1e-4
    saved = tlora.extract(
        base,
        everything,
        64,
        modules_to_save=OTHERS,
        progress=False,
    )
    assert relative(logits(reload(saved, tmp_path / "all")), logits(everything)) < 1e-4
    assert saved.left_out == 0


def test_what_changed_elsewhere_is_listed_with_its_share():
    base, tuned = tiny_model("llama"), fine_tune(others=True)
    extraction = tlora.extract(base, tuned, 2, progress=False)
    before = dict(base.named_parameters())
    norms = {name: float((p - before[name]).detach().double().square().sum()) for name, p in tuned.named_parameters()}
    rest = extraction.rest().set_index("parameter")["share"]
    assert rest.is_monotonic_decreasing
    assert set(rest.index) == {name for name in norms if name.removesuffix(".weight") not in MODULES}
    for name, share in rest.items():
        assert share == pytest.approx(norms[name] / sum(norms.values()), rel=1e-5)
    table = extraction.to_frame().set_index("module")["share"]
    assert table.sum() + rest.sum() == pytest.approx(1)
    assert extraction.left_out == pytest.approx(rest.sum())


def test_ranks_by_module_from_an_allocation_and_by_a_budget():
    base, tuned = tiny_model("llama"), fine_tune()
    calibration = tlora.calibrate(base, singles(tiny_batch("llama", seed=3)), progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=3)
    by_module = tlora.extract(base, tuned, allocation, progress=False)
    assert by_module.ranks == {name: rank for name, rank in allocation.ranks.items() if rank}
    two = tlora.extract(base, tuned, {MODULES[0]: 2, MODULES[3]: 0}, progress=False)
    assert two.ranks == {MODULES[0]: 2}
    assert f"{MODULES[3]}.weight" in set(two.rest()["parameter"])

    half = tlora.extract(base, tuned, 8, parameters=0.5, progress=False)
    dense = changes(base, tuned)
    costs = {name: sum(matrix.shape) for name, matrix in dense.items()}
    values = {name: np.linalg.svd(matrix)[1][:8] ** 2 for name, matrix in dense.items()}
    order = sorted(((v / costs[n], n) for n in values for v in values[n]), reverse=True)
    budget, expected = sum(8 * cost for cost in costs.values()) // 2, dict.fromkeys(costs, 0)
    for _, name in order:
        if costs[name] <= budget:
            expected[name] += 1
            budget -= costs[name]
    assert half.ranks == {name: rank for name, rank in expected.items() if rank}


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_from_files_it_is_what_it_is_from_memory(tmp_path, family):
    base, tuned = tiny_model(family), fine_tune(family, others=True)
    for name, model in {"base": base, "tuned": tuned}.items():
        model.save_pretrained(tmp_path / name, max_shard_size="10KB")
    memory = tlora.extract(base, tuned, 3, progress=False)
    files = tlora.extract(tmp_path / "base", tmp_path / "tuned", 3, progress=False)
    assert files.outside == memory.outside
    assert files.adapter.keys() == memory.adapter.keys()
    assert all(files.adapter[key].equal(memory.adapter[key]) for key in memory.adapter)
    assert files.meta.model == str(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    adapted = tlora.load_adapter(files.save_adapter(tmp_path / "adapter"))
    assert relative(logits(adapted, family), logits(reload(memory, tmp_path / "other", family), family)) < 1e-6


def test_a_head_that_the_base_lacks_is_saved_whole(tmp_path):
    tuned = fine_tune("bert", others=True, num_labels=3)
    tuned.save_pretrained(tmp_path / "tuned")
    tiny_model("bert").bert.save_pretrained(tmp_path / "base")
    extraction = tlora.extract(tmp_path / "base", tmp_path / "tuned", 64, progress=False)
    assert extraction.saved == ["classifier"]
    assert not extraction.rest()["parameter"].str.contains("classifier").any()
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    adapted = tlora.load_adapter(extraction.save_adapter(tmp_path / "adapter"))
    assert torch.equal(adapted.get_base_model().classifier.modules_to_save["default"].weight, tuned.classifier.weight)


def test_tied_embeddings_are_saved_with_their_head(tmp_path):
    base = tiny_model("llama", tie_word_embeddings=True)
    tuned = fine_tune("llama", others=True, tie_word_embeddings=True)
    names = [name for name in OTHERS if name != "lm_head"]
    extraction = tlora.extract(base, tuned, 64, modules_to_save=names, progress=False)
    assert {"model.embed_tokens", "lm_head"} <= set(extraction.saved)
    assert list(extraction.rest()["parameter"]).count("model.embed_tokens.weight") == 1
    assert "lm_head.weight" not in set(extraction.rest()["parameter"])
    adapted = reload(extraction, tmp_path / "adapter", tie_word_embeddings=True)
    assert relative(logits(adapted), logits(tuned)) < 1e-4
    for name, model in {"base": base, "tuned": tuned}.items():
        model.save_pretrained(tmp_path / name)
    files = tlora.extract(tmp_path / "base", tmp_path / "tuned", 64, modules_to_save=names, progress=False)
    assert files.saved == extraction.saved
    assert all(files.adapter[key].equal(extraction.adapter[key]) for key in extraction.adapter)


def test_from_gguf_files_it_is_what_it_is_from_memory(tmp_path):
    base, tuned = tiny_model("llama"), fine_tune(others=True)
    for name, model in {"base": base, "tuned": tuned}.items():
        write_model(tmp_path / f"{name}.gguf", model, "llama", tensors_of(model, "llama"))
    memory = tlora.extract(base, tuned, 3, progress=False)
    files = tlora.extract(tmp_path / "base.gguf", tmp_path / "tuned.gguf", 3, progress=False)
    assert files.outside == memory.outside
    assert files.adapter.keys() == memory.adapter.keys()
    assert all(files.adapter[key].equal(memory.adapter[key]) for key in memory.adapter)
    assert files.meta.model == str(tmp_path / "base.gguf")


@needs_bitsandbytes
def test_from_a_folder_of_four_bits_it_is_the_change_of_what_they_mean(tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}
    base = tiny_model("llama", **sizes)
    base.save_pretrained(tmp_path / "base")
    fine_tune("llama", **sizes).save_pretrained(tmp_path / "tuned")
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", quantization_config=options, dtype=torch.float32)
    tuned.save_pretrained(tmp_path / "four_bits")
    extraction = tlora.extract(tmp_path / "base", tmp_path / "four_bits", 192, progress=False)
    expected = changes(base, tuned)
    for name, update in updates(extraction).items():
        assert np.linalg.norm(update - expected[name]) < 1e-3 * np.linalg.norm(expected[name])


class Extracted(NamedTuple):
    """An adapter of full rank, which is the fine-tune, and that fine-tune."""

    folder: Path
    tuned: PreTrainedModel

    @property
    def adapted(self) -> PeftModel:
        return tlora.load_adapter(self.folder, tiny_model("llama"))

    @property
    def changes(self) -> dict[str, np.ndarray]:
        return changes(tiny_model("llama"), self.tuned)


@pytest.fixture
def extracted(tmp_path):
    tuned = fine_tune()
    extraction = tlora.extract(tiny_model("llama"), tuned, 64, progress=False)
    return Extracted(extraction.save_adapter(tmp_path / "extracted"), tuned)


@pytest.mark.parametrize("format", ["peft", "merged"])
def test_exported_it_is_the_fine_tune(extracted, tmp_path, format):
    tlora.export(extracted.adapted, tmp_path / "out", format=format, tokenizer=tiny_tokenizer())
    if format == "merged":
        served = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    else:
        served = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "out")
    assert relative(logits(served), logits(extracted.tuned)) < 1e-4


def test_its_side_effects_and_scales_are_those_of_the_fine_tune(extracted):
    texts = tlora.load_texts(tiny_tokenizer(), mine=["w4 w5 w6 w7 w8", "w9 w10"])
    expected = {name: text.evaluate(extracted.tuned)["loss"] for name, text in {"task": task(), **texts}.items()}
    effects = tlora.side_effects(extracted.adapted, texts, explain=1, progress=False)
    assert effects.sets()["adapter_loss"].item() == pytest.approx(expected["mine"], rel=1e-4)
    scales = tlora.measure_scales(extracted.adapted, task(), texts, split="test", progress=False)
    for name, loss in expected.items():
        assert scales.loss(scales.points[8], name) == pytest.approx(loss, rel=1e-4)  # of scale 1


def test_its_contributions_add_up_to_the_change_by_the_fine_tune(extracted):
    attribution = tlora.attribute(
        extracted.adapted, task(), tuned=extracted.tuned, points=64, answers=False, progress=False
    )
    assert attribution.rest == pytest.approx(0, abs=1e-3)
    losses = [task().evaluate(model)["loss"] for model in (tiny_model("llama"), extracted.tuned)]
    gains = [(sample.tuned - sample.base)[0] for sample in attribution.samples]
    assert np.concatenate(gains).mean() == pytest.approx(losses[0] - losses[1], abs=1e-4)
    total = np.mean([float(gain.sum()) for gain in gains])
    assert attribution.to_frame()["contribution"].sum() == pytest.approx(total, rel=0.02)


def test_combined_compared_and_compressed_it_is_the_change_of_the_weights(extracted, tmp_path):
    other = tlora.extract(tiny_model("llama"), fine_tune(rank=5), 64, progress=False).save_adapter(tmp_path / "other")
    first, second = extracted.changes, changes(tiny_model("llama"), fine_tune(rank=5))
    combined = tlora.combine({extracted.folder: 0.5, other: 2})
    compressed = tlora.compress(extracted.folder, rank=2)
    ratios = tlora.interference(extracted.folder, other).to_frame().set_index("module")["on_first"]
    for name, change in first.items():
        assert updates(combined)[name] == pytest.approx(0.5 * change + 2 * second[name], abs=1e-5)
        u, s, v = np.linalg.svd(change)
        assert updates(compressed)[name] == pytest.approx((u[:, :2] * s[:2]) @ v[:2], abs=1e-5)
        assert ratios[name] == pytest.approx((second[name] ** 2).sum() / (change**2).sum(), rel=1e-4)


def nan_model():
    model = fine_tune()
    model.get_submodule(MODULES[1]).weight.data[0, 0] = torch.nan
    return model


REFUSED = {
    "nothing changed": (lambda: {"tuned": tiny_model("llama")}, "same weights"),
    "another architecture": (lambda: {"tuned": tiny_model("qwen2")}, "architectures"),
    "another depth": (lambda: {"tuned": tiny_model("llama", num_hidden_layers=3)}, "architectures"),
    "another width": (lambda: {"tuned": tiny_model("llama", intermediate_size=64)}, "gate_proj"),
    "a resized vocabulary": (lambda: {"tuned": tiny_model("llama", vocab_size=70)}, "resize_token_embeddings(70)"),
    "not finite": (lambda: {"tuned": nan_model()}, MODULES[1]),
    "no rank": (lambda: {"rank": 0}, "rank"),
    "an unknown module": (lambda: {"rank": {"nowhere": 2}}, "nowhere"),
    "nothing to save": (lambda: {"modules_to_save": ["nowhere"]}, "nowhere"),
    "no parameters": (lambda: {"parameters": -1}, "parameters"),
    "another calibration": (
        lambda: {
            "calibration": tlora.calibrate(tiny_model("llama", seed=3), singles(tiny_batch("llama")), progress=False)
        },
        "calibration",
    ),
    "a calibration of too few modules": (
        lambda: {
            "calibration": tlora.calibrate(
                tiny_model("llama"), singles(tiny_batch("llama")), target_modules=["q_proj"], progress=False
            )
        },
        "k_proj",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    make, named = REFUSED[case]
    arguments = {"tuned": fine_tune(), "rank": 2, "progress": False} | make()
    with pytest.raises(ValueError, match=re.escape(named)):
        tlora.extract(tiny_model("llama"), **arguments)


def test_the_models_stay_as_they_were():
    base, tuned = tiny_model("llama"), fine_tune(others=True)
    before = {name: parameter.clone() for name, parameter in [*base.named_parameters(), *tuned.named_parameters()]}
    tlora.extract(base, tuned, 2, modules_to_save=["norm"], progress=False)
    after = dict([*base.named_parameters(), *tuned.named_parameters()])
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())
