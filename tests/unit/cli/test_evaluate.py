"""`tlora evaluate` on the samples that were held out, and `tlora report`."""

import json
import shutil
from pathlib import Path

import pytest

import tlora
from tests.helpers.commands import QUICK, RUN, done, invoke, next_command
from tlora.cli import evaluate

pytestmark = pytest.mark.usefixtures("workplace", "no_pictures")


def test_the_samples_that_were_held_out_are_evaluated():
    """With the sizes and the seed of the training, by whatever path."""
    done(f"{RUN} --seed 5 --test-samples 7 --epochs 2 --lr 0.02 --output out")
    run = tlora.TrainingRun.load("out")
    result = done(f"evaluate out {Path('pairs.jsonl').resolve()} --base --json")
    values = json.loads(result.stdout)
    assert "warning" not in result.stderr
    assert values["samples"] == 7
    assert values["metrics"]["adapter"] == pytest.approx(run.after)
    assert values["metrics"]["base"] == pytest.approx(run.before)
    shown = done("evaluate out pairs.jsonl --base").stdout
    assert f"{run.before['loss']:.4g}  {run.after['loss']:.4g}".split() == shown.splitlines()[1].split()[1:]
    assert "base" not in json.loads(done("evaluate out pairs.jsonl --json --eval-limit 3").stdout)["metrics"]
    shutil.copy("pairs.jsonl", "copy.jsonl")
    copied = done("evaluate out copy.jsonl")
    assert "(7 test samples of copy, with the contents of pairs.jsonl)" in copied.stdout
    assert f"{run.after['loss']:.4g}" in copied.stdout
    assert "warning" not in copied.stderr


def test_samples_that_may_have_been_trained_on_are_warned_of():
    model, tokenizer = tlora.load_model("llama")
    task = tlora.load_task("pairs.jsonl", tokenizer, seed=3)
    calibration = tlora.calibrate(model, task.calibration(8), progress=False)
    adapted = tlora.attach(model, None, tlora.allocate(calibration.sensitivity, 2))
    tlora.train(adapted, task, max_steps=2, evaluation_limit=0, progress=False).save("by_hand")
    assert "may have been among the training samples" in done("evaluate by_hand pairs.jsonl").stderr
    Path("pairs").mkdir()
    for name in ("train", "test"):  # test samples of its own
        shutil.copy("pairs.jsonl", f"pairs/{name}.jsonl")
    assert "among the training samples" not in done("evaluate by_hand pairs").stderr


def test_other_classes_and_changed_data_are_named():
    rows = [f"film {i},{('good', 'bad')[i % 2]}" for i in range(40)]
    for name, texts in (("a.csv", rows), ("b.csv", [row.replace("bad", "poor") for row in rows])):
        Path(name).write_text("\n".join(["text,label", *texts, ""]))
    done(f"run bert a.csv {QUICK} --samples 6 --output sorted")
    assert "has changed" not in done("evaluate sorted a.csv").stderr
    result = invoke("evaluate sorted b.csv")
    assert (result.exit_code, "bad, good" in result.stderr) == (2, True)
    Path("a.csv").write_text("\n".join(["text,label", "one more,good", *rows, ""]))
    assert "a.csv has changed since sorted was trained on it" in done("evaluate sorted a.csv").stderr


@pytest.mark.parametrize(
    ("task", "is_split"),
    [
        pytest.param("rotten_tomatoes", True, marks=pytest.mark.packaged),
        ("sst2", False),
        ("family_relationships", False),
    ],
)
def test_packaged_tasks_that_have_one_split(task, is_split):
    assert evaluate.is_split_here(task) == is_split


def test_the_report_is_written_next_to_the_adapter():
    done(f"{RUN} {QUICK} --output out")
    result = done("report out")
    assert next_command(result.stdout) == "python -m webbrowser out/report.html"
    page = Path("out/report.html").read_bytes()
    assert done("report out --output pages/one.html --quiet").stderr == ""
    assert Path("pages/one.html").read_bytes() == page


@pytest.mark.usefixtures("no_pictures")
def test_a_task_without_labels_is_no_task_for_a_classifier():
    told = done(f"run llama labels.jsonl --samples 1 {QUICK} --output classes")
    assert "calibrating on 1 sample\n" in told.stderr
    assert "in 1 step, " in told.stdout
    assert "a, b, c, and pairs.jsonl has no labels" in invoke("evaluate classes pairs.jsonl").stderr
