"""`tlora extract`, and `tlora explain` of a full fine-tune."""

import pytest

import tlora
from tests.helpers.commands import done, invoke

pytestmark = pytest.mark.usefixtures("workplace")


def test_extract_prints_what_is_held_and_what_is_left_out():
    text = done("extract llama tuned --rank 4 --output extracted").stdout
    extraction = tlora.extract("llama", "tuned", 4, progress=False)
    assert f"held (plain)  {extraction.held['plain']:.1%} of the change of the weights" in text
    assert f"left out      {extraction.left_out:.1%} of the change of all weights" in text
    assert extraction.rest()["parameter"][0] in text
    assert "next  tlora inspect extracted" in text
    assert tlora.inspect("extracted").ranks == extraction.ranks
    assert "--overwrite" in invoke("extract llama tuned --output extracted").stderr
    done("extract llama tuned --rank 2 --modules-to-save norm --overwrite --output extracted")
    assert tlora.load_adapter("extracted").peft_config["default"].modules_to_save == ["model.norm"]


def test_it_is_cut_on_a_task():
    text = done("extract llama tuned --rank 4 --data pairs.jsonl --samples 6 --output on_task").stdout
    model, tokenizer = tlora.load_model("llama")
    calibration = tlora.calibrate(model, tlora.load_task("pairs.jsonl", tokenizer).calibration(6), progress=False)
    extraction = tlora.extract("llama", "tuned", 4, calibration=calibration, progress=False)
    assert f"held (task)   {extraction.held['task']:.1%} of the change of the outputs on the task" in text
    calibration.save("known")
    done("extract llama tuned --rank 4 --calibration known --output known_task")
    first, second = (tlora.LoraAdapter.read(folder).tensors for folder in ("on_task", "known_task"))
    assert all(first[key].allclose(second[key], atol=1e-4) for key in first)


def test_a_full_fine_tune_is_explained_by_what_is_extracted_and_the_rest_is_a_row():
    text = done("explain --model llama --tuned tuned --rank 3 --prompt 'w4 w5' --answer 'w9 w8' --quiet").stdout
    base, tokenizer = tlora.load_model("llama")
    tuned, _ = tlora.load_model("tuned")
    folder = tlora.extract("llama", "tuned", 3, progress=False).save_adapter("extracted")
    adapted = tlora.load_adapter(folder, base)
    result = tlora.attribute(adapted, "w4 w5", "w9 w8", tokenizer=tokenizer, tuned=tuned, progress=False)
    (line,) = [line for line in text.splitlines() if line.startswith("not in the adapter ")]
    assert float(line.split()[4]) == pytest.approx(result.rest, abs=0.006)
    assert text.rstrip().endswith(result.sentence)
