"""TrainingMonitor: shows what the run records, stops it, costs little, and leaves the run whole however it ends."""

import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from transformers import TrainerCallback

import tlora
import viz
from tests.helpers.adapted import adapted_model, token_rows
from tests.unit.viz.widgets import test_base as shared
from viz.widgets import base as widgets
from viz.widgets import training
from viz.widgets.training import MonitorState

ROOT = Path(__file__).parents[4]
NAMES = tuple(f"model.layers.{layer}.{p}" for layer in range(3) for p in ("q_proj", "down_proj"))


def train(*callbacks: Any, steps: int = 6, **arguments: Any) -> tlora.TrainingRun:
    return tlora.train(
        adapted_model(),
        token_rows(),
        batch_size=4,
        max_steps=steps,
        evaluation_limit=0,
        callbacks=callbacks,
        progress=False,
        **arguments,
    )


class At(TrainerCallback):
    """Does something after a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action()


class Rows:
    """A task with a validation split."""

    name, train, validation, test = "rows", token_rows(), token_rows(4, seed=1), token_rows(0)
    collate = staticmethod(tlora.training.dataset.Rows(token_rows(), 0).collate)
    evaluate = staticmethod(lambda model, split, limit, progress: {})


def test_shows_the_losses_and_updates_of_the_run():
    monitor = viz.TrainingMonitor(every=2)
    waiting = monitor.image.value
    assert monitor.state == MonitorState()
    run = train(monitor)
    state = monitor.state
    assert (state.status, state.step, state.planned) == ("done", 6, 6)
    assert state.losses == tuple(zip(run.history["step"], run.history["loss"], strict=True))
    last = run.module_history[run.module_history["step"] == 6]
    assert list(state.modules) == list(last["module"])
    assert list(state.updates) == list(last["update_norm"])
    assert sorted(set(run.module_history["step"])) == [1, 2, 4, 6]
    assert monitor.image.value != waiting
    assert monitor.line.startswith("Done: step 6 of 6: training loss")


def test_changes_nothing_in_the_run():
    watched, alone = train(viz.TrainingMonitor()), train()
    assert watched.history.equals(alone.history)
    assert watched.module_history.equals(alone.module_history)
    assert all(watched.adapter[name].equal(tensor) for name, tensor in alone.adapter.items())


def test_evaluations_are_shown():
    monitor = viz.TrainingMonitor()
    run = tlora.train(
        adapted_model(), Rows, batch_size=4, max_steps=4, eval_steps=2, callbacks=[monitor], progress=False
    )
    losses = run.history.dropna(subset="eval_loss")
    assert monitor.state.evaluations == tuple(zip(losses["step"], losses["eval_loss"], strict=True))
    assert len(losses) == 2


def test_curves_and_bars_are_those_of_the_state():
    updates = (0.01, 0.02, 0.03, 0.005, 0.0, 0.04)
    state = MonitorState("training", 3, 10, 1.0, ((1, 2.0), (2, 1.5), (3, 1.25)), ((2, 1.75),), NAMES, updates, 3)
    figure = plt.figure()
    ax = viz.TrainingMonitor().render(state, figure.add_subplot())
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert lines == {"training": [[1, 2], [2, 1.5], [3, 1.25]], "validation": [[2, 1.75]]}
    panel = next(part for part in figure.axes if part.get_xlabel() == "layer")
    corners = [path.vertices for path in panel.collections[0].get_paths()]
    np.testing.assert_allclose([c[:, 1].max() for c in corners], updates)
    np.testing.assert_allclose([c[:, 0].mean() for c in corners], [0, 1, 3, 4, 6, 7], atol=0.2)
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0", "1", "2"]
    assert [t.get_text() for t in panel.get_legend().get_texts()] == ["q_proj", "down_proj"]
    assert ax.get_xlim()[1] >= 10
    assert 0.04 < panel.get_ylim()[1] <= 0.05
    plt.close(figure)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_out(bad):
    losses, evaluations = ((1, 2.0), (2, bad), (3, 1.5)), ((1, bad), (2, 1.75))
    state = MonitorState("training", 3, 10, 1.0, losses, evaluations, NAMES, (0.01, bad, 0.02, 0.03, 0.0, bad), 3)
    figure = plt.figure()
    ax = viz.TrainingMonitor().render(state, figure.add_subplot())
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[1, 2], [3, 1.5]], [[2, 1.75]]]
    panel = next(part for part in figure.axes if part.get_xlabel() == "layer")
    heights = [path.vertices[:, 1].max() for path in panel.collections[0].get_paths()]
    np.testing.assert_allclose(heights, [0.01, 0, 0.02, 0.03, 0, 0])
    assert panel.get_ylim()[1] == pytest.approx(0.05)
    figure.canvas.draw()
    plt.close(figure)


def test_a_state_without_a_finite_number_is_drawn():
    state = MonitorState("training", 1, 10, 1.0, ((1, np.nan),), ((1, np.inf),), NAMES, (np.nan,) * 6, 1)
    figure = plt.figure()
    ax = viz.TrainingMonitor().render(state, figure.add_subplot())
    assert [len(line.get_xdata()) for line in ax.lines] == [0, 0]
    plt.close(figure)


def test_a_run_that_diverges_is_returned_and_shown():
    monitor = viz.TrainingMonitor(every=1, interval=0)
    look = {"callbacks": [monitor], "progress": False}
    with pytest.warns(UserWarning, match="the loss became nan at step 3"):
        run = tlora.train(adapted_model(), Rows, batch_size=4, max_steps=4, eval_steps=1, learning_rate=1e38, **look)
    assert run.diverged
    assert not np.isfinite(monitor.state.evaluations[-1][1])
    assert monitor.line.startswith("Stopped after step 2 of 4")


def test_a_picture_changed_in_place_is_the_one_drawn_afresh():
    states = [
        MonitorState("training", n, 10, n, tuple((i, 9 / i) for i in range(1, n)), (), NAMES, (0.01 * n,) * 6, n)
        for n in (1, 2, 5, 9)
    ]
    drawn = []
    for way in (states, states[-1:]):
        monitor = viz.TrainingMonitor()
        monitor._draw_for(NAMES)
        for state in way:
            monitor._drawn.update(state)
            png = monitor._canvas.png(monitor._drawn.moving, monitor._drawn.key)
        drawn.append(shared.pixels(png))
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("stop", [lambda monitor: monitor.stop(), lambda monitor: monitor.stop_button.click()])
def test_the_button_ends_training_after_the_step_and_keeps_the_run(stop, monkeypatch):
    monkeypatch.setattr(training, "_hears", lambda: True)
    monitor = viz.TrainingMonitor(interval=0)
    seen = []
    at = At(3, lambda: (seen.append(monitor.stop_button.disabled), stop(monitor)))
    run = train(at, monitor)  # the button is pressed while the third step runs; whoever presses it is not warned
    assert seen == [False]
    assert run.interrupted
    assert len(run.history) == 3
    assert monitor.state.status == "stopped"
    assert monitor.line.startswith("Stopped after step 3 of 6")
    assert monitor.stop_button.disabled


def test_pressed_when_training_is_over_it_does_not_stop_the_next(monkeypatch):
    monitor = viz.TrainingMonitor()
    train(monitor, steps=3)
    monitor.stop()
    assert len(train(monitor, steps=4).history) == 4
    assert monitor.state.step == 4


def test_the_button_is_out_of_use_where_the_kernel_cannot_hear_it(monkeypatch):
    monitor, seen = viz.TrainingMonitor(), []
    train(monitor, At(1, lambda: seen.append(monitor.stop_button.disabled)), steps=2)
    assert seen == [True]

    class Kernel:
        def __init__(self, *features: str) -> None:
            self.kernel, self.kernel_info = self, {"supported_features": [*features]}

    for shell, answer in ((None, False), (Kernel("debugger"), False), (Kernel("kernel subshells"), True)):
        monkeypatch.setattr(training, "get_ipython", lambda shell=shell: shell)
        assert training._hears() is answer


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
    monitor, clock, drawn = viz.TrainingMonitor(interval=3), [0.0], []
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])

    def draw(state: MonitorState) -> None:
        drawn.append((state.status, state.step))
        clock[0] += 0.05

    class Second(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock[0] += 1

    monkeypatch.setattr(monitor, "_draw_for", lambda modules: None)
    monkeypatch.setattr(monitor._drawn, "update", draw)
    train(monitor, Second(), steps=12)
    assert drawn == [("training", 0), ("training", 1), ("training", 4), ("training", 7), ("training", 10), ("done", 12)]
    assert monitor.cost == pytest.approx(6 * 0.05 / (12 + 6 * 0.05))
    monitor.interval = 6
    drawn.clear()
    train(monitor, Second(), steps=12)
    assert [step for _, step in drawn] == [0, 1, 7, 12]


def test_time_left_is_counted_from_where_a_resumed_run_goes_on(tmp_path, monkeypatch):
    """Steps of ten seconds; the first four of eight were made by an earlier run."""
    train(viz.TrainingMonitor(), steps=8, output_dir=tmp_path, save_steps=4)
    clock, told = [0.0], []
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    monitor = viz.TrainingMonitor(interval=0)

    def wait() -> None:
        clock[0] += 10

    class Slow(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            wait()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            told.append(monitor._drawn.headline.detail.get_text())

    train(monitor, Slow(), steps=8, output_dir=tmp_path, save_steps=4, resume=str(tmp_path / "checkpoint-4"))
    assert monitor.state.began == 4
    assert [text.split("  ·  ")[1] for text in told] == ["30 s left", "20 s left", "10 s left", "0 s left"]


def test_without_a_front_end_the_picture_is_replaced_at_the_end(monkeypatch):
    shown = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            shown.append(data)

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        shown.append(data)
        return Handle()

    for module in (widgets, training):
        monkeypatch.setattr(module, "get_ipython", lambda: shared.Shell({"allow_stdin": False}))
    monkeypatch.setattr(training, "_hears", lambda: False)
    monkeypatch.setattr(training, "display", display)
    monitor = viz.TrainingMonitor()
    monitor.display()
    train(monitor)
    before, after = shown
    assert b64decode(after["image/png"]) == monitor.image.value
    assert before["text/plain"] == "Waiting for training to begin"
    assert after["text/plain"].startswith("Done: step 6 of 6")


def test_numbers_are_checked():
    with pytest.raises(ValueError, match="every=0: use a whole number of at least 1"):
        viz.TrainingMonitor(every=0)
    with pytest.raises(ValueError, match="interval is -1"):
        viz.TrainingMonitor(interval=-1)


def test_more_than_ten_roles_are_told_apart():
    """Eighteen roles, as gated T5 has: those of one colour are striped differently, in bars and legend."""
    roles = [f"role_{n}" for n in range(18)]
    names = tuple(f"model.layers.{layer}.{role}" for layer in range(2) for role in roles)
    updates = tuple(0.001 * n for n in range(1, 37))
    monitor = viz.TrainingMonitor()
    monitor._draw_for(names)
    monitor._drawn.update(MonitorState("training", 1, 10, 1.0, ((1, 2.0),), ((1, 2.0),), names, updates, 1))
    monitor._canvas.png(monitor._drawn.moving)
    panel = monitor._drawn.bars_panel
    handles = panel.get_legend().get_patches()
    assert len({(patch.get_facecolor(), patch.get_hatch()) for patch in handles}) == 18
    plain, striped = panel.collections[:2]
    assert (plain.get_hatch(), striped.get_hatch()) == (None, handles[10].get_hatch())
    heights = [path.vertices[:, 1].max() for path in striped.get_paths()]
    np.testing.assert_allclose(heights, [*updates[10:18], *updates[28:36]])
    assert [patch.get_hatch() for patch in handles] == [None] * 10 + [striped.get_hatch()] * 8
    box, above = panel.get_legend().get_window_extent(), monitor._drawn.legend.get_window_extent()
    assert (box.y0 >= 0, box.y1 <= above.y0, box.x1 <= monitor._canvas.figure.bbox.x1) == (True,) * 3


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"], ["q_proj", "down_proj"]),
        (
            ["bert.encoder.layer.1.attention.output.dense", "bert.encoder.layer.1.output.dense"],
            ["attention.output.dense", "output.dense"],
        ),
        (
            ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.1.EncDecAttention.q"],
            ["encoder.q", "decoder.q"],
        ),
        (["head", "h.3.attn.c_attn"], ["head", "h.c_attn"]),
    ],
)
def test_places_are_read_off_the_names(names, roles):
    assert [role for _, role in training.places(tuple(names))] == roles


def test_blocks_are_told_apart():
    names = ("encoder.block.0.q", "encoder.block.1.q", "decoder.block.0.q")
    assert [block for block, _ in training.places(names)] == [
        ("encoder.block", 0),
        ("encoder.block", 1),
        ("decoder.block", 0),
    ]


CELL = """
import time, sys
sys.path.insert(0, {root!r})
import tlora, viz
from tests.helpers.adapted import adapted_model, token_rows
from transformers import TrainerCallback

class Slow(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        time.sleep(0.1)

monitor = viz.TrainingMonitor()
print("button", monitor.stop_button.comm.comm_id, flush=True)
class Began(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            print("began", flush=True)
run = tlora.train(adapted_model(), token_rows(), batch_size=4, max_steps=600, evaluation_limit=0, progress=False,
                  callbacks=[monitor, Slow(), Began()])
print("ended", len(run.history), run.interrupted, flush=True)
"""
SESSION = """
import sys, time
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="python3")
try:
    client.execute({cell!r})
    button, deadline = None, time.time() + 300
    while time.time() < deadline:
        message = client.get_iopub_msg(timeout=300)
        text = message["content"].get("text", "") + "".join(message["content"].get("traceback", []))
        if "button" in text:
            button = text.split("button ")[1].split()[0]
        if "began" in text:
            client.control_channel.send(client.session.msg("create_subshell_request"))
            subshell = client.get_control_msg(timeout=60)["content"]["subshell_id"]
            click = {{"comm_id": button, "data": {{"method": "custom", "content": {{"event": "click"}}}}}}
            click = client.session.msg("comm_msg", click)
            click["header"]["subshell_id"] = subshell
            client.shell_channel.send(click)
        if "ended" in text or message["msg_type"] == "error":
            print(text)
            break
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""


@pytest.mark.slow
def test_a_click_is_heard_while_the_cell_runs():
    session = SESSION.format(cell=CELL.format(root=str(ROOT)))
    ran = subprocess.run([sys.executable, "-c", session], capture_output=True, text=True, timeout=400, cwd=ROOT)
    assert "ended" in ran.stdout, ran.stdout + ran.stderr
    steps, interrupted = ran.stdout.split("ended ")[1].split()[:2]
    assert interrupted == "True"
    assert 2 <= int(steps) < 300


def state(**values: Any) -> MonitorState:
    about = {"status": "training", "step": 5, "planned": 10, "seconds": 3.0, "modules": NAMES, "recorded": 5}
    return MonitorState(**about | {"losses": ((1, 3.0), (2, 2.0)), "updates": (0.1,) * len(NAMES)} | values)


def test_every_bar_of_a_deep_model_is_seen():
    """Narrower than a pixel, some were snapped to no width, and looked like layers that did not move."""
    names = tuple(f"model.layers.{layer}.{role}" for layer in range(120) for role in "abcdefg")
    figure, ax = plt.subplots(figsize=(9, 4.4))
    picture = training.MonitorPicture(ax, names)
    picture.update(state(modules=names, updates=(0.5,) * len(names)))
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
    line = pixels[round(pixels.shape[0] - picture.bars_panel.transData.transform((0, 0.25))[1])]
    to_pixel = picture.bars_panel.transData.transform
    columns = [round(to_pixel((place, 0))[0]) for place in picture._places]
    white = [place for place, x in zip(picture._places, columns, strict=True) if line[x - 1 : x + 2].min() > 235]
    assert not white
    plt.close(figure)


def test_one_point_is_seen_and_stands_apart_from_the_axis():
    figure, ax = plt.subplots()
    picture = training.MonitorPicture(ax, NAMES)
    picture.update(state(losses=((1, 2.0),)))
    assert picture.training.get_marker() == "o"
    assert ax.get_ylim()[0] < 2.0 < ax.get_ylim()[1]
    picture.update(state())
    assert picture.training.get_marker() == ""
    plt.close(figure)


@pytest.mark.parametrize("update", [1e-9, 1e-6, 1e-3, 0.3, 30.0, 1e7])
@pytest.mark.parametrize("losses", [((1, 2.302585), (2, 2.302586)), ((1, 1e7), (2, 5e7)), ((1, 1e-6), (2, 2e-6))])
def test_numbers_beside_the_panels_are_whole_and_need_no_factor(update, losses):
    monitor = viz.TrainingMonitor()
    monitor._draw_for(NAMES)
    monitor._drawn.update(state(updates=(update,) * len(NAMES), losses=losses))
    figure = monitor._canvas.figure
    figure.canvas.draw()
    for panel in (monitor._drawn.losses, monitor._drawn.bars_panel):
        assert not panel.yaxis.get_offset_text().get_text()
        shown = [label.get_text() for label in panel.get_yticklabels()]
        assert len({*shown}) == len(shown)
        assert panel.yaxis.get_tightbbox().x0 >= figure.bbox.x0


def test_a_closed_monitor_does_not_stop_training():
    monitor = viz.TrainingMonitor()
    assert monitor.cost == 0
    ipywidgets.Widget.close_all()
    assert train(monitor, steps=2).steps == 2


def experts(count: int) -> tuple[str, ...]:
    return tuple(f"model.layers.{i}.mlp.experts.{e}.{p}_proj" for i in range(2) for e in range(count) for p in "ab")


def test_legends_of_a_monitor_are_within_the_figure_and_apart():
    modules = experts(12)
    updates = tuple(np.linspace(0.01, 0.02, len(modules)))
    state = MonitorState("training", 1, 2, losses=((1, 1.0),), modules=modules, updates=updates)
    ax = viz.TrainingMonitor().render(state, plt.subplots(figsize=(8, 4.4))[1])
    ax.figure.canvas.draw()
    legends = [part.get_legend() for part in (ax, *ax.figure.axes) if part.get_legend()]
    boxes = {id(legend): legend.get_window_extent() for legend in legends}
    assert len(boxes) == 2
    assert not boxes.popitem()[1].overlaps(boxes.popitem()[1])
    assert max(legend.get_window_extent().x1 for legend in legends) <= ax.figure.bbox.x1
    assert [text.get_text() for text in legends[-1].get_texts()][-2:] == ["8.b_proj", "and 6 more"]
