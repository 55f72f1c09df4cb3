"""Logits where there are labels: the loss and the gradients are those of all logits."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.adapted import adapted_model, quick_collections, token_rows  # noqa: F401
from tests.helpers import DECODERS, ENCODERS, tiny_batch, tiny_model
from tlora.models.forward import at_labels
from tlora.training.train import train


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("family", DECODERS)
def test_the_model_computes_the_same_loss_from_the_labelled_positions(family, padding):
    model = tiny_model(family)
    batch = tiny_batch(model, padding=padding)
    batch["labels"][:, 5] = -100  # a column in the middle that nobody is asked for
    asked = at_labels(model, batch)
    assert asked["labels"].shape == (3, len(asked["logits_to_keep"]))
    assert 4 not in asked["logits_to_keep"]
    assert len(asked["logits_to_keep"]) < batch["labels"].shape[1]
    loss, gradients = loss_and_gradients(model, batch)
    same, same_gradients = loss_and_gradients(model, asked)
    torch.testing.assert_close(same, loss)
    assert same_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", [*ENCODERS, "t5"])
def test_other_models_get_their_batch_as_it_is(family):
    model = tiny_model(family)
    batch = tiny_batch(model)
    asked = at_labels(model, batch)
    assert asked.keys() == batch.keys()
    assert all(asked[key] is value for key, value in batch.items())


def test_a_batch_without_labels_has_no_loss_as_before():
    model = tiny_model("llama")
    batch = tiny_batch(model)
    batch["labels"][:] = -100
    assert at_labels(model, batch)["labels"].shape == (3, 1)
    assert model(**at_labels(model, batch)).loss.isnan()
    assert model(**batch).loss.isnan()


def test_an_adapted_model_is_asked_like_its_base():
    base = tiny_model("llama")
    batch = tiny_batch(base)
    expected = at_labels(base, batch)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert at_labels(adapted, batch)["logits_to_keep"] == expected["logits_to_keep"]
    assert adapted(**at_labels(adapted, batch)).logits.shape[1] == len(expected["logits_to_keep"])


def test_training_multiplies_the_output_embedding_for_labelled_positions_alone():
    model, rows = adapted_model(), token_rows()
    rows = rows.map(lambda row: {"labels": [-100] * (len(row["labels"]) - 1) + row["labels"][-1:]})
    columns = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: columns.append((args[0].shape[1], model.training)))
    train(model, rows, learning_rate=1e-2, batch_size=1, max_steps=3, progress=False, evaluation_limit=0)
    assert [count for count, training in columns if training] == [2, 2, 2]  # one label, and the last column
