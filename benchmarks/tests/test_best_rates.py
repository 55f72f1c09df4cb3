"""Best rates are those with the lowest mean loss on validation rows, and their ranges surround them."""

import json
from collections import defaultdict
from statistics import mean

from benchmarks.quality import best_rates
from benchmarks.quality.pages import fill_blocks


def test_the_page_and_its_picture_are_those_of_the_stores():
    text = best_rates.PAGE.read_text()
    assert fill_blocks(text, "best_rates", best_rates.TABLES) == text, (
        "run python -m benchmarks.quality.best_rates --table"
    )
    assert b"Description\0" + best_rates.digest().encode() in best_rates.PICTURE.read_bytes()  # PNG's tEXt chunk


def test_the_best_has_the_lowest_mean_of_the_seeds_that_ran_at_all_rates():
    losses = defaultdict(lambda: defaultdict(dict))
    for line in best_rates.STORES["pilot"].read_text().splitlines():
        record = json.loads(line)
        key = record["key"]
        if key["split"] == "validation" and record["status"] == "done":
            losses[key["task"], key["method"], key["rank"]][key["learning_rate"]][key["seed"]] = record["metrics"][
                "loss"
            ]
    table = best_rates.best_rates()
    rows = list(table[table["study"] == "pilot"].itertuples())
    assert len(rows) > 10
    for row in rows:
        means = {
            rate: mean(seeds.values())
            for rate, seeds in losses[row.task, row.method, row.rank].items()
            if len(seeds) == 2
        }
        assert row.best == min(means, key=means.get)
        assert row.lowest <= row.best <= row.highest
        assert means[row.lowest] <= means[row.best] * (1 + best_rates.NEAR)


def test_the_study_of_directions_is_by_its_own_runs_at_each_rate():
    table = best_rates.best_rates().set_index(best_rates.ARM)
    losses = defaultdict(list)
    for line in best_rates.STORES["directions"].read_text().splitlines():
        record = json.loads(line)
        key = record["key"]
        if key["task"] == "spell_backward" and key["method"] == "frozen wc" and key["seed"] < 3:
            losses[key["learning_rate"]].append(record["validation_loss"])
    best = min(losses, key=lambda rate: mean(losses[rate]))
    assert table.loc[("directions", "spell_backward", "frozen wc", 8), "best"] == best
    assert table.loc[("directions", "spell_backward", "frozen wc", 8), "batch_size"] == 4
