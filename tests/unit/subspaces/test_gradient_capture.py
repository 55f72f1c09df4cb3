"""Gradient capture against dense gradients in float64, sample by sample."""

import numpy as np
import pytest
import scipy.stats
import torch
from transformers.pytorch_utils import Conv1D

import tlora
from tests.helpers.models import FAMILIES, singles, tiny_batch, tiny_model
from tests.helpers.subspaces import KINDS, RANKS, prepared
from tlora.models.targets import target_modules


def dense_gradients(model, batch):
    """``dL_n/dW`` of each sample alone, by autograd through the weights, in float64: (N, d_out, d_in) by module."""
    gradients = {name: [] for name in target_modules(model)}
    model.requires_grad_(True)
    for sample in singles(batch):
        model.zero_grad()
        model(**sample).loss.backward()
        for name, found in gradients.items():
            module = model.get_submodule(name)
            gradient = module.weight.grad.double()
            found.append(gradient.T if isinstance(module, Conv1D) else gradient)
    model.zero_grad()
    model.requires_grad_(False)
    return {name: torch.stack(each).numpy() for name, each in gradients.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_dense_gradients_sample_by_sample(family):
    model, _, subspaces, batch = prepared(family)
    found = tlora.gradient_capture(model, [batch], subspaces, RANKS, progress=False)
    gradients = dense_gradients(model, batch)
    assert found.names == list(gradients)
    for column, (name, each) in enumerate(gradients.items()):
        squared = (each**2).sum((1, 2))
        np.testing.assert_allclose(found.total[:, column], squared, rtol=1e-3, atol=1e-12)
        for k, kind in enumerate(KINDS):
            for r, rank in enumerate(RANKS):
                a = subspaces[kind].basis(name, rank).double().numpy()
                expected = np.linalg.norm(each @ a.T, axis=(1, 2)) ** 2
                np.testing.assert_allclose(
                    found.captured[:, column, k, r], expected, rtol=2e-3, atol=1e-5 * squared.max()
                )
        values = np.linalg.eigvalsh(np.einsum("noi,noj->ij", each, each))[::-1]
        best = [values[:rank].sum() for rank in RANKS]
        np.testing.assert_allclose(found.best[column], best, rtol=1e-4)


def test_the_table_is_the_definition(llama, found):
    model, _, subspaces, batch = llama
    gradients = dense_gradients(model, batch)
    frame = found.to_frame()
    assert len(frame) == len(found.names) * len(KINDS) * len(RANKS)
    for row in frame.sample(20, random_state=0).itertuples():
        g, a = gradients[row.module], subspaces[row.kind].basis(row.module, row.rank).double().numpy()
        assert row.captured == pytest.approx(np.linalg.norm(g @ a.T) ** 2 / np.linalg.norm(g) ** 2, rel=1e-4)
        assert row.random == pytest.approx(row.rank / g.shape[2], rel=1e-12)
        values = np.linalg.svd(np.concatenate(list(g)), compute_uv=False) ** 2
        assert row.best == pytest.approx(values[: row.rank].sum() / values.sum(), rel=1e-4)
        assert (row.layer, row.projection) == (found.layers[row.module], found.projections[row.module])
    assert (frame["captured"] <= frame["best"]).all()
    assert (frame["low"] <= frame["captured"]).all()
    assert (frame["captured"] <= frame["high"]).all()


def test_all_modules_together_are_one_long_vector(llama, found):
    model, _, subspaces, batch = llama
    gradients = dense_gradients(model, batch)
    for by, of in ((None, dict.fromkeys(found.names)), ("layer", found.layers), ("projection", found.projections)):
        table = found.overall(by)
        assert list(table.columns) == [
            *([by] if by else []),
            "kind",
            "rank",
            "captured",
            "low",
            "high",
            "random",
            "best",
        ]
        assert len(table) == len(set(of.values())) * 9
        for row in table.query("kind == 'wc' and rank == 4").to_dict("records"):
            names = [n for n in found.names if of[n] == (row[by] if by else None)]
            whole = sum(np.linalg.norm(gradients[n]) ** 2 for n in names)
            part = sum(
                np.linalg.norm(gradients[n] @ subspaces["wc"].basis(n, 4).double().numpy().T) ** 2 for n in names
            )
            chance = sum(np.linalg.norm(gradients[n]) ** 2 * 4 / gradients[n].shape[2] for n in names)
            best = sum(
                (np.linalg.svd(np.concatenate(list(gradients[n])), compute_uv=False)[:4] ** 2).sum() for n in names
            )
            assert row["captured"] == pytest.approx(part / whole, rel=1e-4)
            assert row["random"] == pytest.approx(chance / whole, rel=1e-4)
            assert row["best"] == pytest.approx(best / whole, rel=1e-4)


def test_intervals_equal_scipys_bootstrap(llama):
    model, _, subspaces, _ = llama
    batch = tiny_batch(model, lengths=range(4, 20), seed=2)
    found = tlora.gradient_capture(
        model, [batch], subspaces, [4], confidence=0.9, resamples=6000, seed=3, progress=False
    )
    row = found.overall().query("kind == 'wc'").iloc[0]
    parts, totals = found.captured[:, :, 0, 0].double().sum(1).numpy(), found.total.double().sum(1).numpy()
    expected = scipy.stats.bootstrap(
        (parts, totals), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, vectorized=True,
        confidence_level=0.9, n_resamples=6000, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    width = expected.high - expected.low
    assert row["low"] == pytest.approx(expected.low, abs=0.05 * width)
    assert row["high"] == pytest.approx(expected.high, abs=0.05 * width)
    again = tlora.gradient_capture(
        model, [batch], subspaces, [4], confidence=0.9, resamples=6000, seed=3, progress=False
    )
    assert again.to_frame().equals(found.to_frame())


def test_one_sample_has_no_interval(llama):
    model, _, subspaces, batch = llama
    found = tlora.gradient_capture(model, singles(batch)[:1], subspaces, [2], progress=False)
    assert found.to_frame()[["low", "high"]].isna().all(axis=None)
    assert found.to_frame()["captured"].notna().all()


def test_padding_and_batches_change_nothing(llama, found):
    model, _, subspaces, batch = llama
    left = tiny_batch(model, lengths=(7, 12, 5, 9), seed=1, padding="left")
    for batches in ([left], iter(singles(batch))):
        other = tlora.gradient_capture(model, batches, subspaces, RANKS, progress=False)
        torch.testing.assert_close(other.captured, found.captured, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(other.best, found.best, rtol=1e-4, atol=1e-9)


def test_modules_that_no_gradient_reaches_have_no_share():
    model, _, subspaces, batch = prepared("llama")
    model.model.layers[1].post_attention_layernorm.weight.data.zero_()  # the MLP reads zeros
    found = tlora.gradient_capture(model, [batch], subspaces, [2], progress=False)
    frame = found.to_frame()
    silent = frame["module"].str.startswith("model.layers.1.mlp")
    figures = frame[["captured", "low", "high", "best"]]
    assert figures[silent].isna().all(axis=None)
    assert figures[~silent].notna().all(axis=None)
    assert found.overall().notna().all(axis=None)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"ranks": (9,)}, ValueError, "rank 9"),
        ({"ranks": ()}, ValueError, "no ranks"),
        ({"subspaces": {}}, ValueError, "no subspaces"),
        ({"batches": iter(())}, ValueError, "batches"),
        ({"confidence": 95}, ValueError, "confidence"),
        ({"resamples": 0}, ValueError, "resamples"),
    ],
)
def test_bad_arguments_are_refused(llama, arguments, error, words):
    model, _, subspaces, batch = llama
    arguments = {"batches": [batch], "subspaces": subspaces, "ranks": (2,)} | arguments
    with pytest.raises(error, match=words):
        tlora.gradient_capture(model, progress=False, **arguments)


def test_subspaces_of_another_model_or_of_other_modules_are_refused(llama):
    model, _, subspaces, batch = llama
    with pytest.raises(ValueError, match="another model"):
        tlora.gradient_capture(tiny_model("llama", seed=1), [batch], subspaces, [2], progress=False)
    part = tlora.calibrate(model, [batch], target_modules=["down_proj"], progress=False)
    part = tlora.task_subspaces(model, part, max_rank=8, progress=False)
    with pytest.raises(ValueError, match="different modules"):
        tlora.gradient_capture(model, [batch], {"wc": subspaces["wc"], "part": part}, [2], progress=False)


def test_a_gradient_that_is_not_finite_is_refused():
    model, _, subspaces, batch = prepared("llama")
    model.lm_head.weight.data[3] = float("inf")
    with pytest.raises(ValueError, match=r"the gradient of model\.layers.* is not finite"):
        tlora.gradient_capture(model, [batch], subspaces, [2], progress=False)


def test_a_poor_sketch_is_never_below_what_was_captured(monkeypatch, llama, found):
    model, _, subspaces, batch = llama
    monkeypatch.setattr("tlora.subspaces.gradient_capture.EXACT_UP_TO", 1)
    monkeypatch.setattr("tlora.subspaces.gradient_capture.SKETCH_FACTOR", 1)
    monkeypatch.setattr("tlora.subspaces.gradient_capture.SKETCH_EXTRA", 0)
    for ranks in (RANKS, (1,)):  # as many columns as the highest rank
        rough = tlora.gradient_capture(model, [batch], subspaces, ranks, progress=False)
        frame = rough.to_frame()
        assert (frame["best"] >= frame["captured"] * (1 - 1e-12)).all()
        assert (rough.best <= found.best[:, : len(ranks)] * (1 + 1e-5)).all()
    assert (rough.best < 0.5 * found.best[:, :1]).any()  # poor it was
