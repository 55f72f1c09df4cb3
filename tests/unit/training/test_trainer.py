"""Training by arguments, adapters and folders of the user's own: what it trains, goes on with, and writes down."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.models import tiny_model
from tests.helpers.trainings import without_dropout

QUIET: dict[str, Any] = {"progress": False, "evaluation_limit": 0, "batch_size": 4}


def first_step(model: Any, rows: Dataset, size: int, parts: int) -> list[float]:
    """Loss and norm of the gradient of one step of ``parts`` batches."""
    options = {"optim": "sgd", "max_grad_norm": 1e9, "warmup_steps": 0, "lr_scheduler_type": "constant", "max_steps": 1}
    run = tlora.train(
        without_dropout(model), rows, **QUIET | {"batch_size": size}, gradient_accumulation_steps=parts, **options
    )
    return [*run.history[["loss", "grad_norm"]].iloc[0]]


@pytest.mark.parametrize(("size", "parts"), [(2, 4), (3, 3)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bert"])
def test_parts_of_a_step_count_by_their_labels(family: str, size: int, parts: int) -> None:
    """Answers of other lengths, and a last part of fewer samples: transformers alone takes a mean of means, or sums."""
    rows = token_rows(8, classes=2 if family == "bert" else 0)
    if family == "t5":
        rows = rows.map(lambda row, n: {"labels": row["labels"][-1 - n % 3 :]}, with_indices=True)
    whole, parted = (first_step(adapted_model(family), rows, *each) for each in ((8, 1), (size, parts)))
    assert parted == pytest.approx(whole, rel=1e-4)


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
    again = tlora.load_adapter(tmp_path / "adapter", base()).base_model.model.classifier.modules_to_save["default"]
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
