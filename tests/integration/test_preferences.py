"""Gradients of TRL's preference losses at the start, while `B` is zero: the page says what they are sums of."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import Trainer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from tests.helpers.models import tiny_model, tiny_tokenizer
from tests.helpers.trainers import THEIR_WARNINGS, settings

pytestmark = [THEIR_WARNINGS, pytest.mark.rest]
BETA = 0.3
PAIRS = [
    {"prompt": "w4 w9 w5", "chosen": " w10 w7", "rejected": " w11 w8 w6 w12"},
    {"prompt": "w6 w13", "chosen": " w14 w15 w16", "rejected": " w14 w15 w17"},
]
Answers = list[tuple[Tensor, Tensor]]
"""Of each answer its tokens, the request's included, and which of them the loss covers."""


def adapted() -> PeftModel:
    """A fresh adapter: `B` is zero."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    return get_peft_model(tiny_model("llama"), config).eval()


def log_probabilities(model: PeftModel, answers: Answers) -> list[Tensor]:
    """Log-probability of each covered token, by answer, in nats."""
    found = []
    for ids, covered in answers:
        values = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        found.append(values[covered[1:]])
    return found


def dpo(folder: Path, **options: Any) -> tuple[Trainer, Any, Answers, Answers]:
    arguments = DPOConfig(**settings(folder, beta=BETA, per_device_train_batch_size=2, **options))
    trainer = DPOTrainer(
        adapted(), args=arguments, train_dataset=Dataset.from_list(PAIRS), processing_class=tiny_tokenizer()
    )
    batch = next(iter(trainer.get_train_dataloader()))
    rows = [
        (ids[seen.bool()], covered[seen.bool()].bool())
        for ids, seen, covered in zip(
            batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
        )
    ]
    return trainer, batch, rows[: len(PAIRS)], rows[len(PAIRS) :]


def kto(folder: Path) -> tuple[Trainer, Any, Answers, Answers]:
    rows = [
        {"prompt": pair["prompt"], "completion": pair[kind], "label": kind == "chosen"}
        for pair in PAIRS
        for kind in ("chosen", "rejected")
    ]
    arguments = KTOConfig(**settings(folder, beta=BETA, per_device_train_batch_size=4))
    trainer = KTOTrainer(
        adapted(), args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer()
    )
    batch = next(iter(trainer.get_train_dataloader()))
    wanted: dict[bool, Answers] = {True: [], False: []}
    for ids, seen, covered, label in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], batch["label"], strict=True
    ):
        wanted[bool(label)].append((ids[seen.bool()], covered[seen.bool()].bool()))
    return trainer, batch, wanted[True], wanted[False]


def orpo(folder: Path) -> tuple[Trainer, Any, Answers, Answers]:
    arguments = ORPOConfig(**settings(folder, beta=BETA, per_device_train_batch_size=2, remove_unused_columns=False))
    trainer = ORPOTrainer(
        adapted(), args=arguments, train_dataset=Dataset.from_list(PAIRS), processing_class=tiny_tokenizer()
    )
    batch = next(iter(trainer.get_train_dataloader()))
    chosen, rejected = (
        [
            (ids[seen.bool()], labels[seen.bool()] != -100)
            for ids, seen, labels in zip(
                batch[f"{kind}_input_ids"], batch[f"{kind}_attention_mask"], batch[f"{kind}_labels"], strict=True
            )
        ]
        for kind in ("chosen", "rejected")
    )
    return trainer, batch, chosen, rejected


def signed(factor: float, mean: bool = False) -> Callable[..., Tensor]:
    """A loss: ``factor * (rejected - chosen)`` of summed or mean log-probabilities, mean over pairs."""

    def loss(model: PeftModel, chosen: Answers, rejected: Answers) -> Tensor:
        good, bad = (
            sum((values.mean() if mean else values.sum()) for values in log_probabilities(model, answers))
            for answers in (chosen, rejected)
        )
        return factor * (bad - good) / len(chosen)

    return loss


def odds_ratio(model: PeftModel, chosen: Answers, rejected: Answers) -> Tensor:
    """ORPO: the mean loss of the chosen tokens, the request's included, less the weighted difference of log-odds."""
    whole = torch.cat(log_probabilities(model, [(ids, torch.ones_like(ids, dtype=torch.bool)) for ids, _ in chosen]))
    loss = -whole.mean()
    pairs = zip(log_probabilities(model, chosen), log_probabilities(model, rejected), strict=True)
    for good, bad in pairs:
        weights = [1 / (1 - values.mean().exp().item()) for values in (good, bad)]
        odds = [values.mean().item() - math.log(1 - math.exp(values.mean().item())) for values in (good, bad)]
        share = BETA / (1 + math.exp(odds[0] - odds[1])) / len(chosen)
        loss = loss - share * (weights[0] * good.mean() - weights[1] * bad.mean())
    return loss


LOSSES: dict[str, tuple[Callable[[Path], Any], Callable[..., Tensor]]] = {
    "DPO": (dpo, signed(BETA / 2)),
    "hinge": (lambda folder: dpo(folder, loss_type="hinge"), signed(BETA)),
    "IPO": (lambda folder: dpo(folder, loss_type="ipo"), signed(1 / BETA, mean=True)),
    "KTO": (kto, signed(BETA / 8)),  # a mean over four answers, not over two pairs
    "ORPO": (orpo, odds_ratio),
}


@pytest.mark.parametrize(("make", "expected"), LOSSES.values(), ids=LOSSES)
def test_the_gradient_at_the_start_is_a_signed_sum_over_both_answers(
    make: Callable[[Path], Any], expected: Callable[..., Tensor], tmp_path: Path
) -> None:
    trainer, batch, chosen, rejected = make(tmp_path)
    model = trainer.model.eval()
    weights = [weight for name, weight in model.named_parameters() if "lora_B" in name and ".ref." not in name]
    theirs = torch.autograd.grad(trainer.compute_loss(model, batch), weights)
    ours = torch.autograd.grad(expected(model, chosen, rejected), weights)
    assert len(weights) == 6
    for their, our in zip(theirs, ours, strict=True):
        assert their.abs().max() > 1e-4
        torch.testing.assert_close(their, our, rtol=1e-4, atol=1e-6)
