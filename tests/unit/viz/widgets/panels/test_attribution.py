"""The panel "Attribution": its numbers are the result's, and a kernel answers as models without the modules do."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

import tlora
import viz
from tests.helpers.foreign import foreign
from tests.helpers.jobs import task
from tests.helpers.results import attribution, base, calibration, subspaces
from tests.helpers.tokenizers import letters_tokenizer
from viz.widgets.panels.attribution import AttributionPanel
from viz.widgets.panels.panel import Context
from viz.widgets.results import Results


def bench(**options: Any) -> viz.Workbench:
    return viz.Workbench(calibration(), subspaces(), attribution=attribution(), rank=2, **options)


@pytest.fixture(scope="module")
def live() -> viz.Workbench:
    return bench(adapted=foreign(copy.deepcopy(base())), task=task())


def part() -> dict[str, Any]:
    return AttributionPanel(Context(Results(attribution=attribution()))).parts()[0]


def ask(it: viz.Workbench, call: str, **args: Any) -> dict[str, Any]:
    it._answer(it.widget, {"call": call, "args": args, "id": 1}, [])
    assert not it.widget.current.get("message")
    found: dict[str, Any] = it.widget.switched
    return found


def test_tokens_and_modules_have_the_values_of_the_result() -> None:
    found, shown = attribution(), part()
    assert [shown["columns"][at] for at in shown["column"]] == [target.layer for target in found.targets.values()]
    assert [shown["rows"][at] for at in shown["row"]] == [target.projection for target in found.targets.values()]
    for number, (sample, one) in enumerate(zip(shown["samples"], found.samples, strict=True)):
        tokens = found.tokens().query(f"sample == {number}")
        assert [sample["tokens"][place] for place in sample["positions"]] == tokens["token"].tolist()
        rise = np.array(sample["adapter"][0]) - np.array(sample["base"][0])
        np.testing.assert_allclose(rise, tokens["rise"], atol=1e-5)
        np.testing.assert_allclose(sample["modules"], one.by_module, rtol=0.01, atol=1e-6)
    json.dumps(shown)


def test_stored_switches_cost_what_the_table_says() -> None:
    found, shown = attribution(), part()
    costs = found.costs().set_index("left_out")["cost"]
    by_layer = ",".join(f"{k}:0" for k, target in enumerate(found.targets.values()) if target.layer == 1)
    for label, key in {"layer 1": by_layer, found.names[0]: "0:0"}.items():
        lost = [sum(sample["adapter"][0]) - sum(sample["switched"][key]["values"][0]) for sample in shown["samples"]]
        assert np.mean(lost) == pytest.approx(costs[label], abs=1e-4)


def test_the_kernel_switches_off_what_was_not_stored(live: viz.Workbench) -> None:
    names, whole = attribution().names, live.adapted
    pair = [names[0], names[3]]
    found = ask(live, "switch", sample=1, ranks=[[0, 0], [3, 0]])
    expected = tlora.attribute(whole, task(), limit=2, points=1, answers=False, progress=False).samples[1]
    without = copy.deepcopy(whole)
    for name in pair:
        without.get_base_model().get_submodule(name).lora_B["default"].weight.data.zero_()
    left = tlora.attribute(without, task(), limit=2, points=1, answers=False, progress=False).samples[1]
    np.testing.assert_allclose(found["values"], left.adapter, rtol=1e-5, atol=1e-5)
    assert found["key"] == "0:0,3:0"
    assert found["choices"] == left.choices[1]
    assert found["unchanged"] == [a == b for a, b in zip(left.choices[1], expected.choices[1], strict=True)]
    shown: list[dict[str, Any]] = []
    live.widget.observe(lambda change: shown.append(change["new"]), "switched")
    answer = ask(live, "regenerate", sample=1, ranks=[[0, 0], [3, 0]])["answer"]
    assert answer == task().predict(without, limit=2)["prediction"][1]
    assert {"sample", "key", "bar"} == set(shown[0])
    assert shown[0]["key"] == found["key"]
    assert "answer" in shown[-1]


def test_the_kernel_cuts_a_module_as_attribute_does(live: viz.Workbench) -> None:
    name = attribution().names[1]
    found = ask(live, "switch", sample=0, ranks=[[1, 1]])
    options: dict[str, Any] = {"switch_off": [(name, 1)], "calibration": calibration()}
    cut = tlora.attribute(live.adapted, task(), limit=2, points=1, answers=False, progress=False, **options)
    np.testing.assert_allclose(found["values"], cut.samples[0].switched[f"{name} rank 1"], rtol=1e-5, atol=1e-5)


def test_a_request_of_ones_own_is_taken_apart(live: viz.Workbench) -> None:
    bars: list[Any] = []
    ended = threading.Event()

    def note(change: Any) -> None:
        bars.append(change["new"].get("bar"))
        if not change["new"]["running"]:
            ended.set()

    live.widget.observe(note, "explaining")
    ask(live, "explain", prompt="w4 w9", answer="w7")
    assert ended.wait(60)
    live.widget.unobserve_all("explaining")
    stages = list(dict.fromkeys(bar["words"].split(",")[0] for bar in bars if bar))
    assert stages[0] == ""  # at once
    assert stages[-4:] == ["attribution", "answers of the base", "answers of the adapter", "leaving modules out"]
    assert bars[-1] is None
    found = tlora.attribute(live.adapted, "w4 w9", "w7", tokenizer=task().tokenizer, points=8, progress=False)
    (expected,), (shown,) = found.samples, live.widget.explained["samples"]
    assert live.widget.explaining["said"] == found.sentence
    assert not live.widget.explaining["running"]
    np.testing.assert_allclose(shown["adapter"], expected.adapter, rtol=1e-5, atol=1e-6)
    found = ask(live, "switch", sample=2, ranks=[[k, 0] for k in range(len(attribution().names))])
    np.testing.assert_allclose(found["values"], expected.base, rtol=1e-4, atol=1e-5)


def test_the_tokens_that_the_model_wrote_are_switched() -> None:
    """Its text would be read as other tokens; also if the answers are of another task than the workbench's."""
    tokenizer, adapted = letters_tokenizer(), foreign(copy.deepcopy(base()))
    said = tlora.attribute(adapted, "abc", tokenizer=tokenizer, points=2, progress=False)
    rows = {"test": Dataset.from_dict({"prompt": ["ab"], "completion": ["c"]})}
    it = viz.Workbench(calibration(), attribution=said, adapted=adapted, task=tlora.load_task(rows, tokenizer), rank=2)
    found = ask(it, "switch", sample=0, ranks=[])
    np.testing.assert_allclose(found["values"], said.samples[0].adapter, rtol=1e-5, atol=1e-5)


def test_the_map_has_a_tab_of_shares_of_the_gain() -> None:
    (tab,) = [tab for tab in bench().widget.about["tabs"] if tab["name"] == "contribution"]
    shown = dict(zip(calibration().names, tab["values"], strict=True))
    assert {name for name, value in shown.items() if value is not None} == set(attribution().names)
    means = attribution().contributions().mean(0) / attribution().rise
    assert [shown[name] for name in attribution().names] == pytest.approx(means, rel=0.01)


def test_the_text_of_samples_is_in_a_page_only_if_asked_for(tmp_path: Path) -> None:
    it, prompt = bench(), attribution().samples[0].prompt
    assert prompt not in it.page(tmp_path / "plain.html").read_text()
    assert prompt in it.page(tmp_path / "texts.html", texts=True).read_text()


def test_a_session_keeps_the_attribution(tmp_path: Path) -> None:
    again = viz.Workbench.load(bench().save(tmp_path / "session"))
    assert again.results.attribution.sentence == attribution().sentence


@pytest.mark.parametrize("parts", [{"task": task()}, {"attribution": attribution()}])
def test_an_adapted_model_needs_the_answers_that_it_explains(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="attribution="):
        viz.Workbench(calibration(), adapted=foreign(copy.deepcopy(base())), **parts)


def test_the_attribution_of_another_adapter_is_refused() -> None:
    other = tlora.attach(
        copy.deepcopy(base()), None, tlora.allocate(calibration().sensitivity, rank=2, exclude_modules=[0])
    )
    it = bench(adapted=other, task=task())
    it._answer(it.widget, {"call": "switch", "args": {"sample": 0, "ranks": []}, "id": 1}, [])
    assert "adapted=" in it.widget.current["message"]
