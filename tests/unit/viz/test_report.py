"""The report: the workbench's page of an adapter's folder, which needs nothing else."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from tests.helpers.reported import page_data, panel_names, results_of, save
from viz import report


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    return results_of("2 layers")


def test_the_page_begins_with_the_allocation_of_the_folder(small, tmp_path) -> None:
    edited = small["allocation"].edit({"layers.0.k_proj": 3})
    folder = save(small | {"allocation": edited}, tmp_path / "adapter")
    data = page_data(report(folder))
    assert data["current"]["ranks"] == [edited.ranks.get(name, 0) for name in edited.names]
    assert ".edit(" in data["current"]["code"]
    names = panel_names(folder / "report.html")
    assert {"data", "spectra", "sensitivity", "allocation", "training", "rank-use", "reproduce"} <= set(names)
    assert not {"capture", "reads", "attribution", "effects"} & set(names)
    assert [tab["name"] for tab in data["about"]["tabs"]][-3:] == ["effective", "update", "used"]


def test_a_folder_without_sensitivity_or_allocation_has_a_page(small, tmp_path) -> None:
    """Plain LoRA without a calibration has an allocation alone; ``run.save`` writes not even that."""
    plain = report(save({name: small[name] for name in ("run", "allocation")}, tmp_path / "a"))
    assert {"data", "allocation", "training", "rank-use", "reproduce"} <= set(panel_names(plain))
    assert not {"spectra", "sensitivity"} & set(panel_names(plain))
    assert page_data(plain)["current"]["ranks"] == list(small["allocation"].ranks.values())
    alone = report(save({"run": small["run"]}, tmp_path / "b"))
    assert panel_names(alone) == ["data", "training", "rank-use", "reproduce"]
    assert page_data(alone)["about"]["names"] == []


def test_nothing_is_fetched(small, tmp_path) -> None:
    text = report(save(small, tmp_path / "adapter")).read_text()
    assert not re.findall(
        r"src=[\"']|<link|@import|fetch\(|url\(|https?://(?!www\.w3\.org/2000/svg|arxiv\.org/abs)", text
    )


@pytest.mark.parametrize("name", ["<script>alert(\"1\")</script> & 'co' <img src=x onerror=y>", "${DATA} $TITLE $$"])
def test_a_name_is_text_wherever_it_stands(small, tmp_path, name) -> None:
    metas = {n: dataclasses.replace(r.meta, task=name, model=name) for n, r in small.items()}
    named = {n: dataclasses.replace(r, meta=metas[n]) for n, r in small.items()}
    path = report(save(named, tmp_path / "adapter"))
    assert dict(page_data(path)["about"]["panels"][0]["parts"][0]["rows"])["task"] == name
    text = path.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert text.count("<script") == text.count("</script>") == 1


def test_it_is_written_into_the_folder_or_to_a_file(small, tmp_path) -> None:
    folder = save(small, tmp_path / "adapter")
    assert report(folder) == folder / "report.html"
    first = (folder / "report.html").read_bytes()
    assert report(str(folder), tmp_path / "new.html").read_bytes() == first
    assert str(tmp_path) not in first.decode()


@pytest.mark.parametrize(
    ("prepare", "output", "error", "words"),
    [
        (lambda folder: None, None, FileNotFoundError, "tlora run"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), None, FileNotFoundError, "allocation.save"),
        (lambda folder: save(results_of(), folder), "page.txt", ValueError, "page.txt"),
    ],
)
def test_refusals(prepare, output, error, words, tmp_path) -> None:
    prepare(tmp_path)
    with pytest.raises(error, match=re.escape(words)):
        report(tmp_path, output)
