"""What the panels show equals the results, worked out another way."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tlora
from tests.helpers import results as walked
from tests.helpers.pictured import gradient_capture
from tests.helpers.reported import results_of, run_of
from viz.widgets.modules import captured_curves, curves_by_rank, spectra
from viz.widgets.panels.alignment import align_pairs, pair_values
from viz.widgets.panels.allocation import AllocationPanel, by_projection, training_bytes
from viz.widgets.panels.capture import CapturePanel
from viz.widgets.panels.data import DataPanel
from viz.widgets.panels.panel import Context, Panel
from viz.widgets.panels.parts import Part
from viz.widgets.panels.rank_use import RankUsePanel
from viz.widgets.panels.registry import make_panels, panel_values
from viz.widgets.panels.sensitivity import SensitivityPanel
from viz.widgets.panels.spectra import SpectraPanel
from viz.widgets.panels.training import TrainingPanel, metric
from viz.widgets.results import Results

SMALL = Results(**results_of("2 layers"))


def value(text: str) -> float:
    """The number that a cell shows: percent as a share, commas and units taken off."""
    number = re.match(r"[-\u2212+]?[\d,.]+(e[-\u2212]?\d+)?", text)[0]
    parsed = float(number.replace("\u2212", "-").replace(",", ""))
    return parsed / 100 if "%" in text else parsed


def parts_of(panel: type[Panel], results: Results = SMALL) -> list[Part]:
    return panel(Context(results)).parts()


def rows(parts: list[Part], caption: str) -> list[list[str]]:
    """The rows of the table whose caption begins so."""
    (part,) = [part for part in parts if part.get("caption", "").startswith(caption)]
    return part["rows"]


def changed(**changes: Any) -> Results:
    return dataclasses.replace(SMALL, run=dataclasses.replace(SMALL.run, **changes))


def test_ranks_by_projection_are_sums_over_the_modules() -> None:
    allocation = SMALL.allocation
    cells = by_projection(allocation)["rows"]
    for projection, modules, total, uniform, least, mean, most, scaling, parameters in cells:
        names = [name for name, p in allocation.projections.items() if p == projection]
        ranks = [allocation.ranks[name] for name in names]
        assert [value(c) for c in (modules, total, uniform, least, most)] == [
            len(names), sum(ranks), 8 * len(names), min(ranks), max(ranks),
        ]  # fmt: skip
        assert value(mean) == pytest.approx(np.mean(ranks), rel=0.05)
        assert value(scaling) == pytest.approx(np.mean([allocation.scalings[name] for name in names]), rel=0.05)
        assert value(parameters) == sum(allocation.ranks[name] * allocation.shapes[name][0] for name in names)
    assert len(cells) == 7


def test_an_allocation_that_was_not_trained_is_named() -> None:
    other = SMALL.allocation.edit({SMALL.allocation.names[0]: 1})
    words = "not the allocation of the adapter that was trained"
    panel = AllocationPanel(Context(SMALL))
    assert words in panel.parts_of(other)[0]["text"]
    assert words not in json.dumps(panel.parts_of(SMALL.allocation))


def test_sensitivity_with_intervals() -> None:
    scores = SMALL.sensitivity
    intervals = scores.intervals().set_index("module")
    total = scores.per_sample.double().mean(0).sum().item()
    cells = rows(parts_of(SensitivityPanel), "The 14 most sensitive of 14 modules")
    order = sorted(scores.scores, key=scores.scores.get, reverse=True)
    for name, (place, score, interval, share) in zip(order, cells, strict=True):
        assert place == f"layer {scores.layers[name]} {scores.projections[name]}"
        assert value(score) == pytest.approx(scores.scores[name], rel=0.05)
        ends = [value(end) for end in interval.split(" to ")]
        assert ends == pytest.approx(list(intervals.loc[name, ["low", "high"]]), rel=0.05)
        assert value(share) == pytest.approx(scores.scores[name] / total, rel=0.06)


def test_a_single_sample_has_no_intervals_and_zero_scores_have_no_panel() -> None:
    scores = SMALL.sensitivity
    one = parts_of(SensitivityPanel, Results(dataclasses.replace(scores, per_sample=scores.per_sample[:1])))
    assert one[1]["head"] == ["module", "score, nats", "of the total"]
    assert not parts_of(SensitivityPanel, Results(dataclasses.replace(scores, per_sample=scores.per_sample * 0)))


def test_spectra_by_module() -> None:
    cells = rows(parts_of(SpectraPanel), "All 14 modules")
    for name, dimension, rank, r90, r99, top in cells:
        values = np.sort(SMALL.spectrum.eigenvalues[name].double().numpy())[::-1]
        shares = values / values.sum()
        assert value(dimension) == 40
        assert value(rank) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=0.05)
        assert value(r90) == np.searchsorted(shares.cumsum(), 0.9) + 1
        assert value(r99) == np.searchsorted(shares.cumsum(), 0.99) + 1
        assert value(top) == pytest.approx(shares[0], rel=0.05)


def test_training() -> None:
    panel = parts_of(TrainingPanel)
    assert rows(panel, "Before and after, on test samples") == [
        ["loss", "3.21", "1.19", "\u22122.02"],
        ["perplexity", "24.8", "3.29", "\u221221.51"],
        ["exact match", "2.0 %", "41.5 %", "+39.5 points"],
    ]
    facts = dict(rows(panel, "Circumstances"))
    assert facts["optimizer steps"] == "20"
    assert facts["time"] == "7 min 11 s"
    assert facts["learning rate"] == "0.001"
    lines = {one["label"]: one["points"] for one in panel[0]["lines"]}
    history = SMALL.run.history
    np.testing.assert_allclose(lines["training loss"], history[["step", "loss"]], rtol=1e-3)
    np.testing.assert_allclose(lines["validation loss"], history[["step", "eval_loss"]].dropna(), rtol=1e-3)
    assert lines["test loss, before and after"] == [[0, 3.21], [20, 1.19]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interrupted": True, "after": {}}, "Training was interrupted before its last step"),
        (
            {"interrupted": True, "meta": dataclasses.replace(SMALL.run.meta, recipe={"steps": [4, 4000]})},
            "Training was interrupted after 4 of 4,000 steps",
        ),
        ({"diverged": True, "after": {}}, "the loss or a gradient was not finite"),
        ({"before": {}, "after": {}}, "No metrics were taken before and after"),
        ({"trainable_parameters": 10**6}, "of them outside the allocation"),
    ],
)
def test_unusual_runs_are_explained(changes: dict[str, Any], words: str) -> None:
    assert words in json.dumps(parts_of(TrainingPanel, changed(**changes)))


def test_a_run_without_history_and_an_adapter_without_modules() -> None:
    run = run_of(ranks={}, scalings={}, adapter={})
    run = dataclasses.replace(run, history=pd.DataFrame(columns=list(run.columns)).astype("float64"))
    assert (
        dict(rows(parts_of(TrainingPanel, Results(run=run)), "Circumstances"))["optimizer steps"] == "none was logged"
    )
    assert parts_of(RankUsePanel, Results(run=run)) == []


def test_a_metric_is_a_share_in_all_places_or_in_none() -> None:
    """0.8 tokens would be 80 % next to 3.2 tokens."""
    assert [metric("mean_length", 0.8, 3.2), metric("mean_length", 3.2, 0.8)] == ["0.8", "3.2"]
    assert metric("accuracy", 0.8, 0.9) == metric("accuracy", 0.8) == "80.0 %"


def test_rank_use() -> None:
    """Against a full SVD of ``s B A``."""
    run, used = SMALL.run, {}
    panel = parts_of(RankUsePanel)
    for name, rank, needed, share, effective, norm in rows(panel, "All 14 modules"):
        a, b = (run.adapter[f"base_model.model.{name}.lora_{part}.weight"].double().numpy() for part in "AB")
        squares = np.linalg.svd(run.scalings[name] * b @ a, compute_uv=False) ** 2
        used[name] = int((squares.cumsum() < 0.99 * squares.sum()).sum()) + 1
        assert (value(rank), value(needed)) == (run.ranks[name], used[name])
        assert value(share) == pytest.approx(used[name] / run.ranks[name], rel=0.06)
        assert value(effective) == pytest.approx(squares.sum() ** 2 / (squares**2).sum(), rel=0.05)
        assert value(norm) == pytest.approx(np.sqrt(squares.sum()), rel=0.05)
    full = sum(used[name] == run.ranks[name] for name in used)
    words = panel[0]["text"]
    assert f"{sum(used.values())} of {sum(run.ranks.values())} ranks are used" in words
    assert f"{full} of 14 modules use all of their rank." in words


def test_data_has_the_options_of_the_command_line() -> None:
    data = {"task": "a b", "train_samples": 300, "test_samples": 1300, "max_length": None}
    meta = dataclasses.replace(SMALL.run.meta, recipe={"data": data})
    facts = dict(parts_of(DataPanel, changed(meta=meta))[0]["rows"])
    assert (facts["training"], facts["calibration"], facts["test samples"]) == ("300 samples", "5 samples", "1,300")
    assert "max length" not in facts


def test_missing_results_have_no_panels() -> None:
    for name, expected in (
        ("sensitivity", ["data", "sensitivity"]),
        ("spectrum", ["data", "spectra"]),
        ("allocation", ["data", "reproduce"]),
        ("run", ["data", "training", "rank-use", "reproduce"]),
    ):
        alone = Results(**{name: getattr(SMALL, name)})
        assert [panel["name"] for panel in panel_values(make_panels(Context(alone)))] == expected
    json.dumps(panel_values(make_panels(Context(SMALL, SMALL.sensitivity.names))), allow_nan=False)


# Spectra of a module, by kind.


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_energy_and_variance_are_those_of_the_definition(rank: int) -> None:
    module, names = "model.layers.1.mlp.down_proj", walked.calibration().names
    c = walked.calibration().covariance[module].dense().double().numpy()
    w = walked.base().get_submodule(module).weight.detach().double().numpy()
    _, values, directions = np.linalg.svd(w @ c)
    inside = np.trace(directions[:rank] @ c @ directions[:rank].T) / np.trace(c)
    curves = curves_by_rank(names, walked.subspaces(), None, 8)
    held = {what: curves[what][names.index(module)][rank - 1] for what in ("energy", "variance")}
    assert held["energy"] == pytest.approx(np.square(values[:rank]).sum() / np.square(values[:8]).sum(), rel=6e-3)
    assert held["variance"] == pytest.approx(inside, rel=2e-2)
    drawn = walked.kinds()["random"].basis(module, rank).double().numpy()
    held = curves_by_rank(names, walked.kinds()["random"], None, 8)
    share = np.trace(drawn @ c @ drawn.T) / np.trace(c)
    assert held["variance"][names.index(module)][rank - 1] == pytest.approx(share, rel=6e-3)
    assert "energy" not in held


def test_curves_in_the_browser_are_the_cumulative_shares() -> None:
    """Modules that read the same input have one curve."""
    source = SMALL.spectrum
    shown = spectra("inputs", source)
    curve = shown["curves"]["variance"]
    k = source.names.index("layers.1.v_proj")
    i = shown["index"][k]
    assert i == shown["index"][source.names.index("layers.1.q_proj")]
    eigenvalues = source.eigenvalues["layers.1.v_proj"].double().numpy()
    at = np.array(curve["at"][i])
    sums = np.cumsum(eigenvalues) / eigenvalues.sum()
    np.testing.assert_allclose(curve["sums"][i], sums[at - 1], rtol=1e-3)
    assert curve["needed"][i] == [np.searchsorted(sums, level) + 1 for level in (0.9, 0.95, 0.99)]
    np.testing.assert_allclose(curve["each"][i], (eigenvalues / eigenvalues.sum())[at - 1], rtol=6e-3)


def test_captured_gradient_between_measured_ranks_is_linear() -> None:
    capture = gradient_capture()
    frame, name = capture.to_frame(), capture.names[0]
    measured = frame[(frame["module"] == name) & (frame["kind"] == "w")].set_index("rank")["captured"]
    curve = captured_curves(capture, "w", 64)[name]
    assert len(curve) == 32
    assert curve[[7, 31]] == pytest.approx([measured[8], measured[32]])
    assert curve[19] == pytest.approx((measured[8] + measured[32]) / 2)
    assert curve[3] == pytest.approx(measured[8] / 2)


def test_overlap_is_the_mean_squared_cosine() -> None:
    """From the singular values of the product of both bases, for every pair."""
    arguments: dict[str, Any] = {"max_rank": 8, "kind": "w", "progress": False}
    sides = walked.kinds() | {"w": tlora.task_subspaces(walked.base(), walked.calibration(), **arguments)}
    pairs = align_pairs(sides)
    assert [pair.sides for pair in pairs] == [("wc", "random"), ("wc", "w"), ("random", "w")]
    names = walked.calibration().names
    for pair in pairs:
        shown = pair_values(pair, names)
        for k, name in enumerate(names):
            for rank in (1, 5, 8):
                one, other = (sides[side].basis(name, rank).double() for side in pair.sides)
                cosines = np.linalg.svd((one @ other.T).numpy(), compute_uv=False)
                assert shown["overlaps"][k][rank - 1] == pytest.approx(np.square(cosines).mean(), rel=6e-3)
            assert shown["chance"][k] == [pytest.approx(1 / pair.shapes[name][1], rel=6e-3)]


def test_captured_gradient_of_all_modules() -> None:
    capture = walked.capture()
    panel = parts_of(CapturePanel, Results(capture=capture))
    table = capture.overall()
    for row, wanted in zip(rows(panel, "Gradient captured, 2"), table.itertuples(), strict=True):
        assert (row[0], int(row[1])) == (wanted.kind, wanted.rank)
        assert value(row[2]) == pytest.approx(wanted.captured, rel=0.06)
        assert [value(end) for end in row[3].split(" to ")] == pytest.approx([wanted.low, wanted.high], rel=0.06)
    lines = {one["label"]: one["points"] for one in panel[0]["lines"]}
    for kind, wanted in table.groupby("kind"):
        np.testing.assert_allclose(lines[kind], wanted[["rank", "captured"]], rtol=1e-3)


def test_peak_memory_of_training_is_that_of_an_estimate_at_the_same_rank() -> None:
    """At most the gradients more than a new estimate at that rank: not all of them may be there at the peak."""
    work: dict[str, Any] = {"length": 4, "batch_size": 1}
    estimates = {rank: tlora.estimate(walked.base().config, rank, **work) for rank in (2, 16)}
    uniform = tlora.allocate(walked.calibration().sensitivity, rank=16, temperature=0)
    for adapter, kind in ((uniform.footprint(), "B"), (uniform.lora, "A and B")):
        assert 0 <= training_bytes(estimates[2], adapter, kind) / estimates[16].bytes[f"training {kind}"] - 1 < 0.06
