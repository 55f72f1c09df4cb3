"""SpectrumExplorer and AlignmentExplorer: what they read off equals the definition, computed with NumPy."""

import dataclasses
import html
import re
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import viz
from tests.helpers.pictured import spectrum
from tests.helpers.results import base, calibration
from tests.helpers.targets import named, target
from tlora.calibration.spectrum import Spectrum
from tlora.subspaces.subspaces import Subspaces
from tlora.subspaces.task_subspaces import task_subspaces


@cache
def kind(name: str, seed: int = 0) -> Subspaces:
    return task_subspaces(base(), calibration(), max_rank=8, kind=name, seed=seed, progress=False)


def text(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "|", page))


def covariance(module: str) -> np.ndarray:
    return calibration().covariance[module].dense().double().numpy()


def weight(module: str) -> np.ndarray:
    return base().get_submodule(module).weight.detach().double().numpy()


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_variance_and_energy_are_those_of_the_definition(rank):
    it = viz.SpectrumExplorer(calibration(), kind("wc"), kind("random"))
    it.controls["layer"].value = 1
    it.controls["projection"].value = "down_proj"
    it.controls["rank"].value = rank
    module = "model.layers.1.mlp.down_proj"
    c, w = covariance(module), weight(module)
    eigenvalues = np.linalg.eigvalsh(c)[::-1]
    reading = it.result(it.state)
    assert reading.module == module
    assert reading.held == pytest.approx({"variance": eigenvalues[:rank].sum() / np.trace(c)}, rel=1e-4)

    it.controls["kind"].value = "wc"
    _, values, rows = np.linalg.svd(w @ c)
    held = it.result(it.state).held
    assert held["energy"] == pytest.approx(np.square(values[:rank]).sum() / np.square(values[:8]).sum(), rel=1e-3)
    inside = np.trace(rows[:rank] @ c @ rows[:rank].T) / np.trace(c)
    assert held["variance"] == pytest.approx(inside, rel=2e-2)

    it.controls["kind"].value = "random"
    drawn = kind("random").basis(module, rank).double().numpy()
    assert it.result(it.state).held == pytest.approx(
        {"variance": np.trace(drawn @ c @ drawn.T) / np.trace(c)}, rel=1e-4
    )


def test_directions_needed_are_counted():
    values = torch.tensor([4.0, 3.0, 2.0, 1.0])
    one = Spectrum(named(target("a")), {"a": values}, {"a": 10.0}, {"a": 4}, {"a": "a"}, "covariance", META)
    reading = viz.SpectrumExplorer(one, rank=2).result(viz.SpectrumExplorer(one, rank=2).state)
    assert reading.held == pytest.approx({"variance": 0.7})
    assert reading.needed == {"variance": {0.9: 3, 0.95: 4, 0.99: 4}}
    part = dataclasses.replace(one, eigenvalues={"a": values[:3]})
    assert np.isnan(viz.SpectrumExplorer(part).result(viz.SpectrumExplorer(part).state).needed["variance"][0.99])
    assert "more than known" in viz.SpectrumExplorer(part).summary.value


META = calibration().meta


def test_rank_beyond_what_is_known_means_all_that_is_known():
    it = viz.SpectrumExplorer(calibration(), kind("w"))
    it.controls["rank"].value = 20
    it.controls["kind"].value = "w"
    assert it.result(it.state).rank == 8
    assert it.result(it.state).held["energy"] == pytest.approx(1)
    assert "first 8" in it.summary.value


def test_curves_are_the_cumulative_shares_and_the_cursor_stands_at_the_rank():
    it = viz.SpectrumExplorer(spectrum("30 layers"), rank=5)
    it.controls["layer"].value = 7
    figure = plt.figure()
    ax = it.render(it.state, figure.add_subplot())
    curve = it_curves(ax)["variance"]
    eigenvalues = spectrum("30 layers").eigenvalues["layers.7.q_proj"].double().numpy()
    np.testing.assert_allclose(curve[1], np.cumsum(eigenvalues) / eigenvalues.sum(), rtol=1e-6)
    assert len(ax.collections[0].get_segments()) == 29  # the other layers
    said = next(text.get_text() for text in ax.texts if text.get_text().endswith(" % variance"))
    assert said == f"{100 * curve[1][4]:.0f} % variance"
    plt.close(figure)


def it_curves(ax: Any) -> dict[str, np.ndarray]:
    return {line.get_label(): np.array(line.get_data()) for line in ax.lines if not line.get_label().startswith("_")}


def test_a_module_that_is_not_there_is_refused_in_words():
    whole = spectrum("2 layers")
    kept = [name for name in whole.names if name != "layers.1.up_proj"]
    fields = ("targets", "eigenvalues", "traces", "dimensions", "inputs")
    part = dataclasses.replace(whole, **{f: {n: getattr(whole, f)[n] for n in kept} for f in fields})
    it = viz.SpectrumExplorer(part)
    it.controls["projection"].value = "up_proj"
    state = it.state
    it.controls["layer"].value = 1
    assert "layer 1 has no up_proj: it is in the layers 0 to 0" in it.message.value
    assert it.state == state
    it.controls["projection"].value = "q_proj"
    assert (it.state.layer, it.state.projection, it.message.value) == (1, "q_proj", "")


def test_nothing_is_decomposed_when_a_control_moves(monkeypatch):
    it = viz.SpectrumExplorer(calibration(), kind("wc"))
    other = viz.AlignmentExplorer(kind("wc"), kind("w"), kind("random"), progress=False)
    for name in ("eigh", "eigvalsh", "svd", "svdvals", "qr"):
        monkeypatch.setattr(torch.linalg, name, None)
        monkeypatch.setattr(np.linalg, name, None)
    for control, value in {"layer": 1, "kind": "wc", "rank": 4}.items():
        it.controls[control].value = value
    for control, value in {"right": "random", "left": "w", "rank": 4}.items():
        other.controls[control].value = value
    assert (it.state.kind, other.state.left) == ("wc", "w")


def test_sources_are_checked():
    with pytest.raises(ValueError, match="nothing to explore"):
        viz.SpectrumExplorer()
    with pytest.raises(TypeError, match="a source is a dict: pass a Spectrum"):
        viz.SpectrumExplorer({})
    with pytest.raises(ValueError, match="two sources are of kind 'w'"):
        viz.SpectrumExplorer(kind("w"), kind("w", 1))
    with pytest.raises(ValueError, match="of different modules"):
        viz.SpectrumExplorer(kind("w"), spectrum())
    with pytest.raises(ValueError, match="rank=0"):
        viz.SpectrumExplorer(kind("w"), rank=0)
