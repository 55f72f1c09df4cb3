"""Samples longer than a model with learned positions reads: cut by default, refused where they come all the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset

import tlora
from tests.helpers.adapted import adapted_model
from tests.helpers.models import DECODERS, tiny_batch, tiny_model, tiny_tokenizer
from tlora.models.forward import check_width, position_limit, restrict_logits

READ = {"gpt2": 64, "opt": 64, "bert": 80, "roberta": 78}
"""Positions of the tiny models; RoBERTa counts from behind its padding token."""


@pytest.mark.parametrize("family", READ)
def test_calibration_names_the_length_and_the_limit(family: str) -> None:
    model, limit = tiny_model(family), READ[family]
    with pytest.raises(ValueError, match=f"max_length={limit}"):
        tlora.calibrate(model, [tiny_batch(model, (limit + 1, 5))], progress=False)
    assert tlora.calibrate(model, [tiny_batch(model, (limit, 5))], progress=False).meta.samples == 2


TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
IMAGES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


@pytest.mark.parametrize("name", ["Llava", "Gemma3"])
def test_the_places_of_a_picture_are_no_places_of_a_text(name: str) -> None:
    """A text of ten tokens was refused where a picture has four patches."""
    vision = transformers.CLIPVisionConfig if name == "Llava" else transformers.SiglipVisionConfig
    text = transformers.LlamaConfig if name == "Llava" else transformers.Gemma3TextConfig
    config = getattr(transformers, f"{name}Config")(vision_config=vision(**IMAGES), text_config=text(**TEXT))
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    assert any(name.endswith("position_embedding") for name, _ in model.named_modules())
    assert position_limit(model) is None
    ids = torch.arange(4, 14)[None]
    check_width({"input_ids": ids, "labels": ids}, model)


@pytest.mark.parametrize("use", ["evaluate", "train"])
def test_evaluation_and_training_name_the_limit_too(use: str) -> None:
    rows = [{"prompt": f"w{4 + n} " + "w4 " * 100, "completion": "w5"} for n in range(12)]
    task = tlora.load_task(Dataset.from_list(rows), tiny_tokenizer())
    model = adapted_model("gpt2")
    uses: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: task.evaluate(model),
        "train": lambda: tlora.train(model, task.train, max_steps=1, progress=False),
    }
    with pytest.raises(ValueError, match="max_length=64"):
        uses[use]()


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("family", DECODERS)
def test_the_model_computes_the_same_loss_from_the_labeled_positions(family, padding):
    model = tiny_model(family)
    batch = tiny_batch(model, padding=padding)
    batch["labels"][:, 5] = -100  # a column in the middle that nobody is asked for
    asked = restrict_logits(model, batch)
    assert asked["labels"].shape == (3, len(asked["logits_to_keep"]))
    assert 4 not in asked["logits_to_keep"]
    assert len(asked["logits_to_keep"]) < batch["labels"].shape[1]
    loss, gradients = loss_and_gradients(model, batch)
    same, same_gradients = loss_and_gradients(model, asked)
    torch.testing.assert_close(same, loss)
    assert same_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_other_models_get_their_batch_as_it_is(family):
    model = tiny_model(family)
    batch = tiny_batch(model)
    asked = restrict_logits(model, batch)
    assert asked.keys() == batch.keys()
    assert all(asked[key] is value for key, value in batch.items())
