"""`tlora inspect`, and `tlora combine`, which it names next."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

import tlora
from tests.helpers.commands import RUN, done, invoke
from tests.helpers.foreign import foreign

pytestmark = pytest.mark.usefixtures("workplace", "no_pictures")


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


def test_what_quantization_leaves_is_said_on_request():
    foreign(tlora.load_model("llama")[0], Path("adapter"))
    assert "survives" not in done("inspect adapter").stdout
    text = done("inspect adapter --survival --model llama").stdout
    for format in ("Q8_0", "Q4_0"):
        assert f"{format} " in text
    assert "K-quants: gguf cannot write K-quants" in text
    rows = json.loads(done("inspect adapter --survival --json").stdout)["survival"]
    expected = tlora.survival("adapter").to_frame()
    assert [row["share"] for row in rows] == pytest.approx(expected["share"].tolist())
    assert all(row["finding"] for row in rows)
    for line, name in (("adapter adapter --survival", "OTHER"), ("adapter --model llama", "--survival")):
        result = invoke(f"inspect {line}")
        assert (result.exit_code, name in result.stderr) == (2, True)


@pytest.mark.parametrize("key", ["lora_unet_down_blocks_0_attn1_to_q.lora_down.weight", "unet.to_q.lora.down.weight"])
def test_an_adapter_of_a_diffusion_trainer_is_said_to_need_conversion(key, tmp_path):
    (tmp_path / "painted").mkdir()
    save_file({key: torch.zeros(2, 4), key.replace("down", "up"): torch.zeros(4, 2)}, "painted/lora.safetensors")
    for name in ("painted", "painted/lora.safetensors"):
        result = invoke(f"inspect {name}")
        assert (result.exit_code, "convert_sd_adapter_to_peft.py" in result.stderr) == (2, True)
        for read in (tlora.inspect, tlora.load_adapter, tlora.LoraAdapter.read):
            with pytest.raises(ValueError, match=r"lora\.safetensors"):
                read(name)


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
