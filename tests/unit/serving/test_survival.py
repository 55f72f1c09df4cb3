"""What quantization leaves of an adapter: on grids made here, against the definition and against PEFT's own merge."""

import copy
import warnings

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

import tlora
from tests.helpers.foreign import foreign
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model
from tests.helpers.quantized import needs_bitsandbytes

SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}
FORMATS = ["q8_0", "q5_0", "q4_1", "q4_0", "nf4"]


def rounded(weight: torch.Tensor, format: str) -> torch.Tensor:
    """The definition of two formats, in blocks of neighbors; the others by their packages."""
    if format == "q4_1":
        blocks = weight.reshape(-1, 32)
        low, high = blocks.min(1, keepdim=True).values, blocks.max(1, keepdim=True).values
        step = ((high - low) / 15).clamp(min=1e-12)
        return (((blocks - low) / step).round() * step + low).reshape(weight.shape)
    if format == "q8_0":
        blocks = weight.reshape(-1, 32)
        step = blocks.abs().max(1, keepdim=True).values / 127
        return ((blocks / step).round() * step).reshape(weight.shape)
    if format == "nf4":
        from bitsandbytes import functional

        packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
        return functional.dequantize_4bit(packed, state)
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[format.upper()]
    return torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), kind), kind).copy())


def adapted(change=lambda weight: weight, size=0.005, **sizes):
    """A small adapter on a base whose adapted weights were changed."""
    base = tiny_model("llama", **SIZES | sizes)
    for name, module in base.named_modules():
        if name.endswith(("q_proj", "v_proj", "down_proj")):
            module.weight.data = change(module.weight.data)
    model = foreign(base, target_modules=["q_proj", "v_proj", "down_proj"])
    for layer in (module for module in model.modules() if hasattr(module, "get_delta_weight")):
        factor = size * layer.get_base_layer().weight.norm() / layer.get_delta_weight("default").norm()
        layer.lora_B["default"].weight.data *= factor
    return model


@needs_bitsandbytes
@pytest.mark.parametrize("format", FORMATS)
def test_an_update_of_a_base_on_the_grid_is_lost(format):
    survival = tlora.survival(adapted(lambda weight: rounded(weight, format)), formats=[format, "q8_0"])
    row = survival.to_frame().set_index("format").loc[format]
    assert row["on_grid"]
    assert row["grid_distance"] < 1e-3
    assert row["update_size"] == pytest.approx(0.005, rel=1e-3)
    if format != "q8_0":  # whose steps are as small as this update
        assert row["share"] < 0.1
        assert f"this base is on the {format.upper()} grid already" in survival.finding(format)
        if format.startswith(("q4", "nf4")):
            assert "store the merged model in Q8_0 (" in survival.finding(format)
            assert survival.headline.startswith(format.upper())


@needs_bitsandbytes
@pytest.mark.parametrize("format", ["q8_0", "q4_1", "nf4"])
def test_an_update_of_a_base_off_the_grid_survives_whole(format):
    def move(weight):
        blocks = rounded(weight, format).reshape(-1, 32)
        low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
        step = torch.maximum(-low, high) / 127 if format == "q8_0" else (high - low) / 15
        noise = torch.rand(blocks.shape, generator=torch.Generator().manual_seed(0)) - 0.5
        return (blocks + noise * step).reshape(weight.shape)

    survival = tlora.survival(adapted(move, num_hidden_layers=6), formats=[format])
    row = survival.to_frame().iloc[0]
    error = (row["high"] - row["low"]) / 2 / 2.11  # Student's t of 18 modules
    assert row["share"] == pytest.approx(1, abs=3 * error)
    assert error < 0.1
    assert not row["on_grid"]
    assert survival.finding(format).startswith("All of the update survives")


@needs_bitsandbytes
def test_q8_keeps_the_update_of_a_four_bit_base():
    survival = tlora.survival(adapted(lambda weight: rounded(weight, "nf4")), formats=["q8_0", "q4_0", "nf4"])
    frame = survival.to_frame().set_index("format")
    assert frame.loc["q8_0", "share"] > 0.98
    assert tlora.survival(adapted(size=0.02), formats=["q8_0"]).to_frame()["share"].item() > 0.99
    assert frame.loc["nf4", "share"] < 0.1
    assert "rounded a second time" in survival.finding("q4_0")  # another grid of four bits
    assert "rounded a second time" not in survival.finding("q8_0")


@pytest.mark.parametrize("rows", [None, 16])
def test_the_share_is_its_definition(rows):
    model = adapted()
    survival = tlora.survival(model, formats=["q4_0"], rows=rows)
    product = energy = 0.0
    shares = {}
    for name, layer in model.get_base_model().named_modules():
        if not hasattr(layer, "get_delta_weight"):
            continue
        weight, update = layer.get_base_layer().weight.data, layer.get_delta_weight("default").detach()
        if rows is not None:
            places = np.linspace(0, len(weight) - 1, rows).astype(int)
            weight, update = weight[places], update[places]
        kept = ((rounded(weight + update, "q4_0") - rounded(weight, "q4_0")) * update).sum()
        product, energy = product + float(kept), energy + float(update.square().sum())
        shares[name] = float(kept / update.square().sum())
    assert survival.to_frame()["share"].item() == pytest.approx(product / energy, rel=1e-4)
    found = survival.modules().set_index("module")["share"]
    assert set(found.index) == set(shares)
    np.testing.assert_allclose(found[list(shares)], list(shares.values()), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_saved_base_is_read_weight_by_weight(family, tmp_path, monkeypatch):
    targets = {"llama": ["q_proj"], "gpt2": ["c_attn", "attn.c_proj"], "bert": ["query"]}[family]
    base = tiny_model(family)
    # As many checkpoints of encoders are: of the model without a head, whose names have no prefix.
    (base.bert if family == "bert" else base).save_pretrained(tmp_path / "base")
    model = foreign(copy.deepcopy(base), tmp_path / "adapter", target_modules=targets, fan_in_fan_out=family == "gpt2")
    expected = tlora.survival(model, formats=["q8_0"])
    monkeypatch.setattr("tlora.models.stored_weights.load_model", None)
    found = tlora.survival(tmp_path / "adapter", tmp_path / "base", formats=["q8_0"])
    np.testing.assert_array_equal(found.sums.drop(columns=["format", "module"]), expected.sums.iloc[:, 2:])


def test_a_width_that_is_not_whole_blocks_is_left_out():
    model = foreign(tiny_model("llama"), target_modules=["q_proj", "down_proj"])  # 32 and 48 wide
    assert tlora.survival(model, formats=["q4_0"]).to_frame()["modules"].item() == 2


@needs_bitsandbytes
def test_losses_are_those_of_the_weights_put_in_by_hand():
    model, words = foreign(tiny_model("llama"), target_modules=["q_proj", "v_proj"]), task()
    survival = tlora.survival(model, formats=["q4_0"], task=words, limit=None)
    row = survival.to_frame().iloc[0]

    def loss(merged, quantized):
        changed = copy.deepcopy(model)
        for layer in changed.get_base_model().modules():
            if hasattr(layer, "get_delta_weight") and merged:
                layer.merge()
        for name, layer in changed.get_base_model().named_modules():
            is_linear = isinstance(layer, torch.nn.Linear) and "lora" not in name and "head" not in name
            if quantized and is_linear and layer.in_features % 32 == 0:
                layer.weight.data = rounded(layer.weight.data, "q4_0")
        return changed, words.evaluate(changed)["loss"]

    assert row["adapter_loss"] == pytest.approx(loss(False, False)[1], rel=1e-5)
    assert row["beside_loss"] == pytest.approx(loss(False, True)[1], rel=1e-5)
    assert row["merged_loss"] == pytest.approx(loss(True, True)[1], rel=1e-5)
    for merged_quantized, name in (((False, False), "base_loss"), ((False, True), "quantized_loss")):
        changed, _ = loss(*merged_quantized)
        with changed.disable_adapter():
            assert row[name] == pytest.approx(words.evaluate(changed)["loss"], rel=1e-5)
    assert "nats on" in survival.finding("q4_0")


def four_bits(tmp_path, size):
    """An adapter of this size on a base that bitsandbytes holds in NF4."""
    tiny_model("llama", **SIZES).save_pretrained(tmp_path / "base")
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=config, dtype=torch.float32
    ).eval()
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    for layer in (module for module in model.modules() if hasattr(module, "get_delta_weight")):
        layer.lora_B["default"].weight.data *= size
    return model


@needs_bitsandbytes
def test_the_share_in_a_four_bit_base_is_that_of_pefts_merge(tmp_path):
    model = four_bits(tmp_path, 0.01)
    found = tlora.survival(model, formats=["nf4"], rows=None)
    product = energy = 0.0
    from peft.utils.integrations import dequantize_module_weight

    for layer in (module for module in model.modules() if hasattr(module, "get_delta_weight")):
        before, update = dequantize_module_weight(layer.get_base_layer()), layer.get_delta_weight("default").detach()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer.merge()
        change = dequantize_module_weight(layer.get_base_layer()) - before
        product += float((change.double() * update.double()).sum())
        energy += float(update.double().square().sum())
    assert found.sums["product"].sum() == pytest.approx(product, rel=1e-12, abs=1e-15)
    assert found.sums["update"].sum() == pytest.approx(energy, rel=1e-6)


@needs_bitsandbytes
def test_merging_into_four_bits_is_refused_if_the_update_is_lost(tmp_path):
    model = four_bits(tmp_path, 0.01)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match="lossy=True"):
        tlora.merge(model)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    with pytest.warns(UserWarning, match="rounding"):
        assert not hasattr(tlora.merge(model, lossy=True), "peft_config")
    with pytest.warns(UserWarning, match="rounding"):  # PEFT's, of an update that survives
        tlora.merge(four_bits(tmp_path, 30.0))


def zero(model):
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    return model


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (lambda: {"formats": ["q4_k"]}, ValueError, "'q4_k'"),
        (lambda: {"formats": []}, ValueError, "formats"),
        (lambda: {"rows": 0}, ValueError, "rows"),
        (lambda: {"base": tiny_model("llama")}, ValueError, "base"),
        (lambda: {"adapter": zero(foreign(tiny_model("llama")))}, ValueError, "changes nothing"),
        (lambda: {"adapter": foreign(tiny_model("llama", hidden_size=48))}, ValueError, "multiple of 32"),
    ],
)
def test_refusals(arguments, error, words):
    values = {"adapter": foreign(tiny_model("llama")), "formats": ["q8_0"]} | arguments()
    with pytest.raises(error, match=words):
        tlora.survival(**values)


def test_another_base_is_refused(tmp_path):
    foreign(tiny_model("llama"), tmp_path)
    tlora.LoraAdapter.read(foreign(tiny_model("llama"))).save(tmp_path / "known")
    for base, words in ((tiny_model("llama", seed=1), "q_proj"), (tiny_model("gpt2"), "q_proj")):
        with pytest.raises(ValueError, match=words):
            tlora.survival(tmp_path / "known", base, formats=["q8_0"])


def test_formats_that_are_not_installed_are_named(monkeypatch):
    find = __import__("importlib").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    survival = tlora.survival(foreign(tiny_model("llama")))
    assert set(survival.unmeasured) == {"K-quants", "nf4"}
    with pytest.raises(ModuleNotFoundError, match="bitsandbytes"):
        tlora.survival(foreign(tiny_model("llama")), formats=["nf4"])
