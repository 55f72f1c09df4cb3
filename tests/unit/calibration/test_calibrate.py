"""Covariance and sensitivity against their definition, written out sample by sample with autograd."""

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import tlora
from tests.helpers import families
from tests.helpers.calibrations import SKETCH, assert_close, batches, calibrate
from tests.helpers.launched import in_processes
from tests.helpers.models import DECODERS, FAMILIES, singles, tiny_batch, tiny_config, tiny_model
from tests.helpers.results import same
from tlora.adapters.lora_layers import adapter_layers
from tlora.calibration.batches import prepare_batch
from tlora.calibration.calibration import Calibration
from tlora.models.forward import sample_losses
from tlora.models.targets import target_modules
from tlora.models.weights import fingerprint
from tlora.resources.simulated_model import switch_checkpointing

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "initializer_range",
    "pad_token_id",
    "num_labels",
)


@pytest.fixture(autouse=True)
def tiles_smaller_than_the_weights(monkeypatch):
    monkeypatch.setattr("tlora.numerics.linalg.TILE", 20)


def naive(model, batch):
    """C, F and S of every linear module of the blocks, one sample at a time, straight from the formulas."""
    targets = list(target_modules(model))
    covariance, fisher = ({name: 0 for name in targets} for _ in range(2))
    scores = []
    samples = singles(batch)
    for sample in samples:
        seen = {}

        def see(module, arguments, output, name, seen=seen):
            gradient = torch.zeros_like(output)  # what an unused output keeps
            output.register_hook(gradient.copy_)
            seen.setdefault(name, []).append((arguments[0].detach(), gradient))
            return output.clone()  # which some models then change in place

        handles = [model.get_submodule(n).register_forward_hook(functools.partial(see, name=n)) for n in targets]
        model.zero_grad()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model(**sample).loss.backward()
        [h.remove() for h in handles]
        row = []
        for name in targets:
            x = torch.cat([call.double().flatten(0, -2) for call, _ in seen[name]]).numpy()
            d = torch.cat([call.double().flatten(0, -2) for _, call in seen[name]]).numpy()
            fisher[name] = fisher[name] + x.T @ np.diag((d**2).sum(1)) @ x / len(samples)
            x = x - x.mean(0)
            covariance[name] = covariance[name] + x.T @ x / len(samples)
            w = model.get_submodule(name).weight
            row.append((w * w.grad).abs().mean().item())
        scores.append(row)
    model.zero_grad()
    model.requires_grad_(False)
    return covariance, fisher, torch.tensor(scores)


def close(a, b, tolerance=1e-4):
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    return float((a - b).norm()) <= tolerance * float(b.norm())


def check_parity(model, batch, right=None):
    """That a batch gives what its samples, each alone, give by the definition."""
    covariance, fisher, scores = naive(model, batch if right is None else right)
    calibration = tlora.calibrate(model, [batch], fisher=True, progress=False)
    assert calibration.names == list(target_modules(model))
    for name in calibration.names:
        assert close(calibration.covariance[name].dense(), covariance[name]), name
        assert close(calibration.fisher[name].dense(), fisher[name]), name
    assert close(calibration.sensitivity.per_sample, scores)
    return calibration, scores


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_parity_with_the_definition(family, padding):
    model = tiny_model(family)
    calibration, scores = check_parity(model, tiny_batch(model, padding=padding), tiny_batch(model, padding="right"))
    mean = dict(zip(calibration.names, scores.mean(0).tolist(), strict=True))
    assert calibration.sensitivity.scores == pytest.approx(mean, rel=1e-4)


def bert_to_gpt2():
    """Keys and values of its cross-attention are one layer, which reads the encoder's states."""
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(tiny_config("bert"), tiny_config("gpt2"))
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return transformers.EncoderDecoderModel(config)


def t5_gemma_2():
    """Self- and cross-attention are one: keys are made of the decoder's states, and then of the encoder's."""
    text = tiny_config("gemma3").to_dict()
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    image = {key: text[key] for key in sizes} | {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8}
    config = transformers.T5Gemma2Config(encoder={"text_config": text, "vision_config": image}, decoder=text)
    return transformers.T5Gemma2ForConditionalGeneration(config)


@pytest.mark.filterwarnings("ignore:Version v4.12.0:FutureWarning")
@pytest.mark.parametrize("make", [bert_to_gpt2, t5_gemma_2])
def test_tokens_of_an_encoder_are_told_from_those_of_a_decoder_by_what_is_read(make):
    """By its name a module was taken for one that reads the decoder's: covariances were 20 to 40 % off."""
    torch.manual_seed(0)
    model, batch = make().eval(), tiny_batch("t5")
    check_parity(model, batch)
    width = batch["input_ids"].shape[1]
    batch["labels"][:, width:] = -100
    check_parity(model, batch | {"labels": batch["labels"][:, :width].contiguous()}, batch)


@pytest.mark.parametrize("options", [{}, {"share_att_key": True}, {"share_att_key": True, "position_buckets": 8}])
@pytest.mark.parametrize("name", ["Deberta", "DebertaV2"])
def test_modules_that_read_positions_too_are_calibrated_one_sample_at_a_time(name, options):
    torch.manual_seed(0)
    sizes = {key: getattr(tiny_config("bert"), key) for key in SIZES}
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
    config = getattr(transformers, f"{name}Config")(**sizes, **relative, **options)
    check_parity(getattr(transformers, f"{name}ForSequenceClassification")(config).eval(), tiny_batch("bert"))


def test_tokens_before_samples_are_calibrated_one_sample_at_a_time():
    torch.manual_seed(0)
    config = transformers.XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48, initializer_range=0.2)
    for lengths in ((7, 4, 9), (4, 4, 4, 4), (4, 3, 2, 4), (2, 2)):
        check_parity(transformers.XLNetForSequenceClassification(config).eval(), tiny_batch("bert", lengths))


def test_modules_that_read_padding_of_their_own_are_refused_all_at_once():
    sizes = {key: getattr(tiny_config("bert"), key) for key in SIZES}
    model = transformers.LongformerForSequenceClassification(transformers.LongformerConfig(**sizes, attention_window=4))
    words = r"layer\.0\.\S+ and 17 other modules read other rows than those of the 27 tokens .* model is not supported"
    with pytest.raises(RuntimeError, match=words):
        tlora.calibrate(model.eval(), [tiny_batch("bert")], progress=False)
    sizes = {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "num_decoder_layers": 1}
    model = transformers.FunnelForSequenceClassification(transformers.FunnelConfig(vocab_size=64, **sizes)).eval()
    with pytest.raises(RuntimeError, match=r"\d+ other modules .*target_modules=\['"):
        tlora.calibrate(model, [tiny_batch("bert")], progress=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_equals_singles(family):
    model = tiny_model(family)
    batch = tiny_batch(model, lengths=(3, 8, 5, 6))
    together, alone = (calibrate(model, each) for each in ([batch], iter(singles(batch))))
    assert_close(together, alone)


def test_gradient_is_the_mean_of_the_samples_gradients():
    model = tiny_model("llama")
    batch = tiny_batch(model)
    calibration = tlora.calibrate(model, [batch], gradient=True, progress=False)
    parts = singles(batch)
    model.requires_grad_(True)
    for sample in parts:
        (model(**sample).loss / len(parts)).backward()
    for name in calibration.names:
        assert close(calibration.gradient[name].dense(), model.get_submodule(name).weight.grad), name


def test_large_gradients_are_sketched(monkeypatch):
    model = tiny_model("llama")
    batch = tiny_batch(model)
    whole = tlora.calibrate(model, [batch], gradient=True, progress=False)
    monkeypatch.setattr("tlora.calibration.gradient.SKETCH_ABOVE", 1000)
    sketched = tlora.calibrate(model, [batch], gradient=True, progress=False)
    name = "model.layers.0.mlp.up_proj"
    assert sketched.gradient[name].range is not None
    assert whole.gradient[name].range is None
    assert close(sketched.gradient[name].dense(), whole.gradient[name].dense(), 1e-3)
    x, y = torch.randn(32, 3), torch.randn(48, 3)
    assert close(sketched.gradient[name] @ x, whole.gradient[name].dense() @ x, 1e-3)
    assert close(sketched.gradient[name].transposed(y), whole.gradient[name].dense().T @ y, 1e-3)


@pytest.mark.parametrize("family", DECODERS)
def test_tokens_labels_counts_labeled_tokens_only(family):
    model = tiny_model(family)
    batch = tiny_batch(model)
    calibration = tlora.calibrate(model, [batch], tokens="labels", progress=False)
    name = calibration.names[0]
    expected = 0
    for sample in singles(batch):
        seen = []
        handle = model.get_submodule(name).register_forward_hook(lambda m, a, o, seen=seen: seen.append(a[0]))
        with torch.no_grad():
            model(**sample)
        handle.remove()
        x = seen[0].reshape(-1, seen[0].shape[-1])[sample["labels"][0] != -100]
        x = x - x.mean(0)
        expected = expected + x.T @ x / 3
    assert close(calibration.covariance[name].dense(), expected)


def test_modules_that_read_one_tensor_share_one_covariance():
    calibration = tlora.calibrate(tiny_model("llama"), [tiny_batch("llama")], progress=False)
    block = [name.removeprefix("model.layers.0.") for name in calibration.names if ".0." in name]
    groups = {}
    for name in block:
        groups.setdefault(id(calibration.covariance["model.layers.0." + name]), []).append(name)
    assert sorted(map(tuple, groups.values())) == [
        ("mlp.down_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("self_attn.o_proj",),
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ]


class _Twice(nn.Module):
    """Runs the wrapped block twice in one pass, as models with shared layers do."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden_states, **kwargs):
        return self.block(self.block(hidden_states, **kwargs), **kwargs)


def test_a_module_called_twice_is_summed_before_the_absolute_value():
    model = tiny_model("llama")
    model.model.layers[0] = _Twice(model.model.layers[0])
    batch = tiny_batch(model)
    calibration = tlora.calibrate(model, [batch], progress=False)
    scores = []
    model.requires_grad_(True)
    for sample in singles(batch):
        model.zero_grad()
        model(**sample, use_cache=False).loss.backward()
        scores.append(
            [
                (model.get_submodule(n).weight * model.get_submodule(n).weight.grad).abs().mean().item()
                for n in calibration.names
            ]
        )
    assert close(calibration.sensitivity.per_sample, torch.tensor(scores))


class _Flat(nn.Module):
    """A linear layer that gets (batch * tokens, d), as some models and shared experts do."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return self.linear(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def test_flattened_inputs_are_masked_too():
    plain, flat = tiny_model("llama"), tiny_model("llama")
    for layer in flat.model.layers:
        layer.mlp.down_proj = _Flat(layer.mlp.down_proj)
    batch = tiny_batch(plain)
    a = tlora.calibrate(plain, [batch], progress=False)
    b = tlora.calibrate(flat, [batch], progress=False)
    for x, y in zip(a.names, b.names, strict=True):
        assert close(b.covariance[y].dense(), a.covariance[x].dense(), 1e-6)
    assert close(b.sensitivity.per_sample, a.sensitivity.per_sample, 1e-6)


def state(model):
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return (
        hooks,
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [p.grad is None for p in model.parameters()],
        [getattr(m, "gradient_checkpointing", None) for m in model.modules()],
        model.config.use_cache if hasattr(model.config, "use_cache") else None,
        torch.is_grad_enabled(),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_model_is_left_as_it_was(checkpointing):
    model = tiny_model("llama").train()
    if checkpointing:
        switch_checkpointing(model, "enable")
    reference = tiny_model("llama")
    batch = tiny_batch(model)
    before, weights = state(model), {k: v.clone() for k, v in model.state_dict().items()}
    calibration = tlora.calibrate(model, [batch], progress=False)
    assert state(model) == before
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    expected = tlora.calibrate(reference, [batch], progress=False)
    assert torch.equal(calibration.sensitivity.per_sample, expected.sensitivity.per_sample)


def test_an_interrupt_leaves_the_model_as_it_was():
    model = tiny_model("llama").train()
    before = state(model)

    def batches():
        yield tiny_batch(model)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tlora.calibrate(model, batches(), progress=False)
    assert state(model) == before


def test_calibration_works_inside_no_grad():
    model, batch = tiny_model("llama"), tiny_batch("llama")
    with torch.no_grad():
        inside = tlora.calibrate(model, [batch], progress=False)
    outside = tlora.calibrate(model, [batch], progress=False)
    assert torch.equal(inside.sensitivity.per_sample, outside.sensitivity.per_sample)


def change(key, value, family="llama"):
    """A batch with one part changed, or without it."""
    batch = tiny_batch(family)
    value = value(batch[key].clone()) if callable(value) else value
    return [{k: v for k, v in (batch | {key: value}).items() if v is not None}]


def unlabel(labels, first=-100):
    labels[1] = -100
    labels[1, 0] = first
    return labels


BAD = {
    "no batches": ("llama", [], "no batches"),
    "an exhausted generator": ("llama", iter([]), "no batches"),
    "None": ("llama", None, "batches"),
    "one batch": ("llama", tiny_batch("llama"), "batches"),
    "a tensor": ("llama", [torch.ones(2, 3)], r"batches\[0\] is a Tensor"),
    "no mask": ("llama", change("attention_mask", None), "attention_mask"),
    "no labels": ("llama", change("labels", None), "labels"),
    "a sample without labels": ("llama", change("labels", unlabel), "sample 1"),
    "a label on the first token alone": ("llama", change("labels", lambda x: unlabel(x, 5)), "sample 1"),
    "labels on padding": ("llama", change("labels", lambda x: torch.where(x == -100, 3, x)), "labels on padding"),
    "an unknown token": ("llama", change("input_ids", lambda x: x + 1000), "token id"),
    "an unknown label": ("llama", change("labels", lambda x: x + 70 * (x > 0)), "label"),
    "a negative label": ("llama", change("labels", lambda x: x.clamp(min=-1)), "label -1"),
    "an unknown class": ("bert", change("labels", torch.tensor([0, 1, 2]), "bert"), "class 2"),
    "an empty mask": ("llama", change("attention_mask", lambda x: x * 0), "attention_mask"),
    "an additive mask": ("llama", change("attention_mask", lambda x: (1 - x) * -1e4), "attention_mask"),
    "another shape": ("llama", change("attention_mask", lambda x: x[:, :2]), "shapes"),
    "float ids": ("llama", change("input_ids", torch.Tensor.float), "input_ids"),
    "classes for tokens": ("llama", change("labels", torch.tensor([0, 1, 5])), "predicts tokens"),
    "classes for a decoder": ("t5", change("labels", torch.tensor([0, 1, 5]), "t5"), "predicts tokens"),
    "labels of tokens for a classifier": (
        "bert",
        change("labels", torch.ones(3, 3).long(), "bert"),
        "one class or score",
    ),
}


@pytest.mark.parametrize(("family", "batches", "words"), BAD.values(), ids=BAD)
def test_bad_batches_are_refused_in_words(family, batches, words):
    model = tiny_model(family)
    before = state(model)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=words):
        tlora.calibrate(model, batches, progress=False)
    assert state(model) == before


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_in_a_weight_names_the_layer(value):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    with pytest.raises(ValueError, match=r"weight of model.layers.1.mlp.up_proj is not finite"):
        tlora.calibrate(model, [tiny_batch(model)], progress=False)


def test_nan_in_an_activation_names_the_layer():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[3] = torch.nan
    with pytest.raises(ValueError, match=r"of model.layers.0.self_attn.q_proj|of model.layers.1.mlp.gate_proj"):
        tlora.calibrate(model, [tiny_batch(model)], progress=False)


TYPED = [
    ("bert", torch.tensor([0, 1, 1]), (torch.int32, torch.uint8, torch.bool, torch.int64)),
    ("llama", None, (torch.int32, torch.int16, torch.int64)),
    ("t5", None, (torch.int32, torch.int16, torch.int64)),
]


@pytest.mark.parametrize(("family", "classes", "dtypes"), TYPED, ids=[family for family, _, _ in TYPED])
def test_ids_and_labels_of_any_whole_type_are_taken(family, classes, dtypes):
    model = tiny_model(family)
    batch = tiny_batch(model) | ({} if classes is None else {"labels": classes})
    found = []
    for dtype in dtypes:
        other = batch | {"labels": batch["labels"].to(dtype)}
        if dtype.is_signed:
            other["input_ids"] = batch["input_ids"].to(dtype)
        found.append(tlora.calibrate(model, [other], progress=False))
    for each in found[:-1]:
        assert each.sensitivity.per_sample.equal(found[-1].sensitivity.per_sample)
        assert each.sample_fingerprints.equal(found[-1].sample_fingerprints)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64])
def test_scores_may_be_whole_numbers(dtype):
    """For a model with one output they are no classes; its loss is the square of what it is off by."""
    model, scores = tiny_model("bert", num_labels=1), torch.tensor([3, 0, 5])
    batch = tiny_batch(model) | {"labels": scores.to(dtype)}
    with torch.no_grad():
        outputs = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, 0]
    prepared = prepare_batch(batch, model, "batch 0")
    torch.testing.assert_close(sample_losses(model, prepared.inputs).detach().float(), (outputs - scores) ** 2)
    tlora.calibrate(model, [batch], progress=False)


def test_tokens_labels_is_refused_for_classification():
    with pytest.raises(ValueError, match="labels whole texts"):
        tlora.calibrate(tiny_model("bert"), [tiny_batch("bert")], tokens="labels", progress=False)


@pytest.mark.parametrize("covariance", ["dense", "sketch"])
def test_products_of_a_float16_model_do_not_overflow(covariance):
    """Inputs of a few hundred are finite in float16, their squares are not."""
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight.mul_(200)
    options = {"covariance": covariance, "sketch_size": 4, "gradient": True, "progress": False}
    model, batch = model.to(torch.float16), tiny_batch(model)
    found = tlora.calibrate(model, [batch], **options)
    assert all(c.total.isfinite().all() for c in found.covariances.values())
    assert max(float(c.total.abs().max()) for c in found.covariances.values()) > torch.finfo(torch.float16).max


SCRIPT = """
import accelerate, json, os, sys, torch, tlora
from tests.helpers.calibrations import SKETCH, batches, calibrate
from tests.helpers.models import tiny_model
folder, what, rank = sys.argv[1], sys.argv[2], int(os.environ["RANK"])
model = tiny_model("t5" if what == "t5" else "llama")
given = batches(model, 5)
options = SKETCH if what == "sketch" else {}
if what == "few":
    given = given[:1]
if what == "other" and rank:
    given = batches(model, 6)[1:]
if what == "unconnected":
    accelerate.PartialState()
try:
    found = calibrate(model, given, checkpoint=folder + "/steps", **options)
    found.save(f"{folder}/{rank}")
    words = ""
except (ValueError, RuntimeError) as error:
    words = str(error)
open(f"{folder}/{rank}.json", "w").write(json.dumps(words))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def launched(folder: Path, what: str) -> list[str]:
    """What two processes ended with, "" for well."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    in_processes(2, script, folder, what)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["dense", "sketch", "t5"])
def test_two_processes_find_what_one_does(what, tmp_path):
    assert launched(tmp_path, what) == ["", ""]
    model = tiny_model("t5" if what == "t5" else "llama")
    alone = calibrate(model, batches(model, 5), **(SKETCH if what == "sketch" else {}))
    found = [Calibration.load(tmp_path / rank) for rank in "01"]
    assert same(*found)
    assert_close(found[0], alone)
    steps = {rank: sorted((tmp_path / "steps" / f"process-{rank}-of-2").iterdir()) for rank in (0, 1)}
    assert [[folder.name for folder in steps[rank]] for rank in (0, 1)] == [
        ["samples-000000009.safetensors"],
        ["samples-000000006.safetensors"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("few", "1 batches for 2 processes"),
        ("other", "give every process the same batches"),
        ("unconnected", "2 processes were started, and accelerate knows of 1"),
    ],
)
def test_processes_that_do_not_work_on_one_thing_are_told(what, words, tmp_path):
    assert all(words in error for error in launched(tmp_path, what))


def planned(model: Any, batch: Any = None, **options: Any) -> tuple[tlora.Calibration, tlora.Allocation]:
    calibration = tlora.calibrate(model, [batch or tiny_batch(model)], progress=False, **options)
    return calibration, tlora.allocate(calibration.sensitivity, 4, max_rank=8)


def test_classifiers_with_an_encoder_and_a_decoder_are_calibrated() -> None:
    """Their labels are classes, and no text that a decoder reads."""
    config = transformers.BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    model = transformers.BartForSequenceClassification(config).eval()
    ids = torch.tensor([[5, 6, 7, 2], [8, 9, 2, 1]])
    batch = {"input_ids": ids, "attention_mask": (ids != 1).long(), "labels": torch.tensor([0, 2])}
    calibration = tlora.calibrate(model, [batch], progress=False)
    name = "model.encoder.layers.0.fc1"
    losses = torch.nn.functional.cross_entropy(
        model(ids, attention_mask=batch["attention_mask"]).logits, batch["labels"], reduction="none"
    )
    weight = model.get_submodule(name).weight
    products = [(weight * torch.autograd.grad(loss, weight, retain_graph=True)[0]).abs().mean() for loss in losses]
    assert calibration.sensitivity.scores[name] == pytest.approx(float(sum(products).detach() / 2), rel=1e-4)


def test_autocast_changes_no_product_of_ours() -> None:
    model = tiny_model("llama")
    calibration, allocation = planned(model)
    expected = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
        prints = {name: fingerprint(model.get_submodule(name).weight) for name in calibration.names}
        inside = tlora.calibrate(model, [tiny_batch(model)], covariance="sketch", sketch_size=4, progress=False)
    for name in calibration.names:
        assert torch.equal(found.basis(name, 8), expected.basis(name, 8))
        assert torch.equal(prints[name], calibration.fingerprints[name])
    # What enters the first block's attention is computed without a product.
    name = calibration.names[0]
    whole = calibration.covariance[name].dense()
    rows = torch.linalg.eigh(whole).eigenvectors[:, -4:]
    torch.testing.assert_close(inside.covariance[name].trace, calibration.covariance[name].trace, rtol=1e-5, atol=0)
    assert float(rows.T.mul(rows.T @ inside.covariance[name].dense()).sum()) <= float(whole.trace())
    adapted = tlora.attach(model, expected, allocation)
    batch = tiny_batch(model)
    with torch.no_grad():
        for layer in adapter_layers(adapted).values():
            layer.lora_B["default"].weight.normal_(std=0.2)
        live = adapted(**batch).logits
        with torch.autocast("cpu", torch.bfloat16):
            merged = tlora.merge(adapted)
        torch.testing.assert_close(merged(**batch).logits, live, rtol=1e-4, atol=1e-4)


def test_another_default_dtype_changes_no_sum_of_ours() -> None:
    model, batch = tiny_model("llama"), tiny_batch("llama")
    expected, _ = planned(model, batch, gradient=True)
    bases = tlora.task_subspaces(model, expected, max_rank=8, progress=False)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found, _ = planned(model, batch, gradient=True)
        again = tlora.task_subspaces(model, found, max_rank=8, progress=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.sensitivity.per_sample, expected.sensitivity.per_sample)
    for name in expected.names:
        assert torch.equal(found.covariance[name].dense(), expected.covariance[name].dense())
        assert torch.equal(found.gradient[name].dense(), expected.gradient[name].dense())
        assert torch.equal(again.basis(name, 8), bases.basis(name, 8))


def test_gradients_of_a_float16_model_do_not_underflow() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(2**-14)  # as a long sample does: gradients near the smallest of float16
    model.half().float()
    expected, _ = planned(model, gradient=True)
    found, _ = planned(model.half(), gradient=True)
    for name in expected.names:
        whole, half = expected.gradient[name].dense(), found.gradient[name].dense()
        assert float((half - whole).norm()) < 0.02 * float(whole.norm()), name


def test_an_input_that_is_changed_after_it_was_read_is_refused() -> None:
    model = tiny_model("llama")
    mlp = model.model.layers[0].mlp
    plain = mlp.forward

    def forward(x: Tensor) -> Tensor:
        mine = x * 1
        found = plain(mine)
        return found + mine.mul_(3)

    mlp.forward = forward
    with pytest.raises(RuntimeError, match=r"model\.layers\.0\.mlp\.\w+ .*in place"):
        tlora.calibrate(model, [tiny_batch(model)], progress=False)


UNFIT = {
    "BertModel": ("bert", "labels"),
    "WhisperForConditionalGeneration": ("whisper", "token embeddings"),
    "BertForPreTraining": ("bert", "BertForPreTraining gives no logits"),
    "ElectraForPreTraining": ("electra", "gives logits of shape"),
    "BertForMultipleChoice": ("bert", "BertForMultipleChoice fails on input_ids"),
    "IBertForSequenceClassification": ("ibert", "the table of token embeddings"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_model_without_what_calibration_needs_is_refused(name: str) -> None:
    family, words = UNFIT[name]
    model = getattr(transformers, name)(families.tiny_config(CONFIG_MAPPING[family]))
    labels = {} if "Pre" in name else {"labels": torch.tensor([0, 1, 1])}
    with pytest.raises((TypeError, RuntimeError), match=words):
        tlora.calibrate(model, [tiny_batch("llama") | labels], progress=False)


def endless(asked: list[int]) -> Any:
    for seed in itertools.count():
        asked.append(seed)
        yield tiny_batch("llama", seed=seed)


def test_samples_end_a_stream_without_asking_for_more() -> None:
    model, asked = tiny_model("llama"), []
    found = calibrate(model, endless(asked), samples=7)
    assert asked == [0, 1, 2]
    expected = calibrate(model, [*batches(model, 2), {k: v[:1] for k, v in tiny_batch(model, seed=2).items()}])
    assert_close(found, expected)
    assert_close(calibrate(model, endless([]), samples=6), calibrate(model, batches(model, 2)))
    assert calibrate(model, batches(model, 2), samples=100).meta.samples == 6
    with pytest.raises(ValueError, match="samples"):
        calibrate(model, endless([]), samples=0)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return endless([])


def test_a_loader_that_may_never_end_needs_samples() -> None:
    model, loader = tiny_model("llama"), DataLoader(Stream(), batch_size=None)
    with pytest.raises(ValueError, match=r"DataLoader .*samples=32"):
        calibrate(model, loader)
    assert calibrate(model, loader, samples=4).meta.samples == 4
    with pytest.raises(ValueError, match="no batches to run"):
        calibrate(model, DataLoader([{"input_ids": 1}], batch_size=2, drop_last=True))
