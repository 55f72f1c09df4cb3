"""Comparison: the runs, with tiny models."""

import logging
import math
import mmap
import os
import shutil
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import tlora
from benchmarks.lab import compare as comparing
from benchmarks.lab import lr_search
from benchmarks.lab import run as running
from benchmarks.lab.compare import compare
from benchmarks.lab.comparison import Comparison
from benchmarks.lab.methods import METHODS, Cache, Method
from benchmarks.lab.store import Store
from benchmarks.speed.peak_memory import PeakMemory
from benchmarks.tests.helpers import comparison, record
from tests.helpers.models import tiny_model
from tlora.recipes import Recipe
from tlora.tasks.load import digest_task

QUICK = {
    "ranks": 2,
    "steps": 3,
    "batch_size": 4,
    "samples": 8,
    "seeds": (0, 1),
    "search_seeds": (9,),
    "progress": False,
}
GRID = (1e-3, 1e-2)


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """What was really run."""
    done: list[str] = []
    real = running.run

    def run(cell, task, rate, seed, split, memory, head_rate=None):
        done.append(f"{cell.method.name} {rate:g} {seed} {split}")
        return real(cell, task, rate, seed, split, memory, head_rate)

    monkeypatch.setattr(comparing, "run", run)
    return done


@pytest.fixture
def pretended(monkeypatch) -> list[str]:
    """What would have been run: nothing is trained, and a rate is as good as it is high."""
    done: list[str] = []

    def run(cell, task, rate, seed, split, memory, head_rate=None):
        done.append(f"{cell.method.name} {rate:g} {seed} {split}")
        return {"key": cell.key(rate, seed, split), "status": "done", "metrics": {"loss": -rate}}

    monkeypatch.setattr(comparing, "run", run)
    return done


@pytest.fixture
def narrow(monkeypatch) -> None:
    """Searches that are not widened: a tiny model's best rate may be anywhere."""
    monkeypatch.setattr(lr_search, "EXTENSIONS", 0)


IGNORE_EDGE = pytest.mark.filterwarnings("ignore:.*is at the edge of what was searched")


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("llama", "pairs.jsonl"),
        ("bert", "labels.jsonl"),
        pytest.param("t5", "pairs.jsonl", marks=pytest.mark.slow),
    ],
)
def test_every_method_is_searched_then_run_with_every_seed(model, task, counted):
    found = compare(["lora", "tlora"], task, model, learning_rates=GRID, **QUICK)
    frame = found.runs
    for method in ("lora", "tlora"):
        rows = frame[frame["method"] == method]
        searched, tested = rows[rows["split"] == "validation"], rows[rows["split"] == "test"]
        assert sorted(searched["learning_rate"]) == list(GRID)
        assert searched["seed"].tolist() == [9, 9]
        assert tested["seed"].tolist() == [0, 1]
        assert set(tested["learning_rate"]) == {searched.loc[searched["loss"].idxmin(), "learning_rate"]}
        assert tested["best_rate"].all()
        assert not searched["best_rate"].any()
    assert set(frame["status"]) == {"done"}
    assert (frame["seconds"] > 0).all()
    assert (frame["peak_bytes"] > 1e8).all()
    assert set(frame["metric"]) == {"accuracy" if model == "bert" else "exact_match"}
    sizes = frame.groupby("method")["trainable_parameters"].agg(["min", "max"])
    assert sizes.loc["lora"].nunique() == 1
    assert sizes.loc["tlora", "max"] < sizes.loc["lora", "max"]
    assert {len(v) for name, v in found.outcomes.items() if not name.endswith(".training")} == {4}
    assert {len(v) for name, v in found.outcomes.items() if name.endswith(".training")} == {3}
    assert len([line for line in counted if not line.startswith("head")]) == 8
    summary = found.summary()
    assert summary["seeds"].tolist() == [2, 2]


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_the_runs_are_the_same_whoever_makes_them(counted):
    """A second time nothing is run; from scratch, the numbers are the same."""
    first = compare("lora", "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)
    assert len(counted) == 4
    again = compare("lora", "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)
    assert len(counted) == 4
    assert again.runs.equals(first.runs)
    fresh = compare("lora", "pairs.jsonl", "llama", learning_rates=GRID, store="other.jsonl", **QUICK)
    assert len(counted) == 8
    numbers = ["learning_rate", "seed", "value", "loss", "trainable_parameters"]
    assert fresh.runs[numbers].equals(first.runs[numbers])
    assert Comparison.read("other.jsonl").runs.equals(fresh.runs)
    validation, test = fresh.runs.iloc[0], fresh.runs.iloc[2]
    assert validation["loss"] != test["loss"]


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_an_interrupted_comparison_goes_on_where_it_was(counted, monkeypatch):
    arguments = {"learning_rates": GRID} | QUICK
    whole = compare(["lora", "lora-fa"], "pairs.jsonl", "llama", store="whole.jsonl", **arguments)
    del counted[:]
    real = running.train

    def interrupted(*args, **kwargs):
        if len(counted) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(running, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(["lora", "lora-fa"], "pairs.jsonl", "llama", **arguments)
    assert len(Store("comparison.jsonl").read()) == 2
    with open("comparison.jsonl", "a") as file:  # and what a kill would leave
        file.write('{"key": {"model"')
    monkeypatch.setattr(running, "train", real)
    with pytest.warns(UserWarning, match="torn"):
        found = compare(["lora", "lora-fa"], "pairs.jsonl", "llama", **arguments)
    assert len(counted) == 3 + 6
    assert found.runs["value"].equals(whole.runs["value"])
    assert found.runs["loss"].equals(whole.runs["loss"])


@pytest.mark.usefixtures("workplace")
def test_training_that_is_interrupted_is_no_run(monkeypatch):
    """`tlora.train` gives back what it has when it is interrupted: that is half a run."""
    from tlora.training.trainer import AdapterTrainer

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(AdapterTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare("lora", "pairs.jsonl", "llama", **QUICK)
    assert not Path("comparison.jsonl").exists()


@pytest.mark.usefixtures("workplace")
def test_all_methods_see_the_same_samples_in_the_same_order(monkeypatch):
    from tlora.tasks.task import Task

    seen: list[str] = []
    real = Task.collate

    def collate(self, examples, padding_side="right"):
        batch = real(self, examples, padding_side)
        if torch.is_grad_enabled() and "fetch" in (frame.name for frame in traceback.extract_stack(limit=8)):
            seen.append(str(batch["input_ids"].tolist()))
        return batch

    monkeypatch.setattr(Task, "collate", collate)
    terms = running.Settings("llama", steps=12, batch_size=4, samples=8)  # into a second epoch
    task = running.load_data(terms, "pairs.jsonl", {})

    def order(name, rate, seed):
        del seen[:]
        running.run(
            running.Condition(terms, "pairs.jsonl", {}, METHODS[name], 2), task, rate, seed, "validation", Cache()
        )
        return list(seen)

    first = order("lora", 1e-3, 0)
    assert len(first) >= 12
    for name in ("lora", "pissa", "lora-fa", "adalora", "vera", "tlora"):
        assert order(name, 1e-2, 0) == first, name
    assert order("lora", 1e-3, 1) != first


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_failures_and_divergences_are_rows(monkeypatch, caplog):
    def adapt(job):
        if job.seed == 1:
            raise RuntimeError("no memory")
        return METHODS["lora"].adapt(job)

    def optimizer(rank, model, rate):
        if rate > 5e-3:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_hook(lambda gradient: gradient * math.nan)
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)

    method = Method("mine", adapt, {}, optimizer)
    with caplog.at_level(logging.WARNING):
        found = compare(method, "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)
    frame = found.runs
    assert frame["status"].tolist() == ["done", "diverged", "done", "failed"]
    assert frame["best_rate"].tolist() == [False, False, True, True]
    assert math.isnan(frame["value"].iloc[3])
    assert set(frame["metric"]) == {"exact_match"}
    assert "no memory" in caplog.text
    row = found.summary().iloc[0]
    assert (row["seeds"], row["diverged"], row["failed"]) == (1, 1, 1)
    store = Store("comparison.jsonl")
    assert store.read()[3]["error"] == "RuntimeError: no memory"
    healed = Method("mine", METHODS["lora"].adapt, {}, optimizer)
    with pytest.warns(UserWarning, match=r"1 runs failed before \(RuntimeError: no memory\) .* unless retry=True"):
        kept = compare(healed, "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)
    assert kept.runs["status"].tolist()[3] == "failed"
    retried = compare(healed, "pairs.jsonl", "llama", learning_rates=GRID, retry=True, **QUICK)
    assert retried.runs["status"].tolist() == ["done", "diverged", "done", "done"]
    assert len(store.path.read_text().splitlines()) == 5


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("arguments", "says"), [({"device": "cuda:99"}, "CUDA devices"), ({"dtype": "bf16"}, "dtype='bf16' is no")]
)
def test_a_device_or_a_type_that_there_is_not_leaves_no_failures(arguments, says):
    """As failures they would count against every rate, also when the call is put right."""
    with pytest.raises(ValueError, match=says):
        compare("lora", "pairs.jsonl", "llama", learning_rates=GRID, **QUICK | arguments)
    assert not Path("comparison.jsonl").exists()


@pytest.mark.usefixtures("workplace")
def test_a_method_that_cannot_be_trained_at_all_is_warned_of(monkeypatch, narrow):
    def adapt(job):
        raise RuntimeError("no memory")

    with pytest.warns(UserWarning, match=r"mine at rank 2 on pairs.jsonl: no learning rate from 0.001 to 0.01"):
        found = compare(Method("mine", adapt), "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)
    assert found.runs["status"].tolist() == ["failed", "failed"]


@pytest.mark.usefixtures("narrow", "workplace", "pretended")
def test_a_search_that_was_given_up_is_warned_of():
    with pytest.warns(
        UserWarning, match=r"lora at rank 2 on pairs.jsonl: the best learning rate, 0.01, is at the edge"
    ):
        compare("lora", "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_everything_that_matters_makes_another_run(pretended):
    counted = pretended
    base = {"learning_rates": GRID} | QUICK | {"seeds": (0,)}
    compare("lora", "pairs.jsonl", "llama", **base)
    assert len(counted) == 3
    changes = [
        {"steps": 4}, {"batch_size": 2}, {"ranks": 3}, {"samples": 6}, {"dtype": "bfloat16"},
        {"learning_rates": (2e-3, 1e-2)}, {"seeds": (5,)},
    ]  # fmt: skip
    for change in changes:
        before = len(counted)
        compare("lora", "pairs.jsonl", "llama", **base | change)
        assert len(counted) > before, change
    for tasks in ({"pairs.jsonl": {"train": 20}}, {"pairs.jsonl": {"seed": 1}}):
        before = len(counted)
        compare("lora", tasks, "llama", **base)
        assert len(counted) == before + 3
    for option in (0.5, 0.0):
        before = len(counted)
        compare(Recipe("mine", allocate={"temperature": option}), "pairs.jsonl", "llama", **base)
        assert len(counted) == before + 3


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_a_path_whose_contents_changed_is_run_again(pretended):
    base = {"learning_rates": GRID} | QUICK | {"seeds": (0,)}
    rows = Path("pairs.jsonl").read_text()
    file, folder = Path("changing.jsonl"), Path("base")
    file.write_text(rows)
    shutil.copytree("llama", folder)

    def runs() -> int:
        before = len(pretended)
        found = compare("lora", file.name, folder.name, **base)
        assert len(found.runs) == 3  # none of the earlier contents
        return len(pretended) - before

    assert (runs(), runs()) == (3, 0)
    file.write_text(rows.replace("w4", "w5"))
    assert (runs(), runs()) == (3, 0)
    file.write_text(rows)
    (folder / "README.md").write_text("no part of the model")
    assert runs() == 0
    tiny_model("llama", seed=7).save_pretrained(folder)
    assert (runs(), runs()) == (3, 0)


@pytest.mark.parametrize("file", ["chat_template.jinja", "additional_chat_templates/tools.jinja", "modeling_own.py"])
def test_templates_and_code_are_contents_of_a_base(file, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    found = [running.model_contents(str(tmp_path))]
    for words in ("one", "two"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(words)
        found.append(running.model_contents(str(tmp_path)))
    assert len({each["model"] for each in found}) == 3


def test_files_in_place_of_a_hubs_are_told_apart(tmp_path):
    assert running.model_contents("minilm") | digest_task("rotten_tomatoes", {}) == {}
    files = [tmp_path / split / "train.csv" for split in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text("text,label")
    one, other = map(str, files)
    for data_files in (str(tmp_path / "a"), one, {"train": one, "test": other}, {"train": [one, other]}):
        before = digest_task("sst2", {"data_files": data_files})
        assert before.keys() == {"task"}
        files[0].write_text(f"text,label,{data_files}")
        assert digest_task("sst2", {"data_files": data_files}) != before


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_a_store_in_the_folder_of_the_data_is_no_part_of_it(pretended):
    Path("own").mkdir()
    shutil.copy("pairs.jsonl", "own/train.jsonl")
    base = {"learning_rates": GRID} | QUICK | {"seeds": (0,), "store": "own/runs.jsonl"}
    for _ in range(2):
        compare("lora", "own", "llama", **base)
    assert len(pretended) == 3


@IGNORE_EDGE
@pytest.mark.usefixtures("workplace")
def test_the_mean_of_seeds_that_are_not_reported_chooses_the_rate(monkeypatch):
    """Seed 9 alone would choose 1e-3, and each of the reported ones 8e-3."""
    done = []

    def run(cell, task, rate, seed, split, memory, head_rate=None):
        done.append((split, rate, seed))
        loss = abs(math.log(rate / {9: 1e-3, 10: 4e-3, 0: 8e-3, 1: 8e-3, 5: 8e-3}[seed])) ** 2
        return record("lora", rate, seed, split, [1 - loss, 1 - loss]) | {"key": cell.key(rate, seed, split)}

    monkeypatch.setattr(comparing, "run", run)
    base = {"learning_rates": (1e-3, 2e-3, 4e-3)} | QUICK | {"search_seeds": (9, 10)}
    compare("lora", "pairs.jsonl", "llama", **base)
    found = compare("lora", "pairs.jsonl", "llama", **base | {"seeds": (5,)})
    assert len(done) == len(set(done))
    assert {at for at in done if at[0] == "validation"} == {
        ("validation", r, s) for r in base["learning_rates"] for s in (9, 10)
    }
    assert {at for at in done if at[0] == "test"} == {("test", 2e-3, s) for s in (0, 1, 5)}
    assert found.flatness()["seeds"].tolist() == [2]
    assert found.runs["best_rate"].sum() == 3


@pytest.mark.usefixtures("workplace")
def test_one_rate_is_trained_at_and_not_searched_for(pretended):
    """That of every method, of `full` too; runs at others in the store are not told of."""
    for rate in (2e-3, 4e-3):
        found = compare(["lora", "full"], "pairs.jsonl", "llama", learning_rates=rate, **QUICK)
        at = found.runs[found.runs["best_rate"]]
        assert at["learning_rate"].tolist() == [rate] * 4
        assert len(found.runs) == 4
        assert found.summary()["learning_rate"].tolist() == [rate] * 2
    assert len(pretended) == 8
    assert not any("validation" in line for line in pretended)
    everything = Comparison.read("comparison.jsonl")
    assert set(everything.runs.loc[everything.runs["best_rate"], "learning_rate"]) == {4e-3}


@pytest.mark.usefixtures("workplace")
def test_a_seed_trains_on_samples_of_its_own():
    terms = running.Settings("llama", steps=3, batch_size=2, samples=4)
    task = running.load_data(terms, "pairs.jsonl", {})
    found = [running.sample_training_rows(task, terms, seed).train["prompt"][:] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == len(set(found[0])) == 6
    everything = running.sample_training_rows(task, running.Settings("llama", steps=300, batch_size=2, samples=4), 0)
    assert sorted(everything.train["prompt"][:]) == sorted(task.train["prompt"][:])
    assert everything.test is task.test


@pytest.mark.usefixtures("workplace", "narrow")
@IGNORE_EDGE
def test_a_head_has_one_rate_for_all_methods(monkeypatch):
    """That which is best where it is trained alone; none of the adapters' own."""
    rates = []
    real = running.train

    def train(model, task, **arguments):
        rates.append((arguments["learning_rate"], arguments["head_learning_rate"]))
        return real(model, task, **arguments)

    monkeypatch.setattr(running, "train", train)
    compare(["lora", "full"], "labels.jsonl", "bert", learning_rates=GRID, **QUICK)
    records = Store("comparison.jsonl").read()
    heads = [r for r in records if r["key"]["method"] == "head"]
    assert {r["key"]["seed"] for r in heads} == {1000, 1001}
    assert {r["trainable_parameters"] for r in heads} == {r["head_parameters"] for r in records}
    by_rate = pd.DataFrame([(r["key"]["learning_rate"], r["metrics"]["loss"]) for r in heads]).groupby(0)[1].mean()
    others = {head for _, head in rates if head is not None}
    assert others == {by_rate.idxmin()}
    assert len([head for _, head in rates if head is not None]) == 8
    with pytest.warns(UserWarning, match="head trains the head of a classifier"):
        compare("head", "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)


@pytest.mark.usefixtures("workplace", "narrow")
@IGNORE_EDGE
def test_forgetting_is_the_increase_of_the_loss_on_other_texts():
    shutil.copy("pairs.jsonl", "other.jsonl")
    found = compare("lora", "pairs.jsonl", "llama", learning_rates=(1e-3, 3e-2), forgetting="other.jsonl", **QUICK)
    model, tokenizer = tlora.load_model("llama")
    task = tlora.load_task("other.jsonl", tokenizer)
    before = task.evaluate(model, "test")["loss"]
    for row in found.runs[found.runs["split"] == "test"].itertuples():
        assert row.forgetting == pytest.approx(row.loss - before, abs=1e-4)  # the same samples
    assert found.summary()["forgetting"].iloc[0] == pytest.approx(found.runs.query("best_rate")["forgetting"].mean())
    assert found.runs["forgetting"].abs().max() > 1e-3
    assert found.runs[found.runs["split"] == "validation"]["forgetting"].isna().all()  # no rate is chosen by it


@pytest.mark.usefixtures("workplace", "narrow")
@pytest.mark.parametrize(
    ("task", "forgetting", "words"),
    [
        ("pairs.jsonl", "labels.jsonl", "forgetting: labels.jsonl has classes"),
        ("pairs.jsonl", "nix.jsonl", "nix.jsonl does not exist"),
        ("labels.jsonl", "pairs.jsonl", "'labels.jsonl' has classes: leave it out"),
    ],
)
def test_a_text_that_cannot_be_forgotten_is_refused_before_the_first_run(task, forgetting, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        compare("lora", task, "llama", learning_rates=GRID, forgetting=forgetting, **QUICK)
    assert not Path("comparison.jsonl").exists()


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
@pytest.mark.parametrize("method", ["lora+", "tlora+"])
def test_what_multiplies_its_rate_is_searched_from_lower_rates(pretended, method):
    """At those of the others it may be at chance, where the best of the grid is nothing but noise."""
    compare(["lora", method], "pairs.jsonl", "llama", learning_rates=(5e-4, 1e-3, 2e-3), **QUICK)
    begun = [line.split()[1] for line in pretended if line.startswith(f"{method} ")]
    assert begun[:3] == ["3.13e-05", "6.25e-05", "0.000125"]
    assert [line.split()[1] for line in pretended if line.startswith("lora ")][:3] == ["0.0005", "0.001", "0.002"]


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
def test_arguments_are_taken_as_users_have_them(pretended):
    given = QUICK | {"ranks": np.int64(2), "seeds": np.arange(2), "learning_rates": GRID}
    compare("lora", Path("pairs.jsonl"), "llama", **given)
    assert {line.split()[2] for line in pretended} == {"0", "1", "9"}
    assert Comparison.read("comparison.jsonl").runs["rank"].unique().tolist() == [2]


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"seeds": 3}, ValueError, r"seeds=3: pass whole numbers, e.g. \(0, 1, 2\)"),
        ({"learning_rates": 0.0}, ValueError, "learning rate 0.0: pass positive numbers"),
        ({"tasks": [{"pairs.jsonl": {}}]}, TypeError, "tasks: pass names, or arguments of load_task"),
        ({"methods": None}, TypeError, "method"),
        ({"store": "."}, ValueError, "is a folder: name a file"),
        ({"store": "/proc/none.jsonl"}, OSError, "/proc"),
    ],
)
def test_what_cannot_be_begun_is_refused_before_a_run(pretended, arguments, kind, words):
    given = {"methods": "lora", "tasks": "pairs.jsonl", "model": "llama"} | QUICK | arguments
    with pytest.raises(kind, match=words):
        compare(**given)
    assert not pretended


@pytest.mark.usefixtures("workplace")
def test_what_fails_at_every_rate_is_not_tried_at_more(monkeypatch):
    def run(cell, task, rate, seed, split, memory, head_rate=None):
        return {"key": cell.key(rate, seed, split), "status": "failed", "error": "ValueError: no"}

    monkeypatch.setattr(comparing, "run", run)
    made = []
    for _ in range(3):
        with pytest.warns(UserWarning, match=r"could be trained with \(ValueError: no\)"):
            found = compare("lora", "pairs.jsonl", "llama", learning_rates=GRID, **QUICK)
        made.append(len(found.runs))
    assert made == [len(GRID)] * 3


def test_a_second_search_does_not_hide_the_first():
    values = {0: (0.3, 0.8, 0.7, 0.1), 5: (0.1, 0.2, 0.7, 0.8)}
    grid = (1e-3, 2e-3, 4e-3, 8e-3)
    records = [
        record("lora", r, seed, "validation", [v]) for seed in values for r, v in zip(grid, values[seed], strict=True)
    ]
    records += [record("lora", 2e-3, 0, "test", [0.6])]
    row = Comparison.from_records(records).summary().loc[0]
    assert (row["learning_rate"], row["value"]) == (2e-3, pytest.approx(0.6, abs=1e-3))


@IGNORE_EDGE
@pytest.mark.usefixtures("narrow", "workplace")
@pytest.mark.slow
def test_several_processes_share_a_store():
    base = {"learning_rates": GRID} | QUICK
    alone = compare(["lora", "tlora", "pissa"], "pairs.jsonl", "llama", store="alone.jsonl", **base)
    together = compare(["lora", "tlora", "pissa"], "pairs.jsonl", "llama", workers=2, **base)
    columns = ["method", "split", "learning_rate", "seed"]
    searched = [
        c.runs[(c.runs["split"] == "validation") & c.runs["learning_rate"].isin(GRID)] for c in (alone, together)
    ]
    one, other = (runs.sort_values(columns).reset_index(drop=True)[[*columns, "loss"]] for runs in searched)
    assert len(one) == 6
    assert one.equals(other)
    assert together.runs["best_rate"].sum() == 6


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"methods": "loar"}, ValueError, "unknown method 'loar'"),
        ({"methods": []}, ValueError, "at least one method"),
        ({"methods": ["lora", "lora"]}, ValueError, "'lora' is named twice"),
        ({"tasks": []}, ValueError, "at least one task"),
        ({"tasks": {"pairs.jsonl": {"train": {1}}}}, TypeError, "load_task"),
        ({"tasks": "pears.jsonl"}, FileNotFoundError, "pears"),
        ({"tasks": {"pairs.jsonl": {"test": 0}}}, ValueError, "test of 'pairs.jsonl' has 0 samples"),
        ({"samples": 400}, ValueError, "train of 'pairs.jsonl' has .* needs 400"),
        ({"ranks": 0}, ValueError, "rank=0"),
        ({"ranks": [4, -1]}, ValueError, "rank=-1"),
        ({"seeds": ()}, ValueError, "seeds="),
        ({"seeds": (0.5,)}, ValueError, "seeds="),
        ({"search_seeds": ()}, ValueError, "search_seeds="),
        ({"search_seeds": (1, 9)}, ValueError, "seed 1 is among seeds and search_seeds"),
        ({"forgetting": {"pairs.jsonl": {"train": {1}}}}, TypeError, "forgetting: pass names"),
        ({"learning_rates": ()}, ValueError, "learning_rates is empty"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"workers": 0}, ValueError, "workers=0"),
        ({"model": "nowhere/at/all"}, ValueError, "no model 'nowhere/at/all'"),
        ({"model": "bert"}, ValueError, "bert is an encoder and writes no text, which pairs.jsonl asks for"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(arguments, kind, words):
    with pytest.raises(kind, match=words):
        compare(**{"methods": "lora", "tasks": "pairs.jsonl", "model": "llama"} | QUICK | arguments)
    assert not os.path.exists("comparison.jsonl")


def test_peak_memory_sees_what_was_held_in_between():
    with PeakMemory(torch.device("cpu")) as before:
        pass
    with PeakMemory(torch.device("cpu")) as during:
        held = mmap.mmap(-1, 200_000_000)  # the allocator may have as much at hand from earlier tests
        np.frombuffer(held, np.uint8)[:] = 1
        held.close()
    with PeakMemory(torch.device("cpu")) as after:
        pass
    if before.bytes is None:
        pytest.skip("the system does not tell")
    assert during.bytes - before.bytes > 150_000_000
    assert after.bytes < during.bytes - 150_000_000


def test_repr_says_what_was_compared():
    assert repr(comparison()) == "Comparison(2 methods (lora, tlora) on 1 tasks, 12 runs, 1 failed)"
    assert isinstance(comparison().runs, pd.DataFrame)
