"""TrainingMonitor: shows what the run records, stops it, costs little, and leaves the run whole however it ends."""

from base64 import b64decode
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from transformers import TrainerCallback

import tlora
import viz
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.shells import Shell
from tests.helpers.trainings import train
from viz.widgets import base as widgets
from viz.widgets import monitor as module
from viz.widgets.monitor import MonitorState, curve_values, draw_losses, draw_monitor, module_places

NAMES = tuple(f"model.layers.{layer}.{p}" for layer in range(3) for p in ("q_proj", "down_proj"))


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action()


def press_stop(monitor: viz.TrainingMonitor) -> None:
    """Send what the browser sends."""
    monitor.widget._handle_custom_msg({"call": "stop"}, [])


class Rows:
    """A task with a validation split."""

    __class__ = tlora.Task  # type: ignore[assignment]  # it stands for one
    name, train, validation, test = "rows", token_rows(), token_rows(4, seed=1), token_rows(0)
    collate = staticmethod(tlora.training.dataset.Rows(token_rows(), 0).collate)
    evaluate = staticmethod(lambda model, split, limit, progress: {})


def test_shows_the_losses_and_updates_of_the_run():
    monitor = viz.TrainingMonitor(every=2)
    waiting = monitor._repr_png_()
    assert monitor.state == MonitorState()
    run = train(monitor)
    state = monitor.state
    assert (state.status, state.step, state.planned) == ("done", 6, 6)
    assert state.losses == tuple(zip(run.history["step"], run.history["loss"], strict=True))
    last = run.module_history[run.module_history["step"] == 6]
    assert state.updates == dict(zip(last["module"], last["update_norm"], strict=True))
    assert sorted(set(run.module_history["step"])) == [1, 2, 4, 6]
    assert monitor._repr_png_() != waiting
    assert monitor.line.startswith("Done: step 6 of 6: training loss")


def test_changes_nothing_in_the_run():
    watched, alone = train(viz.TrainingMonitor()), train()
    assert watched.history.equals(alone.history)
    assert watched.module_history.equals(alone.module_history)
    assert all(watched.adapter[name].equal(tensor) for name, tensor in alone.adapter.items())


def test_evaluations_are_shown():
    monitor = viz.TrainingMonitor()
    look = {"callbacks": [monitor], "progress": False}
    run = tlora.train(adapted_model(), Rows(), batch_size=4, max_steps=4, eval_steps=2, **look)
    losses = run.history.dropna(subset="eval_loss")
    assert monitor.state.evaluations == tuple(zip(losses["step"], losses["eval_loss"], strict=True))
    assert len(losses) == 2


def test_curves_and_cells_are_those_of_the_state():
    updates = dict(zip(NAMES, (0.01, 0.02, 0.03, 0.005, 0.0, 0.04), strict=True))
    losses, held = ((1, 2.0), (2, np.nan), (3, 1.25)), ((1, np.inf), (2, 1.75))
    state = MonitorState("training", 3, 10, 1.0, losses, held, updates, 3)
    shown = curve_values(state)
    assert shown["arms"] == {"training": {"losses": [(1, 2.0), (3, 1.25)], "held": [(2, 1.75)], "planned": 10}}
    assert (shown["rows"], shown["columns"]) == (["q_proj", "down_proj"], [0, 1, 2])
    assert {NAMES[2 * column + row]: update for row, column, update in shown["cells"]} == updates
    figure, ax = plt.subplots()
    draw_losses(ax, state)
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines == {"training": [[1, 2], [3, 1.25]], "validation": [[2, 1.75]]}
    assert {line.get_marker() for line in ax.lines} >= {"o"}  # one point is visible
    assert ax.get_xlim()[1] >= 10
    plt.close(figure)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_state_without_a_finite_number_is_drawn(bad):
    state = MonitorState("training", 1, 10, 1.0, ((1, bad),), ((1, bad),), dict.fromkeys(NAMES, bad), 1)
    assert draw_monitor(state).startswith(b"\x89PNG")
    assert all(update is None for _, _, update in curve_values(state)["cells"])


def test_the_button_ends_training_after_the_step_and_keeps_the_run(monkeypatch):
    monkeypatch.setattr(module, "hears_while_busy", lambda: True)
    monitor = viz.TrainingMonitor()
    seen = []
    at = At(3, lambda: (seen.append(monitor.widget.button["disabled"]), press_stop(monitor)))
    run = train(at, monitor)  # the button is pressed while the third step runs; whoever presses it is not warned
    assert seen == [False]
    assert run.interrupted
    assert len(run.history) == 3
    assert monitor.state.status == "stopped"
    assert monitor.line.startswith("Stopped after step 3 of 6")
    assert monitor.widget.button == {"label": "Stop", "disabled": True}


def test_pressed_when_training_is_over_it_does_not_stop_the_next(monkeypatch):
    monitor = viz.TrainingMonitor()
    train(monitor, steps=3)
    monitor.stop()
    assert len(train(monitor, steps=4).history) == 4
    assert monitor.state.step == 4


def test_the_button_is_out_of_use_where_the_kernel_cannot_hear_it(monkeypatch):
    monitor, seen = viz.TrainingMonitor(), []
    train(monitor, At(1, lambda: seen.append(monitor.widget.button["disabled"])), steps=2)
    assert seen == [True]

    class Kernel:
        def __init__(self, *features: str) -> None:
            self.kernel, self.kernel_info = self, {"supported_features": [*features]}

    for shell, answer in ((None, False), (Kernel("debugger"), False), (Kernel("kernel subshells"), True)):
        monkeypatch.setattr("IPython.get_ipython", lambda shell=shell: shell)
        assert widgets.hears_while_busy() is answer


def test_interrupting_the_kernel_keeps_the_run_and_the_picture():
    monitor = viz.TrainingMonitor()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="training was interrupted"):
        run = train(monitor, At(4, interrupt))
    assert run.interrupted
    assert monitor.state.status == "stopped"
    assert monitor.state.step == 4
    assert monitor.state.losses == tuple(zip(run.history["step"], run.history["loss"], strict=True))


def test_pictures_keep_their_distance(monkeypatch):
    """A clock that advances a second a step, and pictures that take 0.05 seconds: one every three."""
    monitor, clock, drawn = viz.TrainingMonitor(), [0.0], []
    monkeypatch.setattr(module, "INTERVAL", 3)
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def draw(state: MonitorState) -> dict[str, Any]:
        drawn.append((state.status, state.step))
        clock[0] += 0.05
        return {}

    class Second(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock[0] += 1

    monkeypatch.setattr(module, "curve_values", draw)
    train(monitor, Second(), steps=12)
    assert drawn == [("training", 0), ("training", 1), ("training", 4), ("training", 7), ("training", 10), ("done", 12)]


def test_time_left_is_counted_from_where_a_resumed_run_goes_on(tmp_path):
    """Steps of ten seconds; the first four of eight were made by an earlier run."""
    train(steps=8, output_dir=tmp_path, save_steps=4)
    monitor = viz.TrainingMonitor()
    train(monitor, steps=8, output_dir=tmp_path, save_steps=4, resume=str(tmp_path / "checkpoint-4"))
    assert monitor.state.first == 4
    details = [MonitorState("training", step, 8, 10.0 * (step - 4), first=4).detail for step in (5, 7)]
    assert [text.split("  ·  ")[1] for text in details] == ["30 s left", "10 s left"]


def test_without_a_front_end_the_picture_is_replaced_at_the_end(monkeypatch):
    shown = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            shown.append(data)

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        shown.append(data)
        return Handle()

    monkeypatch.setattr("IPython.get_ipython", lambda: Shell({"allow_stdin": False}))
    monkeypatch.setattr(module, "hears_while_busy", lambda: False)
    monkeypatch.setattr(module, "display", display)
    monitor = viz.TrainingMonitor()
    monitor.display()
    train(monitor)
    before, after = shown
    assert b64decode(after["image/png"]) == monitor._repr_png_()
    assert before["text/plain"] == "Waiting for training to begin"
    assert after["text/plain"].startswith("Done: step 6 of 6")


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"], ["q_proj", "down_proj"]),
        (
            [f"layer.1.{role}" for role in ("attention.output.dense", "output.dense")],
            ["attention.output.dense", "output.dense"],
        ),
        ([f"model.{side}.layers.0.fc1" for side in ("encoder", "decoder")], ["encoder.fc1", "decoder.fc1"]),
        (["head", "h.3.attn.c_attn"], ["head", "h.c_attn"]),
    ],
)
def test_places_are_read_off_the_names(names, roles):
    assert [role for _, role in module_places(names)] == roles
