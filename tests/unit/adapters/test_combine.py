"""Combined adapters: against weights that were added by hand, PEFT's own merges, and what cannot be combined."""

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

import tlora
from tests.helpers.adapted import logits, prepare, step
from tests.helpers.calibrations import calibration
from tests.helpers.foreign import foreign
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.pairs import BASES, other, plain
from tlora.serving.verify import export_difference

WIDE = {
    "r": 5,
    "lora_alpha": 3,
    "use_rslora": True,
    "rank_pattern": {"q_proj": 3},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 8},
}
"""Another adapter than the default of `foreign` in ranks, alphas and rsLoRA."""


def updates(model: PeftModel) -> dict[str, torch.Tensor]:
    """The change of each weight, in the layout that the model stores it in, by PEFT."""
    layers = {n: m for n, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    return {n: m.get_delta_weight("default").detach() for n, m in layers.items()}


def added(base, parts):
    """The base with weighted updates added to its weights."""
    with torch.no_grad():
        for model, weight in parts:
            for name, update in updates(model).items():
                base.get_submodule(name).weight += weight * update
    return base


def saved(folder, name, base, **config) -> PeftModel:
    return foreign(base, folder / name, **config)


MODULES = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"], "bert": ["query", "output.dense"]}
CASES = {
    "ranks": ("llama", {"r": 3}, {"r": 7}),
    "alphas": ("llama", {"lora_alpha": 5}, {"lora_alpha": 1}),
    "rsLoRA": ("llama", {"r": 4, "use_rslora": True}, {"r": 4}),
    "patterns": ("llama", {}, WIDE),
    "other modules": ("llama", {"target_modules": ["q_proj", "o_proj"]}, {"r": 5, "target_modules": ["up_proj"]}),
    "ranks beyond the matrix": ("llama", {"r": 30}, {"r": 24}),
    "Conv1D": ("gpt2", {"fan_in_fan_out": True}, {"fan_in_fan_out": True, "r": 5}),
    "classifier": ("bert", {"task_type": "SEQ_CLS"}, {}),
}


@pytest.mark.parametrize(("family", "one", "other"), CASES.values(), ids=CASES)
def test_a_sum_is_the_sum_of_the_updates_and_serves_as_such(tmp_path, family, one, other):
    targets = {"target_modules": MODULES[family]}
    first = saved(tmp_path, "a", tiny_model(family), **targets | one)
    second = saved(tmp_path, "b", tiny_model(family), **targets | other)
    combined = tlora.combine({tmp_path / "a": 1.5, tmp_path / "b": -0.5})
    assert all(rank <= min(combined.shapes[name]) for name, rank in combined.ranks.items())
    folder = combined.save_adapter(tmp_path / "both")
    expected = added(tiny_model(family), [(first, 1.5), (second, -0.5)])
    if one.get("task_type") == "SEQ_CLS":
        assert combined.head == str(tmp_path / "a")
        expected.classifier = first.get_base_model().classifier.modules_to_save["default"]
    batch = tiny_batch(family, seed=3)
    want = logits(expected, batch)
    size = float((want - logits(tiny_model(family), batch)).abs().max())
    for read in (PeftModel.from_pretrained, lambda base, place: tlora.load_adapter(place, base)):
        assert float((logits(read(tiny_model(family), folder).eval(), batch) - want).abs().max()) < 1e-5 * max(1, size)
    if family == "llama":
        adapted = tlora.load_adapter(folder, tiny_model(family))
        for engine in ("vllm", "llama.cpp"):
            served = tlora.export(adapted, tmp_path / engine, engine=engine)
            difference, change = export_difference(adapted, served, [batch])
            assert difference < 1e-5 * max(1, change)
        assert not tlora.inspect(tmp_path / "vllm").engines()["wrong"].any()


def trained(subspaces, seed, tmp_path, rank=4):
    """An adapter on the same subspaces, B trained for two steps on samples of its own."""
    model = tiny_model("llama")
    allocation = tlora.allocate(calibration().sensitivity, rank, adapt_ranks=False, max_rank=16)
    adapted = tlora.attach(model, subspaces, allocation)
    for more in range(2):
        step(adapted, tiny_batch(model, seed=10 * seed + more))
    adapted.save_pretrained(tmp_path / f"seed{seed}")
    return adapted


def test_on_one_a_the_sum_the_average_and_the_interpolation_keep_their_rank(tmp_path):
    _, subspaces, _ = prepare()
    first, second = (trained(subspaces, seed, tmp_path) for seed in (1, 2))
    places, batch = (tmp_path / "seed1", tmp_path / "seed2"), tiny_batch("llama", seed=5)
    for weights in ((1.0, 1.0), (0.5, 0.5), (0.25, 0.75)):
        combined = tlora.combine(dict(zip(places, weights, strict=True)))
        assert set(combined.ranks.values()) == {4}
        assert all(combined.same_a.values())
        again = tlora.load_adapter(combined.save_adapter(tmp_path / "both"), tiny_model("llama"))
        want = logits(added(tiny_model("llama"), zip((first, second), weights, strict=True)), batch)
        assert float((logits(again.eval(), batch) - want).abs().max()) < 1e-5


def test_nested_rows_are_padded(tmp_path):
    _, subspaces, _ = prepare()
    first, second = trained(subspaces, 1, tmp_path), trained(subspaces, 2, tmp_path, rank=6)
    combined = tlora.combine({tmp_path / "seed1": 1.0, tmp_path / "seed2": 2.0})
    assert set(combined.ranks.values()) == {6}
    again = tlora.load_adapter(combined.save_adapter(tmp_path / "both"), tiny_model("llama"))
    want = logits(added(tiny_model("llama"), [(first, 1.0), (second, 2.0)]), tiny_batch("llama"))
    assert float((logits(again.eval(), tiny_batch("llama")) - want).abs().max()) < 1e-5


@pytest.mark.parametrize("on_task", [False, True])
def test_a_cut_sum_is_the_sum_that_was_compressed(tmp_path, on_task):
    for name, config in (("a", {"r": 3}), ("b", {"r": 5})):
        saved(tmp_path, name, tiny_model("llama"), **config)
    known = calibration().merge(calibration(seed=20)) if on_task else None
    parts = {tmp_path / "a": 1.0, tmp_path / "b": 0.5}
    cut = tlora.combine(parts, rank=4, calibration=known)
    tlora.combine(parts).save_adapter(tmp_path / "both")
    expected = tlora.compress(tmp_path / "both", rank=4, calibration=known)
    assert cut.ranks == expected.ranks
    assert list(cut.errors.values()) == pytest.approx(expected.to_frame()["error"].tolist(), abs=1e-9)
    for key, tensor in expected.adapter.items():
        torch.testing.assert_close(cut.adapter[key], tensor)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_merges_are_those_of_peft(tmp_path, method, monkeypatch):
    monkeypatch.setattr(torch, "bernoulli", lambda p: (torch.arange(p.numel()) % 3 == 0).view(p.shape).to(p))
    places = {}
    for name, config in (("a", {"lora_alpha": 5}), ("b", WIDE | {"rank_pattern": {}})):
        saved(tmp_path, name, tiny_model("llama"), **config)
        places[name] = tmp_path / name
    model = PeftModel.from_pretrained(tiny_model("llama"), places["a"], adapter_name="a")
    model.load_adapter(str(places["b"]), "b")
    model.add_weighted_adapter(["a", "b"], [1.0, 0.5], "merged", f"{method}_svd", svd_rank=4, density=0.3)
    combined = tlora.combine({places["a"]: 1.0, places["b"]: 0.5}, method=method, rank=4, density=0.3)
    again = PeftModel.from_pretrained(tiny_model("llama"), combined.save_adapter(tmp_path / "both"))
    theirs = {n: m for n, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}
    for name, update in updates(again).items():
        torch.testing.assert_close(update, theirs[name].get_delta_weight("merged"), atol=1e-4, rtol=1e-4)


def test_a_seed_gives_the_same_entries(tmp_path):
    for name in "ab":
        saved(tmp_path, name, tiny_model("llama"))
    runs = [
        tlora.combine({tmp_path / "a": 1, tmp_path / "b": 1}, method="dare_linear", seed=seed).adapter
        for seed in (0, 0, 1)
    ]
    key = next(iter(runs[0]))
    assert torch.equal(runs[0][key], runs[1][key])
    assert not torch.equal(runs[0][key], runs[2][key])


def test_without_a_rank_a_merge_keeps_the_largest(tmp_path):
    saved(tmp_path, "a", tiny_model("llama"), r=2)
    saved(tmp_path, "b", tiny_model("llama"), r=3)
    assert set(tlora.combine({tmp_path / "a": 1, tmp_path / "b": 1}, method="ties").ranks.values()) == {3}


def test_heads_are_kept_or_refused(tmp_path):
    for n, name in enumerate("ab"):
        model = saved(tmp_path, name, tiny_model("bert"), task_type="SEQ_CLS", target_modules=["query"])
        with torch.no_grad():
            model.base_model.model.classifier.modules_to_save["default"].weight.fill_(n)
        model.save_pretrained(tmp_path / name)
    parts = {tmp_path / "a": 1.0, tmp_path / "b": 1.0}
    with pytest.raises(ValueError, match="each have a head"):
        tlora.combine(parts)
    for name, head in (("a", tmp_path / "a"), ("b", f"{tmp_path}/./b/")):
        combined = tlora.combine(parts, head=head)
        assert combined.head == str(tmp_path / name)
        written = load_file(combined.save_adapter(tmp_path / "both") / "adapter_model.safetensors")
        heads = load_file(tmp_path / name / "adapter_model.safetensors")
        kept = [key for key in heads if ".lora_" not in key]
        assert kept
        assert all(torch.equal(written[key], heads[key]) for key in kept)


REFUSED = BASES | {
    "an embedding": (other(target_modules=["embed_tokens", "q_proj"]), {}, "embed_tokens"),
    "method": (other(), {"method": "linear"}, "method"),
    "density": (other(), {"method": "ties", "density": 1}, "density"),
    "rank": (other(), {"rank": 0}, "rank"),
    "no head": (other(), {"head": "b"}, "head"),
    "another calibration": (other(), {"calibration": "gpt2"}, "calibration"),
}


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
@pytest.mark.parametrize(("write", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_refusals(tmp_path, write, options, words):
    write(tmp_path)
    if "calibration" in options:
        options = {"calibration": calibration(options["calibration"])}
    with pytest.raises(ValueError, match=words):
        tlora.combine({tmp_path / "a": 1.0, tmp_path / "b": 1.0}, **options)


def test_weights_that_are_no_weights(tmp_path):
    plain(tmp_path, "a")
    for weights in ({}, {tmp_path / "a": float("nan")}):
        with pytest.raises(ValueError, match=r"empty|weight"):
            tlora.combine(weights)
    with pytest.raises(ValueError, match="twice"):
        tlora.combine({tmp_path / "a": 1.0, str(tmp_path / "a"): 2.0})
    with pytest.raises(TypeError, match="adapters is a list: pass a dict"):
        tlora.combine([tmp_path / "a"])


def test_only_its_own_adapters_are_replaced(tmp_path):
    plain(tmp_path, "a")
    combined = tlora.combine({tmp_path / "a": 0.5})
    with pytest.raises(FileExistsError, match="another program"):
        combined.save_adapter(tmp_path / "a")
    combined.save_adapter(tmp_path / "half")
    assert combined.save_adapter(tmp_path / "half").is_dir()
