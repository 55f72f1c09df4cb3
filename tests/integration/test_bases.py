"""The bases that people have: quantized, offloaded, tied, mixtures of experts, sharded."""

import copy
import importlib.util
import tempfile
import weakref

import accelerate
import pandas as pd
import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import tlora
from tests.helpers.foreign import foreign
from tests.helpers.models import singles, tiny_batch, tiny_model, tiny_tokenizer
from tlora.models.forward import evaluation_mode
from tlora.models.weights import is_packed, weight

needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
QUANTIZATIONS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


def batches(model, n=3):
    return [tiny_batch(model, seed=seed) for seed in range(n)]


def quantized(dense, kind):
    config = transformers.BitsAndBytesConfig(**QUANTIZATIONS[kind])
    with tempfile.TemporaryDirectory() as folder:
        dense.save_pretrained(folder)
        return type(dense).from_pretrained(folder, quantization_config=config)


def with_weights_of(dense, other):
    """The dense model, its target weights replaced by those that the other one's layers are read as."""
    twin = copy.deepcopy(dense)
    with torch.no_grad():
        for name in tlora.target_modules(dense):
            twin.get_submodule(name).weight.copy_(weight(other.get_submodule(name), name))
    return twin


def adapted(model, calibration):
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    return tlora.attach(model, subspaces, tlora.allocate(calibration.sensitivity, rank=4, max_rank=8))


def with_graph(model, batch):
    """Logits such that bitsandbytes packs no layer: with a graph, as in training."""
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    return model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits.detach()


def trained(model, **more):
    rows = [
        {key: row[0].tolist() for key, row in sample.items()} for batch in batches("llama") for sample in singles(batch)
    ]
    options = {"max_steps": 6, "batch_size": 3, "learning_rate": 1e-2, "warmup_steps": 0, "progress": False}
    return tlora.train(model, Dataset.from_list(rows), **options, **more)


@pytest.fixture
def dense():
    return tiny_model("llama", hidden_size=128, intermediate_size=192)


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(("kind", "tolerance"), [("nf4", 1e-4), ("double", 1e-4), ("int8", 0.15)])
def test_the_pipeline_on_a_quantized_base(kind, tolerance, dense, tmp_path):
    """As on the dense base that has its weights (int8 layers round what they read, too)."""
    model = quantized(dense, kind)
    twin = with_weights_of(dense, model)
    before = with_graph(model, tiny_batch("llama"))
    ours, expected = (tlora.calibrate(each, batches("llama"), progress=False) for each in (model, twin))
    for name in ours.names:
        here, there = ours.covariance[name].dense(), expected.covariance[name].dense()
        assert torch.dist(here, there) <= tolerance * there.norm(), name
    torch.testing.assert_close(
        ours.sensitivity.per_sample, expected.sensitivity.per_sample, rtol=4 * tolerance, atol=1e-6
    )
    peft_model = adapted(model, ours)
    assert with_graph(peft_model, tiny_batch("llama")).equal(before), "B is zero"
    run, reference = trained(peft_model), trained(adapted(twin, expected))
    losses = [torch.tensor(each.history["loss"].dropna().to_numpy()) for each in (run, reference)]
    torch.testing.assert_close(*losses, rtol=10 * tolerance, atol=0)
    after = with_graph(peft_model, tiny_batch("llama"))
    assert not after.equal(before)
    with peft_model.disable_adapter():
        assert with_graph(peft_model, tiny_batch("llama")).equal(before), "the base is as it was"
    again = tlora.load_adapter(run.save(tmp_path / "adapter"), quantized(dense, kind))
    assert with_graph(again, tiny_batch("llama")).equal(after)


QUESTIONS = {
    "attribute": lambda adapted, task: tlora.attribute(adapted, task, limit=1, points=2, answers=False, progress=False),
    "side_effects": lambda adapted, task: tlora.side_effects(adapted, {"mine": task}, explain=0, progress=False),
    "measure_scales": lambda adapted, task: tlora.measure_scales(
        adapted, task, {"mine": task}, samples=2, split="test", progress=False
    ),
}


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_leave_a_base_that_has_not_run_as_it_is(kind, question, dense):
    """And get the same answer twice."""
    adapted = foreign(quantized(dense, kind))
    untouched = copy.deepcopy(adapted)
    rows = Dataset.from_dict({"prompt": ["w4 w5", "w9"], "completion": ["w6 w7", "w8"]})
    task = tlora.load_task({"test": rows}, tiny_tokenizer())
    first, again = (QUESTIONS[question](adapted, task).to_frame() for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert with_graph(adapted, tiny_batch("llama")).equal(with_graph(untouched, tiny_batch("llama")))


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_layer_that_lost_its_gradient_is_refused(dense):
    model = quantized(dense, "nf4").eval()
    peft_model = adapted(copy.deepcopy(model), tlora.calibrate(model, batches("llama"), progress=False))
    for each in (model, peft_model):
        with torch.no_grad():
            each(**tiny_batch("llama"))
    if not is_packed(model.model.layers[0].mlp.up_proj):
        pytest.skip("bitsandbytes packs nothing on this CPU")
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj"):
        tlora.calibrate(model, batches("llama"), progress=False)
    with pytest.raises(ValueError, match="q_proj"):
        trained(peft_model)


@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_evaluation_packs_nothing(dense):
    model = quantized(dense, "nf4").eval()
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = True  # as on a CPU that has the instructions
    with evaluation_mode(model):
        model(**tiny_batch("llama"))
    assert model.model.layers[0].mlp.up_proj.support_avx512bf16_for_cpu
    assert not any(map(is_packed, model.modules()))
    tlora.calibrate(model, batches("llama"), progress=False)


PLACES = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}


def offloaded(family, where, folder, **config):
    """A base that computes on the CPU with weights that come from there, or from a disk."""
    model = tiny_model(family, **config)
    if where == "cpu":
        accelerate.cpu_offload(model, "cpu")
        model.hf_device_map = {"embeddings": "cpu", "layers": "cpu"}  # as from_pretrained keeps one
        return model
    return accelerate.dispatch_model(model, PLACES | {"lm_head": "disk"}, main_device="cpu", offload_dir=folder)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_offloaded_base_is_calibrated(where, tmp_path):
    model, base = tiny_model("llama"), offloaded("llama", where, tmp_path / "weights")
    options = {"gradient": True, "fisher": True, "progress": False, "covariance": "sketch", "sketch_size": 12}
    expected = tlora.calibrate(model, batches(model), **options)
    found = tlora.calibrate(base, batches(model), checkpoint=tmp_path / "steps", checkpoint_every=0, **options)
    assert found.sensitivity.per_sample.equal(expected.sensitivity.per_sample)
    assert all(found.covariance[name].total.equal(c.total) for name, c in expected.covariance.items())
    assert base.model.layers[0].mlp.up_proj.weight.is_meta, "left as it was"
    more = [*batches(model), tiny_batch(model, seed=7)]
    resumed = tlora.calibrate(base, more, checkpoint=tmp_path / "steps", **options)
    assert resumed.sensitivity.per_sample.equal(tlora.calibrate(model, more, **options).sensitivity.per_sample)
    one, other = (tlora.task_subspaces(m, found, max_rank=8, progress=False) for m in (model, base))
    assert all(one.bases[name].equal(other.bases[name]) for name in one.names)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("freeze_a", [True, False], ids=["B", "A and B"])
def test_an_adapter_on_an_offloaded_base_is_trained(where, freeze_a, tmp_path):
    model, base = tiny_model("llama"), offloaded("llama", where, tmp_path / "weights")
    calibration = tlora.calibrate(model, batches(model), progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False) if freeze_a else None
    allocation = tlora.allocate(calibration.sensitivity, rank=2)
    both = [tlora.attach(each, subspaces, allocation, seed=3, freeze_a=freeze_a) for each in (model, base)]
    one, other = trained(both[0]), trained(both[1], gradient_checkpointing=True)
    assert other.history["loss"].equals(one.history["loss"])
    assert all(other.adapter[key].equal(tensor) for key, tensor in one.adapter.items())
    assert base.model.layers[0].mlp.up_proj.base_layer.weight.is_meta
    other.save(tmp_path / "adapter")
    again = tlora.load_adapter(tmp_path / "adapter", offloaded("llama", where, tmp_path / "others"))
    beside = tlora.load_adapter(tmp_path / "adapter", again, name="beside")
    with torch.no_grad():
        logits = [each(**tiny_batch("llama")).logits for each in (*both, again, beside)]
    assert all(found.equal(logits[0]) for found in logits[1:])


@pytest.mark.parametrize("checkpointing", [True, False])
def test_with_gradient_checkpointing_a_step_on_an_offloaded_base_holds_one_block(checkpointing, tmp_path, monkeypatch):
    base = offloaded("llama", "disk", tmp_path, num_hidden_layers=6)
    block = sum(parameter.nbytes for parameter in base.model.layers[0].parameters())
    calibration = tlora.calibrate(base, batches(base), progress=False)
    adapted = tlora.attach(base, None, tlora.allocate(calibration.sensitivity, rank=2))
    fetch, there, most = accelerate.hooks.AlignDevicesHook.pre_forward, weakref.WeakSet(), [0]

    def seen(hook, module, *args, **kwargs):
        found = fetch(hook, module, *args, **kwargs)
        if hook.offload:
            there.update(parameter.untyped_storage() for parameter in module.parameters(recurse=False))
            most.append(sum(storage.nbytes() for storage in there))
        return found

    monkeypatch.setattr(accelerate.hooks.AlignDevicesHook, "pre_forward", seen)
    trained(adapted, gradient_checkpointing=checkpointing)
    head = base.lm_head.weight.nbytes
    assert (max(most) <= block + head) == checkpointing, (max(most), block, head)


def test_what_an_offloaded_base_cannot_do_is_refused(tmp_path):
    """Its head stays a meta tensor, PiSSA would rewrite its weights, and the Trainer would move it."""
    bert = tiny_model("bert")
    calibration = tlora.calibrate(bert, batches(bert), progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=2)
    tlora.attach(bert, None, allocation).save_pretrained(tmp_path / "head")
    config = LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path / "pissa", save_embedding_layers=False)
    head, llama = (offloaded(family, "cpu", tmp_path) for family in ("bert", "llama"))
    for base, name, call in (
        (head, "classifier", lambda: tlora.attach(head, None, allocation)),
        (head, "classifier", lambda: tlora.load_adapter(tmp_path / "head", head)),
        (llama, "q_proj", lambda: tlora.load_adapter(tmp_path / "pissa", llama)),
    ):
        with pytest.raises(ValueError, match=name):
            call()
        assert not any("lora" in name for name, _ in base.named_modules())
    ranks = tlora.allocate(tlora.calibrate(llama, batches(llama), progress=False).sensitivity, rank=2)
    del llama.hf_device_map
    with pytest.raises(ValueError, match="offloaded"):
        trained(tlora.attach(llama, None, ranks))


@pytest.mark.slow
@pytest.mark.packaged
@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_smollm2_in_4_bits_learns():
    dense, tokenizer = tlora.load_model("smollm2-135m", dtype="float32")
    task = tlora.load_task("family_relationships", tokenizer, train=48, validation=8, test=8)
    model = quantized(dense, "nf4")
    batch = task.calibration(4)[0]
    before = with_graph(model, batch)
    calibration = tlora.calibrate(model, task.calibration(4), progress=False)
    reference = tlora.calibrate(dense, task.calibration(4), progress=False)
    ours, theirs = (torch.tensor(list(c.sensitivity.scores.values())) for c in (calibration, reference))
    assert float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]) > 0.95
    peft_model = adapted(model, calibration)
    assert with_graph(peft_model, batch).equal(before)
    options = {"max_steps": 5, "batch_size": 2, "learning_rate": 2e-3, "evaluation_limit": 0, "progress": False}
    losses = tlora.train(peft_model, task, logging_steps=1, **options).history["loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]
