"""`tlora export`: what it writes, says and refuses; what the files hold is tested with `tlora.export`."""

from __future__ import annotations

import re

import pytest
import transformers

import tlora
from tests.commands import QUICK, RUN, done, invoke, no_pictures, saved, workplace  # noqa: F401


@pytest.mark.usefixtures("workplace", "no_pictures")
def test_each_format_and_engine(tmp_path):
    done(f"{RUN} {QUICK} --output trained")
    for line, written in (
        ("served", "served/adapter_model.safetensors"),
        ("for-vllm --engine vllm --dtype bfloat16", "for-vllm/adapter_model.safetensors"),
        ("for-llama.gguf --engine llama.cpp", "for-llama.gguf"),
        ("packed --format gguf", "packed/adapter.gguf"),
        ("whole --format merged", "whole/model.safetensors"),
    ):
        said = done(f"export trained {line}").stdout
        assert (tmp_path / written).is_file()
        assert re.search(r"exact  logits differ by at most [\d.e-]+ on 4 prompts, where the adapter changes them", said)
        assert re.search(r"saved  \S+, [\d.]+ [kM]B", said)
        again = invoke(f"export trained {line}")
        assert again.exit_code == 2
        assert "--overwrite" in again.stderr
        done(f"export trained {line} --overwrite --quiet")
    assert set(tlora.inspect("for-vllm").ranks.values()) == {8}
    whole = transformers.AutoModelForCausalLM.from_pretrained("whole")
    assert whole.num_parameters() == tlora.load_model("llama")[0].num_parameters()


@pytest.mark.usefixtures("workplace", "no_pictures")
def test_the_line_that_serves_it_and_refusals(tmp_path):
    done(f"{RUN} {QUICK} --output trained")
    said = done("export trained for-vllm --engine vllm").stdout
    assert "vllm serve llama --enable-lora --max-lora-rank 8 --lora-modules adapter=for-vllm" in said
    assert "llama-server -m llama.gguf --lora x.gguf" in done("export trained x.gguf --engine llama.cpp").stdout
    for line, words in (
        ("other --engine llama.cpp --format peft", "llama.cpp reads adapters as 'gguf'"),
        ("other --engine ollama", "ollama"),
        ("other --dtype int4", "no floating-point type"),
    ):
        refused = invoke(f"export trained {line}")
        assert refused.exit_code == 2
        assert words in " ".join(refused.stderr.split())
    assert not (tmp_path / "other").exists()
