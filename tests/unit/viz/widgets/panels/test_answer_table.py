"""The panel "Answers": its rows are the result's, alone, in a workbench, in a session and in a notebook."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tlora
import viz
from tests.helpers.foreign import foreign
from tests.helpers.jobs import task
from tests.helpers.reported import page_data, panel_names
from tests.helpers.results import answer_table, base, calibration, many_answers
from tests.helpers.shells import Shell
from viz.widgets import show as module
from viz.widgets.panels.answer_table import AnswerTablePanel
from viz.widgets.panels.panel import Context
from viz.widgets.results import Results
from viz.widgets.show import ResultView


def part(table: Any) -> dict[str, Any]:
    (found,) = AnswerTablePanel(Context(Results(answers=table))).parts()
    return json.loads(json.dumps(found))


def test_rows_are_those_of_the_table_in_the_order_to_read_them() -> None:
    table, frame = many_answers(), many_answers().to_frame()
    shown = part(table)
    assert shown["sentence"] == f"{table.headline}."
    numbers = [row["row"] for row in shown["rows"]]
    assert numbers == [1, 9, 0, 4, 8, 2, 3, 5, 6, 7, 10, 11]  # newly wrong, newly right, changed; 0 is not changed
    for row in shown["rows"]:
        expected = frame.loc[row["row"]]
        for name in ("request", "changed", "gain"):
            assert row[name] == expected[name]
        for name in ("base", "adapter"):
            assert row[name] == expected[name] + ("…" if expected[f"{name}_cut"] else "")
        for name in ("reference", "base_right", "adapter_right"):
            assert row[name] == (None if pd.isna(expected[name]) else expected[name])


def test_a_row_that_was_taken_apart_has_its_tokens_and_its_largest_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    table, shown = answer_table(), 2
    monkeypatch.setattr("viz.widgets.panels.answers.MODULES", shown)
    apart = {row["row"]: row["apart"] for row in part(table)["rows"]}
    assert [n for n, row in apart.items() if row] == table.explained == [1]
    tokens, modules = apart[1]["tokens"], apart[1]["modules"]
    assert sum(gain for _, gain in tokens) == pytest.approx(table.answers[1].gain, rel=0.01)
    assert "".join(token for token, _ in tokens).split()[:1] == table.answers[1].reference.split()[:1]
    largest = table.attribution.largest(shown)
    places = [f"layer {row.layer} {row.projection}" for row in largest.itertuples()]
    others = len(table.attribution.targets) - shown
    assert [place for place, _ in modules] == [*places, f"{others} others together"]
    values = [value for _, value in modules]
    assert values[:-1] == pytest.approx(largest["contribution"].tolist(), rel=1e-3)
    assert sum(values) == pytest.approx(table.attribution.contributions().sum().item(), rel=1e-2)


def test_a_page_on_it_alone_and_a_session(tmp_path) -> None:
    table = answer_table()
    bare = replace(table, explained=[], attribution=None)
    assert panel_names(viz.report(table, tmp_path / "page.html")) == ["answers", "attribution"]
    assert panel_names(viz.report(bare, tmp_path / "bare.html")) == ["answers"]
    bench = viz.Workbench(calibration(), answers=table, rank=2)
    assert {"answers", "attribution"} <= {panel["name"] for panel in bench.widget.about["panels"]}
    again = viz.Workbench.load(bench.save(tmp_path / "session"))
    assert again.widget.about["panels"] == bench.widget.about["panels"]
    request = table.answers[2].request
    for texts in (False, True):
        panels = page_data(bench.page(tmp_path / "a.html", texts=texts))["about"]["panels"]
        assert (request in json.dumps(panels)) == texts


def test_a_notebook_shows_the_panel_and_stores_the_table(monkeypatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(module, "display", shown.append)
    table = many_answers()
    viz.show(table)
    (view,) = shown
    assert view.about["names"] == []
    assert view.about["panels"][0]["parts"] == [AnswerTablePanel(Context(Results(answers=table))).parts()[0]]
    for is_front_end in (False, True):
        monkeypatch.setattr(
            "IPython.get_ipython", lambda is_front_end=is_front_end: Shell({"allow_stdin": is_front_end})
        )
        data, _ = view._repr_mimebundle_()
        assert (data["text/html"], data["text/plain"]) == (table._repr_html_(), repr(table))
        assert ("application/vnd.jupyter.widget-view+json" in data) == is_front_end
    view.close()


def adapted() -> Any:
    return foreign(copy.deepcopy(base()))


@contextmanager
def followed(view: Any, *, stop_at: str = "", refusals: Any = None) -> Iterator[list[dict[str, Any]]]:
    """How the answer stands that is taken apart in the block, to its end.

    Once a bar says ``stop_at`` another row is asked for, which is refused, and it is stopped.
    """
    states: list[dict[str, Any]] = []
    ended = threading.Event()

    def note(change: Any) -> None:
        states.append(change["new"])
        if stop_at and stop_at in change["new"].get("bar", {}).get("words", ""):
            refusals.append(ask(view, "explain_row", row=3))
            ask(view, "stop_explaining")
        if not change["new"]["running"]:
            ended.set()

    view.observe(note, "explaining")
    yield states
    assert ended.wait(300)
    view.unobserve_all("explaining")


def ask(view: Any, call: str, **args: Any) -> str:
    view._answer(view, {"call": call, "args": args, "id": 1}, [])
    return str(view.current["message"])


def test_a_row_is_taken_apart_as_if_it_had_been_named_before() -> None:
    """Its tokens, its modules and its switches are those of a table that was made with ``explain=``."""
    model = adapted()
    table, named = (
        tlora.compare_answers(model, task(), limit=3, explain=explain, progress=False) for explain in ([], [1])
    )
    view = ResultView(table, model, task())
    assert view.about["live"]
    with followed(view) as states:
        assert ask(view, "explain_row", row=1) == ""
    assert [states[0]["row"], states[0]["running"], states[-1]["running"]] == [1, True, False]
    assert any("row 1 apart, about" in state["said"] for state in states)  # before the work begins
    assert {"timing one point", "attribution"} <= {state["bar"]["words"].split(",")[0] for state in states[:-1]}
    (row,) = view.explained["rows"]
    (before,) = [one for one in part(named)["rows"] if one["row"] == 1]
    for name in ("request", "base", "adapter", "reference", "base_right", "adapter_right", "changed", "gain"):
        assert row[name] == before[name]
    assert [token for token, _ in row["apart"]["tokens"]] == [token for token, _ in before["apart"]["tokens"]]
    for name in ("tokens", "modules"):
        left, right = ([value for _, value in one["apart"][name]] for one in (row, before))
        assert left == pytest.approx(right, rel=0.02)
    json.dumps(view.explained)
    view.close()


def test_rows_without_a_reference_and_requests_of_a_table_are_taken_apart() -> None:
    """What the adapter answers is then explained; a table of requests needs only the tokenizer of the task."""
    model = adapted()
    table = tlora.compare_answers(model, ["w4 w9"], tokenizer=task().tokenizer, progress=False)
    view = ResultView(table, model, task())
    with followed(view):
        ask(view, "explain_row", row=0)
    (row,), (sample,) = view.explained["rows"], view.explained["samples"]
    assert sum(gain for _, gain in row["apart"]["tokens"]) == pytest.approx(table.answers[0].gain, rel=1e-3)
    assert sample["generated"] == [table.answers[0].base, table.answers[0].adapter]
    view.close()


def test_a_request_of_the_readers_own_becomes_a_row_of_a_page_too(tmp_path) -> None:
    model = adapted()
    bench = viz.Workbench(calibration(), answers=many_answers(), adapted=model, task=task(), rank=2)
    view = bench.widget
    with followed(view):
        bench._answer(view, {"call": "explain", "args": {"prompt": "w4 w9", "answer": "w7"}, "id": 1}, [])
    (row,) = view.explained["rows"]
    expected = tlora.attribute(model, "w4 w9", "w7", tokenizer=task().tokenizer, progress=False).samples[0]
    assert (row["row"], row["request"], row["reference"]) == (-1, "w4 w9", "w7")
    assert [row["base"], row["adapter"]] == expected.generated
    assert row["gain"] == pytest.approx(float(np.sum((expected.adapter - expected.base)[0].numpy())), rel=1e-3)
    assert page_data(bench.page(tmp_path / "a.html", texts=True))["explained"] == json.loads(json.dumps(view.explained))
    assert "explained" not in page_data(bench.page(tmp_path / "b.html"))


def test_it_can_be_stopped_and_a_second_one_waits() -> None:
    model = adapted()
    view = ResultView(tlora.compare_answers(model, task(), limit=4, progress=False), model, task())
    refusals: list[str] = []
    with followed(view, stop_at="attribution", refusals=refusals) as states:
        ask(view, "explain_row", row=2)
    assert states[-1]["said"] == "Stopped."
    assert refusals[0].startswith("An answer is being taken apart already")
    assert view.explained == {}
    with followed(view):
        assert ask(view, "explain_row", row=3) == ""
    assert [row["row"] for row in view.explained["rows"]] == [3]
    view.close()


def test_without_the_model_nothing_is_asked() -> None:
    view = ResultView(many_answers())
    assert not view.about["live"]
    assert not view.about["panels"][0]["parts"][0]["live"]
    view.close()
    with pytest.raises(ValueError, match="task="):
        ResultView(many_answers(), adapted())
