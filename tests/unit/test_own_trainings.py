"""Training by arguments, adapters and folders of the user's own: what it trains, goes on with, and writes down."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import tlora
import viz
from tests.adapted import adapted_model, quick_collections, token_rows  # noqa: F401
from tests.commands import invoke
from tests.helpers import tiny_model
from tlora.serving.verify import export_difference
from tlora.training.arguments import check_card
from tlora.training.dataset import Rows

QUIET: dict[str, Any] = {"progress": False, "evaluation_limit": 0, "batch_size": 4}


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def first_step(model: Any, rows: Dataset, size: int, parts: int) -> list[float]:
    """Loss and norm of the gradient of one step of ``parts`` batches."""
    options = {"optim": "sgd", "max_grad_norm": 1e9, "warmup_steps": 0, "lr_scheduler_type": "constant", "max_steps": 1}
    run = tlora.train(
        without_dropout(model), rows, **QUIET | {"batch_size": size}, gradient_accumulation_steps=parts, **options
    )
    return [*run.history[["loss", "grad_norm"]].iloc[0]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bert"])
def test_accumulated_gradients_are_those_of_one_batch(family: str) -> None:
    """Eight samples at once or in four parts: transformers alone multiplies losses of classifiers and T5 by four."""
    rows = token_rows(8, classes=2 if family == "bert" else 0)
    rows = rows.map(
        lambda row: {"input_ids": row["input_ids"][:4]} | ({} if family == "bert" else {"labels": row["labels"][:4]})
    )
    whole, parted = (first_step(adapted_model(family), rows, *parts) for parts in ((8, 1), (2, 4)))
    assert whole == pytest.approx(parted, rel=1e-4)


@pytest.mark.parametrize(("size", "parts"), [(4, 2), (2, 4), (1, 8), (3, 3)])
@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_parts_of_a_step_count_by_their_labels(family: str, size: int, parts: int) -> None:
    """Answers of other lengths, and a last part of fewer samples: a mean of means would be another loss."""
    rows = token_rows(8, classes=2 if family == "bert" else 0)
    if family == "t5":
        rows = rows.map(lambda row, n: {"labels": row["labels"][-1 - n % 3 :]}, with_indices=True)
    whole, parted = (first_step(adapted_model(family), rows, *each) for each in ((8, 1), (size, parts)))
    assert parted == pytest.approx(whole, rel=1e-4)


def test_accumulated_gradients_of_a_masked_language_model_are_means_too() -> None:
    sizes = {
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    rows = Dataset.from_list([{"input_ids": [3, 4, 5, n + 6], "labels": [-100, 4, -100, n + 6]} for n in range(8)])
    found = []
    for size, parts in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        base = without_dropout(BertForMaskedLM(BertConfig(**sizes, hidden_dropout_prob=0.0)))
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["query"]))
        options = QUIET | {"batch_size": size, "gradient_accumulation_steps": parts, "max_steps": 1, "warmup_steps": 0}
        run = tlora.train(model, rows, **options)
        found.append([*run.history[["loss", "grad_norm"]].iloc[0]])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_embeddings_are_trained_and_models_without_a_vocabulary(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM")
    run = tlora.train(get_peft_model(tiny_model("llama"), config), token_rows(8), output_dir=tmp_path / "a", **QUIET)
    assert any("lora_embedding" in name for name in run.adapter)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=2))
    adapted = get_peft_model(vit, LoraConfig(r=2, target_modules=["q_proj", "query"]))
    options = QUIET | {"output_dir": tmp_path / "b", "save_steps": 1}
    with pytest.warns(UserWarning, match="no head is trained"):
        assert tlora.train(adapted, Pictures(), **options).steps == 2


class Pictures:
    """A task whose rows are no tokens."""

    name, validation, test = "pictures", None, None
    train = Dataset.from_list([{"image": [float(n)] * 192, "labels": n % 2} for n in range(8)])

    def collate(self, rows: Any) -> dict[str, torch.Tensor]:
        pixels = torch.tensor([row["image"] for row in rows]).view(-1, 3, 8, 8)
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}


def test_labels_of_a_decoder_stay_where_they_are() -> None:
    rows = [
        {"input_ids": [0, 0, 5, 6], "attention_mask": [0, 0, 1, 1], "labels": [11, 12, 13]},
        {"input_ids": [7, 8, 9, 4], "attention_mask": [1, 1, 1, 1], "labels": [14, 15, 16, 17]},
    ]
    batch = Rows(Dataset.from_list(rows), 0, is_encoder_decoder=True).collate(rows)
    assert batch["input_ids"][0].tolist() == [5, 6, 0, 0]
    assert batch["labels"][0].tolist() == [11, 12, 13, -100]
    padded = {"input_ids": [7, 8, 2, 0], "attention_mask": [1, 1, 1, 0], "labels": [5, 6, 9, 2]}
    Rows(Dataset.from_list([padded]), 0, is_encoder_decoder=True)  # as many of its own, and none of them on padding


class Held:
    """A task with validation samples."""

    name, train, validation, test = "held", token_rows(16), token_rows(8, seed=3), token_rows(0)
    collate = staticmethod(Rows(token_rows(), 0).collate)
    evaluate = staticmethod(lambda model, split, limit, progress: {})


def two_adapters(keep: bool = True) -> PeftModel:
    """``default``, with a B of its own, and ``second``, which is active."""
    model = adapted_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.normal_(0, 0.5)
    model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("second")
    if not keep:
        model.delete_adapter("default")
    return model


def b_of(model: Any, adapter: str) -> list[torch.Tensor]:
    return [p.detach().clone() for name, p in model.named_parameters() if f"lora_B.{adapter}." in name]


class Evaluations(TrainerCallback):
    """B of the active adapter at each evaluation, by its loss."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, list[torch.Tensor]]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.seen.append((metrics["eval_loss"], b_of(kwargs["model"], kwargs["model"].active_adapter)))


@pytest.mark.parametrize("keep", [True, False], ids=["beside another", "alone"])
def test_the_best_is_loaded_into_the_adapter_that_was_trained(keep: bool, tmp_path: Path) -> None:
    model, evaluations = two_adapters(keep), Evaluations()
    others = b_of(model, "default")
    options = {"learning_rate": 0.5, "lr_scheduler_type": "constant", "warmup_steps": 0, "epochs": 2}
    options |= QUIET | {"output_dir": tmp_path, "load_best_model_at_end": True, "evaluation_limit": 8}
    tlora.train(model, Held(), callbacks=evaluations, **options)
    best = min(evaluations.seen, key=lambda each: each[0])[1]
    assert len(evaluations.seen) > 1
    assert all(map(torch.equal, b_of(model, "second"), best))
    assert all(map(torch.equal, b_of(model, "default"), others))
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_A" in name and "default" in name)


class Stop(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def begun(folder: Path, model: PeftModel, rows: Any = None, **more: Any) -> dict[str, Any]:
    """Train for five of eight steps; the options to go on with."""
    options = QUIET | {"learning_rate": 0.02, "epochs": 2, "save_steps": 2, "output_dir": folder} | more
    with pytest.warns(UserWarning, match="after 5 of 8 steps"):
        tlora.train(model, rows or token_rows(), callbacks=Stop(5), **options)
    return options


@pytest.mark.parametrize("keep", [True, False], ids=["beside another", "alone"])
def test_an_adapter_of_any_name_goes_on(keep: bool, tmp_path: Path) -> None:
    options = begun(tmp_path, two_adapters(keep))
    resumed = tlora.train(two_adapters(keep), token_rows(), resume=True, **options)
    whole = tlora.train(two_adapters(keep), token_rows(), **options | {"output_dir": tmp_path / "whole"})
    assert all(torch.equal(tensor, whole.adapter[name]) for name, tensor in resumed.adapter.items())


def test_a_training_goes_on_with_its_own_samples_and_base(tmp_path: Path) -> None:
    options = begun(tmp_path, adapted_model())
    with pytest.raises(ValueError, match=r"checkpoint-4 was made with other training samples: pass those"):
        tlora.train(adapted_model(), token_rows(seed=2), resume=True, **options)
    with pytest.raises(ValueError, match=r"checkpoint-4 is of another model: .*load the base that it was trained on"):
        tlora.train(adapted_model(seed=5), token_rows(), resume=True, **options)
    with pytest.raises(ValueError, match=r"holds checkpoint-4 of an earlier training: pass resume="):
        tlora.train(adapted_model(), token_rows(), **options)


def test_the_same_samples_in_another_form_are_the_same(tmp_path: Path) -> None:
    options = begun(tmp_path, adapted_model())
    assert tlora.train(adapted_model(), token_rows().with_format("torch"), resume=True, **options).steps == 8


def test_checkpoints_that_are_there_are_never_counted_among_new_ones(tmp_path: Path) -> None:
    """The Trainer would remove them, or the new ones, as the oldest."""
    options = begun(tmp_path, adapted_model())
    for seal in tmp_path.glob("checkpoint-*/sealed.json"):
        seal.unlink()
    with pytest.raises(FileNotFoundError, match=r"no whole checkpoint .*leave resume= out and name another folder"):
        tlora.train(adapted_model(), token_rows(), resume=True, **options)
    with pytest.raises(ValueError, match=r"pass resume='.*checkpoint-4' to go on with that, or train anew"):
        tlora.train(adapted_model(), token_rows(), **options)
    assert tlora.train(adapted_model(), token_rows(), resume=tmp_path / "checkpoint-4", **options).steps == 8
    (tmp_path / "new" / "checkpoint-7").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds checkpoint-7 of an earlier training, which was not finished"):
        tlora.train(adapted_model(), token_rows(), **options | {"output_dir": tmp_path / "new"})


def test_other_inputs_are_other_samples(tmp_path: Path) -> None:
    options = begun(tmp_path, adapted_model("bert"), rows=token_rows(classes=2))
    more = token_rows(classes=2).map(lambda row: {"token_type_ids": [1] * len(row["input_ids"])})
    with pytest.raises(ValueError, match="made with other training samples"):
        tlora.train(adapted_model("bert"), more, resume=True, **options)


def test_an_adapter_alone_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    options = begun(tmp_path, adapted_model(), save_only_model=True)
    with pytest.raises(ValueError, match=r"checkpoint-4 holds the adapter alone \(save_only_model=True\)"):
        tlora.train(adapted_model(), token_rows(), resume=True, **options)


def test_no_secret_is_written_down(tmp_path: Path) -> None:
    run = tlora.train(adapted_model(), token_rows(8), **QUIET, hub_token="hf_secret")
    run.save(tmp_path / "a")
    assert not any(b"hf_secret" in path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert "hf_secret" not in str(viz.card(tmp_path / "a"))


def test_a_vocabulary_that_was_resized_is_told(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")

    def adapted(tokens: int) -> PeftModel:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        base.resize_token_embeddings(tokens, mean_resizing=False)
        return get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))

    with pytest.warns(UserWarning, match=r"the model has 70 tokens and .*base has 64: the adapter holds none"):
        tlora.train(adapted(70), token_rows(8), **QUIET)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*the adapter holds none")
        tlora.train(adapted(64), token_rows(8), **QUIET)


def test_layers_that_are_not_what_the_config_says_are_refused() -> None:
    model = adapted_model()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(0.5)
    with pytest.raises(ValueError, match=r"q_proj has rank 4 and scaling 0.75, its config says 4 and 1.5"):
        tlora.train(model, token_rows(8), **QUIET)


def test_rows_padded_on_the_left_are_those_padded_on_the_right() -> None:
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in token_rows(8)]
    pads = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    losses = []
    for side in (-1, 1):
        filled = []
        for row in rows:
            room = {name: [pad] * (10 - len(row["input_ids"])) for name, pad in pads.items()}
            filled.append(
                {name: (row[name] + room[name])[::1] if side > 0 else room[name] + row[name] for name in pads}
            )
        run = tlora.train(without_dropout(adapted_model("gpt2")), Dataset.from_list(filled), **QUIET)
        losses.append(run.history["loss"].tolist())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_weight_of_zero_has_no_share_that_an_update_is_of() -> None:
    model = adapted_model()
    name = "model.layers.0.self_attn.q_proj"
    model.get_base_model().get_submodule(name).get_base_layer().weight.data.zero_()
    history = tlora.train(model, token_rows(), **QUIET).module_history
    assert history.loc[history["module"] == name, "update_norm"].isna().all()
    assert history.loc[history["module"] != name, "update_norm"].notna().all()


def test_a_start_that_rewrites_the_base_is_read_again_on_the_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="pissa")
    model = get_peft_model(tiny_model("llama"), config)
    tlora.train(model, token_rows(8), **QUIET).save(tmp_path / "a")
    ids = torch.tensor([[3, 9, 12]])
    again = tlora.load(tmp_path / "a", tiny_model("llama"))
    assert torch.allclose(again.eval()(ids).logits, model.eval()(ids).logits, atol=1e-5)


def test_a_run_that_holds_its_best_says_so(tmp_path: Path) -> None:
    options = {"learning_rate": 0.5, "lr_scheduler_type": "constant", "warmup_steps": 0, "epochs": 4, "save_steps": 2}
    options |= QUIET | {"output_dir": tmp_path, "load_best_model_at_end": True, "evaluation_limit": 8, "eval_steps": 2}
    with pytest.warns(UserWarning, match=r"after 7 of 16 steps; the run holds that of step \d, the best"):
        tlora.train(adapted_model(), Held(), callbacks=Stop(7), **options)


def test_measuring_an_export_leaves_modes_alone(tmp_path: Path) -> None:
    model = adapted_model()
    tlora.export(model, tmp_path / "e")
    model.train()
    held = model.get_base_model().model.layers[0].eval()  # as somebody may hold a part without dropout
    before = [module.training for module in model.modules()]
    ids = torch.tensor([[3, 9, 12]])
    export_difference(model, tmp_path / "e", [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    assert [module.training for module in model.modules()] == before
    assert not held.training


@pytest.mark.parametrize("name", ["my.adapter", ""])
def test_a_name_that_no_adapter_can_have_is_refused(name: str, tmp_path: Path) -> None:
    tlora.train(adapted_model(), token_rows(8), **QUIET).save(tmp_path / "a")
    with pytest.raises(ValueError, match="an adapter's name is a word without dots"):
        tlora.load(tmp_path / "a", tiny_model("llama"), name=name)


def test_the_record_of_a_checkpoint_is_plain(tmp_path: Path) -> None:
    begun(tmp_path, adapted_model())
    record = json.loads((tmp_path / "checkpoint-4" / "arguments.json").read_text())
    assert record["training samples"] == 16
    assert len(record["base"]) == 4


def test_of_several_cards_one_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a launcher, the Trainer would give a batch to each of them, and half of the steps be done."""

    def two_cards(arguments: TrainingArguments) -> torch.device:
        arguments.distributed_state, arguments._n_gpu = PartialState(cpu=True), 2
        return torch.device("cpu")

    devices = cached_property(two_cards)
    devices.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", devices)
    run = tlora.train(adapted_model("llama"), token_rows(8), **QUIET, use_cpu=False)
    assert len(run.history) == 2
    assert run.history["loss"].notna().all()


def test_a_card_that_the_trainer_does_not_take_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It would train on its own, and leave the model there."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    way_out = "CUDA_VISIBLE_DEVICES=1"
    model = adapted_model("llama")
    monkeypatch.setattr(type(model), "device", torch.device("cuda:1"), raising=False)
    with pytest.raises(ValueError, match=way_out):
        tlora.train(model, token_rows(8), **QUIET)
    with pytest.raises(ValueError, match=way_out):
        tlora.compare("lora", "none", "no-model", store=tmp_path / "store.jsonl", device="cuda:1")
    refused = invoke(f"run --model no-model --task none -o {tmp_path / 'out'} --device cuda:1")
    assert way_out in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("card", "rank", "visible", "says"),
    [
        ("cuda", "1", None, None),
        ("cuda:1", "1", None, None),
        ("cuda:0", "-1", None, None),
        ("cpu", "1", None, None),
        ("cuda:1", None, "2,3", "CUDA_VISIBLE_DEVICES=3"),
        ("cuda:0", "1", None, "this process trains on cuda:1: leave the device out"),
    ],
)
def test_the_card_of_a_process_is_taken(
    card: str, rank: str | None, visible: str | None, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOCAL_RANK", rank), ("CUDA_VISIBLE_DEVICES", visible)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=says) if says else contextlib.nullcontext():
        check_card(torch.device(card))


class Odd(torch.nn.Module):
    """A head that reads a weight of its own part, has a parameter of its own, and counts what it has seen."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = torch.nn.BatchNorm1d(width)
        self.shift = torch.nn.Parameter(torch.full((width,), 0.3))
        self.proj = torch.nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found, _ = self.attention(x[:, None], x[:, None], x[:, None])
        return torch.nn.functional.linear(self.norm(found[:, 0]) + self.shift, self.proj.weight, self.proj.bias)


def test_heads_of_any_kind_are_trained_in_float32_and_loaded_again(tmp_path: Path) -> None:
    def base() -> Any:
        torch.manual_seed(0)
        found = tiny_model("bert")
        found.classifier = Odd(found.config.hidden_size, 2)
        return without_dropout(found.bfloat16())

    model = get_peft_model(base(), LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    odd = model.base_model.model.classifier.modules_to_save["default"]
    before = {name: value.clone() for name, value in odd.state_dict().items()}
    options = {"learning_rate": 1e-4, "warmup_steps": 0, "lr_scheduler_type": "constant", "max_steps": 40}
    run = tlora.train(model, token_rows(16, classes=2), **QUIET | options)
    after = odd.state_dict()
    assert {name: value.dtype for name, value in after.items()} == {n: v.dtype for n, v in before.items()}
    assert (after["norm.weight"] - 1).abs().max() > 3e-3  # a step of 1e-4 from 1 is none in bfloat16
    run.save(tmp_path / "adapter")
    again = tlora.load(tmp_path / "adapter", base()).base_model.model.classifier.modules_to_save["default"]
    assert again.norm.running_var.equal(odd.norm.running_var)
    assert int(again.norm.num_batches_tracked) == 40


def test_a_head_of_a_short_type_is_trained_as_one_of_float32(tmp_path: Path) -> None:
    """Steps of 1e-4 on weights of 0.1 are below what bfloat16 can hold: they would be rounded away one by one."""
    options = QUIET | {"learning_rate": 1e-4, "warmup_steps": 0, "lr_scheduler_type": "constant", "save_steps": 20}
    rows, moved = token_rows(16, classes=2), []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        base = without_dropout(tiny_model("bert").bfloat16().to(dtype))
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
        weight = model.base_model.model.classifier.modules_to_save["default"].weight
        before, hooks = weight.detach().float().clone(), sum(len(m._forward_hooks) for m in model.modules())
        for steps, resume in ((20, False), (40, True)):
            options |= {"output_dir": tmp_path / str(dtype), "max_steps": steps, "resume": resume}
            run = tlora.train(model, rows, **options)
        assert run.steps == 40
        assert weight.dtype == dtype
        assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
        assert run.adapter["base_model.model.classifier.weight"].equal(weight.detach())
        moved.append(weight.detach().float() - before)
    full, short = moved
    assert (short - full).abs().mean() < 0.2 * full.abs().mean()


def test_a_tied_head_and_embedding_are_trained_in_float32_together() -> None:
    """The second of two modules that have one parameter found it wide already, and its inputs stayed narrow."""
    model = tiny_model("llama", tie_word_embeddings=True).bfloat16()
    config = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "modules_to_save": ["embed_tokens"]}
    adapted = get_peft_model(model, LoraConfig(**config, ensure_weight_tying=True))
    before = adapted.get_input_embeddings().weight.detach().clone()
    tlora.train(adapted, token_rows(), learning_rate=1e-2, progress=False)
    embedding = adapted.get_input_embeddings().weight
    assert embedding.dtype == torch.bfloat16
    assert not torch.equal(embedding, before)
    assert embedding.data_ptr() == adapted.get_output_embeddings().weight.data_ptr()
