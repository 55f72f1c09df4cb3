"""Adapters that other trainers made: what of them the base holds, what has no place in it, and who reads them."""

import warnings
from pathlib import Path
from typing import Any

import pytest

import tlora
from tests.helpers.foreign import biased, foreign
from tests.helpers.models import tiny_model

STRAY = {
    "lora_B.bias": {"lora_bias": True},
    "trainable_tokens_delta": {"trainable_token_indices": [5]},
}


@pytest.mark.parametrize("stray", STRAY)
def test_engines_that_read_a_and_b_alone_do_not_take_what_is_beside_them(stray: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        foreign(biased(), tmp_path, **STRAY[stray])
    refused = tlora.inspect(tmp_path).engines().set_index("engine")["refused"]
    assert refused["PEFT 0.15 and later"] == ""
    readers = [name for name in refused.index if not name.startswith(("PEFT", "mlx"))]
    assert len(readers) == 6
    for name in readers:
        assert f"{stray}, which is neither A nor B" in refused[name]


def test_heads_and_embeddings_are_no_strays(tmp_path: Path) -> None:
    foreign(biased(), tmp_path, target_modules=["q_proj", "v_proj", "embed_tokens"])
    refused = tlora.inspect(tmp_path).engines().set_index("engine")["refused"]
    assert refused["vLLM 0.32"] == ""


@pytest.mark.parametrize("more", [{"alora_invocation_tokens": [5, 6]}, {"layer_replication": [(0, 2), (1, 2)]}])
def test_engines_do_not_compute_what_is_more_than_w_and_b_a(more: dict[str, Any], tmp_path: Path) -> None:
    foreign(tiny_model("llama"), tmp_path, task_type="CAUSAL_LM", **more)
    refused = tlora.inspect(tmp_path).engines().set_index("engine")["refused"]
    assert refused["PEFT 0.15 and later"] == ""
    readers = [name for name in refused.index if not name.startswith(("PEFT", "mlx"))]
    assert len(readers) == 6
    assert all(refused[name].startswith(f"{next(iter(more))}=") for name in readers)
