"""Angles and overlaps against SciPy and the definition."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch

import tlora
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.targets import named, target
from tlora.subspaces.alignment import overlap_with_neighbors


def calibrated(model, seed=0):
    return tlora.calibrate(model, [tiny_batch(model, lengths=(30, 25), seed=seed)], task=f"task {seed}", progress=False)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def calibration(model):
    return calibrated(model)


@pytest.fixture(scope="module")
def kinds(model, calibration):
    found = ("wc", "w", "random")
    return {k: tlora.task_subspaces(model, calibration, max_rank=8, kind=k, progress=False) for k in found}


def random_subspaces(kinds, rank, d_in, seed=0, modules=400):
    """Random subspaces of many modules of one shape, from the real ones of another."""
    names = [f"layers.{i}.q_proj" for i in range(modules)]
    generator = torch.Generator().manual_seed(seed)
    return replace(
        kinds["random"],
        bases={n: torch.linalg.qr(torch.randn(d_in, rank, generator=generator)).Q.T.contiguous() for n in names},
        numerical_rank=dict.fromkeys(names, rank),
        targets=named(*(target(n, i, "q_proj", (d_in, d_in)) for i, n in enumerate(names))),
        fingerprints={n: torch.arange(1, 17).float() for n in names},
    )


def test_alignment_of_two_kinds(kinds):
    found = tlora.align(kinds["wc"], kinds["w"], 5)
    assert found.sides == ("wc", "w")
    frame = found.to_frame().set_index("module")
    for name in kinds["wc"].names:
        pair = [kinds[k].basis(name, 5).double().numpy().T for k in ("wc", "w")]
        expected = scipy.linalg.subspace_angles(*pair)[::-1]
        np.testing.assert_allclose(found.angles[name], expected, atol=1e-6)
        assert found.overlap[name] == pytest.approx(np.mean(np.cos(expected) ** 2), abs=1e-6)
        assert frame.loc[name, "overlap"] == found.overlap[name]
        ends = frame.loc[name, ["first_angle", "median_angle", "last_angle"]].astype(float)
        np.testing.assert_allclose(ends, np.rad2deg(expected[[0, 2, 4]]), atol=1e-4)
        assert frame.loc[name, "random"] == found.random[name] == 5 / kinds["wc"].shapes[name][1]


def test_lower_ranks_are_read_off(kinds):
    found = tlora.align(kinds["wc"], kinds["w"], 6)
    for rank in (1, 4, 6):
        alone = tlora.align(kinds["wc"], kinds["w"], rank)
        pd.testing.assert_frame_equal(found.at(rank), alone.at(rank))
        assert found.at(rank)["overlap"].tolist() == pytest.approx(list(alone.overlap.values()), abs=1e-12)
    for rank in (0, 7):
        with pytest.raises(ValueError, match="rank"):
            found.at(rank)


def test_random_subspaces_overlap_by_chance(kinds):
    found = tlora.align(random_subspaces(kinds, 4, 32), random_subspaces(kinds, 4, 32, seed=1), 4)
    overlaps = np.array(list(found.overlap.values()))
    assert set(found.random.values()) == {4 / 32}
    assert overlaps.mean() == pytest.approx(4 / 32, abs=4 * overlaps.std() / len(overlaps) ** 0.5)
    assert overlaps.std() < 0.06  # so that the mean says something


def test_two_tasks_two_seeds_and_two_halves(model, calibration, kinds):
    other = calibrated(model, seed=1)
    task = tlora.task_subspaces(model, other, max_rank=8, progress=False)
    found = tlora.align(kinds["wc"], task, 4)
    assert found.sides == ("wc of task 0", "wc of task 1")
    assert found.meta.task == "task 0 and task 1"
    seed = tlora.task_subspaces(model, calibration, max_rank=8, kind="random", seed=1, progress=False)
    assert tlora.align(kinds["random"], seed, 4).sides == ("random of seed 0", "random of seed 1")
    assert tlora.align(kinds["random"], seed, 4).meta.seed is None
    half = replace(kinds["wc"])
    assert tlora.align(kinds["wc"], half, 4).sides == ("wc (1)", "wc (2)")
    assert tlora.align(kinds["wc"], half, 4, labels=("first half", "second half")).sides == (
        "first half",
        "second half",
    )
    # the sample counts that the two sides were made from
    fewer = tlora.calibrate(model, [tiny_batch(model, lengths=(9,))], task="task 0", progress=False)
    found = tlora.align(kinds["wc"], tlora.task_subspaces(model, fewer, max_rank=8, progress=False), 4)
    assert found.sides == ("wc of 2 samples", "wc of 1 sample")
    assert found.meta.samples == 1


def test_directions_that_no_matrix_determines_are_counted(model, kinds):
    few = tlora.calibrate(model, [tiny_batch(model, lengths=(4,))], progress=False)
    short = tlora.task_subspaces(model, few, max_rank=8, progress=False)
    found = tlora.align(kinds["wc"], short, 8)
    assert set(found.determined.values()) == {3}
    assert found.to_frame()["determined"].tolist() == [3] * len(found.names)


def test_subspaces_of_something_else_are_refused(model, kinds):
    part = tlora.calibrate(model, [tiny_batch(model)], target_modules=["down_proj"], progress=False)
    foreign, wide = tiny_model("llama", seed=1), tiny_model("llama", intermediate_size=64)
    others = [
        ("different modules", tlora.task_subspaces(model, part, max_rank=4, progress=False)),
        ("different models", tlora.task_subspaces(foreign, calibrated(foreign), max_rank=4, progress=False)),
        ("different models", tlora.task_subspaces(wide, calibrated(wide), max_rank=4, progress=False)),
    ]
    for words, other in others:
        for pair in ((kinds["wc"], other), (other, kinds["wc"])):
            with pytest.raises(ValueError, match=words):
                tlora.align(*pair, 2)


@pytest.mark.parametrize("rank", [0, 9])
def test_ranks_beyond_the_bases_are_refused(kinds, rank):
    with pytest.raises(ValueError, match="rank"):
        tlora.align(kinds["wc"], kinds["w"], rank)


def test_overlap_with_neighbors_is_the_mean_of_the_adjacent_layers(kinds):
    """Three layers: the outer ones have one neighbor, the middle one has two."""
    made = random_subspaces(kinds, 4, 32, modules=3)
    found = overlap_with_neighbors(made)
    pairs = [[made.basis(made.names[i + side], 2).double().numpy().T for side in (0, 1)] for i in (0, 1)]
    first, second = (np.mean(np.cos(scipy.linalg.subspace_angles(*pair)) ** 2) for pair in pairs)
    assert [float(found[n][1]) for n in made.names] == pytest.approx([first, (first + second) / 2, second], abs=1e-6)
    narrow = replace(made, targets=made.targets | {made.names[-1]: replace(made.targets[made.names[-1]], d_in=40)})
    assert list(overlap_with_neighbors(narrow)) == made.names[:2]
