"""`tlora race`."""

from pathlib import Path

import pytest
from peft import PeftModel

import tlora
from tests.helpers.commands import DATA, done, invoke
from tests.helpers.models import tiny_model

pytestmark = [
    pytest.mark.usefixtures("workplace", "no_pictures"),
    pytest.mark.filterwarnings("ignore:B is still zero", "ignore:`is_gradient"),
]
QUICK = "--steps 4 --seeds 2 --lr 1e-2 --rank 2 --batch-size 4"


def test_the_last_line_is_the_sentence_and_the_winner_is_saved():
    result = done(f"race {DATA} {QUICK} --output found --picture race.png")
    race = tlora.load_result("found/race")
    assert result.stdout.splitlines()[-1] == race.sentence
    assert race.arms == ["captured", "tlora-paper", "lora"]
    assert (race.steps, race.seeds, set(race.learning_rates.values())) == (4, [0, 1], {1e-2})
    rows = [line.split() for line in result.stdout.splitlines()[1:4]]
    frame = race.to_frame().query("step == 4").groupby("arm", sort=False)["loss"].mean()
    assert [row[:2] for row in rows] == [[name, f"{loss:.4f}"] for name, loss in frame.items()]
    PeftModel.from_pretrained(tiny_model("llama"), "found/adapter")
    assert tlora.TrainingRun.load("found/adapter").steps == 4
    assert Path("race.png").read_bytes().startswith(b"\x89PNG")
    refused = invoke(f"race {DATA} {QUICK} --output found")
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (2, True)


def test_allocations_race_under_their_names():
    done(f"calibrate {DATA} --samples 6 --output calib")
    done("allocate calib --rank 2 --output mine")
    done("allocate calib --rank 3 --output wider")
    result = done(f"race {DATA} --steps 2 --seeds 1 --lr 1e-2 --batch-size 4 --arm mine --arm B=wider --quiet")
    assert [line.split()[0] for line in result.stdout.splitlines()[:3]] == ["arm", "mine", "B"]
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("--arm lora", "two"),
        ("--arm lora --arm lora", "--arm lora"),
        ("--arm lora --arm lorra", "lorra"),
        ("--seconds 5", "seconds"),
        ("--picture race.txt", ".png"),
    ],
)
def test_bad_arguments_are_refused(more, named):
    result = invoke(f"race {DATA} {QUICK} {more}")
    assert result.exit_code == 2
    assert named in " ".join(result.stderr.split())
