"""SpectrumExplorer and AlignmentExplorer: what they read off equals the definition, computed with NumPy."""

import dataclasses
import html
import re
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pytest

import viz
from tests.helpers.results import base, calibration
from tlora.subspaces.subspaces import Subspaces
from tlora.subspaces.task_subspaces import task_subspaces
from viz import style


@cache
def kind(name: str, seed: int = 0) -> Subspaces:
    return task_subspaces(base(), calibration(), max_rank=8, kind=name, seed=seed, progress=False)


def text(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "|", page))


def overlap(module: str, one: Subspaces, other: Subspaces, rank: int) -> float:
    """Mean squared cosine of the principal angles, from the singular values of the product of both bases."""
    product = one.basis(module, rank).double() @ other.basis(module, rank).double().T
    return float(np.square(np.linalg.svd(product.numpy(), compute_uv=False)).mean())


@pytest.mark.parametrize("rank", [1, 5, 8])
def test_overlap_is_the_mean_squared_cosine(rank):
    sides = {"wc": kind("wc"), "w": kind("w"), "random": kind("random")}
    it = viz.AlignmentExplorer(*sides.values(), progress=False)
    it.controls["rank"].value = rank
    for left, right in (("wc", "w"), ("wc", "random"), ("w", "random"), ("random", "wc")):
        it.controls["left"].value = left
        it.controls["right"].value = right
        frame = it.result(it.state)
        expected = [overlap(name, sides[left], sides[right], rank) for name in calibration().names]
        np.testing.assert_allclose(frame["overlap"], expected, atol=1e-5)
        ax = it.render(it.state, plt.figure().add_subplot())
        cells = ax.collections[0].get_array()
        rows = list(dict.fromkeys(frame["projection"]))
        drawn = [cells[rows.index(p), layer] for p, layer in zip(frame["projection"], frame["layer"], strict=True)]
        np.testing.assert_allclose(drawn, expected, atol=1e-5)
        plt.close("all")
        assert f"|q_proj||{style.percent(frame['overlap'][::7].mean())}|" in text(it.summary.value)
        assert f"{left} and {right}" in it.line


def test_one_side_against_itself_is_refused():
    it = viz.AlignmentExplorer(kind("wc"), kind("w"), progress=False)
    state = it.state
    it.controls["right"].value = "wc"
    assert "both sides are wc" in it.message.value
    assert it.state == state
    it.controls["left"].value = "w"
    assert it.message.value == ""
    assert (it.state.left, it.state.right) == ("w", "wc")


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"kind": "w"}, ["wc", "w"]),
        ({"seed": 1}, ["wc of seed 0", "wc of seed 1"]),
        ({"task": "other"}, ["wc of family_relationships", "wc of other"]),
        ({}, ["wc (1)", "wc (2)"]),
    ],
)
def test_sides_are_called_by_what_sets_them_apart(changes, labels):
    one = kind("wc")
    meta = dataclasses.replace(one.meta, **{k: v for k, v in changes.items() if k != "kind"})
    other = dataclasses.replace(one, kind=changes.get("kind", "wc"), meta=meta)
    assert viz.AlignmentExplorer(one, other, progress=False).labels == labels


def test_sides_are_checked():
    with pytest.raises(ValueError, match="1 side to compare"):
        viz.AlignmentExplorer(kind("w"))
    with pytest.raises(TypeError, match="a side is a dict"):
        viz.AlignmentExplorer(kind("w"), {})
    with pytest.raises(ValueError, match="2 sides are called a, a"):
        viz.AlignmentExplorer(kind("w"), kind("wc"), labels=["a", "a"])
    with pytest.raises(ValueError, match="2 sides are called a: pass one label"):
        viz.AlignmentExplorer(kind("w"), kind("wc"), labels=["a"])
    with pytest.raises(ValueError, match="rank=0"):
        viz.AlignmentExplorer(kind("w"), kind("wc"), rank=0)
