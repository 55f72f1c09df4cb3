"""`tlora explain` on an adapter that PEFT alone has made."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from matplotlib import image

import tlora
from tests.helpers.adapted import step
from tests.helpers.commands import done, invoke
from tests.helpers.foreign import foreign
from tests.helpers.models import tiny_model, tiny_tokenizer
from tests.helpers.reported import panel_names

pytestmark = pytest.mark.usefixtures("workplace")


def test_somebody_elses_adapter_is_explained_in_one_call():
    tiny_model("gpt2").save_pretrained("gpt2")
    tiny_tokenizer().save_pretrained("gpt2")
    base, tokenizer = tlora.load_model("gpt2")
    model = foreign(base, Path("theirs"), target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    result = done("explain theirs --prompt 'w4 w5' --answer 'w9 w8' --output picture.png --quiet")
    attribution = tlora.attribute(model, "w4 w5", "w9 w8", tokenizer=tokenizer, progress=False)
    assert result.stdout.rstrip().endswith(attribution.sentence)
    largest = attribution.to_frame().sort_values("contribution", key=abs, ascending=False).iloc[0]
    (line,) = [line.split() for line in result.stdout.splitlines() if line.startswith(f"{largest['module']} ")]
    assert float(line[2]) == pytest.approx(largest["contribution"], abs=0.006)
    assert float(line[3]) == pytest.approx(largest["cost"], abs=0.006)
    assert image.imread("picture.png").shape[2] == 4
    assert result.stderr == ""
    done("explain theirs --prompt 'w4 w5' --answer 'w9 w8' --output page.html --quiet")
    assert "--answer belongs to --prompt" in invoke("explain theirs --text code --answer w4").stderr
    assert "cannot write" in invoke("explain theirs --prompt w4 --output page.html/page.html").stderr
    assert '"kind":"attribution"' in Path("page.html").read_text()


def test_other_text_and_an_adapter_that_leaves_more_of_it():
    base, tokenizer = tlora.load_model("llama")
    model, task = foreign(base), tlora.load_task("pairs.jsonl", tokenizer)
    for _ in range(8):
        step(model, task.collate(list(task.train)), 0.5)
    model.save_pretrained("theirs", save_embedding_layers=False)
    Path("notes.txt").write_text("w4 w5 w6 w7\n\nw8 w9 w4\n")
    result = done("explain theirs --text notes.txt --text code --output worst.png --quiet")
    texts = tlora.load_texts(tokenizer, "notes.txt", "code")
    effects = tlora.side_effects(model, texts, progress=False)
    assert result.stdout.rstrip().endswith(f"{effects.headline}.")
    lines = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    for row in effects.sets().itertuples():
        assert float(lines[row.set][5]) == pytest.approx(row.loss_change, abs=0.0006)
    assert image.imread("worst.png").shape[2] == 4
    done("explain theirs --text notes.txt --output worst.html --quiet")
    assert '"kind":"effects"' in Path("worst.html").read_text()

    result = done(
        "measure-scales theirs pairs.jsonl --text notes.txt --limit 9 --picture scales.png --output milder --quiet"
    )
    rescaling = tlora.measure_scales(model, task, {"notes": texts["notes"]}, limit=9, progress=False)
    assert f"best     {rescaling.best.label}" in result.stdout
    milder = tlora.load_adapter("milder", tlora.load_model("llama")[0])
    assert task.evaluate(milder, "validation")["loss"] == pytest.approx(
        rescaling.loss(rescaling.best, "task"), rel=1e-5
    )
    assert image.imread("scales.png").shape[2] == 4


@pytest.mark.usefixtures("no_pictures")
def test_a_class_is_named_as_in_the_training():
    done("run bert labels.jsonl --samples 6 --rank 2 --lr 0.01 --output out")
    base, tokenizer = tlora.load_model("bert", num_labels=3)
    attribution = tlora.attribute(
        tlora.load_adapter("out", base), "w4 w11 w22", "LABEL_1", tokenizer=tokenizer, progress=False
    )
    result = done("explain out --prompt 'w4 w11 w22' --answer b --quiet")
    (line,) = [line.split() for line in result.stdout.splitlines() if line.startswith("“b” ")]
    (row,) = attribution.tokens().itertuples()
    assert [float(number) for number in line[1:4]] == pytest.approx([row.rise, row.base, row.adapter], abs=0.006)
    assert "'a' or 'b' or 'c'" in invoke("explain out --prompt 'w4 w11 w22' --answer LABEL_1").stderr


@pytest.mark.usefixtures("no_pictures")
def test_answers_to_the_held_out_rows_and_to_all_of_another_file():
    done("run llama pairs.jsonl --samples 6 --rank 2 --lr 0.01 --test-samples 5 --seed 3 --output out")
    base, tokenizer = tlora.load_model("llama")
    task = tlora.load_task("pairs.jsonl", tokenizer, test=5, seed=3)
    table = tlora.compare_answers(tlora.load_adapter("out", base), task, explain=[1], progress=False)
    result = done("explain out --data pairs.jsonl --output answers.csv --quiet")
    assert result.stdout.rstrip().endswith(f"{table.headline}.")
    assert "5 of 5 test samples of pairs.jsonl, held out in training" in result.stdout
    written = pd.read_csv("answers.csv", keep_default_na=False)
    assert written["request"].tolist() == task.test["prompt"][:]
    assert written["adapter"].tolist() == [one.adapter for one in table.answers]
    assert written["gain"].to_numpy() == pytest.approx([one.gain for one in table.answers], abs=1e-5)
    shutil.copy("pairs.jsonl", "copy.jsonl")
    copied = done("explain out --data copy.jsonl --output copied.csv --quiet").stdout
    assert "5 of 5 test samples of copy.jsonl, held out in training, with the contents of pairs.jsonl" in copied
    assert Path("copied.csv").read_text() == Path("answers.csv").read_text()
    Path("mine.jsonl").write_text('{"prompt": "w4 w5"}\n{"prompt": "w6 w7", "completion": "w4"}\n')
    result = done("explain out --data mine.jsonl --rows 1 --output page.html")
    assert "2 of all 2 rows of mine.jsonl" in result.stdout
    assert "1 row without reference" in result.stdout
    assert {"answers", "attribution"} <= set(panel_names(Path("page.html")))
    done("explain out --data mine.jsonl --output page.html --quiet")
    assert panel_names(Path("page.html")) == ["answers"]
    for options, named in (("--prompt w4", "--data"), ("--rows 9", "--rows"), ("--output table.png", ".csv")):
        refused = invoke(f"explain out --data mine.jsonl {options}")
        assert refused.exit_code == 2
        assert named in refused.stderr


@pytest.mark.usefixtures("no_pictures")
def test_texts_without_labels_get_the_classes_of_the_training():
    done("run bert labels.jsonl --samples 6 --rank 2 --lr 0.01 --output out")
    Path("mine.jsonl").write_text('{"text": "w4 w11 w22"}\n{"text": "w5 w12 w23", "label": "b"}\n')
    done("explain out --data mine.jsonl --output answers.csv --quiet")
    written = pd.read_csv("answers.csv", keep_default_na=False)
    assert set(written["adapter"]) <= set("abc")
    assert written["reference"].tolist() == ["", "b"]
    assert written["adapter_right"].tolist() == ["", str(written["adapter"][1] == "b")]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("explain llama --data nowhere.jsonl", "nowhere.jsonl"),
        ("explain llama", "adapter"),
        ("measure-scales nowhere pairs.jsonl --text code --output milder", "nowhere"),
        ("explain nowhere --prompt w4", "nowhere"),
        ("explain llama --prompt w4", "adapter"),
        ("explain llama --prompt w4 --output page.txt", ".png"),
    ],
)
def test_what_cannot_be_explained_is_refused(line, named):
    result = invoke(line)
    assert result.exit_code == 2
    assert named in result.stderr
