"""Training in somebody's pipeline: options together, adapters of other kinds, what goes on and what is held."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file

import tlora
from tests.adapted import adapted_model, token_rows
from tests.helpers import tiny_batch, tiny_model, tiny_tokenizer
from tlora.comparison import lr_search
from tlora.serving.verify import export_difference

QUIET: dict[str, Any] = {"batch_size": 4, "progress": False, "evaluation_limit": 0}


def other_kind(kind: type[peft.PeftConfig] = peft.VeraConfig, **config: Any) -> peft.PeftModel:
    return peft.get_peft_model(tiny_model("llama"), kind(target_modules=["q_proj"], task_type="CAUSAL_LM", **config))


def pairs() -> tlora.Task:
    rows = [{"prompt": f"w{4 + i % 7} w{11 + i % 11} w{22 + i}", "completion": f"w{4 + i % 7}"} for i in range(36)]
    splits = {"train": rows[:20], "validation": rows[20:28], "test": rows[28:]}
    return tlora.load_task({name: Dataset.from_list(part) for name, part in splits.items()}, tiny_tokenizer())


class StopsAt(transformers.TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


def test_the_best_step_that_is_named_is_the_one_that_was_saved(tmp_path: Path) -> None:
    """Evaluated at each step and saved at every fourth, the best of all was mostly not kept."""
    options = {"eval_steps": 1, "save_steps": 4, "load_best_model_at_end": True}
    with pytest.warns(UserWarning, match="the run holds that of step 4, the best"):
        run = tlora.train(
            adapted_model(), pairs(), output_dir=tmp_path, max_steps=12, learning_rate=0.01, callbacks=StopsAt(7),
            **QUIET | options | {"evaluation_limit": 6},
        )  # fmt: skip
    saved = load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, run.adapter[name]) for name, tensor in saved.items())
    losses = run.history.set_index("step")["eval_loss"]
    assert losses.idxmin() > 4


def test_a_best_step_whose_rate_was_zero_is_said_to_have_learnt_nothing_only_where_it_was_stopped_there(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    options = {"eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True, "greater_is_better": True}
    tlora.train(
        adapted_model(), pairs(), output_dir=tmp_path, max_steps=9, learning_rate=0.05,
        callbacks=transformers.EarlyStoppingCallback(1), **QUIET | options | {"evaluation_limit": 6},
    )  # fmt: skip
    said = [str(warning.message) for warning in recwarn]
    assert any("the run holds that of step 1, the best" in text for text in said)
    assert not any("B is still zero" in text for text in said)


@pytest.mark.parametrize(
    "change", [{"data_seed": 2}, {"optim": "sgd"}, {"max_grad_norm": 0.5}, {"label_smoothing_factor": 0.1}]
)
def test_training_does_not_go_on_in_another_way(change: dict[str, Any], tmp_path: Path) -> None:
    options = QUIET | {"output_dir": tmp_path, "save_steps": 2, "data_seed": 1}
    tlora.train(adapted_model(), token_rows(16), max_steps=2, **options)
    with pytest.raises(ValueError, match=f"was made with {next(iter(change))}=.* is asked for: pass the same"):
        tlora.train(adapted_model(), token_rows(16), max_steps=4, resume=True, **options | change)


@pytest.mark.parametrize("kind", [peft.VeraConfig, peft.IA3Config, peft.LoHaConfig, peft.LNTuningConfig])
def test_adapters_of_other_kinds_go_on_too(kind: type[peft.PeftConfig], tmp_path: Path) -> None:
    more = {"feedforward_modules": []} if kind is peft.IA3Config else {}
    options = QUIET | {"save_steps": 2, "max_steps": 4}
    torch.manual_seed(0)
    whole = tlora.train(other_kind(kind, **more), token_rows(16), output_dir=tmp_path / "whole", **options)
    place = tmp_path / "whole" / "checkpoint-2"
    torch.manual_seed(0)
    again = tlora.train(other_kind(kind, **more), token_rows(16), output_dir=tmp_path / "b", resume=place, **options)
    assert again.history.equals(whole.history)


def test_a_search_whose_metric_is_tied_goes_where_the_loss_falls() -> None:
    """Answers that are all wrong at every rate, while the loss falls as the rates rise."""
    found = lr_search.search(lambda rate: (0.0, -abs(math.log10(rate / 3e-2))), (5e-4, 1e-3, 2e-3, 4e-3))
    assert lr_search.best(found) == pytest.approx(0.032)
    assert min(found) == 5e-4
    low = lr_search.search(lambda rate: (0.0, -abs(math.log10(rate / 2e-4))), (5e-4, 1e-3))
    assert lr_search.best(low) == pytest.approx(2.5e-4)


def test_labels_of_a_decoder_can_be_smoothed() -> None:
    """By the definition: the mean over all labels of the loss, and of the mean log-probability of all tokens."""
    model = peft.get_peft_model(
        tiny_model("t5", dropout_rate=0.0), peft.LoraConfig(r=4, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    ).eval()
    rows = Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [9, 10, 11]}, {"input_ids": [5, 6], "labels": [4]}])
    batch = tlora.training._as_task(rows, model).collate(list(rows))
    with torch.no_grad():
        logits = model(**batch).logits.log_softmax(-1)
    real = batch["labels"] != -100
    right = logits.gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0]
    expected = -(0.9 * right[real].mean() + 0.1 * logits.mean(-1)[real].mean()).item()
    run = tlora.train(model, rows, max_steps=1, warmup_steps=0, label_smoothing_factor=0.1, logging_steps=1, **QUIET)
    assert run.history["loss"].iloc[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_steps": 0}, "max_steps=0: use a whole number of at least 1"),
        ({"max_steps": -5}, "max_steps=-5: use a whole number"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0: use a whole number"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True begins anew with what was trained"),
        ({"eval_on_start": True}, "eval_on_start=True needs validation samples"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], words: str) -> None:
    model = adapted_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=words):
        tlora.train(model, token_rows(8), **QUIET | options)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_adapters_of_other_kinds_are_called_by_their_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"merge is for LoRA, and this adapter is LN_TUNING: PEFT merges it"):
        tlora.merge(other_kind(peft.LNTuningConfig))
    with pytest.raises(ValueError, match="an adapter of the kind VERA, and export is for LoRA"):
        tlora.export(other_kind(), tmp_path / "there")


def test_comparing_an_export_leaves_what_is_trainable(tmp_path: Path) -> None:
    model = adapted_model()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    before = [parameter.requires_grad for parameter in model.parameters()]
    batch = {name: value for name, value in tiny_batch(tiny_model("llama")).items() if name != "labels"}
    export_difference(model, tlora.export(model, tmp_path / "there"), [batch])
    assert [parameter.requires_grad for parameter in model.parameters()] == before


def test_an_adapter_that_is_switched_off_is_not_trained() -> None:
    model = adapted_model()
    model.base_model.disable_adapter_layers()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    with pytest.raises(ValueError, match=r"switched off: call model\.base_model\.enable_adapter_layers\(\)"):
        tlora.train(model, token_rows(8), max_steps=2, **QUIET)
