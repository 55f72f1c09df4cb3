"""Models and code of one's own around the walk: what cannot be followed is refused, and the rest comes out right."""

from __future__ import annotations

import ast
import copy
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertModel, BertPreTrainedModel

import tlora
from tests.adapted import quick_collections  # noqa: F401
from tests.helpers import tiny_batch, tiny_config, tiny_model
from tests.unit.test_silent_errors import QUICK
from tlora.adapters.lora_layers import adapter_layers
from tlora.calibration.batches import _READS_ENCODER
from tlora.models.weights import fingerprint


def planned(model: Any, batch: Any = None, **options: Any) -> tuple[tlora.Calibration, tlora.Allocation]:
    calibration = tlora.calibrate(model, [batch or tiny_batch(model)], progress=False, **options)
    return calibration, tlora.allocate(calibration.sensitivity, 4, max_rank=8)


class Classifier(BertPreTrainedModel):
    """With a head under any name, beside a body under any name."""

    def __init__(self, config: Any, body: str = "bert", head: str = "head") -> None:
        super().__init__(config)
        self.names = body, head
        setattr(self, body, BertModel(config, add_pooling_layer=False))
        setattr(self, head, nn.Linear(config.hidden_size, 2))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule(self.names[0]).get_input_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **_: Any) -> Any:
        body, head = (self.get_submodule(name) for name in self.names)
        logits = head(body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def classes() -> Dataset:
    return Dataset.from_list([{"input_ids": [3 + n, 9, 5 + n, 7], "labels": n % 2} for n in range(8)])


def test_a_head_of_ones_own_is_trained_and_one_that_is_not_found_is_told() -> None:
    model = Classifier(tiny_config("bert")).eval()
    run = tlora.train(tlora.attach(model, None, planned(model, tiny_batch("bert"))[1]), classes(), **QUICK)
    assert [key for key in run.adapter if "lora" not in key] == [
        "base_model.model.head.weight",
        "base_model.model.head.bias",
    ]
    model = Classifier(tiny_config("bert"), body="encoder_model").eval()
    adapted = tlora.attach(model, None, planned(model, tiny_batch("bert"))[1])
    with pytest.warns(UserWarning, match="no head is trained beside the adapter.* which Classifier has to say"):
        tlora.train(adapted, classes(), **QUICK)


@pytest.mark.parametrize("head", ["dense", "output"])
def test_a_head_that_is_called_like_modules_of_the_blocks_is_refused(head: str) -> None:
    model = Classifier(tiny_config("bert"), head=head).eval()
    _, plan = planned(model, tiny_batch("bert"), target_modules="attention")
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=f"ends like that of the head, {head}, and PEFT would train both whole"):
        tlora.attach(model, None, plan)
    assert [name for name, _ in model.named_modules()] == before
    get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=f"ends like that of the head, {head}, and PEFT would train both whole"):
        tlora.attach(model, None, plan, replace=True)
    assert [name for name, _ in model.named_modules()] == before


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_label_for_each_text_is_refused_by_what_predicts_tokens(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch(family)
    with pytest.raises(ValueError, match=rf"has labels \(3,\), and a {type(model).__name__} predicts tokens:"):
        tlora.calibrate(model, [batch | {"labels": torch.tensor([0, 1, 5])}], progress=False)


def test_classifiers_with_an_encoder_and_a_decoder_are_calibrated_and_trained() -> None:
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
    adapted = tlora.attach(model, None, tlora.allocate(calibration.sensitivity, 2))
    rows = Dataset.from_list(
        [{"input_ids": row[:n], "labels": label} for row, n, label in zip(ids.tolist(), (4, 3), (0, 2), strict=True)]
    )
    run = tlora.train(adapted, rows, learning_rate=1e-2, epochs=4, progress=False)
    assert run.after["train_loss"] < run.before["train_loss"]


@pytest.mark.parametrize("name", ["BertForTokenClassification", "BertForMaskedLM"])
def test_labels_of_tokens_where_they_stand_are_refused(name: str) -> None:
    """Taken for labels of the tokens that follow, they gave scores that were off by a fifth."""

    class Mine(getattr(transformers, name)):  # type: ignore[misc]
        pass

    model = Mine(tiny_config("bert")).eval()
    batch = tiny_batch("bert")
    batch["labels"] = batch["input_ids"].clamp(max=1).masked_fill(batch["attention_mask"] == 0, -100)
    with pytest.raises(ValueError, match="a Mine predicts tokens where they stand"):
        tlora.calibrate(model, [batch], progress=False)


def test_what_a_model_takes_beside_ids_is_trained_with() -> None:
    rows = [
        {"input_ids": [5] * n, "token_type_ids": [n % 2] * n, "labels": n % 2, "text": "no input"} for n in (2, 3, 4)
    ]
    model = tiny_model("bert")
    adapted = tlora.attach(model, None, planned(model)[1])
    read: list[Tensor] = []
    model.bert.embeddings.token_type_embeddings.register_forward_hook(lambda module, args, out: read.append(args[0]))
    tlora.train(adapted, Dataset.from_list(rows), **QUICK)
    assert max(int(batch.max()) for batch in read) == 1


def test_rows_with_labels_on_padding_are_refused() -> None:
    rows = Dataset.from_list([{"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0], "labels": [5, 6, 0]}])
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="row 0 of the dataset has labels on padding"):
        tlora.train(tlora.attach(model, None, planned(model)[1]), rows, **QUICK)


@pytest.mark.parametrize("shared", ["weight", "layer"])
def test_a_weight_of_two_modules_is_not_merged_into(shared: str) -> None:
    model = tiny_model("llama")
    one, other = (layer.mlp for layer in model.model.layers)
    if shared == "layer":
        other.up_proj = one.up_proj
    else:
        other.up_proj.weight = one.up_proj.weight
    adapted = tlora.attach(model, None, planned(model)[1])
    with pytest.raises(ValueError, match=r"layers\.[01]\.mlp\.up_proj shares its weight with .*: keep the adapter"):
        tlora.merge(adapted)


def test_a_block_that_is_used_twice_is_merged_as_it_computes() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    adapted = tlora.attach(model, None, planned(model)[1])
    batch = tiny_batch(model)
    with torch.no_grad():
        for layer in adapter_layers(adapted).values():
            layer.lora_B["default"].weight.normal_(std=0.2)
        expected = adapted(**batch).logits
        torch.testing.assert_close(tlora.merge(adapted)(**batch).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_subspaces_of_an_adapted_model_are_those_of_its_base(family: str) -> None:
    """A square Conv1D under an adapter was read untransposed."""
    model = tiny_model(family)
    calibration, plan = planned(model)
    expected = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    adapted = tlora.attach(model, expected, plan)
    for again in (model, adapted):
        found = tlora.task_subspaces(again, calibration, max_rank=8, progress=False)
        for name in calibration.names:
            torch.testing.assert_close(found.basis(name, 8), expected.basis(name, 8))
        energy = tlora.captured_energy(again, calibration, {"wc": expected}, ranks=[8], progress=False)
        torch.testing.assert_close(energy.captured[:, 0, 0], energy.best[:, 0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["w", "g", "random"])
def test_rows_along_which_nothing_varies_stay_of_the_usual_length(kind: Any) -> None:
    model = tiny_model("llama")
    batch = tiny_batch(model, (9, 9, 9))
    batch["labels"][:, :-1] = -100  # one token each: without variance within a sample
    calibration, plan = planned(model, batch, tokens="labels", gradient=True)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, kind=kind, progress=False)
    adapted = tlora.attach(model, subspaces, plan, rows="variance")
    for name, layer in adapter_layers(adapted).items():
        lengths = layer.lora_A["default"].weight.norm(dim=1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, 3**-0.5), msg=name)


def test_autocast_around_the_walk_changes_no_product_of_ours() -> None:
    model = tiny_model("llama")
    calibration, plan = planned(model)
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
    adapted = tlora.attach(model, expected, plan)
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_wrapper_of_torch_compile_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pass model\._orig_mod, or compile in place with model\.compile\(\)"):
        tlora.calibrate(torch.compile(tiny_model("llama")), [tiny_batch("llama")], progress=False)


def test_an_input_that_is_changed_after_it_was_read_is_refused() -> None:
    model = tiny_model("llama")
    mlp = model.model.layers[0].mlp
    plain = mlp.forward

    def forward(x: Tensor) -> Tensor:
        mine = x * 1
        found = plain(mine)
        return found + mine.mul_(3)

    mlp.forward = forward
    with pytest.raises(RuntimeError, match=r"the input of model\.layers\.0\.mlp\.\w+ is changed in place"):
        tlora.calibrate(model, [tiny_batch(model)], progress=False)


@pytest.mark.parametrize(
    ("name", "is_so"),
    [
        ("model.decoder.layers.0.cross_attention.k_proj", True),  # NLLB-MoE
        ("decoder.block.0.layer.1.EncDecAttention.v", True),
        ("model.decoder.layers.1.encoder_attn.k_proj", True),
        ("bert.encoder.layer.0.crossattention.self.key", True),
        ("model.decoder.layers.0.cross_attention.q_proj", False),
        ("model.decoder.layers.0.self_attn.k_proj", False),
    ],
)
def test_what_reads_the_encoder_is_known_by_name(name: str, is_so: bool) -> None:
    assert bool(_READS_ENCODER.search(name)) is is_so


def test_layers_that_are_repeated_are_not_exported_as_if_they_were_not() -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], layer_replication=[(0, 2), (1, 2)], task_type="CAUSAL_LM")
    adapted = get_peft_model(tiny_model("llama"), config)
    with pytest.raises(ValueError, match=r"layer_replication=.* computes more than W \+ s B A"):
        tlora.export(adapted, "nowhere")


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
def test_experts_that_peft_would_adapt_are_named_with_a_way_out() -> None:
    config = transformers.DeepseekV3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    )
    model = transformers.DeepseekV3ForCausalLM(config).eval()
    batch = tiny_batch("llama")
    calibration, plan = planned(model, batch)
    with pytest.raises(ValueError, match=r"PEFT takes .* of a deepseek_v3 for its experts.*exclude=\[") as refused:
        tlora.attach(model, None, plan)
    model.to(model.dtype).state_dict()  # wrappers inside each other made a circle of it
    named = ast.literal_eval(str(refused.value).split("exclude=")[1].removesuffix(")"))
    assert tlora.attach(model, None, tlora.allocate(calibration.sensitivity, 4, exclude=named))


def test_a_copy_knows_what_was_initialised_afresh() -> None:
    model = tiny_model("bert")
    setattr(model, tlora.targets.FRESH_MODULES, ("bert.pooler",))
    assert tlora.targets.head_modules(copy.deepcopy(model)) == ["bert.pooler", "classifier"]
