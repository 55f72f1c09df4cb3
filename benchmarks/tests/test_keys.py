"""Keys of runs: the code makes those that the stores hold, so that no stored run is ever repeated."""

import json

import pytest

from benchmarks.lab.methods import METHODS, choose_method
from benchmarks.lab.run import Condition, Settings
from benchmarks.quality import directions, pilot, study
from benchmarks.tests.helpers import RANK


def methods_by_name(*methods):
    """The methods of a study, and all others under their names."""
    return METHODS | {method.name: method for method in map(choose_method, methods)}


STUDIES = {
    pilot.STORE: methods_by_name(*(method for part in pilot.PARTS.values() for method in part.methods)),
    study.STORE: methods_by_name(
        *(arm.method for arms in (study.ARMS, study.FEWER, study.NEIGHBOURS, study.ALONE) for arm in arms.values())
    ),
    directions.STORE: methods_by_name(*(arm.method for arm in (*directions.ARMS.values(), directions.PAPER))),
}
FORMER = {arm.name for arm in study.FORMER.values()} | {"frozen g_whitened, 1", "frozen g_whitened, 0"}
"""Methods with runs in the stores and without code."""


@pytest.mark.parametrize("store", STUDIES, ids=lambda path: path.stem)
def test_every_stored_run_of_this_protocol_is_recognized(store):
    keys = [json.loads(line)["key"] for line in store.read_text().splitlines()]
    for key in (key for key in keys if key["method"] not in FORMER):
        settings = Settings(
            key["model"], key["steps"], key["batch_size"], key["samples"], forgetting=key.get("forgetting", {})
        )
        method, contents = STUDIES[store][key["method"]], key.get("contents", {})
        condition = Condition(settings, key["task"], key["data"], method, key["rank"], contents)
        assert condition.key(key["learning_rate"], key["seed"], key["split"]) == key


def test_target_modules_are_part_of_a_key_if_they_are_not_all():
    plain = Condition(Settings("llama", 6, 4, 12), "pairs", {}, METHODS["lora"], RANK).shared_key()
    narrow = Settings("llama", 6, 4, 12, target_modules="mlp")
    assert Condition(narrow, "pairs", {}, METHODS["lora"], RANK).shared_key() == plain | {"target_modules": "mlp"}
