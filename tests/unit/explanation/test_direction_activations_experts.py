"""What the directions of experts read: the tokens routed to each, against a forward pass of the test's own."""

from __future__ import annotations

import copy
from collections import defaultdict

import numpy as np
import pytest
import torch

import tlora
from tests.helpers.experts import experts_modules, tiny_mixture
from tests.helpers.models import singles, tiny_batch, tiny_tokenizer
from tlora.explanation.direction_activations_result import CONTEXT, PARTS, DirectionActivations

LENGTHS = (9, 14, 8, 11)
EXPERTS = 8


@pytest.fixture(scope="module")
def mixture():
    model = tiny_mixture("qwen3_moe", top_k=2, experts=EXPERTS)
    batch = tiny_batch(model, lengths=LENGTHS, seed=1)
    calibration = tlora.calibrate(model, [batch], target_modules=["attention", "experts"], progress=False)
    return model, tlora.task_subspaces(model, calibration, max_rank=3, kind="wc", progress=False), batch


def read(mixture, batches=None, **options):
    model, subspaces, batch = mixture
    options = {"tokenizer": tiny_tokenizer(), "need": True, "progress": False} | options
    return tlora.direction_activations(model, subspaces, batches or [batch], **options)


def naive(model, batch):
    """By expert: the places of its tokens, what each matrix reads, and the gradient at its output; samples alone."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    model.config._experts_implementation = "eager"
    places, inputs, norms = defaultdict(list), defaultdict(list), defaultdict(list)
    start = 0

    def experts_of(name):
        def forward(module, args, output):
            hidden, index, weights = args
            hidden = hidden.reshape(-1, hidden.shape[-1])
            total = torch.zeros_like(hidden)
            for e in range(EXPERTS):
                for token in range(len(hidden)):
                    for slot in (index[token] == e).nonzero()[:, 0]:
                        x = hidden[token]
                        both = module.gate_up_proj[e] @ x
                        gate, up = both[: len(both) // 2], both[len(both) // 2 :]
                        inner = torch.nn.functional.silu(gate) * up
                        last = module.down_proj[e] @ inner
                        for key, read_, written in (("gate_up_proj", x, both), ("down_proj", inner, last)):
                            target = f"{name}.{key}[{e}]"
                            places[target].append(start + token)
                            inputs[target].append(read_.detach())
                            norms[target].append(None)
                            at = len(norms[target]) - 1
                            written.register_hook(
                                lambda g, target=target, at=at: norms[target].__setitem__(at, g.norm())
                            )
                        total[token] = total[token] + weights[token, slot] * last
            torch.testing.assert_close(total.reshape(output.shape), output)
            return total.reshape(output.shape)

        return forward

    for name, module in experts_modules(model).items():
        module.register_forward_hook(experts_of(name))
    for sample in singles(batch):
        model(**sample).loss.backward()
        start += sample["input_ids"].shape[1]
    return places, inputs, norms


def test_the_directions_of_an_expert_read_the_tokens_routed_to_it(mixture):
    model, subspaces, batch = mixture
    found = read(mixture)
    places, inputs, norms = naive(model, batch)
    experts = [name for name in found.names if "experts" in name]
    assert set(experts) == set(places) == set(found.routed)
    assert any(len(set(places[name])) < sum(LENGTHS) / 2 for name in experts)
    for name in experts:
        assert found.routed[name].tolist() == places[name]
        along = subspaces.basis(name, 3).double() @ torch.stack(inputs[name]).T
        centered = along - along.mean(1, keepdim=True)
        deviation = along.std(1, keepdim=True, correction=0)
        expected = centered / torch.where(deviation > 0, deviation, 1.0)
        torch.testing.assert_close(found.z[name][0].double(), expected, rtol=5e-3, atol=5e-3)
        torch.testing.assert_close(found.deviations[name][0].double(), deviation[:, 0], rtol=1e-3, atol=1e-6)
        need = torch.stack(norms[name])
        torch.testing.assert_close(found.need[name].double(), need / need.mean(), rtol=5e-3, atol=1e-4)


def test_padding_batches_and_checkpointing_change_nothing(mixture):
    expected = read(mixture)
    model, _, batch = mixture
    left = tiny_batch(model, lengths=LENGTHS, seed=1, padding="left")
    for other in (read(mixture, [left]), read(mixture, singles(batch)), read(mixture, gradient_checkpointing=True)):
        for name, routed in expected.routed.items():
            assert other.routed[name].equal(routed)
            torch.testing.assert_close(other.z[name], expected.z[name], rtol=5e-3, atol=5e-3)
            torch.testing.assert_close(other.need[name], expected.need[name], rtol=5e-3, atol=5e-3)


def test_without_first_tokens(mixture):
    whole, rest = read(mixture), read(mixture, first_token=False)
    is_first = whole.tokens["input_ids"].is_first
    kept = np.flatnonzero(~is_first)
    for name, routed in rest.routed.items():
        assert kept[routed.numpy()].tolist() == [t for t in whole.routed[name].tolist() if not is_first[t]]


def test_tables_name_tokens_in_their_context(mixture, tmp_path):
    found = read(mixture)
    texts, samples = found.tokens["input_ids"].texts, found.tokens["input_ids"].samples.tolist()
    parts = found.tokens["input_ids"].parts.tolist()
    for name, routed in found.routed.items():
        top = found.top(name, 1)
        values = dict(zip(routed.tolist(), found.z[name][0, 0].float().tolist(), strict=True))
        for row in top.itertuples():
            at = samples.index(row.sample) + row.position
            assert row.value == pytest.approx(values[at])
            assert row.token == texts[at]
            sample = [t for t, s in zip(texts, samples, strict=True) if s == row.sample]
            assert row.before == "".join(sample[max(0, row.position - CONTEXT) : row.position])
            assert row.after == "".join(sample[row.position + 1 : row.position + 1 + CONTEXT])
            part = PARTS.index(row.part)
            assert row.occurrences == sum(texts[t] == row.token and parts[t] == part for t in routed.tolist())
        strip = found.strip(1, name, 1)
        assert strip["token"].tolist() == [t for t, s in zip(texts, samples, strict=True) if s == 1]
        here = [values.get(at, np.nan) for at, s in enumerate(samples) if s == 1]
        np.testing.assert_allclose(strip["z"], here, rtol=1e-6)
        assert strip["need"].isna().equals(strip["z"].isna())
    frame = found.to_frame()
    assert set(frame["module"]) == set(found.names)
    shares = frame.dropna(subset=["constant"])
    np.testing.assert_allclose(shares[["constant", "prompt", "labels"]].sum(axis=1), 1, rtol=1e-6)
    assert found.constant_share()[["constant", "low", "high"]].notna().all(axis=None)
    again = DirectionActivations.load(found.save(tmp_path / "activations"))
    assert again.to_frame().equals(frame)


def test_experts_that_read_no_token_are_left_out(mixture):
    model, _, _ = mixture
    short = tiny_batch(model, lengths=(2, 3), seed=5)
    found = read(mixture, [short])
    assert 0 < len(found.routed) < 2 * 2 * EXPERTS
    assert all(len(routed) for routed in found.routed.values())
    assert found.constant_share().notna().any(axis=None)
