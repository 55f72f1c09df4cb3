"""What a compression tells, and that it is what it was when it is loaded again."""

import pytest
import torch

from tests.helpers.results import compression


def test_errors_and_parameters_are_those_of_its_table():
    result = compression()
    frame = result.to_frame()
    before = sum(rank * sum(result.shapes[name]) for name, rank in result.original_ranks.items())
    assert result.parameters == (before, int(frame["parameters"].sum()))
    lost = [float(e[1, 1, result.ranks[name] :].sum()) for name, e in result.energies.items()]
    whole = [float(e[1, 1].sum()) for e in result.energies.values()]
    assert result.error() == pytest.approx((sum(lost) / sum(whole)) ** 0.5)
    assert frame["error"].tolist() == pytest.approx(
        [(a / b) ** 0.5 if b else 0 for a, b in zip(lost, whole, strict=True)]
    )
    assert frame["held_out_error"].isna().all()
    assert result.error("plain") != result.error("task")
    with pytest.raises(ValueError, match="measure='held out': this compression has 'plain', 'task'"):
        result.error("held out")


def test_curves_fall_to_nothing_and_the_task_cut_is_below_the_others():
    curves = compression().curves(40)
    for cut, curve in curves.groupby("cut"):
        assert (curve["parameters"].diff().dropna() >= 0).all()
        assert curve["error"].iloc[0] == 1, cut
        assert curve["error"].iloc[-1] == pytest.approx(0, abs=1e-6), cut
    plain, task = (curves[curves["cut"] == cut].reset_index() for cut in ("plain", "task"))
    assert (curves["measure"] == "task").all()
    assert task["error"].mean() < plain["error"].mean()
    uniform = curves[curves["cut"] == "uniform"]
    for row in uniform.itertuples():
        reached = task[task["parameters"] <= row.parameters]["error"].iloc[-1]
        assert reached <= row.error + 0.1


def test_updates_of_nothing_lose_nothing():
    result = compression()
    name = result.names[0]
    energies = result.energies | {name: torch.zeros_like(result.energies[name])}
    emptied = type(result)(**{**vars(result), "energies": energies})
    assert emptied.to_frame()["error"].iloc[0] == 0
