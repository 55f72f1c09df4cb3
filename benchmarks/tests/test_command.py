"""`tlora compare` and `tlora run --recipe`."""

import io
from pathlib import Path

import pandas as pd
import pytest
from tlora.cli.compare import LISTED

import tlora
import viz
from benchmarks.lab import lr_search, run
from benchmarks.lab.comparison import Comparison
from benchmarks.lab.store import Store
from benchmarks.tests.helpers import record
from tests.helpers.commands import DATA, QUICK, RUN, done, invoke
from tlora.cli import main
from tlora.cli.command_line import written
from tlora.recipes import RECIPES

pytestmark = pytest.mark.usefixtures("workplace", "no_pictures")
SMALL = "--rank 2 --steps 3 --batch-size 4 --samples 8 --seeds 2 --search-seeds 1 --lr 1e-3 --lr 1e-2"


@pytest.fixture
def narrow(monkeypatch) -> None:
    monkeypatch.setattr(lr_search, "EXTENSIONS", 0)


def stored(seeds: int = 3) -> None:
    store = Store("runs.jsonl")
    for method, worth in (("lora", 0.4), ("tlora", 0.6)):
        for rate in (1e-3, 2e-3, 4e-3):
            store.append(record(method, rate, 0, "validation", [worth - abs(rate - 2e-3)]))
        for seed in range(seeds):
            store.append(record(method, 2e-3, seed, "test", [worth, 0, 1, 0.5]))
    store.append(record("vera", 1e-3, 0, "validation", None))


@pytest.mark.usefixtures("narrow")
def test_runs_tells_lists_and_goes_on():
    line = f"compare {DATA} --method lora --method tlora {SMALL} --store runs.jsonl"
    result = done(line)
    assert result.stdout.startswith("Comparison(2 methods (lora, tlora) on 1 tasks, 8 runs)")
    assert "pairs.jsonl, llama, rank 2: exact_match" in result.stdout
    assert result.stderr.count("(done)") == 8
    assert "lora rank 2 on pairs.jsonl, rate 0.001, seed 1000: validation loss" in result.stderr
    before = Path("runs.jsonl").read_bytes()
    again = done(f"{line} --quiet")
    assert again.stdout == result.stdout
    assert not again.stderr.replace("warning", "").strip() or "edge" in again.stderr
    assert Path("runs.jsonl").read_bytes() == before
    listed = pd.read_csv(io.StringIO(done("compare --store runs.jsonl --list").stdout))
    expected = Comparison.read("runs.jsonl").runs[list(LISTED)]
    pd.testing.assert_frame_equal(listed, expected, check_dtype=False)


def test_the_list_is_csv_with_exactly_these_columns():
    stored()
    text = done("compare --store runs.jsonl --list").stdout
    header = "method,task,model,rank,learning_rate,seed,metric,value,trainable_parameters,best_rate"
    assert text.splitlines()[0] == header
    frame = pd.read_csv(io.StringIO(text))
    assert len(frame) == 13
    assert frame.groupby("method")["best_rate"].sum().to_dict() == {"lora": 3, "tlora": 3, "vera": 0}
    best = frame[frame["best_rate"]]
    assert best["learning_rate"].eq(2e-3).all()
    assert best[best["method"] == "tlora"]["value"].tolist() == pytest.approx([0.525] * 3)
    assert frame.iloc[-1]["value"] != frame.iloc[-1]["value"]


def test_the_list_has_no_test_run_that_could_be_taken_for_a_search(tmp_path, monkeypatch):
    """No column tells the split: a test run at a rate that is not the chosen one any more is left out."""
    monkeypatch.chdir(tmp_path)
    runs = [record("lora", rate, 0, "validation", [worth]) for rate, worth in ((1e-3, 0.5), (2e-3, 0.7), (4e-3, 0.6))]
    runs += [record("lora", rate, 0, "test", [worth]) for rate, worth in ((1e-3, 0.9), (2e-3, 0.6))]
    for each in runs:
        Store("runs.jsonl").append(each)
    text = done("compare --store runs.jsonl --list").stdout
    frame = pd.read_csv(io.StringIO(text))
    assert frame["value"].tolist() == [0.5, 0.7, 0.6, 0.6]
    assert frame["best_rate"].tolist() == [False, False, False, True]
    assert ".0," not in text


def test_the_summary_names_values_and_differences():
    stored()
    lines = done("compare --store runs.jsonl").stdout.splitlines()
    row = next(line for line in lines if line.startswith("tlora "))
    assert "0.5250" in row
    assert "+0.0500" in row
    assert "0.002" in row
    assert "100" in row
    assert "1.00 GB" in row or "1 GB" in row
    assert (
        next(line for line in lines if line.startswith("vera ")).split()[1:]
        == ["-"] * 5 + ["0", "(1", "failed)"] + ["-"] * 3
    )
    assert "negative_loss" in done("compare --store runs.jsonl --loss").stdout
    assert "-0.0500" in done("compare --store runs.jsonl --baseline tlora").stdout


def test_of_one_run_the_summary_names_no_interval():
    stored(seeds=1)
    lines = done("compare --store runs.jsonl").stdout.splitlines()
    row = next(line for line in lines if line.startswith("tlora "))
    assert row.split()[1:7] == ["0.5250", "-", "+0.0500", "-", "0.002", "1"]


def test_of_a_store_what_is_asked_for_is_shown():
    stored()
    listed = pd.read_csv(io.StringIO(done("compare --store runs.jsonl --method tlora --rank 2 --list").stdout))
    assert set(listed["method"]) == {"tlora"}
    result = invoke("compare --store runs.jsonl --method nosuch")
    assert (result.exit_code, "no runs of method nosuch" in result.stderr) == (2, True)


def test_what_was_refused_is_not_advised():
    stored()
    result = invoke(f"compare {DATA} --lr 0 --lr 1e-3 --store runs.jsonl")
    assert (result.exit_code, "learning rate 0.0" in result.stderr, "next" in result.stderr) == (2, True, False)


@pytest.mark.usefixtures("narrow")
def test_where_all_runs_fail_the_command_fails(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr(run, "train", fail)
    result = invoke(f"compare {DATA} --method lora {SMALL}")
    assert result.exit_code == 2
    assert "RuntimeError: no memory (failed)" in result.stderr
    assert "all 2 runs failed" in result.stderr


def test_a_picture():
    stored()
    done("compare --store runs.jsonl --baseline-rank nearest --picture comparison.png")
    assert Path("comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_what_the_tables_show(monkeypatch):
    stored()
    drawn, real = {}, viz.plot_comparison
    monkeypatch.setattr(viz, "plot_comparison", lambda *a, **k: drawn.update(k) or real(*a, **k))
    assert "rank 2: negative_loss" in done("compare --store runs.jsonl --loss --picture loss.png").stdout
    assert drawn["metric"] == "loss"


def test_the_rank_of_the_baseline_can_be_said():
    stored()
    assert done("compare --store runs.jsonl --baseline-rank 2").stdout == done("compare --store runs.jsonl").stdout
    for wrong, said in (("equal", "--baseline-rank equal: choose same, nearest"), ("3", "a rank of the baseline (2)")):
        result = invoke(f"compare --store runs.jsonl --baseline-rank {wrong}")
        assert result.exit_code
        assert said in " ".join(result.stderr.split())


@pytest.mark.usefixtures("narrow")
def test_an_interruption_says_how_to_go_on(monkeypatch):
    line = f"compare {DATA} --method lora {SMALL} --store runs.jsonl"
    real, count = run.train, []

    def train(*args, **kwargs):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(run, "train", train)
    result = invoke(line)
    assert result.exit_code == 130
    assert "kept  runs.jsonl" in result.stderr
    (next_line,) = [text for text in result.stderr.splitlines() if text.startswith("next")]
    assert "--method lora" in next_line
    assert "--learning-rate 0.001 --learning-rate 0.01" in next_line
    done(next_line.removeprefix("next").strip().removeprefix("tlora "))
    assert len(Store("runs.jsonl").read()) == 4


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("compare", "no runs in comparison.jsonl"),
        ("compare --task pairs.jsonl", "no runs in comparison.jsonl"),
        ("compare --model llama", "name at least one task"),
        (f"compare {DATA} --method qalora", "Did you mean qa-lora"),
        (f"compare {DATA} --method loar", "Did you mean"),
        (f"compare {DATA} --lr 0", "learning rate 0.0: pass positive numbers"),
        (f"compare {DATA} --metric f1", "choose from exact_match"),
        (f"compare {DATA} --method tlora --baseline pissa", "the baseline, pissa at rank same, is not among the runs"),
        (f"compare {DATA} --method tlora --baseline-rank 8", "the baseline, lora at rank 8, is not among the runs"),
        (f"compare {DATA} --rank 8 --baseline-rank 4", "lora at rank 4, is not among the runs"),
        (f"compare {DATA} --picture runs.bmp", "end its name with one of .png"),
    ],
)
def test_refusals_are_one_sentence(line, words):
    result = invoke(line)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def rows_of(folder: str) -> str:
    return tlora.TrainingRun.load(folder).meta.recipe["command"]


def test_run_by_a_recipe_is_run_with_its_options():
    done(f"{RUN} {QUICK} --output one")
    done(f"{RUN} {QUICK} --recipe tlora-paper --rows variance --output two")
    done(f"{RUN} {QUICK} --recipe tlora-paper --output three")
    done(f"{RUN} {QUICK} --recipe tlora --rows orthonormal --output four")
    done(f"{RUN} {QUICK} --recipe tlora-trained --output six")
    done(f"{RUN} {QUICK} --rows variance --no-freeze-a --output seven")
    done(f"{RUN} {QUICK} --no-init --no-adapt-ranks --no-adapt-scales --output eight")  # a random A has its own length
    done(f"{RUN} {QUICK} --recipe lora --output nine")
    names = ("one", "two", "three", "four", "six", "seven", "eight", "nine")
    runs = {name: tlora.TrainingRun.load(name) for name in names}

    def same(a: str, b: str) -> bool:
        if runs[a].trainable_parameters != runs[b].trainable_parameters:
            return False
        return all(tensor.equal(runs[b].adapter[name]) for name, tensor in runs[a].adapter.items())

    assert same("one", "two")
    assert same("three", "four")
    assert same("six", "seven")
    assert same("eight", "nine")
    assert not runs["nine"].frozen_a
    assert set(runs["nine"].adapter_config["rank_pattern"].values()) == {2}
    assert not same("one", "three")
    assert not same("one", "six")
    assert "--rows variance" in rows_of("one")  # whatever may be the default later
    assert "--recipe tlora-paper" in rows_of("three")


def test_without_a_recipe_a_run_is_plain_lora_and_says_so():
    said = done(f"run {DATA} --samples 6 {QUICK} --output one").stderr
    assert "plain LoRA, because no --recipe is given" in said
    assert said.count("--recipe tlora") == 1
    assert "plain LoRA" not in done(f"run {DATA} --samples 6 {QUICK} --recipe lora --output two").stderr
    one, two = (tlora.TrainingRun.load(name) for name in ("one", "two"))
    assert not one.frozen_a
    assert all(tensor.equal(two.adapter[name]) for name, tensor in one.adapter.items())


def test_a_recipe_on_the_line_counts_more_than_the_recipe_of_a_file():
    done(f"run {DATA} --samples 6 {QUICK} --output one")
    done("run --config one/tlora/run.yaml --recipe tlora --output two")
    done(f"run {DATA} --samples 6 {QUICK} --recipe tlora --output three")
    two, three = (tlora.TrainingRun.load(name) for name in ("two", "three"))
    assert two.frozen_a
    assert two.ranks == three.ranks
    assert all(tensor.equal(three.adapter[name]) for name, tensor in two.adapter.items())


def test_every_argument_of_a_recipe_is_an_option_of_run():
    text = done("run --help").stdout
    for recipe in RECIPES.values():
        for name, value in recipe.flat().items():
            assert f"--{'no-' if value is False else ''}{name.replace('_', '-')}" in text


def test_the_line_to_go_on_with_has_the_flags_as_they_are_typed():
    values = {"task": ["a"], "model": "llama", "as_list": True, "learning_rate": [1e-3, 2e-3], "loss": True}
    line = written(main.compare, values)
    assert "--list" in line.split()
    assert "--as-list" not in line
    for command in (main.compare, main.evaluate, main.inspect):
        known = invoke(f"{command.__name__} --help").stdout
        flags = written(command, {"as_list": True, "as_json": True}).split()[2:]
        assert flags, command
        assert all(flag in known for flag in flags)


def test_listed_columns_are_those_of_the_table():
    assert LISTED == (
        "method", "task", "model", "rank", "learning_rate", "seed", "metric", "value", "trainable_parameters",
        "best_rate",
    )  # fmt: skip
    assert set(LISTED) <= set(Comparison.columns)
