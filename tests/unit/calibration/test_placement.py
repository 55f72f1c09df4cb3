"""Where the sums of a calibration are kept."""

from __future__ import annotations

import math

import pytest
import torch

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.results import same
from tlora.calibration.placement import choose_placement

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("needed", "free", "expected"),
    [
        ({FIRST: 20}, {FIRST: 40}, "device"),
        ({FIRST: 21}, {FIRST: 40}, "host"),
        ({FIRST: 1, SECOND: 21}, {FIRST: 40, SECOND: 40}, "host"),
        ({CPU: 10**15}, {CPU: math.inf}, "device"),
        ({FIRST: 0}, {FIRST: 0}, "device"),
    ],
)
def test_the_host_is_chosen_if_half_of_the_free_memory_does_not_suffice(needed, free, expected):
    assert choose_placement(needed, free.__getitem__) == expected


@pytest.mark.parametrize("options", [{}, {"covariance": "sketch", "sketch_size": 8}], ids=str)
def test_what_is_needed_is_what_whole_sums_take(monkeypatch, options):
    """Modules that share an input are counted one by one."""
    seen = {}
    monkeypatch.setattr("tlora.calibration.accumulators.choose_placement", lambda needed, _: seen.update(needed))
    model = tiny_model("llama")
    options |= {"gradient": True, "fisher": True}
    found = tlora.calibrate(model, [tiny_batch(model)], progress=False, **options)
    sums = [found.covariance[name].total for name in found.names] + [found.fisher[name].total for name in found.names]
    whole = [total for total in sums if total.shape[0] == total.shape[1]]
    assert seen == {CPU: sum(total.nbytes for total in [*whole, *(g.corange for g in found.gradient.values())])}


def test_both_places_give_the_same_numbers_on_a_cpu():
    model = tiny_model("llama")
    results = [
        tlora.calibrate(model, [tiny_batch(model)], gradient=True, fisher=True, statistics=place, progress=False)
        for place in ("device", "host", None)
    ]
    assert same(*results[:2])
    assert same(*results[1:])


@pytest.mark.parametrize(
    "call",
    [
        lambda model, batches: tlora.calibrate(model, batches, statistics="disk", progress=False),
        lambda model, batches: tlora.prepare(model, batches, rank=2, samples=3, statistics="disk", progress=False),
    ],
)
def test_another_place_is_refused(call):
    model = tiny_model("llama")
    with pytest.raises((TypeError, ValueError), match="statistics"):
        call(model, [tiny_batch(model)])


def test_the_host_is_named_in_the_log(monkeypatch, caplog):
    monkeypatch.setattr("tlora.calibration.accumulators.free_bytes", lambda device: 1.0)
    model = tiny_model("llama")
    with caplog.at_level("INFO", logger="tlora"):
        tlora.calibrate(model, [tiny_batch(model)], progress=False)
    assert len([line for line in caplog.messages if "on the host" in line]) == 1
