"""Planted skills: what counts as found, and whether contributions find a skill on a small model."""

import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.lab.store import Store
from benchmarks.quality import planted
from benchmarks.quality.pages import fill_blocks
from tests.helpers.models import tiny_model, tiny_tokenizer

WORDS = [f"w{number}" for number in range(9, 40)]


@pytest.mark.skipif(not planted.STORE.exists(), reason="nothing is measured yet")
def test_the_page_is_that_of_what_was_measured():
    text = planted.PAGE.read_text()
    tables = fill_blocks(text, "planted", planted.TABLES)
    assert tables == text, "run python -m benchmarks.quality.planted --table"


QUOTES = {
    "finding": ["README.md", "docs/howto/attribution.md", "tlora/explanation/attribution.py",
                "viz/widgets/panels/attribution.py", "docs/results/claims.md"],
    "token_finding": ["docs/howto/attribution.md", "docs/howto/reads.md", "docs/results/claims.md"],
}  # fmt: skip


@pytest.mark.skipif(not planted.STORE.exists(), reason="nothing is measured yet")
@pytest.mark.parametrize(("claim", "path"), [(claim, path) for claim, paths in QUOTES.items() for path in paths])
def test_every_place_quotes_what_was_measured(claim: str, path: str):
    quoted = getattr(planted, claim)()
    assert quoted in " ".join(Path(path).read_text().replace('"', "").split())


@pytest.mark.skipif(not planted.STORE.exists(), reason="nothing is measured yet")
@pytest.mark.parametrize("path", ["README.md", "docs/howto/attribution.md", "docs/results/claims.md"])
def test_the_interval_and_the_skills_that_were_not_learned_are_quoted_too(path: str):
    text, summary = Path(path).read_text(), planted.summary()
    (interval,) = re.findall(r"\(95 %: [^)]+\)", summary)
    ((learned, count),) = re.findall(r"(\d+) of (\d+) skills in", summary)
    assert f"{planted.finding()} {interval}" in text
    assert f"{int(count) - int(learned)} of {count} skills were not learned" in text


def test_recall_is_the_mean_over_random_orders_of_ties():
    scores, skill = np.array([2, 1, 1, 3, 1, 1]), [0, 2, 4]
    for count in range(1, 7):
        found = []
        for order in itertools.permutations(range(6)):
            ranked = sorted(order, key=lambda module: -scores[module])  # stable: ties stay in the order of the draw
            found.append(len(set(ranked[:count]) & set(skill)) / len(skill))
        assert planted.recall(scores, skill, count) == pytest.approx(np.mean(found))


def test_skills_are_found_in_what_the_store_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Means over two requests put the planted `b` second by contribution, first by cost, and last by sensitivity."""
    requests = [
        {"tokens": ["Tag", ":", " on"], "cost": [4, 1, 2], "base_cost": [4, 0, 0], "read": [0, 1, 5]},
        {"tokens": [" Fan", " Tag", " on"], "cost": [1, 2, 0], "base_cost": [0, 0, 0], "read": [0, 3, 2]},
    ]
    skill = {
        "tag": "Tag", "word": " word", "planted": ["b.q_proj"], "modules": ["a", "b.q_proj", "c", "d"],
        "contribution": [[0, 4, 1, 0], [9, 2, 1, 0]], "log_odds": [[0, 4, 1, 0], [9, 2, 1, 0]],
        "cost": [[0, 4, 1, 0], [3, 2, 1, 0]], "cost_log_odds": [[0, 4, 1, 0], [3, 2, 1, 0]],
        "update_norm": [4, 3, 2, 1], "used_rank": [2, 2, 1, 1], "base": [-10, -10], "rise": [4, 6],
        "sensitivity": {"d": 4.0, "c": 3.0, "a": 2.0, "b.q_proj": 1.0}, "requests": requests,
        "words": [[-1, -2], [-1, -3]],
    }  # fmt: skip
    monkeypatch.setattr(planted, "STORE", tmp_path / "store.jsonl")
    Store(planted.STORE).append({"key": {"kind": "one", "adapter": 0, "steps": max(planted.STEPS)}, "values": [skill]})
    (row,) = planted.skill_rows().to_dict("records")
    assert row["is_learned"]
    assert (row["size"], row["projection"], row["rise"], row["gained"]) == (1, "q_proj", 5, 0.5)
    first = {measure: row[f"{measure}+0"] for measure in planted.MEASURES}
    found = {"cost": 1, "cost_log_odds": 1, "used_rank": 0.5, "chance": 0.25}
    assert first == dict.fromkeys(planted.MEASURES, 0) | found
    assert row["contribution+2"] == row["update_norm+2"] == 1
    assert row["sensitivity+2"] == 0
    tokens = {measure: row[f"token {measure}"] for measure in planted.TOKEN_MEASURES}
    assert tokens == pytest.approx({"cost": 1, "lost_rise": 0.5, "read": 0.5, "chance": 1 / 3})
    assert row["places"] == [1, 1]
    cells = planted.recall_table().splitlines()[2].split(" | ")
    assert cells[:4] == ["| one module each", "1 of 1", "m", "0.00 (0.00 to 0.79)"]


def test_every_layer_and_projection_gets_a_skill():
    skills = [skill for number in range(6) for skill in planted.plan_skills("one", number)]
    layers, projections = zip(
        *((skill.modules[0].split(".")[2], skill.modules[0].split(".")[-1]) for skill in skills), strict=True
    )
    assert sorted(map(int, layers)) == list(range(30))
    assert set(Counter(projections).values()) == {4, 5}


@pytest.mark.parametrize(("kind", "modules"), [("one", 5), ("inside", 5), ("two", 10), ("ten", 14)])
def test_no_module_learns_two_skills(kind: str, modules: int):
    skills = planted.plan_skills(kind, 1)
    assert len({name for skill in skills for name in skill.modules}) == modules
    assert len({skill.tag for skill in skills}) == len({skill.word for skill in skills}) == 5


def test_a_module_learns_its_own_skill_alone():
    def trained(first: str, second: str) -> list[np.ndarray]:
        skills, others = tasks(first, second), plain(tiny_model("llama"), 2)
        *_, adapted = planted.plant(tiny_model("llama"), skills, others, MODULES[:2], 3, 0)
        return [
            adapted.get_submodule(f"base_model.model.{name}.lora_B.default").weight.numpy(force=True)
            for (name,) in MODULES[:2]
        ]

    first, second = trained("w40", "w41")
    for place, changed in enumerate((trained("w42", "w41"), trained("w40", "w42"))):
        assert not np.array_equal(changed[place], (first, second)[place])
        np.testing.assert_array_equal(changed[1 - place], (second, first)[place])


def test_training_stops_once_the_answers_are_learned():
    """A module that answered ten steps at once no longer changes."""
    model, skills, others = tiny_model("llama"), tasks("w40"), plain(tiny_model("llama"), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planted, "LEARNED", 100.0)  # any loss will do
        weights = [
            adapted.get_submodule(f"base_model.model.{MODULES[0][0]}.lora_B.default").weight.detach().clone()
            for adapted in planted.plant(model, skills, others, MODULES[:1], planted.WINDOW + 2, 0)
        ]
    assert (weights[planted.WINDOW - 2] != weights[planted.WINDOW - 1]).any()
    assert (weights[-1] == weights[planted.WINDOW - 1]).all()


@pytest.mark.slow
def test_contributions_find_planted_skills():
    """Two adapters of five skills in a small random model: contributions rank the right module first in 0.7 or more."""
    found = []
    for seed in range(2):
        model = tiny_model("llama", seed=seed, num_hidden_layers=5)
        skills = tasks("w40", "w41", "w42", "w43", "w44")
        adapted = list(planted.plant(model, skills, plain(model, 5), MODULES, ROUNDS, seed))[-1]
        for (name,), task in zip(MODULES, skills, strict=True):
            explained = planted.explain_skill(adapted, task)
            place = explained["modules"].index(name)
            found.append(planted.recall(planted.module_scores(explained, "contribution"), [place], 1))
    assert np.mean(found) >= 0.7


ROUNDS = 60
MODULES = [
    [planted.module_name(layer, projection)]
    for layer, projection in enumerate(("v_proj", "up_proj", "down_proj", "gate_proj", "o_proj"))
]


def tasks(*answers: str):
    """A task for each answer: requests of four words, the first of which is the skill's tag."""
    rng = np.random.default_rng(0)
    return [
        planted.word_task(
            {
                split: [" ".join([f"w{4 + place}", *rng.choice(WORDS, 3)]) for _ in range(count)]
                for split, count in (("train", 40), ("test", 3))
            },
            answer,
            tiny_tokenizer(),
        )
        for place, answer in enumerate(answers)
    ]


def plain(model, count: int):
    """For each skill requests without a tag, answered as the model does."""
    rng = np.random.default_rng(1)
    requests = [" ".join(rng.choice(WORDS, 4)) for _ in range(21)]
    task = planted.word_task({"train": requests[1:], "test": requests[:1]}, "w40", tiny_tokenizer())
    return [planted.answer_as_base(task, model)] * count
