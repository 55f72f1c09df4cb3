"""The stages of the workbench: the number of each is that of its result, and its line of Python runs it."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import pytest

import tlora
import viz
from tests.helpers.jobs import task
from tests.helpers.results import (
    activations,
    adapted,
    answer_table,
    attribution,
    base,
    calibration,
    capture,
    effects,
    rescaling,
    run,
    spectrum,
    subspaces,
)
from viz import style
from viz.widgets.results import Results
from viz.widgets.stages import ALLOCATION, STAGES, stage_values

CODES = {stage.name: stage.code for stage in STAGES if stage.code}


def number(stage: str, curves: Any = {}, rank: int = 2, **parts: Any) -> tuple[str, str]:  # noqa: B006
    """The number of a stage and its note; the number is in its sentence."""
    (values,) = [one for one in stage_values(Results(**parts), curves, rank) if one["name"] == stage]
    assert values["number"] in values["sentence"] or stage == "answers"
    return values["number"], values["note"]


def test_each_number_is_that_of_its_result() -> None:
    scores, trained = calibration().sensitivity, replace(run(), meta=replace(run().meta, samples=300))
    assert number("data", sensitivity=scores) == ("4", "samples to calibrate")
    assert number("data", sensitivity=scores, run=trained) == ("4", "samples to calibrate, 300 to train")
    ranks = spectrum().effective_rank.values()
    assert number("spectra", spectrum=spectrum())[0] == style.number(median(ranks))
    energy = {"energy": [[0.1, 0.4], [0.2, 0.6, 0.9], []]}
    assert number("spectra", energy) == (style.percent(0.5), "of the energy in 2 directions")
    found = capture().overall().query("kind == 'wc' and rank == 2")["captured"].item()
    share, note = number("directions", capture=capture(), subspaces=subspaces())
    assert (float(share.split()[0]) / 100, note) == (pytest.approx(found, rel=0.05), "of the gradient in 2 directions")
    assert number("directions", subspaces=subspaces()) == ("8", "directions by module")
    loss = replace(run(), before={"loss": 5.4}, after={"loss": 0.25})
    assert number("training", run=loss) == ("0.25", "nats of train loss, from 5.4")
    assert number("training", run=replace(run(), before={}, after={})) == (str(run().steps), "optimizer steps")
    recipes = [run().meta.recipe | {"evaluated_samples": samples} for samples in (8, None)]
    metrics: dict[str, Any] = {
        "before": {"loss": 5.4, "exact_match": 0.125},
        "after": {"loss": 0.25, "exact_match": 0.75},
    }
    right, uncounted = (replace(run(), **metrics, meta=replace(run().meta, recipe=recipe)) for recipe in recipes)
    assert number("answers", run=right, attribution=attribution()) == ("6 of 8", "train answers right, from 1")
    note = f"of train answers right, from {style.percent(0.125)}"
    assert number("answers", run=uncounted) == (style.percent(0.75), note)
    table = answer_table()
    frame = table.to_frame()
    counts = int(frame["adapter_right"].sum()), int(frame["base_right"].sum())
    assert number("answers", answers=table, run=right) == (
        f"{counts[0]} of {frame['adapter_right'].notna().sum()}",
        f"right, from {counts[1]}",
    )
    rise = float(np.mean([float(sample.rise[0].sum()) for sample in attribution().samples]))
    assert number("answers", attribution=attribution())[0] == style.signed(rise)


@pytest.mark.parametrize("stage", ["directions", "answers"])
def test_a_stage_is_summed_up_by_whichever_of_its_results_is_known(stage: str) -> None:
    parts = {"directions": {"activations": activations()}, "answers": {"effects": effects(), "rescaling": rescaling()}}
    for name, result in parts[stage].items():
        found, note = number(stage, **{name: result})
        assert found
        assert note


def test_what_was_not_run_has_no_number_and_the_allocation_follows_the_map() -> None:
    values = stage_values(Results(), {}, 2)
    assert [one["name"] for one in values] == ["data", "spectra", "directions", "allocation", "training", "answers"]
    assert {one["number"] + one["note"] + one["sentence"] for one in values} == {""}
    assert {one["name"] for one in values if not one["code"]} == {"data", ALLOCATION}


@pytest.mark.parametrize("stage", CODES)
def test_the_line_of_a_stage_that_was_not_run_runs_it(stage: str) -> None:
    workbench = viz.Workbench(calibration(), rank=2)
    names = {"viz": viz, "tlora": tlora, "calibration": calibration(), "workbench": workbench, "task": task()}

    def shown(it: viz.Workbench) -> set[str]:
        about = it.widget.about
        return {one["stage"] for one in [*about["panels"], *about["tabs"]]}

    assert stage not in shown(workbench)
    model = {"answers": {"adapted": adapted()}}.get(stage, {"model": base()})
    it = eval(CODES[stage], names | model)
    assert stage in shown(it)
    (values,) = [one for one in it.widget.about["stages"] if one["name"] == stage]
    assert values["number"]
    if stage == "training":
        tlora.detach(base())
