"""The arithmetic of the study, on simple numbers; and its page and pictures."""

import itertools
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from benchmarks.lab import compare as comparing
from benchmarks.lab.store import Store
from benchmarks.quality import comparison, pilot, study
from benchmarks.tests.helpers import record

RATES = (1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("losses", "loss", "expected"),
    [
        ((5.0, 4.0, 3.0), 4.5, 0.3),  # half of the way from 0.1 to 0.5
        ((5.0, 4.0, 3.0), 4.0, 0.5),
        ((5.0, 4.0, 4.8), 4.5, 0.3),  # diverges at the highest rate, which is not used
        ((5.0, 4.0, 3.0), 5.0, 0.1),
        ((5.0, 4.0, 3.0), 5.1, np.nan),  # has learned more at its lowest rate
        ((4.3, 4.9, 4.1), 4.4, np.nan),  # and diverges in the middle
        ((5.0, 4.0, 3.0), 2.9, np.nan),  # never learns as much
        ((5.0, 5.2, 3.0), 4.5, np.nan),
        ((5.0, np.nan, 3.0), 4.5, np.nan),
    ],
)
def test_forgetting_at_a_loss_is_read_between_two_rates(losses, loss, expected):
    forgotten = dict(zip(RATES, (0.1, 0.5, 3.0), strict=True))
    found = study.forgetting_at(dict(zip(RATES, losses, strict=True)), forgotten, loss)
    assert found == pytest.approx(expected, nan_ok=True)


def test_holm_adjusts_the_smallest_most():
    """The example of any textbook: 0.01, 0.04 and 0.03 become 0.03, 0.06 and 0.06."""
    found = study.holm_adjusted(pd.Series({"a": 0.01, "b": 0.04, "c": 0.03}))
    assert found.to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_a_margin_is_what_may_be_lost():
    """Student's t of mean over standard error, 0.05 / (0.01 / sqrt(4)) = 10 with three degrees of freedom."""
    behind = pd.Series([-0.05, -0.05, -0.05, -0.05]) + np.array([0.01, -0.01, 0.01, -0.01]) * np.sqrt(3 / 4)
    assert study.p_value(behind, seeds=4) > 0.99
    assert study.p_value(behind, 0.05, seeds=4) == pytest.approx(0.5)
    assert study.p_value(behind, 0.1, seeds=4) == pytest.approx(0.00106, rel=0.01)
    assert study.p_value(behind, 0.1) == 1  # of six seeds two are missing


@pytest.fixture
def complete(monkeypatch, tmp_path):
    """LoRA loses 4 / rate nats and forgets its rate; the other arms are 0.2 nats behind and forget nothing."""
    monkeypatch.setattr(pilot, "STORE", tmp_path / "pilot.jsonl")
    monkeypatch.setattr(study, "STORE", tmp_path / "study.jsonl")
    development, found = Store(pilot.STORE), Store(study.STORE)
    for arm in (study.ARMS | study.FORMER | study.FEWER).values():
        for rate in (2.0, 4.0, 8.0):
            about = {"task": study.DEVELOPMENT, "rank": arm.rank}
            development.append(record(arm.name, rate, 1000, "validation", [-abs(rate - 4)], metric="loss", **about))
        development.append(record(arm.name, 4.0, 0, "test", [0.5], metric="loss", **about))
    planned = (todo for part in ("counting", "main", "fewer") for todo in study.plan(part))
    former = (study.runs_at_shares(study.FORMER[study.WHITENED], task, study.SEEDS) for task in study.HELD_OUT)
    for job in itertools.chain.from_iterable(itertools.chain(planned, former)):
        for seed in job.seeds:
            found.append(simulate(job, seed))
    return found


def simulate(job, seed):
    lora = job.arm.name == "lora"
    drawn = np.random.default_rng([seed, int(100 * job.rates), job.arm.rank, *job.arm.name.encode()])
    noise = 0.001 * drawn.normal()
    loss = 4 / job.rates + noise + (0 if lora else -0.3 if job.arm.name == "full" else 0.2)
    forgotten = job.rates + noise if lora else noise
    made = record(job.arm.name, job.rates, seed, "test", [1 - loss], metric="loss", task=job.task, rank=job.arm.rank)
    return made | {"forgetting": forgotten, "forgetting_by_text": dict.fromkeys(pilot.OTHER, forgotten)}


def test_hypotheses_and_estimates_follow_from_the_store(complete):
    """At 1.2, the others' loss at their best rate, LoRA is between its rates 2 and 4 (2 and 1): it forgets 3.6."""
    assert study.counting_tasks() == list(study.HELD_OUT)
    table = study.hypotheses(study.counting_tasks()).set_index(["hypothesis", "task", "what"])
    kept = table.loc["H1, not told"]
    assert kept["mean"].to_numpy() == pytest.approx(3.6, abs=0.01)
    assert (kept["holm"] < 0.001).all()
    behind = table.loc[["H2", "H4"]]
    assert behind["mean"].to_numpy() == pytest.approx(-0.2, abs=0.01)
    assert (behind["holm"] > 0.99).all()
    assert (table["low"] < table["mean"]).all()
    assert (table["mean"] < table["high"]).all()
    estimates = study.estimates().set_index(["arm", "of", "task"])
    assert estimates.loc[("full", "loss", "codebook"), "mean"] == pytest.approx(-0.3, abs=0.01)
    assert estimates.loc[("score", "forgetting", "codebook"), "mean"] == pytest.approx(-4, abs=0.01)
    assert set(estimates["seeds"]) == {3, 6}
    assert set(study.means("codebook")["seeds"]) == {3, 6}


def test_a_task_on_which_full_is_not_ahead_is_out(complete):
    full = study.FEWER["full"]
    for rate in (2.0, 4.0):
        for seed in range(3):
            complete.append(record("full", rate, seed, "test", [0.0], metric="loss", task="codebook", rank=full.rank))
    assert study.counting_tasks() == ["second_cipher"]
    assert {job.task for part in ("main", "fewer") for todo in study.plan(part) for job in todo} == {"second_cipher"}
    assert {job.task for todo in study.plan("counting") for job in todo} == set(study.HELD_OUT)


def test_the_page_and_the_pictures_are_those_of_the_store(complete, monkeypatch, tmp_path):
    """A row for each difference; a line for each arm but the two that the others are compared with."""
    marks = "".join(
        f"<!-- study, {name}: python -m benchmarks.quality.study --table -->\n<!-- end of study, {name} -->\n"
        for name in study.BLOCKS
    )
    text = study.render(marks)
    assert study.render(text) == text
    kept, behind = "H1, not told | LoRA, rank 4 forgets more of humaneval", "H2 | score is at most 0.05 nats behind"
    rows = [line for line in text.splitlines() if kept in line or behind in line]
    assert [line.split(" | ")[-1] for line in rows] == ["holds |"] * 2 + ["not shown |"] * 2
    figure = study.draw_estimates(study.estimates())
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [name for name in (*study.ARMS, *study.FORMER, *study.FEWER) if "LoRA" not in name]
    pictures = {name: tmp_path / f"{name}.png" for name in study.PICTURES}
    study.draw(pictures)
    assert all(path.stat().st_size for path in pictures.values())
    plt.close("all")


def test_an_interrupted_search_is_continued(complete):
    """Its best rate so far is not yet known to be the best: nothing has been tested there."""
    assert list(study.plan("rates")) == [[]]
    late = study.ARMS["score-freeze-late"]
    better = record(late.name, 8.0, 1000, "validation", [2.0], metric="loss", task=study.DEVELOPMENT, rank=late.rank)
    Store(pilot.STORE).append(better)
    assert [job.arm for todo in study.plan("rates") for job in todo] == [late]
    with pytest.raises(ValueError, match="score-freeze-late"):
        study.require_rate(late)


def test_failed_runs_count_against_a_hypothesis(complete):
    """A seed that is missing is not left out, nor one for which LoRA has learned more at its lowest rate."""
    late = study.ARMS["score-freeze-late"]
    for rate in (2.0, 4.0):
        complete.append(record(late.name, rate, 5, "test", None, task="codebook", rank=late.rank))
    better = record("frozen g_whitened, 10", 4.0, 2, "test", [1 - 4.5], metric="loss", task="codebook", rank=8)
    complete.append(better | {"forgetting": 0.0, "forgetting_by_text": dict.fromkeys(pilot.OTHER, 0.0)})
    table = study.hypotheses(study.HELD_OUT).set_index(["hypothesis", "task"])
    assert table.loc[("H4", "codebook"), "p"].item() == 1
    assert table.loc[("H4", "codebook"), "seeds"].item() == 5
    assert set(table.loc[("H1, told", "codebook"), "p"]) == {1.0}
    assert set(table.loc[("H1, told", "codebook"), "seeds"]) == {5}


def test_a_rate_is_chosen_by_the_other_seeds(complete):
    """Seed 2 diverges at the higher rate: the others choose it all the same."""
    lora = study.ARMS[study.LORA]
    made = record("lora", 4.0, 2, "test", [1 - 1.6], metric="loss", task="codebook", rank=8)
    complete.append(made | {"forgetting": 9.0, "forgetting_by_text": dict.fromkeys(pilot.OTHER, 9.0)})
    losses = study.leave_one_out(lora, "codebook")["loss"]
    assert losses[2] == pytest.approx(1.6)
    assert losses.drop(2).to_numpy() == pytest.approx(1.0, abs=0.01)


def test_the_page_is_that_of_the_store():
    """As the store makes it; and the losses again, from the lines of the file."""
    text = study.PAGE.read_text()
    assert study.render(text) == text, "run python -m benchmarks.quality.study --table"
    runs = [run for run in map(json.loads, study.STORE.read_text().splitlines()) if run["key"]["split"] == "test"]
    table = text.split("<!-- study, means")[1].split("<!-- end")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    for task, method, rank, rate, _, seeds, loss, forgotten in rows[2:]:
        about = {"task": task, "method": method, "rank": int(rank), "learning_rate": float(rate)}
        here = [run for run in runs if about.items() <= run["key"].items()]
        assert len(here) == int(seeds)
        losses = [run["metrics"]["loss"] for run in here]
        shown = [float(number) for number in loss.rstrip(")").split(" (")]
        assert shown == pytest.approx([np.mean(losses), max(losses)], abs=0.000501)
        assert float(forgotten) == pytest.approx(np.mean([run["forgetting"] for run in here]), abs=0.000501)


def test_the_pictures_are_of_the_store():
    said = b"Description\0" + comparison.digest(study.shown_runs()).encode()
    for path in study.PICTURES.values():
        assert said in path.read_bytes(), "run python -m benchmarks.quality.study --table"


def test_the_default_recipe_follows_the_rule():
    """By hand, from the lines of the file: LoRA of rank 4 beside each recipe that trains about as much."""
    losses = {}
    for run in map(json.loads, study.STORE.read_text().splitlines()):
        key = run["key"]
        if (key["task"], key["split"]) == ("second_cipher", "test"):
            losses.setdefault((key["method"], key["rank"]), {}).setdefault(key["learning_rate"], []).append(
                run["metrics"]["loss"]
            )
    best = {arm: min(np.mean(each) for each in by_rate.values()) for arm, by_rate in losses.items()}
    candidates = [("score", 8), ("score-trained", 4), ("frozen g_whitened, 10", 8)]
    ahead = min(best[candidate] for candidate in candidates) - best["lora", 4]
    assert ahead > study.MARGIN  # what `tlora run` says of LoRA


@pytest.mark.packaged
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*max_length=")
def test_another_model_goes_through_the_whole_protocol_in_a_store_of_its_own(workplace, monkeypatch, capsys):
    """Nothing is trained: each arm is best at 4e-3, and `full` is ahead."""

    def run(condition, task, rate, seed, split, *_):
        noise = 0.01 * np.random.default_rng([seed, *condition.method.name.encode()]).normal()
        loss = abs(np.log2(rate / 4e-3)) - (condition.method.name == "full") + noise
        texts = dict.fromkeys(pilot.OTHER, rate + noise)
        forgotten = {"forgetting": rate, "forgetting_by_text": texts, "trainable_parameters": 1}
        return {"key": condition.key(rate, seed, split), "status": "done", "metrics": {"loss": loss}} | forgotten

    def command(*words):
        monkeypatch.setattr("sys.argv", ["study", "--model", "llama", *words])
        study.main()

    monkeypatch.setattr(comparing, "run", run)
    monkeypatch.setattr(study, "run_all", lambda todo, *_: [job.run() for job in todo])
    monkeypatch.setattr(study, "NEIGHBOURS", {"tlora+": study.NEIGHBOURS["tlora+"]})
    monkeypatch.setitem(pilot.CIPHER, "forgetting", ())
    monkeypatch.setattr(pilot, "TEXT", pilot.TEXT | {"train": 80, "validation": 4, "test": 4})
    for name in ("MODEL", "STORE"):  # are put back
        monkeypatch.setattr(study, name, getattr(study, name))
    command()
    keys = [run["key"] for run in Store(Path("benchmarks/results/study-llama.jsonl")).read()]
    assert {key["model"] for key in keys} == {"llama"}
    reported = {key["learning_rate"] for key in keys if (key["task"], key["split"]) == ("codebook", "test")}
    assert reported == {1e-3, 2e-3, 4e-3}  # the pilot's best rates for the packaged model go up to 6.4e-2
    assert {key["method"] for key in keys} >= {"full", "tlora+", "frozen random"}
    monkeypatch.setattr(study, "MODEL", "smollm2-135m")
    monkeypatch.setattr(study, "STORE", Path("benchmarks/results/study.jsonl"))
    capsys.readouterr()
    command("--table")
    printed = capsys.readouterr().out
    assert printed.startswith("tasks on which full leads LoRA: second_cipher, codebook")
    assert "H4 | score-freeze-late is at most 0.05 nats behind LoRA, rank 8" in printed
    assert {path.name for path in Path("benchmarks/results").glob("*.png")} == {
        "study-llama-estimates.png", "study-llama-forgetting.png",
    }  # fmt: skip
    plt.close("all")


def test_nothing_is_tested_if_no_task_counts(complete):
    full = study.FEWER["full"]
    for task in study.HELD_OUT:
        for rate in (2.0, 4.0):
            for seed in range(3):
                complete.append(record("full", rate, seed, "test", [0.0], metric="loss", task=task, rank=full.rank))
    assert study.counting_tasks() == []
    assert [job for part in ("main", "fewer", "neighbours") for todo in study.plan(part) for job in todo] == []
    assert study.hypotheses_table().count("\n") == 1
