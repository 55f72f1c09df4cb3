"""Subspaces against full decompositions in float64."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power

import tlora
from tests.helpers.models import FAMILIES, tiny_batch, tiny_model
from tests.helpers.results import same
from tests.helpers.spectra import covariance, naive_ranks, spectrum_of, truncated
from tests.helpers.targets import named, target
from tlora.models.weights import weight
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces
from tlora.utils.defaults import KINDS, Kind

KEPT = {"gradient": True, "fisher": True, "progress": False}


def calibrated(family="llama", seed=0, lengths=(30, 25, 28, 40)):
    model = tiny_model(family, seed=seed)
    calibration = tlora.calibrate(model, [tiny_batch(model, lengths=lengths, seed=seed)], **KEPT)
    return model, calibration


@pytest.fixture(scope="module")
def llama():
    return calibrated()


def subspaces(model, calibration, **kwargs):
    return tlora.task_subspaces(model, calibration, progress=False, **kwargs)


def target_matrix(kind, model, calibration, name):
    """The matrix of a kind in float64, straight from its definition."""
    w = weight(model.get_submodule(name)).double().numpy()
    c = calibration.covariance[name].dense().double().numpy()
    g = calibration.gradient[name].dense().double().numpy()
    f = fractional_matrix_power(calibration.fisher[name].dense().double().numpy(), 0.5)
    return {"wc": w @ c, "w": w, "c": c, "g": g, "fisher": f}[kind]


@pytest.mark.parametrize("kind", ["wc", "w", "c", "g", "fisher"])
def test_captured_energy_of_the_kind_is_the_optimum(llama, kind):
    model, calibration = llama
    found = subspaces(model, calibration, max_rank=8, kind=kind)
    for name in calibration.names:
        m = target_matrix(kind, model, calibration, name)
        values = np.linalg.svd(m, compute_uv=False)
        for rank in (1, 4, 8):
            a = found.basis(name, rank).double().numpy()
            np.testing.assert_allclose(a @ a.T, np.eye(rank), atol=5e-6)
            captured = np.linalg.norm(m @ a.T) ** 2 / (values[:rank] ** 2).sum()
            assert captured >= 0.9999, (name, rank, captured)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    model, calibration = calibrated(family)
    found = subspaces(model, calibration, max_rank=4)
    for name in calibration.names:
        m = target_matrix("wc", model, calibration, name)
        values = np.linalg.svd(m, compute_uv=False)
        captured = np.linalg.norm(m @ found.basis(name, 4).double().numpy().T) ** 2
        assert captured / (values[:4] ** 2).sum() >= 0.9999


@pytest.mark.parametrize("centered", [True, False])
def test_wc_half_gives_the_best_low_rank_outputs(llama, centered):
    """The space of kind wc_half minimizes the error on the (shrunk) inputs over all matrices of the rank."""
    model, calibration = llama
    found = subspaces(model, calibration, max_rank=6, kind="wc_half", centered=centered)
    name = "model.layers.1.mlp.up_proj"
    w = weight(model.get_submodule(name)).double().numpy()
    moment = calibration.covariance[name] if centered else calibration.covariance[name].second_moment()
    c = moment.dense().double().numpy()
    assert found.traces[name] == pytest.approx(np.trace(c), rel=1e-5)
    c = 0.99 * c + 0.01 * np.trace(c) / len(c) * np.eye(len(c))
    root = fractional_matrix_power(c, 0.5).real
    best = (np.linalg.svd(w @ root, compute_uv=False)[6:] ** 2).sum()
    # the best matrix with this row space: weighted least squares on it
    a = found.basis(name, 6).double().numpy()
    b = w @ c @ a.T @ np.linalg.inv(a @ c @ a.T)
    error = np.linalg.norm((w - b @ a) @ root) ** 2
    assert error <= best * 1.001
    plain = subspaces(model, calibration, max_rank=6, kind="w").basis(name, 6).double().numpy()
    b = w @ c @ plain.T @ np.linalg.inv(plain @ c @ plain.T)
    assert np.linalg.norm((w - b @ plain) @ root) ** 2 > error


def test_no_kind_holds_more_of_what_fisher_is_made_of(llama):
    model, calibration = llama
    bases = {kind: subspaces(model, calibration, max_rank=4, kind=kind) for kind in KINDS}
    for name, fisher in calibration.fisher.items():
        f = fisher.dense().double()
        energy = {kind: float((s.basis(name, 4).double() @ f * s.basis(name, 4)).sum()) for kind, s in bases.items()}
        assert max(energy.values()) <= 1.00001 * energy["fisher"]
        squares = bases["fisher"].singular_values[name].double().square()
        assert energy["fisher"] == pytest.approx(float(squares.sum()), rel=1e-4)


def test_fisher_of_a_sketch_is_that_of_the_whole_matrix():
    """Of as many tokens as a sketch has columns it knows all; a narrow input is kept whole."""
    model = tiny_model("llama")
    batch = tiny_batch(model, lengths=(5, 4))
    whole, sketched = (tlora.calibrate(model, [batch], fisher=True, sketch_size=s, progress=False) for s in (24, 12))
    assert {f.total.shape for f in sketched.fisher.values()} == {(32, 12), (48, 12)}
    one, other = (subspaces(model, each, max_rank=4, kind="fisher") for each in (whole, sketched))
    for name in one.names:
        torch.testing.assert_close(one.singular_values[name], other.singular_values[name], rtol=1e-3, atol=0)


def test_bases_are_nested_and_signs_fixed(llama):
    found = subspaces(*llama, max_rank=8)
    name = found.names[3]
    assert torch.equal(found.basis(name, 3), found.basis(name, 8)[:3])
    rows = found.basis(name, 8)
    pivots = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    assert (pivots > 0).all()


def test_each_kind_has_its_facts() -> None:
    assert tuple(KINDS) == get_args(Kind)


@pytest.mark.parametrize("kind", KINDS)
def test_one_seed_gives_the_same_bytes(llama, kind):
    one, two = (subspaces(*llama, max_rank=6, kind=kind, seed=7) for _ in range(2))
    assert all(torch.equal(one.bases[n], two.bases[n]) for n in one.names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_reads_no_weight_needs_no_model(llama, kind):
    model, calibration = llama
    if kind in ("c", "g", "fisher", "random"):
        with_model, without = (subspaces(one, calibration, max_rank=6, kind=kind) for one in (model, None))
        assert same(without, with_model)
    else:
        with pytest.raises(ValueError, match=f"{kind}.*pass the model"):
            subspaces(None, calibration, kind=kind)


def test_a_random_space_depends_on_the_seed_and_not_on_the_other_modules(llama):
    model, calibration = llama
    one = subspaces(model, calibration, kind="random", max_rank=4, seed=0)
    other = subspaces(model, calibration, kind="random", max_rank=4, seed=1)
    assert not torch.equal(one.bases[one.names[0]], other.bases[one.names[0]])
    few = tlora.calibrate(model, [tiny_batch(model)], target_modules=["down_proj"], progress=False)
    alone = subspaces(model, few, kind="random", max_rank=4, seed=0)
    assert all(torch.equal(alone.bases[n], one.bases[n]) for n in alone.names)


def test_too_few_tokens_are_counted_and_completed():
    model, calibration = calibrated(lengths=(3, 3))
    found = subspaces(model, calibration, max_rank=8)
    for name in found.names:
        assert found.numerical_rank[name] <= 4
        rows = found.basis(name, 8)
        torch.testing.assert_close(rows @ rows.T, torch.eye(8), atol=5e-6, rtol=0)
        assert not found.singular_values[name][found.numerical_rank[name] :].any()
    assert "completed" in repr(found)


def test_every_column_of_the_table(llama):
    model, calibration = llama
    found = subspaces(model, calibration, max_rank=5)
    frame = found.to_frame().set_index("module")
    assert list(frame.index) == found.names == calibration.names
    for name, row in frame.iterrows():
        values = found.singular_values[name]
        assert row["first_singular_value"] == pytest.approx(values.max().item())
        assert row["last_singular_value"] == pytest.approx(values.min().item())
        assert row["first_singular_value"] > row["last_singular_value"]
        rows, c = found.bases[name].double(), calibration.covariance[name].dense().double()
        assert row["explained_variance"] == pytest.approx(float((rows @ c @ rows.T).trace() / c.trace()), rel=1e-4)
        assert 0 < row["explained_variance"] <= 1
        assert (row["rank"], row["numerical_rank"]) == (len(rows), found.numerical_rank[name])


def test_a_basis_cannot_be_longer_than_a_sketch_has_columns(llama):
    """If the covariance itself is decomposed; other kinds need only its trace."""
    model = llama[0]
    batch = tiny_batch(model, lengths=(30, 25))
    sketched = tlora.calibrate(model, [batch], covariance="sketch", sketch_size=6, progress=False)
    kept = min(covariance.total.shape[1] for covariance in sketched.covariances.values())
    for kind in ("wc", "c"):
        found = subspaces(model, sketched, max_rank=kept + 1, kind=kind).bases
        assert {len(rows) for rows in found.values()} == {kept}
        allocation = tlora.allocate(sketched.sensitivity, kept + 1, adapt_ranks=False)
        with pytest.raises(ValueError, match=f"rank {kept + 1}.*max_rank={kept}"):
            subspaces(model, sketched, max_rank=allocation, kind=kind)
    assert subspaces(model, sketched, max_rank=kept + 1, kind="w").max_rank == kept + 1


def test_few_tokens_bound_the_rank_of_kinds_of_the_covariance():
    model, calibration = calibrated(lengths=(3, 2))
    assert all(covariance.rank_bound == 3 for covariance in calibration.covariances.values())
    for kind in KINDS:
        ranks = set(subspaces(model, calibration, max_rank=8, kind=kind).numerical_rank.values())
        most = {"wc": 3, "c": 3, "fisher": 5}.get(kind)
        assert max(ranks) <= most if most else ranks == {8} or kind == "g"


@pytest.mark.parametrize(("family", "tokens", "lengths"), [("llama", "labels", (6, 6)), ("bert", "all", (1, 1))])
def test_kinds_of_inputs_are_refused_if_nothing_varies_within_a_sample(family, tokens, lengths):
    """One labeled token a sample, or texts of one token: the result would be random, whatever the samples are."""
    model = tiny_model(family)
    batch = tiny_batch(model, lengths=lengths)
    if tokens == "labels":
        batch["labels"][:, :-1] = -100
    calibration = tlora.calibrate(model, [batch], tokens=tokens, gradient=True, progress=False)
    assert all(c.trace == 0 for c in calibration.covariances.values())
    for kind in ("wc", "c", "wc_half"):
        with pytest.raises(ValueError, match=f"kind='{kind}'"):
            subspaces(model, calibration, max_rank=2, kind=kind)
    for options in ({"kind": "w"}, {"kind": "g"}, {"kind": "random"}, {"kind": "wc", "centered": False}):
        assert max(subspaces(model, calibration, max_rank=2, **options).numerical_rank.values()) == 2


@pytest.mark.parametrize(("kind", "method"), [("wc_half", "powers"), ("wc", "to")])
def test_an_input_that_modules_share_is_decomposed_and_moved_once(llama, monkeypatch, kind, method):
    model, calibration = llama
    covariance, calls = type(next(iter(calibration.covariances.values()))), []
    once = getattr(covariance, method)
    monkeypatch.setattr(covariance, method, lambda *args: (calls.append(1), once(*args))[1])
    subspaces(model, calibration, max_rank=2, kind=kind)
    assert len(calls) == len(calibration.covariances) < len(calibration.names)


def with_values(kind: str, sigma, trace=0.0) -> Subspaces:
    """Subspaces of one module, 8 x 10, of which nothing but the singular values is known."""
    values = {"a": torch.tensor(np.array(sigma), dtype=torch.float32)}
    one = named(target("a", shape=(8, 10)))
    return Subspaces(one, kind, len(sigma), {}, values, {}, {}, {"a": trace}, {}, Meta(seed=1))


def test_a_spectrum_squares_singular_values_and_bounds_from_below():
    w = np.random.default_rng(0).normal(size=(8, 10)) * np.arange(10, 0, -1)
    sigma = np.linalg.svd(w, compute_uv=False)
    found = with_values("w", sigma[:5]).spectrum()
    np.testing.assert_allclose(found.eigenvalues["a"], np.linalg.eigvalsh(w.T @ w)[::-1][:5], rtol=1e-5)
    row = found.to_frame().iloc[0]
    assert (found.kind, row.dimension) == ("w", 8)
    assert np.isnan(row.trace)
    assert np.isnan(row.covered)
    assert row.effective_rank == pytest.approx(naive_ranks(sigma[:5] ** 2)[0])
    assert row.effective_rank <= naive_ranks(sigma**2)[0]
    assert row.entropy_rank <= naive_ranks(sigma**2)[1]


@pytest.mark.parametrize("sigma", [[3.0, 2.0, 1.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.5, 1.2, 1.1, 1.0]])
def test_a_subspace_spectrum_that_misses_nothing_knows_its_trace(sigma):
    found = with_values("wc", sigma).spectrum()
    assert found.traces["a"] == pytest.approx(sum(s * s for s in sigma))
    assert found.to_frame().covered[0] == pytest.approx(1)


def test_the_subspace_of_the_covariance_has_the_covariances_spectrum():
    c = covariance(7, d=10)
    values = np.linalg.svd(c.dense().double().numpy(), compute_uv=False)[:4]
    found = with_values("c", values, trace=c.trace).spectrum().to_frame().iloc[0]
    expected = truncated(spectrum_of({"a": c}), 4).to_frame().iloc[0]
    columns = ["dimension", "trace", "effective_rank", "entropy_rank", "top_share", "covered"]
    np.testing.assert_allclose(found[columns].astype(float), expected[columns].astype(float), rtol=1e-5)


def test_an_allocation_gets_the_directions_that_its_ranks_need(llama) -> None:
    model, calibration = llama
    out, *kept = calibration.names
    ranks = {name: 1 + i % 5 for i, name in enumerate(kept)}
    allocation = tlora.allocate(calibration.sensitivity, 3, exclude_modules=out, pinned=dict(list(ranks.items())[:-4]))
    found = subspaces(model, calibration, max_rank=allocation)
    assert {name: len(rows) for name, rows in found.bases.items()} == allocation.ranks
    assert list(found.bases) == found.names == kept
    assert found.max_rank == max(allocation.ranks.values())
    for name, rank in allocation.ranks.items():
        m = target_matrix("wc", model, calibration, name)
        best = (np.linalg.svd(m, compute_uv=False)[:rank] ** 2).sum()
        assert np.linalg.norm(m @ found.bases[name].double().numpy().T) ** 2 >= 0.9999 * best


def planned(model: Any, batch: Any = None, **options: Any) -> tuple[tlora.Calibration, tlora.Allocation]:
    calibration = tlora.calibrate(model, [batch or tiny_batch(model)], progress=False, **options)
    return calibration, tlora.allocate(calibration.sensitivity, 4, max_rank=8)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_subspaces_of_an_adapted_model_are_those_of_its_base(family: str) -> None:
    """A square Conv1D under an adapter was read untransposed."""
    model = tiny_model(family)
    calibration, allocation = planned(model)
    expected = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    adapted = tlora.attach(model, expected, allocation)
    for again in (model, adapted):
        found = tlora.task_subspaces(again, calibration, max_rank=8, progress=False)
        for name in calibration.names:
            torch.testing.assert_close(found.basis(name, 8), expected.basis(name, 8))


def test_what_a_kind_needs_is_checked(llama):
    model, calibration = llama
    plain = tlora.calibrate(model, [tiny_batch(model)], progress=False)
    gpt2 = tlora.calibrate(tiny_model("gpt2"), [tiny_batch("gpt2")], progress=False)
    for arguments, words in (
        ({"max_rank": 0}, "max_rank"),
        ({"max_rank": tlora.allocate(gpt2.sensitivity, 4)}, "allocation"),
        ({"kind": "svd"}, "kind"),
        ({"kind": "w", "centered": False}, "centered"),
        ({"kind": "g", "calibration": plain}, "gradient=True"),
        ({"kind": "fisher", "calibration": plain}, "fisher=True"),
        ({"kind": "fisher", "centered": False}, "centered"),
    ):
        with pytest.raises(ValueError, match=words):
            subspaces(model, **{"calibration": calibration} | arguments)
    for other in (tiny_model("llama", seed=1), tiny_model("gpt2"), tiny_model("llama", intermediate_size=64)):
        with pytest.raises(ValueError, match="another model"):
            subspaces(other, calibration)


def test_a_basis_is_asked_for_what_it_has(llama):
    result = subspaces(*llama, max_rank=2)
    for rank in (0, 3):
        with pytest.raises(ValueError, match="rank"):
            result.basis(result.names[0], rank)
    with pytest.raises(KeyError, match="'x'"):
        result.basis("x", 1)
    with pytest.raises(ValueError, match="random"):
        with_values("random", [0.0, 0.0]).spectrum()
