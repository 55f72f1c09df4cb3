"""Training: what changes and what does not, reproducibility, checkpoints, and the ways it can end."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, ViTConfig, ViTForImageClassification

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.models import tiny_model
from tlora.training.train import train

QUICK: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 4, "progress": False}


def test_refuses_models_that_cannot_be_trained() -> None:
    with pytest.raises(TypeError, match="got LlamaForCausalLM: attach an adapter first"):
        train(tiny_model("llama"), token_rows(), **QUICK)  # type: ignore[arg-type]
    frozen = adapted_model().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model requires"):
        train(frozen, token_rows(), **QUICK)
    merged = adapted_model()
    merged.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into .*q_proj: call model.unmerge_adapter"):
        train(merged, token_rows(), **QUICK)
    leaking = adapted_model()
    leaking.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"model\.norm\.weight would be trained but is not saved"):
        train(leaking, token_rows(), **QUICK)


@pytest.mark.parametrize("combination", ["linear", "ties"])
def test_a_mixture_of_unlike_ranks_that_nothing_reads_again_is_not_trained(combination: str) -> None:
    model = adapted_model()
    model.add_adapter("other", model.peft_config["default"])
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both", combination_type=combination, density=0.5)
    model.set_adapter("both")
    with pytest.raises(ValueError, match=r"has rank 3 and .* config says 4 .*add_weighted_adapter"):
        tlora.train(model, token_rows(8), progress=False)


QUIET: dict[str, Any] = {"batch_size": 4, "progress": False, "evaluation_limit": 0}


def test_an_adapter_that_is_switched_off_is_not_trained() -> None:
    model = adapted_model()
    model.base_model.disable_adapter_layers()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    with pytest.raises(ValueError, match=r"switched off: call model\.base_model\.enable_adapter_layers\(\)"):
        tlora.train(model, token_rows(8), max_steps=2, **QUIET)


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


def test_a_vocabulary_that_was_resized_is_told(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")

    def adapted(tokens: int) -> PeftModel:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        base.resize_token_embeddings(tokens, mean_resizing=False)
        return get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))

    with pytest.warns(UserWarning, match=r"the model has 70 tokens and .*base has 64: the adapter does not hold"):
        tlora.train(adapted(70), token_rows(8), **QUIET)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*the adapter does not hold")
        tlora.train(adapted(64), token_rows(8), **QUIET)


def test_layers_that_are_not_what_the_config_says_are_refused() -> None:
    model = adapted_model()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(0.5)
    with pytest.raises(ValueError, match=r"q_proj has rank 4 and scaling 0.75, its config says 4 and 1.5"):
        tlora.train(model, token_rows(8), **QUIET)
