"""Workbench: budgets stay exact whatever is done, everything can be undone, and what goes out comes back the same."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import tlora
import viz
from tests.helpers import jobs, results
from tests.helpers.models import tiny_batch, tiny_model, tiny_tokenizer
from tests.helpers.results import base, calibration, same, subspaces
from tests.helpers.sensitivities import sensitivity as by_hand
from tlora.allocation.allocation import Allocation
from tlora.allocation.constraints import RankLimits
from tlora.subspaces.task_subspaces import task_subspaces
from viz.widgets.base import as_sentence
from viz.widgets.state import ALLOCATION_PRESETS

SCORES = [8.0, 1.0, 3.0, 4.0, 2.0, 6.0]
allocate_file, allocation_file, race_file = (
    import_module(name) for name in ("tlora.allocation.allocate", "tlora.allocation.allocation", "viz.widgets.race")
)


def small(**options: Any) -> viz.Workbench:
    """Six modules: q_proj, k_proj and down_proj of two layers."""
    return viz.Workbench(by_hand(SCORES), rank=4, **options)


@cache
def other() -> Any:
    return task_subspaces(base(), calibration(), max_rank=8, kind="random", progress=False)


@cache
def fisher() -> Any:
    return task_subspaces(base(), calibration(), max_rank=8, kind="fisher", progress=False)


def request(it: viz.Workbench, call: str, gesture: str | None = None, **args: Any) -> None:
    """What the browser sends."""
    it._answer(it.widget, {"call": call, "args": args, "gesture": gesture, "id": 1}, [])


def test_setting_a_rank_rebalances_the_others_within_the_budget() -> None:
    it = small()
    it.set_rank("layers.1.down_proj", 11)
    assert same(it.allocation, tlora.allocate(by_hand(SCORES), rank=4).edit({"layers.1.down_proj": 11}))
    assert sum(it.allocation.ranks.values()) == 24
    assert it.widget.current["reasons"][5] == "by hand"
    it.release("layers.1.down_proj")
    assert same(it.allocation, tlora.allocate(by_hand(SCORES), rank=4))


def test_it_opens_on_the_module_with_the_most_rank() -> None:
    assert small().selected == [small().names[0]]
    assert small(exclude_modules=["q_proj"]).selected == ["layers.1.down_proj"]


@pytest.mark.parametrize("preset", ["uniform", "q and v"])
def test_a_preset_of_equal_ranks_is_not_by_score(preset: str) -> None:
    it = small()
    assert "uniform" not in it.widget.current["reasons"]
    it.preset(preset)
    assert set(it.widget.current["reasons"]) - {"left out"} == {"uniform"}


def test_a_refused_rank_changes_nothing() -> None:
    it = small()
    before = it.state
    with pytest.raises(ValueError, match=r"layers\.0\.q_proj"):
        it.set_rank("layers.0.q_proj", 60)
    with pytest.raises(KeyError, match="nothing"):
        it.set_rank("nothing", 3)
    with pytest.raises(TypeError, match=r"allocate\(\) has no option 'depth': it has rank, alpha"):
        it.set(depth=3)
    assert it.state is before
    it.undo()
    assert it.state is before


@pytest.mark.parametrize(
    ("refusal", "shown"),
    [
        ("rank 60 is too large", "Rank 60 is too large"),
        ("adapted, but not here", "Adapted, but not here"),
        ("layers.0.q_proj is pinned", "layers.0.q_proj is pinned"),
        ("max_rank=8 has no room", "max_rank=8 has no room"),
        ("alpha=8 has no effect", "alpha=8 has no effect"),
        ("runs/mine holds a model", "runs/mine holds a model"),
        ("fc1 is pinned", "fc1 is pinned"),
    ],
)
def test_a_message_begins_with_a_capital_unless_it_begins_with_a_name(refusal: str, shown: str) -> None:
    assert as_sentence(refusal) == shown


@pytest.mark.parametrize(("rank", "nearest"), [(60, 19), (20, 19), (19, 19)])
def test_dragging_too_far_gives_the_nearest_possible_rank(rank: int, nearest: int) -> None:
    """Of 24 ranks, five other modules keep one each."""
    it = small()
    request(it, "set_rank", "drag 1", modules=[0], rank=rank)
    assert it.allocation.ranks["layers.0.q_proj"] == nearest
    assert ("at most" in it.widget.current["message"] or "or less" in it.widget.current["message"]) == (rank > nearest)


def test_a_drag_of_a_module_that_no_rank_leaves_room_for_changes_nothing() -> None:
    """Of six ranks, the five others need all: one of them two."""
    it = viz.Workbench(by_hand(SCORES), rank=1, min_rank={"layers.0.k_proj": 2}, exclude_modules=["layers.0.q_proj"])
    request(it, "set_rank", "drag 1", modules=[0], rank=3)
    assert it.widget.current["message"]
    assert it.widget.current["ranks"] == [0, 2, 1, 1, 1, 1]


def test_a_floor_of_zero_drops_modules() -> None:
    it = viz.Workbench(by_hand([20.0, 0.1, 3.0, 0.5, 0.4, 0.1]), rank=2)
    request(it, "set", min_rank=0)
    shown = it.widget.current
    assert not shown["message"]
    assert shown["controls"]["min_rank"] == 0
    assert shown["ranks"] == [10, 0, 2, 0, 0, 0]
    assert shown["reasons"][1] == "left out"
    assert shown["code"] == "tlora.allocate(calibration.sensitivity, rank=2, min_rank=0)"
    request(it, "set_rank", "drag 1", modules=[1], rank=3)
    assert it.allocation.ranks[it.names[1]] == 3


def test_one_gesture_is_one_step_to_undo() -> None:
    it = small()
    for rank in (9, 10, 11):
        request(it, "set_rank", "drag 1", modules=[3], rank=rank)
    request(it, "set_rank", "drag 2", modules=[3], rank=12)
    request(it, "undo")
    assert it.allocation.ranks["layers.1.q_proj"] == 11
    request(it, "undo")
    assert same(it.allocation, tlora.allocate(by_hand(SCORES), rank=4))
    request(it, "redo")
    assert it.allocation.ranks["layers.1.q_proj"] == 11


@pytest.mark.parametrize("preset", ["by score", "captured"])
@pytest.mark.parametrize(("module", "rank"), [(3, 7), (3, 60), (3, 1), (0, 30)])
def test_a_drag_shares_the_budget_once(preset: str, module: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And makes no table. One that is refused also works out once which rank is the nearest, however far it went."""
    scores = calibration().sensitivity
    it, counts = viz.Workbench(scores, fisher(), rank=4), Counter[str]()
    it.preset(preset)

    def count(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    request(it, "set_rank", "drag 1", modules=[module], rank=5)
    count(RankLimits, "share_ranks")
    count(Allocation, "to_frame")
    for file in (allocate_file, allocation_file):
        count(file, "rank_limits")
    it.widget.observe(lambda change: counts.update(["current"]), "current")
    request(it, "set_rank", "drag 1", modules=[module], rank=rank)
    limits = counts.pop("rank_limits")
    assert counts == {"share_ranks": 1, "current": 1}
    assert limits == (3 if it.widget.current["message"] else 1)
    assert same(it.allocation, eval(it.code("scores"), {"tlora": tlora, "scores": scores, "subspaces": it.subspaces}))


def test_going_back_to_what_was_kept_computes_no_uniform_allocation_again(monkeypatch: pytest.MonkeyPatch) -> None:
    it = small()
    start = it.allocation.ranks[it.names[3]]
    it.set_rank(it.names[3], 9)
    monkeypatch.setattr(race_file, "allocate", None)
    it.undo()
    assert list(it.arms) == ["uniform", "kept"]
    it.set_rank(it.names[3], start)
    assert list(it.widget.current["race"]["arms"]) == ["uniform", "kept"]


def actions(modules: int) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    """Requests, sensible and not."""
    some = st.lists(st.integers(0, modules - 1), min_size=1, max_size=3, unique=True)
    options = st.one_of(
        st.fixed_dictionaries({"rank": st.integers(1, 12)}),
        st.fixed_dictionaries({"temperature": st.integers(0, 20).map(lambda step: step / 20)}),
        st.fixed_dictionaries({"min_rank": st.integers(1, 9)}),
        st.fixed_dictionaries({"max_rank": st.integers(1, 64)}),
        st.fixed_dictionaries({"budget": st.sampled_from(["ranks", "parameters"])}),
    )
    return st.one_of(
        st.tuples(st.just("set"), options),
        st.tuples(st.just("set_rank"), st.fixed_dictionaries({"modules": some, "rank": st.integers(1, 64)})),
        st.tuples(st.sampled_from(["release", "leave_out"]), st.fixed_dictionaries({"modules": some})),
        st.tuples(st.just("preset"), st.fixed_dictionaries({"name": st.sampled_from(list(ALLOCATION_PRESETS))})),
        st.tuples(st.sampled_from(["undo", "redo", "keep"]), st.just({})),
    )


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_after_many_actions_the_budget_is_exact_and_undo_returns_to_the_start(data: st.DataObject) -> None:
    """Fifty actions a run: the budget is counted here from ranks and shapes, not taken from the allocation."""
    scores = by_hand(SCORES, [(64, 32), (16, 32), (32, 64)] * 2)
    it = viz.Workbench(scores, rank=4)
    start = it.state
    for call, args in data.draw(st.lists(actions(6), min_size=50, max_size=50)):
        request(it, call, **args)
        allocation, options = it.allocation, it.state.options
        if options.budget == "ranks":
            assert sum(allocation.ranks.values()) == options.rank * 6
        else:
            used = sum(rank * allocation.shapes[n][0] for n, rank in allocation.ranks.items())
            total, most = options.rank * 224, 64
            prices = [
                allocation.shapes[n][0]
                for n, r in allocation.ranks.items()
                if r < min(*allocation.shapes[n], options.max_rank or most)
            ]
            free = [p for p, n in zip(prices, allocation.ranks, strict=False) if n not in it.state.edits]
            assert used <= total
            assert not free or total - used < max(64, *free)
        assert it.widget.current["ranks"] == [allocation.ranks.get(name, 0) for name in it.names]
    assert same(it.allocation, eval(it.code("scores"), {"tlora": tlora, "scores": scores}))
    while it._past:
        it.undo()
    assert it.state == start


def test_what_is_kept_is_what_changes_count_from() -> None:
    it = small()
    first = it.allocation
    it.set(temperature=0)
    assert it.kept is first
    assert it.widget.current["kept"] == [first.ranks[name] for name in it.names]
    it.keep()
    assert same(it.kept, it.allocation)
    assert it.widget.current["kept"] == it.widget.current["ranks"]
    it.undo()
    assert it.kept is first


def test_a_run_adds_how_far_modules_moved() -> None:
    run = results.run()
    it = viz.Workbench(calibration(), subspaces(), run=run, rank=2)
    tabs = {tab["name"]: tab["values"] for tab in it.widget.about["tabs"] if "values" in tab}
    last = run.module_history.groupby("module")["update_norm"].last()
    for name, update, used in zip(it.names, tabs["update"], tabs["used"], strict=True):
        if name in last.index:
            assert update == pytest.approx(last[name], rel=6e-3)
            assert used <= run.ranks[name]
        else:
            assert update is used is None


def test_the_map_knows_the_ranks_that_a_run_was_trained_with() -> None:
    run = results.run()
    it = viz.Workbench(calibration(), subspaces(), run=run, rank=2)
    assert it.widget.about["run"] == [run.ranks.get(name, 0) for name in it.names] != it.widget.current["ranks"]
    assert [tab["name"] for tab in it.widget.about["tabs"] if tab.get("run")] == ["update", "used"]
    assert viz.Workbench(calibration(), subspaces(), rank=2).widget.about["run"] is None


REFUSALS: list[tuple[Any, type[Exception], str]] = [
    (lambda: viz.Workbench(by_hand(SCORES), subspaces()), ValueError, "self_attn.q_proj"),
    (lambda: viz.Workbench(calibration(), subspaces(), capture=subspaces()), TypeError, "capture"),
    (lambda: viz.Workbench(calibration(), calibration()), TypeError, "subspaces"),
    (lambda: viz.Workbench({"q_proj": 1.0}), TypeError, "tlora.calibrate"),
    (lambda: viz.Workbench(calibration(), bases_of_an_allocation(), rank=2), ValueError, "max_rank="),
    (lambda: viz.Workbench(calibration(), subspaces(), rank=9), ValueError, "tlora.task_subspaces"),
    (lambda: small(min_rank=5), ValueError, "min_rank"),
    (lambda: small(exclude_modules="o_proj"), KeyError, "o_proj"),
    (lambda: small(depth=3), TypeError, "allocate() has no option 'depth'"),
    (lambda: small().save(None), TypeError, "path is None: pass"),
    (lambda: viz.Workbench.load(None), TypeError, "path is None: pass"),
    (lambda: small().train(), ValueError, "model=model, task=task"),
    (lambda: viz.Workbench(calibration(), subspaces(), model=base()).train(), ValueError, "task=task"),
    (lambda: small().compare("wc", "w"), KeyError, "other="),
    (lambda: viz.Workbench(calibration(), subspaces(), other=other(), rank=2).compare("wc", "w"), KeyError, "random"),
]


def bases_of_an_allocation() -> Any:
    allocation = tlora.allocate(calibration().sensitivity, 2)
    return task_subspaces(base(), calibration(), max_rank=allocation, progress=False)


@pytest.mark.parametrize(("call", "error", "words"), REFUSALS)
def test_refusals(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        call()


def test_two_subspaces_are_compared_in_the_panel() -> None:
    it = viz.Workbench(calibration(), subspaces(), other={"drawn": other(), "same": subspaces()}, rank=2)
    alignment = it.compare("drawn", "wc", rank=3)
    assert alignment.sides == ("wc", "drawn")  # the own subspaces are not compared with themselves
    assert (it.widget.stage, it.widget.panel) == ("directions", "alignment")
    assert it.widget.compared == {"left": "wc", "right": "drawn", "rank": 3}
    tabs = {tab["name"]: tab for tab in it.widget.about["tabs"]}
    left, right = (one.basis(it.names[3], 4).double() for one in (subspaces(), other()))
    assert tabs["overlap"]["curves"][3][3] == pytest.approx(float((left @ right.T).square().sum() / 4), rel=6e-3)


def test_the_browser_asks_for_parts_of_the_resamples_until_there_are_no_more() -> None:
    """The ranks are those of allocations from other resamples, in the mean."""
    it, answers = viz.Workbench(calibration(), subspaces(), rank=2), []
    it.widget.send = answers.append
    while not answers or answers[-1]["more"]:
        assert it.widget.resampled == []
        it._answer(None, {"call": "resample", "id": len(answers)}, [])
    assert [answer["more"] for answer in answers] == [True] * 7 + [False]
    ranks, counts = np.transpose(it.widget.resampled[5])
    assert counts.sum() == 200
    at_once = tlora.rank_intervals(it.sensitivity, it.allocation, resamples=2000).loc[5]
    np.testing.assert_allclose(ranks @ counts / 200, at_once["mean"], atol=4 * at_once["deviation"] / 200**0.5)
    it.set(rank=3)
    assert it.widget.resampled == []


def test_a_session_comes_back(tmp_path: Any) -> None:
    few = task_subspaces(base(), calibration(), max_rank=4, progress=False)  # the default rank is beyond these
    it = viz.Workbench(calibration(), few, other=other(), rank=2)
    it.set(temperature=0.5)
    it.keep()
    it.set_rank(it.names[2], 4)
    it.leave_out(it.names[9])
    it.select(it.names[4], it.names[2])
    it.widget.tab = "overlap"
    again = viz.Workbench.load(it.save(tmp_path / "session"))
    amount, unit = it.widget.about["session"].split()
    written = sum(file.stat().st_size for file in (tmp_path / "session").iterdir())
    assert float(amount) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(written, rel=0.3)  # and the headers
    assert again.state == it.state
    assert same(again.allocation, it.allocation)
    assert again.code() == it.code()
    assert again.selected == it.selected
    assert (again.widget.stage, again.widget.tab) == ("directions", "overlap")
    assert again.widget.about == it.widget.about
    viz.Workbench(calibration(), subspaces(), rank=2).save(tmp_path / "session")
    assert not viz.Workbench.load(tmp_path / "session").results.others  # all of it was replaced
    with pytest.raises(FileExistsError):
        it.save(tmp_path)


def test_a_session_of_the_version_before_plans_opens() -> None:
    """Made by that version, as was the line of Python."""
    it = viz.Workbench.load(results.STORED / "session_before_plan")
    assert it.code() == (
        "tlora.allocate(calibration.sensitivity, rank=4, exclude_modules=['layers.0.k_proj'], temperature=0.5)"
        ".edit({'layers.1.down_proj': 9})"
    )
    assert list(it.allocation.ranks.values()) == [5, 3, 4, 3, 9]
    assert list(it.kept.ranks.values()) == [6, 2, 4, 4, 3, 5]
    assert (it.selected, it.widget.tab) == (["layers.1.k_proj"], "change")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda head: head.pop("options"), "options"),
        (lambda head: head.update(state={}), "edits"),
        (lambda head: head["options"].update(adapt_ranks="x"), "bool"),
        (lambda head: head.update(edits={"nowhere": 3}), "nowhere"),
        (lambda head: head.update(selected=["nowhere"]), "nowhere"),
    ],
)
def test_a_damaged_session_is_refused(change: Any, words: str, tmp_path: Any) -> None:
    file = viz.Workbench(calibration(), rank=2).save(tmp_path / "session") / "session.json"
    head = json.loads(file.read_text())
    change(head)
    file.write_text(json.dumps(head))
    with pytest.raises(ValueError, match=f"session.json .*{words}"):
        viz.Workbench.load(tmp_path / "session")


def test_a_folder_without_a_session_is_named(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"no session in .*nowhere, which holds no session.json: name a folder"):
        viz.Workbench.load(tmp_path / "nowhere")


def test_numbers_of_numpy_and_none_are_as_plain_ones(tmp_path: Any) -> None:
    it = small(pinned={"layers.0.k_proj": 3})
    it.set(pinned=None, rank=np.int64(5), temperature=np.float64(0.5))
    it.set_rank("layers.1.down_proj", np.int64(7))  # type: ignore[arg-type]  # as from a table
    it.save(tmp_path / "session")
    scores = by_hand(SCORES)
    assert same(eval(it.code("scores"), {"scores": scores, "tlora": tlora}), it.allocation)
    assert "np." not in it.code()
    assert it.allocation.options.pinned == {}


def test_the_tab_of_the_sensitivity_has_the_scores_that_decide() -> None:
    it = viz.Workbench(calibration(), score="sum")
    for score in ("sum", "mean"):
        it.set(score=score)
        (tab,) = [tab for tab in it.widget.about["tabs"] if tab["name"] == "sensitivity"]
        expected = calibration().sensitivity.rescale(score).to_frame()["share"]
        assert tab["values"] == pytest.approx(list(expected), rel=0.01)


def test_a_refusal_is_shown_each_time() -> None:
    """The browser paints a control's old value again only where something is new."""
    it, seen = small(), []
    it.widget.observe(lambda change: seen.append(change["new"]["message"]), "current")
    for _ in range(2):
        request(it, "set", min_rank=40)
    assert seen[0] == seen[1]
    assert seen[0].startswith("min_rank")
    assert it.allocation.options.min_rank == 1


def test_explore_calibrates_and_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        __class__ = tlora.Task  # type: ignore[assignment]  # it stands for one
        name = "small"
        tokenizer = tiny_tokenizer()
        validation = range(3)

        def calibration(self, samples: int, batch_size: int) -> list[Any]:
            assert (samples, batch_size) == (4, 4)
            return [tiny_batch("llama", lengths=(7, 4, 9, 6))]

        def collate(self, rows: list[int]) -> Any:
            return tiny_batch("llama", lengths=(5, 8, 6)[: len(rows)])

    shown: list[Any] = []
    monkeypatch.setattr(viz.Workbench, "display", lambda it: shown.append(it))
    it = viz.explore(tiny_model("llama"), Small(), recipe="tlora-paper", samples=4, max_rank=4, rank=2)
    assert shown == [it]
    assert it.results.capture.ranks == [1, 2, 3, 4]
    assert it.results.activations.kinds == ["wc", "random"]
    assert it.results.activations.meta.samples == 3
    assert it.most == 4


def test_explore_begins_with_what_a_recipe_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viz.Workbench, "display", lambda it: None)
    it = viz.explore(base(), jobs.task(), samples=6, rank=2)
    assert (it.subspaces.kind, it.most) == ("fisher", 8)
    calibration = tlora.calibrate(base(), jobs.task().calibration(6), fisher=True, progress=False)
    known = tlora.task_subspaces(base(), calibration, max_rank=8, kind="fisher", progress=False)
    options = {"by": "captured", "subspaces": known, "budget": "parameters", "adapt_scales": False}
    assert it.allocation.ranks == tlora.allocate(calibration.sensitivity, rank=2, **options).ranks
    shown, prepared = it.plan, tlora.prepare(base(), jobs.task(), rank=2, samples=6, progress=False)
    models = [tlora.attach(copy.deepcopy(base()), plan).state_dict() for plan in (shown, prepared)]
    assert all(tensor.equal(models[1][name]) for name, tensor in models[0].items())
    it.set_rank(it.names[0], 5)
    edited = tlora.attach(copy.deepcopy(base()), it.plan)
    assert edited.peft_config["default"].rank_pattern[f"^{re.escape(it.names[0])}$"] == 5
    assert viz.explore(base(), jobs.task(), recipe="lora", samples=6, rank=2).subspaces is None


def assert_session_keeps_the_race(it: viz.Workbench, new: tlora.Allocation, folder: Path) -> None:
    again = viz.Workbench.load(it.save(folder))
    assert again.widget.races == it.widget.races
    (race,) = again.races
    assert it.race is not None
    assert torch.equal(race.losses, it.race.losses)
    assert race.runs == {}
    assert again.widget.current["race"]["raced"] is None
    line = again.widget.races[0]["arms"]["new"]["code"]
    made = eval(line, {"calibration": calibration(), "tlora": tlora})
    assert made.ranks == new.ranks
    again.preset("uniform")
    assert again.allocation.ranks == new.ranks
    assert again.widget.current["race"]["raced"] == 0  # its verdict is shown again
    few = viz.Workbench(calibration(), subspaces(), rank=2)
    assert not viz.Workbench.load(few.save(folder)).races
    assert not list(folder.glob("race-*"))


@pytest.mark.filterwarnings("ignore:B is still zero", "ignore:`is_gradient")
def test_both_are_trained_while_the_allocation_is_changed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    training = {"steps": 4, "seeds": [0], "learning_rate": 1e-2, "batch_size": 4}
    parts = {"model": base(), "task": jobs.task(), "training": training}
    it = viz.Workbench(calibration(), subspaces(), rank=2, **parts)
    assert list(it.arms) == ["uniform", "kept"]
    assert set(it.arms["uniform"].ranks.values()) == {it.allocation.rank}
    it.preset("uniform")
    assert list(it.arms) == ["kept", "new"]
    it.keep()
    request(it, "train")
    assert it.widget.current["race"]["obstacle"] == it.widget.current["message"]
    assert "as was kept" in it.widget.current["message"]
    it.undo()
    it.undo()
    it.preset("uniform")
    a, b = it.kept, it.allocation
    request(it, "train")
    assert it._race.live is not None
    assert it.widget.current["race"]["is_live"]
    it.set_rank(it.names[0], 4)
    assert not it.widget.current["race"]["is_live"]
    request(it, "train")
    assert "being trained already" in it.widget.current["message"]
    it._race.live.wait()
    assert it.race is not None
    assert [it.race.runs[name][0].ranks for name in ("kept", "new")] == [a.ranks, b.ranks]  # not what came after
    assert it.allocation.ranks[it.names[0]] == 4
    shown = it.widget.training
    assert (shown["said"], shown["running"]) == (it.race.headline, False)
    moved = it.race.runs["new"][0].module_history.query("step == 4").set_index("module")["update_norm"]
    assert shown["arms"]["new"]["updates"] == pytest.approx([moved.get(name) for name in it.names], rel=0.01)
    json.dumps(shown, allow_nan=False)
    assert shown["arms"]["new"]["headline"].startswith(f"Every module gets rank {it.allocation.rank}")
    assert {name: arm["parameters"] for name, arm in shown["arms"].items()} == it.race.parameters
    assert it.widget.current["race"]["raced"] is None
    it.undo()
    assert it.widget.current["race"]["raced"] == 0
    it.undo()  # what was kept: nothing has changed, and the verdict is about something that has
    assert it.widget.current["race"]["raced"] is None
    assert_session_keeps_the_race(it, b, tmp_path / "session")
    assert [tab["trained"] for tab in it.widget.about["tabs"] if "trained" in tab] == ["uniform", "kept", "new"]
    request(it, "save_winner")
    assert tlora.TrainingRun.load("workbench-winner").ranks == it.race.winner.ranks
    assert f"puts {it.race.leader} on the model" in it.widget.current["message"]
