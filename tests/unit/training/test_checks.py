"""Models that cannot be trained are refused, and unusual ones trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertModel, BertPreTrainedModel

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.models import tiny_batch, tiny_config, tiny_model


def merged() -> PeftModel:
    model = adapted_model()
    model.merge_adapter()
    return model


def switched_off() -> PeftModel:
    model = adapted_model()
    model.base_model.disable_adapter_layers()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    return model


def leaking() -> PeftModel:
    model = adapted_model()
    model.get_base_model().model.norm.weight.requires_grad_(True)
    return model


def mixture() -> PeftModel:
    """Ranks of this mixture are not those of its config."""
    model = adapted_model()
    model.add_adapter("other", model.peft_config["default"])
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both", combination_type="linear")
    model.set_adapter("both")
    return model


def scaled() -> PeftModel:
    model = adapted_model()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(0.5)
    return model


REFUSALS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "base": (lambda: tiny_model("llama"), TypeError, "LlamaForCausalLM"),
    "frozen": (lambda: adapted_model().requires_grad_(False), ValueError, "no parameter"),
    "merged": (merged, ValueError, "unmerge_adapter"),
    "off": (switched_off, ValueError, "enable_adapter_layers"),
    "unsaved": (leaking, ValueError, r"model\.norm\.weight"),
    "mixture": (mixture, ValueError, "has rank 3 and .* config says 4"),
    "scaled": (scaled, ValueError, "scaling 0.75, its config says 4 and 1.5"),
}


@pytest.mark.parametrize(("model", "error", "words"), REFUSALS.values(), ids=REFUSALS)
def test_refusals(model: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        tlora.train(model(), token_rows(8), **QUIET)


QUIET: dict[str, Any] = {"batch_size": 4, "progress": False, "evaluation_limit": 0}


class Classifier(BertPreTrainedModel):
    """With a head under a name of its own, next to a body under any name."""

    def __init__(self, config: Any, body: str = "bert") -> None:
        super().__init__(config)
        self.body = body
        setattr(self, body, BertModel(config, add_pooling_layer=False))
        self.head = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule(self.body).get_input_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **_: Any) -> Any:
        body = self.get_submodule(self.body)
        logits = self.head(body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def test_a_head_of_any_name_is_trained_and_one_that_is_not_recognized_is_warned_of() -> None:
    def attached(body: str) -> PeftModel:
        model = Classifier(tiny_config("bert"), body).eval()
        calibration = tlora.calibrate(model, [tiny_batch("bert")], progress=False)
        return tlora.attach(model, None, tlora.allocate(calibration.sensitivity, 4, max_rank=8))

    run = tlora.train(attached("bert"), token_rows(8, classes=2), **QUIET)
    head = ["base_model.model.head.weight", "base_model.model.head.bias"]
    assert [key for key in run.adapter if "lora" not in key] == head
    with pytest.warns(UserWarning, match="head .*Classifier"):
        tlora.train(attached("encoder_model"), token_rows(8, classes=2), **QUIET)


def test_embeddings_are_trained(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM")
    run = tlora.train(get_peft_model(tiny_model("llama"), config), token_rows(8), output_dir=tmp_path / "a", **QUIET)
    assert any("lora_embedding" in name for name in run.adapter)


def test_a_vocabulary_that_was_resized_is_told(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "base")

    def adapted(tokens: int) -> PeftModel:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        base.resize_token_embeddings(tokens, mean_resizing=False)
        return get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))

    with pytest.warns(UserWarning, match=r"70 tokens .*64"):
        tlora.train(adapted(70), token_rows(8), **QUIET)
    tlora.train(adapted(64), token_rows(8), **QUIET)
