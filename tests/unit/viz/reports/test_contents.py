"""The report: its numbers are those of the results, worked out another way."""

import dataclasses
import re

import numpy as np
import pytest

from tests.helpers.reported import Page, walked
from tlora.allocation.allocate import allocate
from viz import report
from viz.reports import formatting

SECTIONS = ["data", "spectra", "alignment", "sensitivity", "allocation", "training", "rank-use", "reproduce"]


def value(text: str) -> float:
    """The number that a cell shows: percent as a share, thousands and units taken off."""
    number = re.match(r"[-\u2212+]?[\d,.]+(e[-\u2212]?\d+)?", text)[0]
    parsed = float(number.replace("\u2212", "-").replace(",", ""))
    return parsed / 100 if "%" in text else parsed


def facts(page, section, caption):
    return {row[0]: row[1] for row in page.table(section, caption)}


def test_ranks_by_layer_and_projection(page, small):
    allocation = small["allocation"]
    head, *rows = page.table("allocation", "Ranks by layer and projection")
    shown = {
        (int(row[0]), projection): int(rank) for row in rows for projection, rank in zip(head[1:], row[1:], strict=True)
    }
    assert shown == {(allocation.layers[n], allocation.projections[n]): rank for n, rank in allocation.ranks.items()}


def test_allocation_by_projection(page, small):
    allocation = small["allocation"]
    _, *rows = page.table("allocation", "By projection")
    for projection, modules, total, uniform, least, mean, most, scaling, parameters in rows:
        names = [n for n, p in allocation.projections.items() if p == projection]
        ranks = [allocation.ranks[n] for n in names]
        assert [value(c) for c in (modules, total, uniform, least, most)] == [
            len(names), sum(ranks), 8 * len(names), min(ranks), max(ranks),
        ]  # fmt: skip
        assert value(mean) == pytest.approx(np.mean(ranks), rel=0.05)
        assert value(scaling) == pytest.approx(np.mean([allocation.scalings[n] for n in names]), rel=0.05)
        assert value(parameters) == sum(allocation.ranks[n] * allocation.shapes[n][0] for n in names)
    assert len(rows) == 7


def test_uniform_ranks_of_a_allocation_with_excluded_modules_are_its_budget(small, tmp_path):
    allocation = allocate(small["sensitivity"], rank=8, exclude_modules=["up_proj", "layers.0.q_proj"])
    page = Page(report(allocation, tmp_path / "page.html").read_text(encoding="utf-8"))
    _, *rows = page.table("allocation", "By projection")
    found = {row[0]: row[1:] for row in rows}
    assert [value(cell) for cell in found["q_proj"][:3]] == [1, allocation.ranks["layers.1.q_proj"], 16]
    assert found["up_proj"] == ["0", "0", "16", *["\u2013"] * 4, "0"]
    assert sum(value(row[3]) for row in rows) == allocation.budget_total
    assert sum(value(row[2]) for row in rows) == allocation.budget_used
    assert len(rows) == 7


def test_beside_uniform_lora(page, small):
    allocation = small["allocation"]
    b = sum(allocation.ranks[n] * d_out for n, (d_out, _) in allocation.shapes.items())
    a = sum(allocation.ranks[n] * d_in for n, (_, d_in) in allocation.shapes.items())
    lora = sum(8 * (d_in + d_out) for d_out, d_in in allocation.shapes.values())
    _, *rows = page.table("allocation", "Beside uniform LoRA")
    cells = {row[0]: row[1:] for row in rows}
    assert cells["trainable parameters"][:2] == [f"{b:,}", f"{lora:,}"]
    assert cells["parameters in all"][:2] == [f"{a + b:,}", f"{lora:,}"]
    assert value(cells["trainable parameters"][2]) == pytest.approx(b / lora, abs=0.006)
    for row, ours, theirs in (
        ("adapter, float32", 4 * (a + b), 4 * lora),
        ("optimiser state of AdamW", 8 * b, 8 * lora),
    ):
        assert [cell.split()[1] for cell in cells[row][:2]] == ["kB", "kB"]
        assert [1000 * value(cell) for cell in cells[row][:2]] == pytest.approx([ours, theirs], rel=0.005)


def test_sensitivity_with_intervals(page, small):
    scores = small["sensitivity"]
    intervals = scores.intervals().set_index("module")
    total = scores.per_sample.double().mean(0).sum().item()
    _, *rows = page.table("sensitivity", "The 14 most sensitive of 14 modules")
    assert len(rows) == 14
    order = sorted(scores.scores, key=scores.scores.get, reverse=True)
    for name, (place, score, interval, share) in zip(order, rows, strict=True):
        assert place == f"layer {scores.layers[name]} {scores.projections[name]}"
        assert value(score) == pytest.approx(scores.scores[name], rel=0.05)
        low, high = interval.split(" to ")
        assert value(low) == pytest.approx(intervals.loc[name, "low"], rel=0.05)
        assert value(high) == pytest.approx(intervals.loc[name, "high"], rel=0.05)
        assert value(share) == pytest.approx(scores.scores[name] / total, rel=0.06)


def test_bars_stand_where_their_numbers_are(page, small):
    scores = small["sensitivity"]
    intervals = scores.intervals()
    table = next(t for t in page.section("sensitivity").all("table") if "most sensitive" in t.text)
    row = intervals.loc[intervals["score"].idxmax()]
    band, point = table.all("tbody")[0].all("tr")[0].all("i")[0], table.all("b")[0]
    left, width = (float(x) for x in re.findall(r"(?:left|width):([\d.]+)%", band.attributes["style"]))
    furthest = intervals["high"].max()
    assert [left, left + width] == pytest.approx([100 * row["low"] / furthest, 100 * row["high"] / furthest], abs=0.11)
    assert float(re.search(r"left:([\d.]+)%", point.attributes["style"])[1]) == pytest.approx(
        100 * row["score"] / furthest, abs=0.06
    )


def test_spectra(page, small):
    frame = small["spectrum"].to_frame()
    _, *rows = page.table("spectra", "All 14 modules")
    for (name, dimension, rank, r90, r99, top), row in zip(rows, frame.itertuples(), strict=True):
        values = np.sort(small["spectrum"].eigenvalues[name].double().numpy())[::-1]
        shares = values / values.sum()
        assert name == row.module
        assert value(dimension) == 40
        assert value(rank) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=0.05)
        assert value(r90) == np.searchsorted(shares.cumsum(), 0.9) + 1
        assert value(r99) == np.searchsorted(shares.cumsum(), 0.99) + 1
        assert value(top) == pytest.approx(shares[0], rel=0.05)


def test_training(page, small):
    run = small["run"]
    _, *rows = page.table("training", "Before and after, on test samples")
    assert rows == [
        ["loss", "3.21", "1.19", "\u22122.02"],
        ["perplexity", "24.8", "3.29", "\u221221.51"],
        ["exact match", "2.0 %", "41.5 %", "+39.5 points"],
    ]
    told = facts(page, "training", "Circumstances")
    assert told["optimiser steps"] == "20"
    assert told["time"] == "7 min"
    assert told["trained parameters"] == f"{run.trainable_parameters:,}"
    assert told["learning rate"] == "0.001"
    head, *rows = page.table("training", "History")
    assert [int(row[0]) for row in rows] == run.history["step"].tolist()
    losses = [value(row[head.index("loss, nats")]) for row in rows]
    assert losses == pytest.approx(run.history["loss"].tolist(), rel=0.05)
    assert [row[head.index("validation loss")] == "\u2013" for row in rows] == run.history["eval_loss"].isna().tolist()


def test_metrics_are_of_the_split_that_was_evaluated(small, tmp_path):
    run = small["run"]
    meta = dataclasses.replace(run.meta, recipe=run.meta.recipe | {"evaluated_on": "validation"})
    page = report([dataclasses.replace(run, meta=meta)], tmp_path / "page.html").read_text(encoding="utf-8")
    assert Page(page).table("training", "Before and after, on validation samples")
    assert "Validation loss 3.21" in page
    assert "test samples" not in page
    assert "Test loss" not in page


def test_rank_use(page, small):
    """Against a full SVD of ``s B A``."""
    run = small["run"]
    _, *rows = page.table("rank-use", "All 14 modules")
    used = {}
    for name, rank, needed, share, effective, norm in rows:
        a, b = (run.adapter[f"base_model.model.{name}.lora_{part}.weight"].double().numpy() for part in "AB")
        squares = np.linalg.svd(run.scalings[name] * b @ a, compute_uv=False) ** 2
        used[name] = int((squares.cumsum() < 0.99 * squares.sum()).sum()) + 1
        assert (value(rank), value(needed)) == (run.ranks[name], used[name])
        assert value(share) == pytest.approx(used[name] / run.ranks[name], rel=0.06)
        assert value(effective) == pytest.approx(squares.sum() ** 2 / (squares**2).sum(), rel=0.05)
        assert value(norm) == pytest.approx(np.sqrt(squares.sum()), rel=0.05)
    given, total = sum(run.ranks.values()), sum(used.values())
    assert total < given
    assert any(f"{total} of {given} ranks are used" in e.attributes["alt"] for e in page.section("rank-use").all("img"))
    full = sum(used[n] == run.ranks[n] for n in used)
    assert f"{full} of 14 modules use all of their rank." in page.section("rank-use").text


def test_tiles_sum_it_up(page, small):
    allocation = small["allocation"]
    tiles = {
        div.all("dt")[0].text: (div.all("strong")[0].text, div.all("span")[0].text)
        for div in page.all("dl")[0].all("div")
    }
    assert tiles["exact match"] == ("41.5 %", "2.0 % before training")
    assert tiles["trainable parameters"][0] == f"{allocation.trainable_parameters:,}"
    assert tiles["ranks"] == (
        f"{min(allocation.ranks.values())} to {max(allocation.ranks.values())}",
        "instead of 8 everywhere",
    )


def test_the_tile_of_equal_ranks_is_no_span(small, tmp_path):
    allocation = allocate(small["sensitivity"], rank=8, adapt_ranks=False)
    page = Page(report(allocation, tmp_path / "page.html").read_text(encoding="utf-8"))
    tiles = [(div.all("dt")[0].text, div.all("strong")[0].text) for div in page.all("dl")[0].all("div")]
    assert ("rank", "8") in tiles
    assert "14 modules with rank 8, " in repr(allocation)


def test_alignment_and_gradient(real):
    found = walked()
    overlaps = found["alignment"].to_frame().groupby("projection")["overlap"].mean()
    _, *rows = real.table("alignment", "Overlap of wc and random at rank 3")
    assert {row[0]: value(row[1]) for row in rows} == pytest.approx(overlaps.to_dict(), rel=0.06)
    for caption, result in (("Gradient captured, 2 held-out samples", "capture"),):
        _, *rows = real.table("alignment", caption)
        table = found[result].overall()
        assert [(row[0], int(row[1])) for row in rows] == list(zip(table["kind"], table["rank"], strict=True))
        for row, wanted in zip(rows, table.itertuples(), strict=True):
            assert value(row[2]) == pytest.approx(wanted.captured, rel=0.06)
            assert [value(end) for end in row[3].split(" to ")] == pytest.approx([wanted.low, wanted.high], rel=0.06)
    assert len(real.section("alignment").all("img")) == 2


def test_all_sections_of_a_whole_walk_in_their_order(real):
    assert [e.attributes["id"] for e in real.all("section")] == SECTIONS
    allocation = walked()["allocation"]
    edited = next(iter(allocation.edits))
    assert facts(real, "allocation", "Ranks set by hand") == {edited: str(allocation.edits[edited])}
    assert facts(real, "allocation", "What was asked for")["left out"] == "1 excluded"
    assert facts(real, "data", "Model and data")["calibration"] == "4 samples"


def test_tiles_of_a_run_on_bare_rows(real):
    run = walked()["run"]
    assert real.all("dt")[0].text == "train loss"
    assert value(real.all("strong")[0].text) == pytest.approx(run.after["train_loss"], rel=1e-3)
    assert real.table("training", "Before and after, on training samples")


def test_a_metric_is_a_share_in_all_places_or_in_none():
    """0.8 tokens were 80 % where 3.2 stood beside them."""
    assert [formatting.metric("mean_length", 0.8, 3.2), formatting.metric("mean_length", 3.2, 0.8)] == ["0.8", "3.2"]
    assert formatting.metric("accuracy", 0.8, 0.9) == formatting.metric("accuracy", 0.8) == "80.0\u00a0%"
