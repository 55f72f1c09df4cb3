"""The stages of the method, which order the workbench: what sums each up, and the line of Python that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from tlora.explanation.compare_answers import count_answers
from tlora.explanation.direction_activations_result import CONTROL
from tlora.utils.text import capitalized, count_text, is_share
from viz import style
from viz.widgets.modules import ENERGY, VARIANCE, describe_kind
from viz.widgets.results import Results

Curves = Mapping[str, Sequence[Sequence[float | None]]]


@dataclass(frozen=True)
class Summary:
    """What sums a stage up: a number, the note below it, and a sentence with the number in it."""

    number: str
    note: str
    sentence: str


@dataclass(frozen=True)
class Stage:
    """A stage of the method, and its view in the workbench.

    Attributes
    ----------
    name, title : str
        What panels and tabs name as their ``stage``, and the text of its button.
    summarize : callable
        Its summary from the results, the curves of the modules by rank and the nominal rank; None if it was not run.
    code : str
        The line of Python that runs the stage and shows it.
    has_map : bool
        Whether its view is the map.
    """

    name: str
    title: str
    summarize: Callable[[Results, Curves, int], Summary | None]
    code: str = ""
    has_map: bool = False


def _data(results: Results, curves: Curves, rank: int) -> Summary | None:
    samples = results.calibrated.samples if results.calibrated else None
    if not samples:
        return None
    of, model = f" of {results.task}" if results.task else "", PurePath(results.model).name or "the model"
    sentence, note = f"{count_text(samples, 'sample')}{of} calibrated {model}.", "samples to calibrate"
    if results.run is not None and (trained := results.run.meta.samples):
        return Summary(f"{samples:,}", f"{note}, {trained:,} to train", f"{sentence} {trained:,} trained the adapter.")
    return Summary(f"{samples:,}", note, sentence)


def _spectra(results: Results, curves: Curves, rank: int) -> Summary | None:
    if results.spectrum is not None:
        medians = results.spectrum.to_frame()[["effective_rank", "dimension"]].median()
        used, of = style.number(medians["effective_rank"]), f"{medians['dimension']:,.0f} dimensions"
        sentence = f"The inputs of the median module use {used} of {of}: its effective rank."
        return Summary(used, f"of {of} used, median", sentence)
    what = next((what for what in (ENERGY, VARIANCE) if what in curves), None)
    if what is None:
        return None
    share = style.percent(
        float(np.mean([values[min(rank, len(values)) - 1] or 0 for values in curves[what] if values]))
    )
    first = count_text(rank, "direction")
    return Summary(
        share, f"of the {what} in {first}", f"The first {first} of a module hold {share} of the {what}, on average."
    )


def _directions(results: Results, curves: Curves, rank: int) -> Summary | None:
    if results.capture is not None:
        kinds, kind = results.capture.kinds, results.subspaces.kind if results.subspaces else ""
        frame = results.capture.overall()
        frame = frame[frame["kind"] == (kind if kind in kinds else kinds[0])]
        row = frame.iloc[(frame["rank"] - rank).abs().argmin()]
        share, first = style.percent(row["captured"]), count_text(int(row["rank"]), "direction")
        sentence = (
            f"The first {first} of each module capture {share} of the gradient of held-out samples, "
            f"random ones {style.percent(row['random'])}."
        )
        return Summary(share, f"of the gradient in {first}", sentence)
    if results.activations is not None:
        shares = results.activations.constant_share().set_index("kind")["constant"].map(style.percent)
        kind = results.activations.kinds[0]
        sentence = (
            f"The directions ({kind}) put {shares[kind]} of z\u00b2 on tokens that are the same in all samples, random "
            f"ones {shares[CONTROL]}."
        )
        return Summary(shares[kind], "of z\u00b2 on constant tokens", sentence)
    if results.subspaces is None:
        return None
    most, kind = results.subspaces.max_rank, results.subspaces.kind
    sentence = f"{count_text(most, 'direction')} of each module, {kind}: {describe_kind(kind)}."
    return Summary(f"{most:,}", "directions by module", sentence)


def _training(results: Results, curves: Curves, rank: int) -> Summary | None:
    run = results.run
    if run is None:
        return None
    before, after = run.before.get("loss"), run.after.get("loss")
    if before is None or after is None:
        return Summary(f"{run.steps:,}", "optimizer steps", f"Training made {count_text(run.steps, 'step')}.")
    sentence = (
        f"The loss of {run.evaluated_on} samples went from {before:.3g} to {after:.3g} nats in "
        f"{count_text(run.steps, 'step')}."
    )
    return Summary(f"{after:.3g}", f"nats of {run.evaluated_on} loss, from {before:.3g}", sentence)


def _answers(results: Results, curves: Curves, rank: int) -> Summary | None:
    if results.answers is not None:
        counts, words = count_answers(results.answers.answers), f"{results.answers.headline}."
        if not counts.marked:
            of = count_text(len(results.answers.answers), "answer")
            return Summary(f"{counts.changed} of {of}", "changed", words)
        return Summary(f"{counts.right:,} of {counts.marked:,}", f"right, from {counts.before:,}", words)
    if (right := _right(results)) is not None:
        return right
    if results.attribution is not None:
        rise = style.signed(results.attribution.rise)
        return Summary(rise, "nats gained by an answer", f"{capitalized(results.attribution.headline)}.")
    if results.effects is not None:
        change = style.signed(results.effects.sets()["loss_change"].max())
        return Summary(change, "nats a token on other text", f"{results.effects.headline}.")
    if results.rescaling is not None:
        scale = style.number(results.rescaling.best.scale)
        return Summary(scale, "is the best scale", f"{results.rescaling.headline}.")
    return None


def _right(results: Results) -> Summary | None:
    """How many answers are right after training and were before, by the first metric that is a share."""
    run = results.run
    name = None if run is None else next((name for name, value in run.after.items() if is_share(name, value)), None)
    if run is None or name is None:
        return None
    after, before, samples = run.after[name], run.before.get(name, 0.0), run.meta.recipe.get("evaluated_samples")
    if samples:
        number, other = f"{round(after * samples):,} of {samples:,}", f"{round(before * samples):,}"
    else:
        number, other = style.percent(after), style.percent(before)
    what = f"{run.evaluated_on} answers are right by {name.replace('_', ' ')}"
    return Summary(
        number,
        f"{'' if samples else 'of '}{run.evaluated_on} answers right, from {other}",
        f"{number} {'' if samples else 'of the '}{what}, {other} before training.",
    )


ALLOCATION = "allocation"
"""The stage that opens; its number and its sentence follow the ranks on the map."""
STAGES = (
    Stage("data", "Data", _data),
    Stage("spectra", "Spectra", _spectra, "viz.Workbench(calibration, spectrum=calibration.spectrum())", has_map=True),
    Stage(
        "directions", "Directions", _directions,
        "viz.Workbench(calibration, tlora.task_subspaces(model, calibration))", has_map=True,
    ),
    Stage(ALLOCATION, "Allocation", lambda *known: None, has_map=True),
    Stage(
        "training", "Training", _training,
        "viz.Workbench(calibration, run=tlora.train(tlora.attach(model, workbench.plan), task))",
    ),
    Stage(
        "answers", "Answers", _answers,
        "viz.Workbench(calibration, answers=tlora.compare_answers(adapted, task), adapted=adapted, task=task)",
    ),
)  # fmt: skip


def stage_values(results: Results, curves: Curves, rank: int) -> list[dict[str, Any]]:
    """What the browser draws of the stages, in the order of the method, as JSON values."""
    values = []
    for stage in STAGES:
        summary = stage.summarize(results, curves, rank) or Summary("", "", "")
        values.append(
            {
                "name": stage.name,
                "title": stage.title,
                "map": stage.has_map,
                "code": stage.code,
                "number": summary.number,
                "note": summary.note,
                "sentence": summary.sentence,
            }
        )
    return values
