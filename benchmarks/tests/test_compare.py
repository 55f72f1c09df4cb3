"""compare: searches, final runs and the store, with tiny models."""

import logging
import math
import mmap
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
from benchmarks.lab.run import Condition, Settings
from benchmarks.lab.store import Store
from benchmarks.tests.helpers import record
from tests.helpers.models import tiny_model
from tlora.recipes import Recipe
from tlora.tasks.task import Task
from tlora.training.trainer import AdapterTrainer
from tlora.utils.peak_memory import PeakMemory

pytestmark = pytest.mark.usefixtures("workplace", "narrow")
QUICK = {
    "ranks": 2,
    "steps": 3,
    "batch_size": 4,
    "samples": 8,
    "seeds": (0, 1),
    "search_seeds": (9,),
    "learning_rates": (1e-3, 1e-2),
    "progress": False,
}
GRID = QUICK["learning_rates"]
IGNORE_EDGE = pytest.mark.filterwarnings("ignore:.*is at the edge of the search")


@pytest.fixture
def narrow(monkeypatch) -> None:
    """Searches that are not extended: a tiny model's best rate may be anywhere."""
    monkeypatch.setattr(lr_search, "EXTENSIONS", 0)


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """The runs that were done."""
    done: list[str] = []
    real = running.run

    def run(condition, task, rate, seed, split, *more):
        done.append(f"{condition.method.name} {rate:g} {seed} {split}")
        return real(condition, task, rate, seed, split, *more)

    monkeypatch.setattr(comparing, "run", run)
    return done


@pytest.fixture
def pretended(monkeypatch) -> list[str]:
    """The runs that would have been done: nothing is trained, and higher rates have lower losses."""
    done: list[str] = []

    def run(condition, task, rate, seed, split, *_):
        done.append(f"{condition.method.name} {rate:g} {seed} {split}")
        return {"key": condition.key(rate, seed, split), "status": "done", "metrics": {"loss": -rate}}

    monkeypatch.setattr(comparing, "run", run)
    return done


@IGNORE_EDGE
@pytest.mark.parametrize(
    ("model", "task"),
    [("llama", "pairs.jsonl"), ("bert", "labels.jsonl"), pytest.param("t5", "pairs.jsonl", marks=pytest.mark.slow)],
)
def test_every_method_is_searched_then_run_with_every_seed(model, task, counted):
    comparison = compare(["lora", "captured"], task, model, **QUICK)
    frame = comparison.runs
    for _, rows in frame.groupby("method"):
        searched, tested = rows[rows["split"] == "validation"], rows[rows["split"] == "test"]
        assert sorted(searched["learning_rate"]) == list(GRID)
        assert searched["seed"].tolist() == [9, 9]
        assert tested["seed"].tolist() == [0, 1]
        assert set(tested["learning_rate"]) == {searched.loc[searched["loss"].idxmin(), "learning_rate"]}
        assert tested["best_rate"].all()
        assert not searched["best_rate"].any()
    assert set(frame["status"]) == {"done"}
    assert (frame["seconds"] > 0).all()
    assert set(frame["metric"]) == {"accuracy" if model == "bert" else "exact_match"}
    assert {len(v) for name, v in comparison.outcomes.items() if not name.endswith(".training")} == {4}
    assert {len(v) for name, v in comparison.outcomes.items() if name.endswith(".training")} == {3}
    assert len([line for line in counted if not line.startswith("head")]) == 8
    assert comparison.summary()["seeds"].tolist() == [2, 2]


@IGNORE_EDGE
def test_runs_are_reproducible_and_never_repeated(counted):
    first = compare("lora", "pairs.jsonl", "llama", **QUICK)
    again = compare("lora", "pairs.jsonl", "llama", **QUICK)
    assert len(counted) == 4
    assert again.runs.equals(first.runs)
    fresh = compare("lora", "pairs.jsonl", "llama", store="other.jsonl", **QUICK)
    assert len(counted) == 8
    numbers = ["learning_rate", "seed", "value", "loss", "trainable_parameters"]
    assert fresh.runs[numbers].equals(first.runs[numbers])
    assert Comparison.read("other.jsonl").runs.equals(fresh.runs)


@IGNORE_EDGE
def test_an_interrupted_comparison_resumes(counted, monkeypatch):
    whole = compare(["lora", "lora-fa"], "pairs.jsonl", "llama", store="whole.jsonl", **QUICK)
    del counted[:]
    real = AdapterTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if len(counted) == 3:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(["lora", "lora-fa"], "pairs.jsonl", "llama", **QUICK)
    assert len(Store("comparison.jsonl").read()) == 2  # and nothing of the run that was interrupted
    monkeypatch.setattr(AdapterTrainer, "training_step", real)
    resumed = compare(["lora", "lora-fa"], "pairs.jsonl", "llama", **QUICK)
    assert len(counted) == 3 + 6
    assert resumed.runs[["value", "loss"]].equals(whole.runs[["value", "loss"]])


def test_all_methods_see_the_same_samples_in_the_same_order(monkeypatch):
    seen: list[str] = []
    real = Task.collate

    def collate(self, examples, padding_side="right"):
        batch = real(self, examples, padding_side)
        if torch.is_grad_enabled() and "fetch" in (frame.name for frame in traceback.extract_stack(limit=8)):
            seen.append(str(batch["input_ids"].tolist()))
        return batch

    monkeypatch.setattr(Task, "collate", collate)
    settings = Settings("llama", steps=12, batch_size=4, samples=8)  # into a second epoch
    task = running.load_data(settings, "pairs.jsonl", {})

    def order(name, rate, seed):
        del seen[:]
        condition = Condition(settings, "pairs.jsonl", {}, METHODS[name], 2)
        running.run(condition, task, rate, seed, "validation", Cache())
        return list(seen)

    first = order("lora", 1e-3, 0)
    assert len(first) >= 12
    for name in ("lora", "pissa", "lora-fa", "adalora", "vera", "captured"):
        assert order(name, 1e-2, 0) == first, name
    assert order("lora", 1e-3, 1) != first


def test_each_seed_trains_on_its_own_samples():
    settings = Settings("llama", steps=3, batch_size=2, samples=4)
    task = running.load_data(settings, "pairs.jsonl", {})
    rows = [running.sample_training_rows(task, settings, seed).train["prompt"][:] for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    assert len(rows[0]) == len(set(rows[0])) == 6
    everything = running.sample_training_rows(task, Settings("llama", steps=300, batch_size=2, samples=4), 0)
    assert sorted(everything.train["prompt"][:]) == sorted(task.train["prompt"][:])
    assert everything.test is task.test


@IGNORE_EDGE
def test_failures_and_divergences_are_rows(caplog):
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

    with caplog.at_level(logging.WARNING):
        comparison = compare(Method("mine", adapt, {}, optimizer), "pairs.jsonl", "llama", **QUICK)
    assert comparison.runs["status"].tolist() == ["done", "diverged", "done", "failed"]
    assert comparison.runs["best_rate"].tolist() == [False, False, True, True]
    assert math.isnan(comparison.runs["value"].iloc[3])
    assert "no memory" in caplog.text
    row = comparison.summary().iloc[0]
    assert (row["seeds"], row["diverged"], row["failed"]) == (1, 1, 1)
    mended = Method("mine", METHODS["lora"].adapt, {}, optimizer)
    with pytest.warns(UserWarning, match="no memory"):
        kept = compare(mended, "pairs.jsonl", "llama", **QUICK)
    assert kept.runs["status"].tolist()[3] == "failed"
    retried = compare(mended, "pairs.jsonl", "llama", retry=True, **QUICK)
    assert retried.runs["status"].tolist() == ["done", "diverged", "done", "done"]


def test_a_method_that_always_fails_is_not_tried_at_more_rates():
    def adapt(job):
        raise RuntimeError("no memory")

    for _ in range(2):
        with pytest.warns(UserWarning, match=r"mine at rank 2 on pairs.jsonl: .*no memory"):
            comparison = compare(Method("mine", adapt), "pairs.jsonl", "llama", **QUICK)
        assert comparison.runs["status"].tolist() == ["failed", "failed"]


@pytest.mark.usefixtures("pretended")
def test_a_search_that_ends_at_its_edge_is_warned_of():
    with pytest.warns(UserWarning, match=r"lora at rank 2 on pairs.jsonl: .*0.01.* edge"):
        compare("lora", "pairs.jsonl", "llama", **QUICK)


@IGNORE_EDGE
def test_everything_that_matters_identifies_a_run(pretended):
    calls = [
        {}, {"steps": 4}, {"batch_size": 2}, {"ranks": 3}, {"samples": 6}, {"dtype": "bfloat16"},
        {"target_modules": "q_proj"}, {"learning_rates": (2e-3, 1e-2)}, {"seeds": (5,)},
        {"tasks": {"pairs.jsonl": {"train": 20}}}, {"tasks": {"pairs.jsonl": {"seed": 1}}},
        {"methods": Recipe("mine", allocate={"temperature": 0.5})},
        {"methods": Recipe("mine", allocate={"temperature": 0.0})},
    ]  # fmt: skip
    for change in calls:
        before = len(pretended)
        compare(**{"methods": "lora", "tasks": "pairs.jsonl", "model": "llama"} | QUICK | {"seeds": (0,)} | change)
        assert len(pretended) > before, change


@IGNORE_EDGE
def test_runs_are_repeated_if_the_files_of_a_path_change(pretended):
    rows, file, folder = Path("pairs.jsonl").read_text(), Path("changing.jsonl"), Path("base")
    file.write_text(rows)
    shutil.copytree("llama", folder)

    def runs() -> int:
        before = len(pretended)
        comparison = compare("lora", file.name, folder.name, **QUICK | {"seeds": (0,)})
        assert len(comparison.runs) == 3  # none of the earlier contents
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
    contents = [running.model_contents(str(tmp_path))]
    for words in ("one", "two"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(words)
        contents.append(running.model_contents(str(tmp_path)))
    assert len({each["model"] for each in contents}) == 3


@IGNORE_EDGE
def test_a_store_in_the_folder_of_the_data_is_no_part_of_it(pretended):
    Path("own").mkdir()
    shutil.copy("pairs.jsonl", "own/train.jsonl")
    for _ in range(2):
        compare("lora", "own", "llama", store="own/runs.jsonl", **QUICK | {"seeds": (0,)})
    assert len(pretended) == 3


@IGNORE_EDGE
def test_the_mean_of_seeds_that_are_not_reported_chooses_the_rate(monkeypatch):
    """Seed 9 alone would choose 1e-3, and each of the reported ones 8e-3."""
    done = []

    def run(condition, task, rate, seed, split, *_):
        done.append((split, rate, seed))
        loss = abs(math.log(rate / {9: 1e-3, 10: 4e-3, 0: 8e-3, 1: 8e-3, 5: 8e-3}[seed])) ** 2
        return record("lora", rate, seed, split, [1 - loss, 1 - loss]) | {"key": condition.key(rate, seed, split)}

    monkeypatch.setattr(comparing, "run", run)
    options = QUICK | {"learning_rates": (1e-3, 2e-3, 4e-3), "search_seeds": (9, 10)}
    compare("lora", "pairs.jsonl", "llama", **options)
    comparison = compare("lora", "pairs.jsonl", "llama", **options | {"seeds": (5,)})
    assert len(done) == len(set(done))
    searched = {("validation", rate, seed) for rate in options["learning_rates"] for seed in (9, 10)}
    assert {run for run in done if run[0] == "validation"} == searched
    assert {run for run in done if run[0] == "test"} == {("test", 2e-3, seed) for seed in (0, 1, 5)}
    assert comparison.flatness()["seeds"].tolist() == [2]
    assert comparison.runs["best_rate"].sum() == 3


def test_a_single_rate_is_not_searched_for(pretended):
    """It is that of every method, also of `full`; runs at other rates are left out of the result."""
    for rate in (2e-3, 4e-3):
        comparison = compare(["lora", "full"], "pairs.jsonl", "llama", **QUICK | {"learning_rates": rate})
        assert comparison.runs["learning_rate"].tolist() == [rate] * 4
        assert comparison.runs["best_rate"].all()
    assert len(pretended) == 8
    assert not any("validation" in line for line in pretended)
    everything = Comparison.read("comparison.jsonl").runs
    assert set(everything.loc[everything["best_rate"], "learning_rate"]) == {4e-3}


@IGNORE_EDGE
def test_a_head_has_one_rate_for_all_methods(monkeypatch):
    """The best one when the head alone is trained."""
    rates = []
    real = running.train

    def train(model, task, **arguments):
        rates.append(arguments["head_learning_rate"])
        return real(model, task, **arguments)

    monkeypatch.setattr(running, "train", train)
    compare(["lora", "full"], "labels.jsonl", "bert", **QUICK)
    records = Store("comparison.jsonl").read()
    heads = [r for r in records if r["key"]["method"] == "head"]
    assert {r["key"]["seed"] for r in heads} == {1000, 1001}
    assert {r["trainable_parameters"] for r in heads} == {r["head_parameters"] for r in records}
    by_rate = pd.DataFrame([(r["key"]["learning_rate"], r["metrics"]["loss"]) for r in heads]).groupby(0)[1].mean()
    assert [rate for rate in rates if rate is not None] == [by_rate.idxmin()] * 8
    with pytest.warns(UserWarning, match="head of a classifier"):
        compare("head", "pairs.jsonl", "llama", **QUICK)


@IGNORE_EDGE
def test_forgetting_is_the_increase_of_the_loss_on_other_texts():
    shutil.copy("pairs.jsonl", "other.jsonl")
    options = QUICK | {"learning_rates": (1e-3, 3e-2)}
    comparison = compare("lora", "pairs.jsonl", "llama", forgetting="other.jsonl", **options)
    model, tokenizer = tlora.load_model("llama")
    before = tlora.load_task("other.jsonl", tokenizer).evaluate(model, "test")["loss"]
    tested = comparison.runs[comparison.runs["split"] == "test"]
    for row in tested.itertuples():
        assert row.forgetting == pytest.approx(row.loss - before, abs=1e-4)  # the same samples
    assert comparison.summary()["forgetting"].iloc[0] == pytest.approx(tested["forgetting"].mean())
    assert tested["forgetting"].abs().max() > 1e-3
    assert comparison.runs.loc[comparison.runs["split"] == "validation", "forgetting"].isna().all()


@IGNORE_EDGE
@pytest.mark.parametrize("method", ["lora+", "tlora+"])
def test_a_method_that_multiplies_its_rate_is_searched_from_lower_rates(pretended, method):
    compare(["lora", method], "pairs.jsonl", "llama", **QUICK | {"learning_rates": (5e-4, 1e-3, 2e-3)})
    rates = [line.split()[1] for line in pretended if line.startswith(f"{method} ")]
    assert rates[:3] == ["3.13e-05", "6.25e-05", "0.000125"]


@IGNORE_EDGE
def test_arguments_may_be_of_numpy_and_paths(pretended):
    compare("lora", Path("pairs.jsonl"), "llama", **QUICK | {"ranks": np.int64(2), "seeds": np.arange(2)})
    assert {line.split()[2] for line in pretended} == {"0", "1", "9"}
    assert Comparison.read("comparison.jsonl").runs["rank"].unique().tolist() == [2]


@IGNORE_EDGE
@pytest.mark.slow
def test_several_processes_share_a_store():
    methods = ["lora", "captured", "pissa"]
    alone = compare(methods, "pairs.jsonl", "llama", store="alone.jsonl", **QUICK).runs
    together = compare(methods, "pairs.jsonl", "llama", workers=2, **QUICK).runs
    columns = ["method", "split", "learning_rate", "seed"]
    searched = [runs[(runs["split"] == "validation") & runs["learning_rate"].isin(GRID)] for runs in (alone, together)]
    one, other = (runs.sort_values(columns).reset_index(drop=True)[[*columns, "loss"]] for runs in searched)
    assert len(one) == 6
    assert one.equals(other)
    assert together["best_rate"].sum() == 6


@pytest.mark.parametrize(
    ("arguments", "kind", "name"),
    [
        ({"methods": "loar"}, ValueError, "loar"),
        ({"methods": ["lora", "lora"]}, ValueError, "methods"),
        ({"tasks": []}, ValueError, "task"),
        ({"tasks": "pears.jsonl"}, FileNotFoundError, "pears"),
        ({"tasks": {"pairs.jsonl": {"test": 0}}}, ValueError, "test"),
        ({"samples": 400}, ValueError, "400"),
        ({"search_seeds": (1, 9)}, ValueError, "seed 1"),
        ({"learning_rates": ()}, ValueError, "learning_rates"),
        ({"steps": 0}, ValueError, "steps"),
        ({"model": "nowhere/at/all"}, ValueError, "nowhere/at/all"),
        ({"model": "bert"}, ValueError, "bert"),
        ({"forgetting": "labels.jsonl"}, ValueError, "labels.jsonl"),
        ({"forgetting": "nix.jsonl"}, FileNotFoundError, "nix.jsonl"),
        ({"tasks": "labels.jsonl", "forgetting": "pairs.jsonl"}, ValueError, "labels.jsonl"),
        ({"device": "cuda:99"}, ValueError, "CUDA"),
        ({"dtype": "bf16"}, ValueError, "bf16"),
        ({"store": "."}, OSError, "directory"),
    ],
)
def test_refusals_come_before_the_first_run(pretended, arguments, kind, name):
    """As failed runs, some of them would count against every rate, also once the call is corrected."""
    with pytest.raises(kind, match=name):
        compare(**{"methods": "lora", "tasks": "pairs.jsonl", "model": "llama"} | QUICK | arguments)
    assert not pretended
    assert not Path("comparison.jsonl").exists()


def test_peak_memory_includes_what_was_released():
    with PeakMemory(torch.device("cpu")) as before:
        pass
    with PeakMemory(torch.device("cpu")) as during:
        held = mmap.mmap(-1, 200_000_000)  # the allocator may reuse memory of earlier tests
        np.frombuffer(held, np.uint8)[:] = 1
        held.close()
    with PeakMemory(torch.device("cpu")) as after:
        pass
    if before.bytes is None:
        pytest.skip("the system does not report peaks")
    assert during.bytes - before.bytes > 150_000_000
    assert after.bytes < during.bytes - 150_000_000
