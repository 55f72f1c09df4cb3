"""The weight of a layer is what the layer multiplies by, in one layout, however it is stored."""

import copy
from types import SimpleNamespace

import accelerate
import pytest
import torch
import transformers
from torch import nn

import tlora
from tests.helpers.models import FAMILIES, tiny_batch, tiny_model
from tests.helpers.quantized import QuantLinear, needs_bitsandbytes
from tlora.models.targets import target_modules
from tlora.models.weights import copy_sharing_weights, weight


def linear_map(module, d_in):
    """What a linear layer multiplies by, from what it answers to unit vectors."""
    with torch.no_grad():
        return (module(torch.eye(d_in)) - module(torch.zeros(d_in, d_in))).T


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weight_is_what_the_layer_multiplies_by(family):
    model = tiny_model(family)
    for name, target in target_modules(model).items():
        module = model.get_submodule(name)
        torch.testing.assert_close(weight(module, name), linear_map(module, target.d_in), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_are_fetched(where, tmp_path):
    model = tiny_model("llama")
    expected = {name: weight(model.get_submodule(name)).clone() for name in target_modules(model)}
    if where == "cpu":
        accelerate.cpu_offload(model, "cpu")
    else:
        accelerate.disk_offload(model, tmp_path, "cpu")
    for name, value in expected.items():
        assert model.get_submodule(name).weight.is_meta
        assert weight(model.get_submodule(name), name).equal(value)
        assert model.get_submodule(name).weight.is_meta, "left as it was"


@pytest.mark.parametrize("names", [None, ("fsdp",)])
def test_a_weight_that_fsdp2_has_sharded_is_gathered(names):
    """As PEFT goes by the names of a mesh, which plain `fully_shard` leaves out."""
    linear, expected = nn.Linear(4, 3), torch.arange(12.0).view(3, 4)
    linear.weight = Shards(expected, SimpleNamespace(mesh_dim_names=names))
    assert weight(linear, "a.b").equal(expected)


class Shards(nn.Parameter):
    """One half of a weight, and the way to the other, as a DTensor has it."""

    def __new__(cls, full, device_mesh):
        made = super().__new__(cls, full[:2].clone(), False)
        made.device_mesh, made.full_tensor = device_mesh, lambda: full
        made.detach = lambda: made
        return made


def linear(device="cpu", **marks):
    layer = nn.Linear(4, 4, device=device)
    vars(layer.weight).update(marks)
    return layer


def packed(stored):
    layer = QuantLinear(16, 8)
    layer.weight = nn.Parameter(stored, requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("layer", "error", "named"),
    [
        (linear("meta"), ValueError, "meta device"),
        (linear(ds_id=3), ValueError, "ZeRO-3"),  # the shards are elsewhere
        (linear(device_mesh=SimpleNamespace(mesh_dim_names=("fsdp", "tp"))), ValueError, "'tp'"),
        (QuantLinear(16, 8), TypeError, "QuantLinear"),
        (packed(torch.zeros(64, 1, dtype=torch.uint8)), TypeError, "uint8"),
        (packed(torch.zeros(8, 16, dtype=torch.float8_e4m3fn)), TypeError, "float8_e4m3fn"),
    ],
)
def test_a_weight_that_cannot_be_read_is_refused(layer, error, named):
    with pytest.raises(error, match=rf"layer 'a\.b' .*{named}"):
        weight(layer, "a.b")


QUANTIZATIONS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


def quantized(dense, kind, folder):
    dense.save_pretrained(folder)
    config = transformers.BitsAndBytesConfig(**QUANTIZATIONS[kind])
    return type(dense).from_pretrained(folder, quantization_config=config)


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kind", "error"), [("nf4", 0.12), ("double", 0.12), ("int8", 0.01)])
def test_bitsandbytes_layers_are_dequantized(kind, error, tmp_path):
    dense = tiny_model("llama", hidden_size=128, intermediate_size=192)
    model = quantized(dense, kind, tmp_path)
    first = {name: weight(model.get_submodule(name), name) for name in target_modules(model)}
    logits = []
    for grad in (False, True, False):
        with torch.set_grad_enabled(grad):
            logits.append(model(**tiny_batch("llama")).logits.detach())
        for name, value in first.items():
            exact = dense.get_submodule(name).weight
            again = weight(model.get_submodule(name), name)
            assert torch.dist(again, exact) < error * exact.norm(), "close to the weight that was quantized"
            assert torch.dist(again, value) < 0.005 * exact.norm(), "whether the layer was used or not"
    assert torch.dist(logits[0], logits[2]) < 0.02 * logits[0].norm(), "the layers still work"


def calibrated(model, seed=0):
    return tlora.calibrate(model, [tiny_batch(model, lengths=(30, 25), seed=seed)], task=f"task {seed}", progress=False)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def test_a_weight_of_zeros_is_one_with_itself():
    """Its fingerprint points nowhere; another weight in its place is found out all the same."""
    model = tiny_model("llama")
    found = []
    for scale in (0, 1):
        with torch.no_grad():
            model.model.layers[1].self_attn.o_proj.weight.mul_(scale).add_(scale)
        found.append(tlora.task_subspaces(model, calibrated(model), max_rank=4, kind="c", progress=False))
    assert list(tlora.align(found[0], found[0], 2).overlap.values()) == pytest.approx([1.0] * len(found[0].names))
    with pytest.raises(ValueError, match=r"model\.layers\.1\.self_attn\.o_proj"):
        tlora.align(*found, 2)
    tlora.task_subspaces(model, calibrated(model), max_rank=2, progress=False)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_a_copy_that_shares_weights_takes_no_memory_and_leaves_the_model_alone(family):
    model = tiny_model(family)
    batch = tiny_batch(model)
    before, expected = [p.requires_grad for p in model.parameters()], model(**batch).logits
    copied = copy_sharing_weights(model)
    for ours, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        assert ours is not theirs
        assert ours.data_ptr() == theirs.data_ptr()
    tied = [len(list(m.parameters())) for m in (copied, model)]
    assert tied[0] == tied[1]
    copied.requires_grad_(False)
    next(m for m in copied.modules() if isinstance(m, torch.nn.Linear)).register_forward_hook(lambda *args: 1 / 0)
    assert [p.requires_grad for p in model.parameters()] == before
    assert model(**batch).logits.equal(expected)


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("is_used", [False, True])
def test_a_copy_of_a_quantized_model_has_its_own_state(kind, is_used, tmp_path):
    """Layers of bitsandbytes change their weight and its attributes when they are first used."""
    model = quantized(tiny_model("llama", hidden_size=128, intermediate_size=192), kind, tmp_path)
    batch = tiny_batch("llama")
    with torch.no_grad():
        if is_used:
            model(**batch)
        untouched = copy.deepcopy(model)
        copied = copy_sharing_weights(model)
        assert [p.data_ptr() for p in copied.parameters()] == [p.data_ptr() for p in model.parameters()]
        logits = [each(**batch).logits for each in (untouched, copied, model, copied)]
    assert all(again.equal(logits[0]) for again in logits[1:])
    if kind == "int8":  # 4-bit layers are packed on some CPUs
        assert [p.data_ptr() for p in copied.parameters()] == [p.data_ptr() for p in model.parameters()]
