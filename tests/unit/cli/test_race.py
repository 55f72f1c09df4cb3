"""`tlora race`."""

from pathlib import Path

import pytest
from peft import PeftModel

import tlora
from tests.helpers.commands import DATA, done, invoke
from tests.helpers.models import tiny_model
from tlora.cli.race import RACING, Racing

pytestmark = [
    pytest.mark.usefixtures("workplace", "no_pictures"),
    pytest.mark.filterwarnings("ignore:B is still zero", "ignore:`is_gradient"),
]
QUICK = "--steps 4 --seeds 2 --lr 1e-2 --rank 2 --batch-size 4"


def test_the_last_line_is_the_sentence_and_the_winner_is_saved():
    result = done(f"race {DATA} {QUICK} --output found --picture race.png")
    found = tlora.Race.load("found/race")
    assert result.stdout.splitlines()[-1] == found.sentence
    assert found.arms == ["tlora", "uniform", "lora"]
    assert (found.steps, found.seeds, set(found.learning_rates.values())) == (4, [0, 1], {1e-2})
    rows = [line.split() for line in result.stdout.splitlines()[1:4]]
    frame = found.to_frame().query("step == 4").groupby("arm", sort=False)["loss"].mean()
    assert [row[:2] for row in rows] == [[name, f"{loss:.4f}"] for name, loss in frame.items()]
    PeftModel.from_pretrained(tiny_model("llama"), "found/adapter")
    assert tlora.TrainingRun.load("found/adapter").steps == 4
    assert Path("race.png").read_bytes().startswith(b"\x89PNG")
    refused = invoke(f"race {DATA} {QUICK} --output found")
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (2, True)


def test_a_folder_called_as_a_method_is_no_arm():
    """A clone holds a folder `tlora`."""
    Path("tlora").mkdir()
    assert Racing().arms() == {"tlora": "tlora", "uniform": "uniform", "lora": "lora"}


def test_allocations_race_under_their_names():
    done(f"calibrate {DATA} --samples 6 --output calib")
    done("allocate calib --rank 2 --output mine")
    done("allocate calib --rank 3 --output wider")
    result = done(f"race {DATA} --steps 2 --seeds 1 --lr 1e-2 --batch-size 4 --arm mine --arm B=wider --quiet")
    assert result.stdout.startswith("arm ")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:3]] == ["mine", "B"]
    assert result.stdout.splitlines()[-1].endswith("not which way of making one)")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--arm lora", "a race takes at least two"),
        ("--arm lora --arm lora", "there is an arm 'lora' already: put another name first, NAME=lora"),
        ("--arm lora --arm lorra", "unknown method 'lorra'"),
        ("--seconds 5", "pass steps= or seconds=, one of them"),
        ("--picture race.txt", "end its name with one of .png"),
    ],
)
def test_what_cannot_race_is_refused_in_a_sentence(more, said):
    result = invoke(f"race {DATA} {QUICK} {more}")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_its_examples_are_commands():
    for line in RACING.split("`"):
        if line.startswith("tlora race"):
            assert "no such option" not in invoke(f"{line.removeprefix('tlora ')} --model missing").stderr.lower()
