"""The table and picture of the comparison are those that the store in the repository makes."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest

from benchmarks.lab.comparison import Comparison
from benchmarks.lab.methods import choose_method
from benchmarks.lab.summary import CONDITION
from benchmarks.quality import comparison as bench
from benchmarks.quality import pilot
from benchmarks.tests.helpers import record

EVERY = "Every method, rank and task"


@pytest.fixture(scope="module")
def stored() -> Comparison:
    return Comparison.read(bench.STORE)


def test_the_page_has_the_table_of_the_store(stored):
    text = bench.PAGE.read_text()
    assert text.count(bench.BEGIN) == text.count(bench.END) == 1
    block = text.split(bench.BEGIN)[1].split(bench.END)[0]
    assert block.strip() == bench.render(stored).strip(), "run python -m benchmarks.quality.comparison"


@pytest.mark.parametrize("path", bench.PICTURES.values(), ids=str)
def test_the_pictures_are_of_the_store(stored, path):
    said = b"Description\0" + bench.digest(stored).encode()  # PNG's tEXt chunk
    assert said in path.read_bytes(), "run python -m benchmarks.quality.comparison"


def test_the_numbers_are_the_means_of_the_runs(stored):
    runs = stored.runs
    for line in bench.tables(stored)[EVERY].splitlines()[2:]:
        task, method, rank, trained, rate, count, measured, _ = (cell.strip() for cell in line.strip("|").split("|"))
        here = runs[(runs.task == task) & (runs.method == method) & (runs["rank"] == int(rank)) & runs.best_rate]
        assert len(here) == int(count) >= len(bench.SEEDS)
        assert (here.learning_rate == float(rate.split()[0])).all()
        assert here.trainable_parameters.mean() == pytest.approx(
            int(trained.replace(",", "")), abs=1
        )  # ranks differ by seed
        shown = dict(re.findall(r"(\w+) ([\d.]+)", measured))
        assert float(shown.pop("loss")) == pytest.approx(here.loss.mean(), abs=0.002)
        assert [float(value) for value in shown.values()] == pytest.approx(
            [100 * here.value.mean()] * ("loss" not in here.metric.iloc[0]), abs=0.06
        )


def _cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_overview_has_the_mean_differences_of_the_runs_that_two_methods_share(stored):
    runs = stored.runs.query("best_rate").set_index(["task", "method", "rank", "seed"]).sort_index()
    heads, _, *rows = (_cells(line) for line in bench.tables(stored)[next(iter(bench.tables(stored)))].splitlines())
    tasks = [head.removesuffix(" (held out)") for head in heads[3:]]
    assert [head.endswith("(held out)") for head in heads[3:]] == [task in bench.HELD_OUT for task in tasks]
    assert {(row[0], int(row[1])) for row in rows} == {
        place[2:]
        for place in bench.finished_summary(stored)[list(CONDITION)].itertuples(index=False)
        if place[2] not in bench.VARIANTS
    }
    assert rows[0][:3] == ["lora", "8", "100 %"]
    for method, rank, trained, *cells in rows:
        shares = []
        for task, cell in zip(tasks, cells, strict=True):
            if not cell:
                continue
            mine, loras = runs.loc[task, method, int(rank)], runs.loc[task, "lora", 8]
            shares.append(100 * mine.trainable_parameters.mean() / loras.trainable_parameters.mean())
            factor = 1 if "loss" in mine.metric.iloc[0] else 100
            if mine is loras or (method, rank) == ("lora", "8"):
                assert float(cell.rstrip(" %")) == pytest.approx(
                    abs(factor * mine.value.mean()), abs=0.06 / (100 / factor)
                )
                continue
            difference, reach = (float(number) for number in cell.strip("*").split(" ± "))
            paired = (mine.value - loras.value).dropna()
            assert difference == pytest.approx(factor * paired.mean(), abs=0.06 if factor == 100 else 0.0006)
            assert cell.startswith("**") == (abs(paired.mean()) * factor > reach)
        ends = [float(end) for end in trained.removesuffix(" %").split(" to ")]
        assert [ends[0], ends[-1]] == pytest.approx([min(shares), max(shares)], abs=0.51)


def test_only_what_ran_with_three_seeds_is_shown(stored):
    seeds = stored.runs.query("best_rate").groupby(["task", "model", "method", "rank"]).size()
    shown = bench.finished_summary(stored).set_index(["task", "model", "method", "rank"]).index
    assert set(shown) == set(seeds[seeds >= len(bench.SEEDS)].index)


def test_runs_that_failed_are_told():
    records = [record("lora", rate, 0, "validation", [rate], rank=8) for rate in (5e-4, 1e-3, 2e-3)]
    records += [record("lora", 2e-3, seed, "test", [1.0, 0.0], rank=8) for seed in bench.SEEDS]
    del records[-1]["outcomes"]
    records[-1] |= {"status": "failed", "metrics": {}}
    (row,) = bench.tables(Comparison.from_records(records))[EVERY].splitlines()[2:]
    assert "| 3, 1 failed |" in row


def test_one_pair_of_runs_has_a_difference_and_no_interval():
    records = [record(method, 1e-3, 0, "validation", [0.5], rank=8) for method in ("lora", "mine")]
    records += [record("lora", 1e-3, seed, "test", [0.0, 0.5], rank=8) for seed in bench.SEEDS]
    records += [record("mine", 1e-3, seed, "test", [1.0, 0.5], rank=8) for seed in (2, 3, 4)]
    rows = bench.tables(Comparison.from_records(records))[EVERY].splitlines()[2:]
    assert [row.split("|")[-2].strip() for row in rows] == ["+50.0", ""]


def test_the_second_table_is_of_what_another_rank_of_lora_has_the_size_of():
    records = []
    sizes = {("lora", 4): 100, ("lora", 8): 200, ("half", 8): 90, ("quarter", 4): 50, ("whole", 16): 190}
    for (method, rank), size in sizes.items():
        records += [record(method, rate, 0, "validation", [rate], rank=rank) for rate in (5e-4, 1e-3, 2e-3)]
        for seed in bench.SEEDS:
            run = record(method, 2e-3, seed, "test", [float(rank > 4), 1.0], rank=rank)
            records.append(run | {"trainable_parameters": size})
    _, main, second = bench.tables(Comparison.from_records(records)).values()
    assert len(main.splitlines()) == 2 + len(sizes)
    (row,) = [[cell.strip() for cell in line.strip("|").split("|")] for line in second.splitlines()[2:]]
    assert row[1:5] == ["half", "8", "90", "rank 4"]
    assert row[5].startswith("+50.0 (")


def test_the_ablation_has_each_part_in_its_place():
    names = [*bench.ABLATIONS, *bench.COMPLETE]
    places = pd.MultiIndex.from_tuples([("sums", "model", name, 8) for name in names], names=CONDITION)
    rows = bench.ablation_table(pd.Series([float(i) for i in range(len(names))], index=places)).splitlines()
    heads, *cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (rows[0], *rows[2:])]
    assert len(names) == 16
    recipes = bench.ABLATIONS | pilot.EARLIER
    for start, *values in cells:
        for parts, value in zip(heads[1:], values, strict=True):
            arguments = choose_method(recipes.get(names[int(float(value))], names[int(float(value))])).arguments
            off = [part for part, on in arguments.get("allocate", {}).items() if not on]
            expected = [f"adapt_{part}" for part in ("ranks", "scales") if part not in parts]
            assert off == (expected if names[int(float(value))] != "lora" else [])
            from_nowhere = start == "random and frozen" or (start == "lora" and parts != "neither")
            assert (arguments.get("task_subspaces", {}) is None) == from_nowhere
            assert (arguments.get("attach", {}).get("freeze_a") is False) == (start == "lora" and parts != "neither")


def test_directions_are_held_against_those_of_the_recommended_recipe():
    values = {"lora": (1.0, 0.0), "score": (0.0, 0.0), "score of kind g": (1.0, 1.0), "score of kind c": (1.0, 0.0)}
    records = [record(method, 1e-3, 0, "validation", [0.5], rank=8) for method in values]
    for method, outcomes in values.items():
        seeds = bench.SEEDS[: 2 if method.endswith("c") else None]  # not finished
        records += [record(method, 1e-3, seed, "test", outcomes, rank=8) for seed in seeds]
    first, second = (_cells(row) for row in bench.directions_table(Comparison.from_records(records)).splitlines()[2:])
    assert first == ["score", "8", "100 %", "0.0 %"]
    assert second[:3] == ["score of kind g", "8", "100 %"]
    assert second[3].strip("*").startswith("+100.0 ±")


def test_the_spread_of_runs_is_half_that_of_the_differences_of_two_methods():
    """Half the variance of the differences of two methods, the mean over all pairs, is what a run adds by itself."""
    rng = np.random.default_rng(0)
    values = {name: rng.normal(level, 0.02, 3).round(4) for name, level in (("lora", 0.5), ("b", 0.6), ("c", 0.4))}
    strange = {
        "pissa": (0.1, 0.9, 0.1),
        "full": (0.9, 0.9, 0.91),
        "score of kind g": (0.9, 0.1, 0.9),
        "short": (0.9, 0.1),
    }
    records = [
        record(name, 1e-3, seed, split, [value], rank=8)
        for name, found in (values | strange).items()
        for seed, value in enumerate(found)
        for split in ("validation", "test")
        if split == "test" or seed == 0
    ]
    (row,) = bench.spread_table(Comparison.from_records(records)).splitlines()[2:]
    pairs = itertools.combinations(values.values(), 2)
    of_runs = np.mean([np.var(one - other, ddof=1) / 2 for one, other in pairs])
    of_methods = np.var([found.mean() for found in values.values()], ddof=1) - of_runs / 3
    assert _cells(row) == ["pairs", "3", f"{100 * of_methods**0.5:.1f} points", f"{100 * of_runs**0.5:.1f} points"]


def test_ranges_of_rates_are_those_of_methods_that_were_all_searched_with_three_seeds():
    grid = (1e-3, 2e-3, 4e-3, 8e-3)
    curves = {"lora": (1.5, 1.200, 1.201, 1.5), "score": (1.23, 1.22, 1.215, 1.2)}  # losses
    records = [
        record(method, rate, seed, "validation", [1 - value - 0.01 * seed], rank=8, task=task)
        for task, seeds in (("pairs", 3), ("unfinished", 2))
        for method, curve in curves.items()
        for seed in range(seeds)
        for rate, value in zip(grid, curve, strict=True)
    ]
    heads, _, row = (_cells(line) for line in bench.rate_range_table(Comparison.from_records(records)).splitlines())
    assert heads == ["task", "lora, within 1 %", "score, within 1 %", "lora, within 5 %", "score, within 5 %"]
    assert row == ["pairs", "0.002 to 0.004", "0.008 to ≥ 0.008", "0.002 to 0.004", "≤ 0.001 to ≥ 0.008"]


def test_the_pilot_on_the_page_is_that_of_its_store():
    """As the store makes it; and the short table again, from the lines of the file."""
    text = pilot.PAGE.read_text()
    assert pilot.render(text) == text
    for runs, path in ((pilot.shown_runs(), pilot.PICTURE), (pilot.all_runs(), pilot.TIGHT)):
        assert b"Description\0" + bench.digest(runs).encode() in path.read_bytes()
    tested: dict[tuple[str, float], list[dict]] = {}
    for run in map(json.loads, pilot.STORE.read_text().splitlines()):
        if run["key"]["split"] == "test" and run["key"]["rank"] == 8:
            tested.setdefault((run["key"]["method"], run["key"]["learning_rate"]), []).append(run)
    most = tested["lora", 4e-3][0]["trainable_parameters"]
    named = {name: method for method, name in pilot.NAMES.items()}
    short = text.split("<!-- pilot, in short")[1].split("<!-- end")[0]
    rows = [_cells(line) for line in short.splitlines() if line[:1] == "|"][2:]
    assert len(rows) == len(pilot.SHOWN)
    for name, rate, trained, loss, forgotten in rows:
        here = tested[named[name], float(rate)]
        assert len(here) == len(pilot.SEEDS)
        assert float(loss) == pytest.approx(np.mean([run["metrics"]["loss"] for run in here]), abs=0.00501)
        assert float(forgotten) == pytest.approx(np.mean([run["forgetting"] for run in here]), abs=0.00501)
        assert float(trained.split()[0]) == pytest.approx(100 * here[0]["trainable_parameters"] / most, abs=0.5)


def test_what_the_page_says_of_a_tight_budget_is_in_the_store():
    """At 4e-3 on the validation split: ranks by any score, and a quarter of the modules, beside uniform ranks."""
    losses: dict[str, list[float]] = {}
    for run in map(json.loads, pilot.STORE.read_text().splitlines()):
        key = run["key"]
        if (key["task"], key["rank"], key["learning_rate"], key["split"]) == ("cipher", 1, 4e-3, "validation"):
            losses.setdefault(key["method"], []).append(run["metrics"]["loss"])
    behind = {method: np.mean(each) - np.mean(losses["lora"]) for method, each in losses.items()}
    assert max(abs(behind[f"ranks by {score}"]) for score in ("mean", "sum", "per_parameter")) < 0.0145
    assert behind["last quarter"] == pytest.approx(0.05, abs=0.005)
    assert behind["random quarter"] == pytest.approx(0.06, abs=0.005)
    assert behind["most sensitive quarter"] == pytest.approx(0.47, abs=0.005)
