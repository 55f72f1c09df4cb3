"""The panel "Answers": its rows are the result's, alone, in a workbench, in a session and in a notebook."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

import viz
from tests.helpers.reported import page_data, panel_names
from tests.helpers.results import answer_table, calibration, many_answers
from tests.helpers.shells import Shell
from viz.widgets import show as module
from viz.widgets.panels.answer_table import AnswerTablePanel
from viz.widgets.panels.panel import Context
from viz.widgets.results import Results


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
        for name in ("request", "base", "adapter", "changed", "gain"):
            assert row[name] == expected[name]
        for name in ("reference", "base_right", "adapter_right"):
            assert row[name] == (None if pd.isna(expected[name]) else expected[name])


def test_a_row_that_was_taken_apart_has_its_tokens_and_its_largest_modules() -> None:
    table = answer_table()
    apart = {row["row"]: row["apart"] for row in part(table)["rows"]}
    assert [n for n, row in apart.items() if row] == table.explained == [1]
    tokens, modules = apart[1]["tokens"], apart[1]["modules"]
    assert sum(gain for _, gain in tokens) == pytest.approx(table.answers[1].gain, rel=0.01)
    assert "".join(token for token, _ in tokens).split()[:1] == table.answers[1].reference.split()[:1]
    largest = table.attribution.largest(5)
    places = [f"layer {row.layer} {row.projection}" for row in largest.itertuples()]
    assert [place for place, _ in modules] == places
    assert [value for _, value in modules] == pytest.approx(largest["contribution"].tolist(), rel=1e-3)


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
