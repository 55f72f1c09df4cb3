"""Direction activations against hooks of the test's own in float64, and their tables against loops over tokens."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict

import numpy as np
import pytest
import scipy.stats
import torch
import transformers

import tlora
from tests.helpers.models import FAMILIES, VOCABULARY, singles, tiny_batch, tiny_model, tiny_tokenizer
from tests.helpers.subspaces import prepared
from tlora.explanation.direction_activations_result import PARTS
from tlora.models.targets import target_modules
from tlora.subspaces.task_subspaces import task_subspaces

FLOAT16 = {"rtol": 2e-3, "atol": 2e-3}


def naive(model, batch):
    """Inputs, and norms of the gradients at the outputs, of every module and token: samples alone, in float64."""
    model, names = copy.deepcopy(model).double(), list(target_modules(model))
    model.requires_grad_(True)
    inputs, norms = defaultdict(list), defaultdict(list)

    def hook(name):
        def see(module, args, output):
            inputs[name].append(args[0].detach().flatten(0, -2))
            output.register_hook(lambda gradient: norms[name].append(gradient.flatten(0, -2).norm(dim=-1)))

        return see

    for name in names:
        model.get_submodule(name).register_forward_hook(hook(name))
    for sample in singles(batch):
        model(**sample).loss.backward()
    return ({n: torch.cat(each[n]).numpy() for n in names} for each in (inputs, norms))


def standardized(values):
    return (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)


@pytest.fixture(scope="module")
def llama():
    return prepared("llama")


@pytest.fixture(scope="module")
def found(llama):
    """Samples that begin and end with the same tokens."""
    model, _, subspaces, _ = llama
    return read(model, subspaces, [with_template(model)], need=True)


def with_template(model, seed=1):
    batch = tiny_batch(model, lengths=(9, 14, 8, 11), seed=seed)
    batch["input_ids"].clamp_(min=8)  # the tokenizer's own, and those below, occur nowhere else
    for n, end in enumerate(batch["attention_mask"].sum(1).tolist()):
        batch["input_ids"][n, :2] = torch.tensor([5, 6])
        batch["input_ids"][n, end - 1] = batch["labels"][n, end - 1] = 7
    return batch


def read(model, subspaces, batches, **options):
    options = {"tokenizer": tiny_tokenizer(), "progress": False} | options
    return tlora.direction_activations(model, subspaces, batches, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_hooks_of_single_samples(family):
    model, _, subspaces, batch = prepared(family)
    found = read(model, subspaces, [batch], ranks=4, need=True)
    inputs, norms = naive(model, batch)
    assert found.names == list(inputs)
    assert found.kinds == list(subspaces)
    for name, x in inputs.items():
        for k, kind in enumerate(found.kinds):
            along = subspaces[kind].basis(name, 4).double().numpy() @ x.T
            np.testing.assert_allclose(found.z[name][k], standardized(along), **FLOAT16)
            np.testing.assert_allclose(found.deviations[name][k], along.std(1), rtol=1e-4)
        np.testing.assert_allclose(found.need[name], norms[name] / norms[name].mean(), rtol=2e-3, atol=1e-5)


def test_padding_batches_and_packing_change_nothing(llama):
    model, _, subspaces, batch = llama
    expected = read(model, subspaces, [batch])
    rows = [{key: row[0] for key, row in sample.items()} for sample in singles(batch)]
    packed = {key: torch.cat([row[key] for row in rows])[None] for key in ("input_ids", "labels")}
    packed["position_ids"] = torch.cat([torch.arange(len(row["input_ids"])) for row in rows])[None]
    left = tiny_batch(model, lengths=(7, 12, 5, 9), seed=1, padding="left")
    for batches in ([left], iter(singles(batch)), [packed]):
        other = read(model, subspaces, batches)
        assert other.tokens["input_ids"].texts == expected.tokens["input_ids"].texts
        assert other.tokens["input_ids"].samples.equal(expected.tokens["input_ids"].samples)
        for name, z in expected.z.items():
            torch.testing.assert_close(other.z[name], z, **FLOAT16)


def test_every_direction_has_mean_0_and_deviation_1(found):
    for z in found.z.values():
        values = z.double()
        torch.testing.assert_close(values.mean(2), torch.zeros(values.shape[:2]).double(), rtol=0, atol=1e-3)
        torch.testing.assert_close(values.square().mean(2), torch.ones(values.shape[:2]).double(), rtol=2e-3, atol=0)


def test_a_rotation_changes_directions_and_not_their_energy(llama, found):
    model, _, subspaces, _ = llama
    wc = subspaces["wc"]
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0))).Q
    turned = dataclasses.replace(wc, bases={name: turn @ rows for name, rows in wc.bases.items()})
    other = read(model, {"wc": turned}, [with_template(model)])

    def energy(result, name):
        along = result.z[name][0].double() * result.deviations[name][0, :, None]
        return along.square().sum(0)

    for name in found.names:
        assert not torch.allclose(other.z[name][0], found.z[name][0], **FLOAT16)
        whole = energy(found, name)
        torch.testing.assert_close(energy(other, name), whole, rtol=5e-3, atol=5e-3 * float(whole.max()))


def test_a_planted_token_comes_first(llama):
    """Its embedding is moved along a direction that the first module reads."""
    model, _, subspaces, batch = llama
    name, token = "model.layers.0.self_attn.q_proj", int(batch["input_ids"][1, 5])
    moved = copy.deepcopy(model)
    moved.model.embed_tokens.weight.data[token] += 20 * subspaces["wc"].basis(name, 3)[2]
    calibration = tlora.calibrate(moved, [batch], progress=False)
    wc = dataclasses.replace(task_subspaces(moved, calibration, max_rank=8), bases=subspaces["wc"].bases)
    top = read(moved, wc, [batch]).top(name, 3, k=1, sign="+").iloc[0]
    times = int((batch["input_ids"] == token).sum())
    assert (top["token"], top["count"], top["occurrences"]) == (f" w{token}", times, times)


def test_the_control_is_computed_once(llama, found):
    model, _, subspaces, _ = llama
    one = read(model, subspaces["wc"], [with_template(model)], ranks=3)
    assert one.kinds == ["wc", "random"]
    for name in one.names:
        assert one.z[name].shape[:2] == (2, 3)
        torch.testing.assert_close(one.z[name][0], found.z[name][0, :3], **FLOAT16)
    other = read(model, subspaces["wc"], [with_template(model)], seed=1)
    assert not any(torch.allclose(other.z[name][1, :3], one.z[name][1], **FLOAT16) for name in one.names)


def test_bases_of_an_allocation_are_read_as_far_as_they_go(llama):
    model, calibration, _, batch = llama
    allocation = tlora.allocate(calibration.sensitivity, rank=3, max_rank=5)
    subspaces = task_subspaces(model, calibration, max_rank=allocation, progress=False)
    found = read(model, subspaces, [batch], ranks=4)
    assert {name: z.shape[1] for name, z in found.z.items()} == {n: min(4, r) for n, r in allocation.ranks.items()}
    assert len(found.to_frame()) == 2 * sum(z.shape[1] for z in found.z.values())


def test_without_the_first_token_all_else_is_the_same(llama):
    model, _, subspaces, batch = llama
    found = read(model, subspaces, [batch], first_token=False, need=True)
    inputs, norms = naive(model, batch)
    kept = np.concatenate([np.arange(n) > 0 for n in batch["attention_mask"].sum(1).tolist()])
    assert len(found.tokens["input_ids"].texts) == kept.sum()
    for name, x in inputs.items():
        along = subspaces["g"].basis(name, 8).double().numpy() @ x[kept].T
        np.testing.assert_allclose(found.z[name][1], standardized(along), **FLOAT16)
        expected = norms[name][kept] / norms[name][kept].mean()
        np.testing.assert_allclose(found.need[name], expected, rtol=2e-3, atol=1e-5)
    assert found.sinks() == []


def test_a_sink_is_named(llama):
    model, _, subspaces, batch = llama
    batch["input_ids"][:, 0] = 3
    sunk = copy.deepcopy(model)
    sunk.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda module, args: args[0] * torch.where(torch.arange(args[0].shape[1]) == 0, 100, 1)[:, None]
    )
    assert read(sunk, subspaces, [batch]).sinks() == ["model.layers.1.mlp.down_proj"]
    assert read(model, subspaces, [batch]).sinks() == []


# Which tokens, and of which part.


def test_tokens_and_parts_are_those_of_the_samples(llama, found):
    model, *_ = llama
    batch = with_template(model)
    tokens = found.tokens["input_ids"]
    samples = singles(batch)
    ids, labels = (torch.cat([sample[key][0] for sample in samples]).tolist() for key in ("input_ids", "labels"))
    assert tokens.ids.tolist() == ids
    assert tokens.texts == [f" w{i}" for i in ids]
    parts = ["labels" if label != -100 else "prompt" for label in labels]
    parts = ["constant" if i in (5, 6, 7) else part for i, part in zip(ids, parts, strict=True)]
    assert [PARTS[part] for part in tokens.parts] == parts


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_both_sides_of_an_encoder_decoder_and_texts_to_classify(family):
    model, _, subspaces, batch = prepared(family)
    found = read(model, subspaces, [batch])
    parts = {side: {PARTS[p] for p in tokens.parts} for side, tokens in found.tokens.items()}
    if family == "bert":
        assert parts == {"input_ids": {"prompt"}}
        return
    assert parts == {"input_ids": {"prompt"}, "decoder": {"constant", "labels"}}
    for name, side in found.sides.items():
        reads_encoder = name.startswith("encoder") or name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        assert side == ("input_ids" if reads_encoder else "decoder")
    read_by_decoder = [row[row != -100] for row in batch["labels"]]
    shifted = torch.cat([torch.cat([torch.zeros(1, dtype=torch.int64), row[:-1]]) for row in read_by_decoder])
    assert found.tokens["decoder"].ids.equal(shifted)


def inputs_of(model, name, batch):
    """What a module reads in each of its calls, sample by sample."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    with torch.no_grad():
        for sample in singles(batch):
            model(**sample)
    hook.remove()
    return seen


def test_a_module_that_runs_twice_and_one_that_reads_positions():
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    sizes |= {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "num_labels": 2, "pad_token_id": 0}
    batch = tiny_batch("bert", lengths=(7, 12, 5, 9))
    for config in (
        transformers.AlbertConfig(embedding_size=32, **sizes),
        transformers.DebertaV2Config(relative_attention=True, pos_att_type=["c2p"], share_att_key=False, **sizes),
    ):
        torch.manual_seed(0)
        model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        calibration = tlora.calibrate(model, [batch], progress=False)
        subspaces = task_subspaces(model, calibration, max_rank=4, progress=False)
        found = read(model, subspaces, [batch], need=True)
        by_position = [name for name in calibration.names if "pos_" in name]
        assert found.names == [name for name in calibration.names if name not in by_position]
        name = found.names[0]
        seen = inputs_of(model, name, batch)
        calls = 2 if isinstance(config, transformers.AlbertConfig) else 1
        along = [torch.cat(seen[call::calls]).double() @ subspaces.basis(name, 4).double().T for call in range(calls)]
        furthest = np.stack(along)
        furthest = np.take_along_axis(furthest, np.abs(furthest).argmax(0)[None], 0)[0].T
        np.testing.assert_allclose(found.z[name][0], standardized(furthest), **FLOAT16)


# The tables.


@pytest.mark.parametrize("need", [False, True])
def test_shares_are_sums_over_tokens(found, need):
    frame = found.constant_share("module", need=need)
    parts = [PARTS[p] for p in found.tokens["input_ids"].parts]
    for row in frame.sample(10, random_state=0).itertuples():
        z = found.z[row.module][found.kinds.index(row.kind)].double().numpy()
        z = z * found.need[row.module].double().numpy() if need else z
        for part in PARTS:
            share = np.mean([(d[[p == part for p in parts]] ** 2).sum() / (d**2).sum() for d in z])
            assert getattr(row, part) == pytest.approx(share, rel=1e-6)
        assert row.tokens == pytest.approx(parts.count("constant") / len(parts))
        assert row.low <= row.constant <= row.high
    modules = frame.set_index(["module", "kind"])["constant"].unstack("kind")
    for by, groups in ((None, None), ("layer", found.layers), ("projection", found.projections)):
        for row in found.constant_share(by, need=need).itertuples():
            members = modules if by is None else modules[modules.index.map(groups) == getattr(row, by)]
            assert row.constant == pytest.approx(members[row.kind].mean(), rel=1e-9)
            assert (row.above_random, row.modules) == ((members[row.kind] > members["random"]).sum(), len(members))


def test_intervals_equal_scipys_bootstrap(llama):
    model, _, subspaces, _ = llama
    batches = [with_template(model, seed) for seed in range(5)]
    found = read(model, subspaces["wc"], batches, ranks=1)
    name = found.names[4]
    row = found.constant_share("module").query("module == @name and kind == 'wc'").iloc[0]
    tokens = found.tokens["input_ids"]
    squares, constant = found.z[name][0, 0].double().square().numpy(), tokens.parts.numpy() == 0
    sums = [np.bincount(tokens.samples, each) for each in (squares * constant, squares)]
    expected = scipy.stats.bootstrap(
        sums, lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, vectorized=True, n_resamples=6000,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    width = expected.high - expected.low
    assert row["low"] == pytest.approx(expected.low, abs=0.15 * width)
    assert row["high"] == pytest.approx(expected.high, abs=0.15 * width)


def test_the_table_is_the_definition(found):
    tokens, frame = found.tokens["input_ids"], found.to_frame()
    assert len(frame) == len(found.names) * 3 * 8
    keys = [
        (
            int(i),
            int(p),
            int(tokens.ids[n - 1]) if p == 0 and n and tokens.samples[n - 1] == tokens.samples[n] else None,
        )
        for n, (i, p) in enumerate(zip(tokens.ids, tokens.parts, strict=True))
    ]
    is_first = np.array([n == 0 or tokens.samples[n - 1] != tokens.samples[n] for n in range(len(keys))])
    for row in frame.sample(20, random_state=0).itertuples():
        z = found.z[row.module][found.kinds.index(row.kind), row.direction - 1].double().numpy()
        assert row.first == pytest.approx((z[is_first] ** 2).sum() / (z**2).sum(), rel=1e-6)
        shared = []
        for values in (z, -z):
            tops = []
            for half in (0, 1):
                best = defaultdict(lambda: -np.inf)
                for key, sample, value in zip(keys, tokens.samples.tolist(), values, strict=True):
                    if sample % 2 == half:
                        best[key] = max(best[key], value)
                tops.append(set(sorted(best, key=best.get)[-5:]))
            shared.append(len(tops[0] & tops[1]) / 5)
        assert row.agreement == pytest.approx(np.mean(shared), abs=1e-6)


@pytest.mark.parametrize("need", [False, True])
def test_top_tokens_are_distinct_and_counted(found, need):
    tokens, name = found.tokens["input_ids"], found.names[3]
    z = found.z[name][1, 2].double().numpy() * (found.need[name].double().numpy() if need else 1)
    table = found.top(name, 3, k=4, kind="g", need=need)
    assert set(table["end"]) <= {"+", "-"}
    for end, rows in table.groupby("end"):
        far = z if end == "+" else -z
        limit = max(far.max() / 2, np.abs(z).max() / 5)
        best = defaultdict(list)
        for n, value in enumerate(far):
            same_before = PARTS[tokens.parts[n]] == "constant" and n and tokens.samples[n - 1] == tokens.samples[n]
            before = int(tokens.ids[n - 1]) if same_before else None
            best[int(tokens.ids[n]), int(tokens.parts[n]), before].append(value)
        order = sorted(best, key=lambda key: -max(best[key]))
        expected = [key for key in order if max(best[key]) >= limit][:4]
        assert rows["token"].tolist() == [f" w{token}" for token, *_ in expected]
        assert rows["part"].tolist() == [PARTS[part] for _, part, _ in expected]
        assert rows["count"].tolist() == [sum(v >= limit for v in best[key]) for key in expected]
        assert rows["occurrences"].tolist() == [len(best[key]) for key in expected]
        sign = 1 if end == "+" else -1
        np.testing.assert_allclose(rows["value"], [sign * max(best[key]) for key in expected], rtol=1e-3)
        for row in rows.itertuples():
            strip = found.strip(row.sample, name, 3, kind="g")
            weight = strip["need"] if need else 1
            assert (strip["z"] * weight)[row.position] == pytest.approx(row.value, rel=1e-3)
            text = "".join(strip["token"])
            assert row.before + row.token + row.after in text
    assert set(found.top(name, 3, sign="+")["end"]) == {"+"}


def test_strips_are_the_samples(llama, found):
    model, *_ = llama
    name = found.names[0]
    for n, sample in enumerate(singles(with_template(model))):
        strip = found.strip(n, name, 1)
        assert strip["token"].tolist() == [f" w{i}" for i in sample["input_ids"][0]]
    whole = np.concatenate([found.strip(n, name, 1)["z"] for n in range(4)])
    np.testing.assert_array_equal(whole, found.z[name][0, 0].float())


def test_without_a_tokenizer_texts_are_ids(llama):
    model, _, subspaces, batch = llama
    found = read(model, subspaces["wc"], [batch], tokenizer=None)
    assert found.tokens["input_ids"].texts[0] == f"<{int(batch['input_ids'][0, 0])}>"


def test_a_module_that_reads_nothing_has_no_share():
    model, _, subspaces, _ = prepared("llama")
    model.model.layers[1].post_attention_layernorm.weight.data.zero_()
    found = read(model, subspaces, [with_template(model)], need=True)
    shares = found.constant_share("module").set_index("module")["constant"]
    silent = shares.index.str.startswith("model.layers.1.mlp")
    assert shares[silent].isna().all()
    assert shares[~silent].notna().all()
    assert found.constant_share().notna().all(axis=None)
    assert len(found.top("model.layers.1.mlp.down_proj", 1)) == 0


REFUSED = {
    "no subspaces": ({"subspaces": {}}, ValueError, "subspaces"),
    "not subspaces": ({"subspaces": {"wc": None}}, TypeError, "Subspaces"),
    "no rank": ({"ranks": 0}, ValueError, "ranks"),
    "one batch": ({"batches": {"input_ids": []}}, TypeError, "batches"),
    "one sample": ({"batches": [tiny_batch("llama", (7,))]}, ValueError, "sample"),
    "another model": ({"model": tiny_model("llama", seed=1)}, ValueError, "another model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused(llama, case):
    model, _, subspaces, batch = llama
    changes, error, named = REFUSED[case]
    arguments = {"model": model, "subspaces": subspaces, "batches": [batch]} | changes
    with pytest.raises(error, match=named):
        read(**arguments)


def test_an_activation_that_is_not_finite_is_refused():
    model, _, subspaces, batch = prepared("llama")
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, args, output: output * torch.inf)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.self_attn\.q_proj"):
        read(model, subspaces, [batch])


NOT_THERE = {
    "module": (lambda found: found.top("q_proj", 1), KeyError, "q_proj"),
    "direction": (lambda found: found.top(found.names[0], 9), ValueError, "direction 9"),
    "kind": (lambda found: found.strip(0, found.names[0], 1, kind="c"), ValueError, "'c'"),
    "sample": (lambda found: found.strip(4, found.names[0], 1), ValueError, "sample 4"),
    "need": (lambda found: dataclasses.replace(found, need={}).constant_share(need=True), ValueError, "need=True"),
}


@pytest.mark.parametrize("case", NOT_THERE)
def test_what_is_not_there_is_named(found, case):
    call, error, named = NOT_THERE[case]
    with pytest.raises(error, match=named):
        call(found)
