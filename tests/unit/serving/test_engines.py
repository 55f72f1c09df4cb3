"""What engines refuse, by adapters that hold more than A and B of linear layers."""

import warnings
from pathlib import Path
from typing import Any

import pytest

import tlora
from tests.helpers.foreign import biased, foreign

# Options of PEFT, and what engines that read A and B alone say.
MORE: dict[str, tuple[dict[str, Any], str]] = {
    "biases": ({"bias": "lora_only"}, "bias='lora_only'"),
    "DoRA": ({"use_dora": True}, "DoRA"),
    "saved": ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
    "bias of B": ({"lora_bias": True}, "lora_B.bias, which is neither A nor B"),
    "tokens": ({"trainable_token_indices": [5]}, "trainable_tokens_delta, which is neither A nor B"),
    "aLoRA": ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens="),
    "repeated": ({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication="),
}


@pytest.mark.parametrize(("options", "words"), MORE.values(), ids=MORE)
def test_engines_that_read_a_and_b_alone_refuse_more(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foreign(biased(), tmp_path, task_type="CAUSAL_LM", **options)
    refused = tlora.inspect(tmp_path).engines().set_index("engine")["refused"]
    assert refused.pop("PEFT 0.15 and later") == ""
    assert refused.pop("mlx-lm 0.32") == "PEFT's format is not read"
    assert len(refused) == 6
    assert all(words in refusal for refusal in refused)


def test_embeddings_are_no_strays(tmp_path: Path) -> None:
    foreign(biased(), tmp_path, target_modules=["q_proj", "v_proj", "embed_tokens"])
    assert tlora.inspect(tmp_path).engines().set_index("engine").loc["vLLM 0.32", "refused"] == ""
