"""The picture of a training run: losses, metrics before and after, and runs that ended early."""

import dataclasses

import numpy as np
import pytest

import viz
from tests.helpers.pictured import META, texts, training_run
from tests.helpers.trainings import train


def test_steps_that_were_not_logged_were_done_all_the_same():
    run = train(steps=3, logging_steps=50)
    silent = dataclasses.replace(run, before={"loss": 2.0}, after={"loss": 1.0})
    assert silent.steps == 3
    (diamonds,) = [line for line in viz.plot_training(silent).get_lines() if line.get_marker() == "D"]
    assert diamonds.get_xdata().tolist() == [0, silent.steps]


def test_training_draws_the_history_and_the_ends():
    run = training_run()
    ax = viz.plot_training(run)
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["training loss", "validation loss", "test loss, before and after"]
    np.testing.assert_array_equal(lines["training loss"].get_ydata(), run.history["loss"])
    np.testing.assert_array_equal(lines["validation loss"].get_xdata(), [5, 10, 15, 20])
    ends = lines["test loss, before and after"].get_xydata()
    np.testing.assert_array_equal(ends, [[0, 3.21], [20, 1.19]])
    assert ax.get_title(loc="left") == "Test loss fell from 3.21 to 1.19, exact match rose from 2.0 % to 41.5 %"


@pytest.mark.parametrize(
    ("split", "metric", "labels", "headline"),
    [
        ("validation", "loss", ["validation loss, before and after"], "Validation loss fell from 3.00 to 2.00"),
        ("train", "train_loss", [], "Training loss fell from 3.00 to 2.00"),
    ],
)
def test_training_says_what_was_evaluated(split, metric, labels, headline):
    meta = dataclasses.replace(META, recipe={"evaluated_on": split})
    ax = viz.plot_training(training_run(before={metric: 3.0}, after={metric: 2.0}, meta=meta))
    assert [line.get_label() for line in ax.lines[2:]] == labels
    assert ax.get_title(loc="left") == headline


def test_training_without_metrics_or_evaluation():
    history = training_run().history.assign(eval_loss=np.nan)
    ax = viz.plot_training(training_run(history=history, before={}, after={}, interrupted=True))
    assert [line.get_label() for line in ax.lines] == ["training loss"]
    assert ax.get_title(loc="left") == "Training loss fell from 3.00 to 1.10"
    assert "interrupted" in texts(ax)[-1]


def test_a_run_that_logged_nothing_is_an_empty_picture():
    ax = viz.plot_training(training_run(steps=0, before={}, after={}))
    assert not ax.lines
    assert ax.get_title(loc="left") == "Nothing was logged"


@pytest.mark.parametrize("losses", [(1e7, 5e7), (2.302585, 2.302586), (1e-6, 2e-6)])
def test_losses_need_no_factor_above_the_axis(losses):
    run = training_run(2, before={}, after={})
    ax = viz.plot_training(dataclasses.replace(run, history=run.history.assign(loss=losses, eval_loss=np.nan)))
    ax.figure.canvas.draw()
    assert not ax.yaxis.get_offset_text().get_text()
    assert len({label.get_text() for label in ax.get_yticklabels()}) == len(ax.get_yticklabels())
