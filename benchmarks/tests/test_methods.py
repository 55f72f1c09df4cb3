"""Methods: each trains, with PEFT's own number of parameters, and leaves the base of the next run alone."""

import dataclasses
import math
import pickle

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, VeraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import TrainerCallback

import tlora
from benchmarks.lab.methods import HEAD, METHODS, Cache, Job, Method, choose_method, seeded_adapt
from benchmarks.lab.run import Condition, Settings, run
from benchmarks.tests.helpers import RANK, job
from tests.helpers.jobs import task
from tests.helpers.models import tiny_model, tiny_tokenizer
from tlora.adapters.lora_layers import adapter_layers
from tlora.models.targets import target_modules
from tlora.recipes import Recipe
from tlora.training.phases import TrainingPhases

ADAPTERS = sorted(METHODS.keys() - {HEAD, "full"})
QUICK = {"batch_size": 4, "evaluation_limit": 0, "progress": False}


def trainable(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def ranks(model) -> list[int]:
    return [layer.r["default"] for layer in adapter_layers(model).values()]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Folders of tiny models by family."""
    parent = tmp_path_factory.mktemp("models")
    for family in ("llama", "bert"):
        tiny_model(family).save_pretrained(parent / family)
        tiny_tokenizer().save_pretrained(parent / family)
    return {family: str(parent / family) for family in ("llama", "bert")}


WITH_A_HEAD = ("lora", "full", "captured")
OTHERS_WITH_A_HEAD = ("lora+", "lora-ga", "tlora+", "eva", "corda", "lora-fa", "adalora", "vera")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, "llama") for name in METHODS if name != HEAD),
        *((name, "bert") for name in WITH_A_HEAD),
        *(pytest.param(name, "bert", marks=pytest.mark.slow) for name in OTHERS_WITH_A_HEAD),
    ],
)
def test_a_run_trains_and_the_next_base_is_as_before(name, family, folders):
    before = {n: p.clone() for n, p in tlora.load_model(folders[family])[0].named_parameters()}
    condition = Condition(Settings(folders[family], 6, 4, 12), "pairs", {}, METHODS[name], RANK)
    cache = Cache()
    repeats = 2 if name in ("pissa", "captured") else 1
    records = [run(condition, task(family), 1e-2, 0, "test", cache) for _ in range(repeats)]
    for record in records:
        assert record["status"] == "done", record
        assert math.isfinite(record["last_training_loss"])
        assert record["trainable_parameters"] > record["head_parameters"] == (66 if family == "bert" else 0)
        assert record["metrics"] == records[0]["metrics"]
    after = dict(tlora.load_model(folders[family])[0].named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before if not n.startswith("classifier"))


@pytest.mark.parametrize("name", ["lora", "eva", "corda", "lora-ga", "vera", "full", "tlora+", "captured"])
def test_only_the_target_modules_are_adapted(name):
    adapted = seeded_adapt(METHODS[name], job(target_modules=["q_proj", "v_proj"]))
    layers = [n for n, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)]
    assert {n.rpartition(".")[2] for n in layers} == {"q_proj", "v_proj"}


NO_RANK_LEFT = pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape")  # in a module of AdaLoRA


@NO_RANK_LEFT
@pytest.mark.parametrize("name", [*ADAPTERS, "full"])
def test_training_moves_every_adapter_and_no_weight_of_the_base(name):
    adapted = seeded_adapt(METHODS[name], job())
    frozen = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    trained = {n: p.clone() for n, p in adapted.named_parameters() if p.requires_grad}
    loss = task().evaluate(adapted, "train")["loss"]
    options = METHODS[name].training(RANK)
    tlora.train(adapted, task(), learning_rate=1e-2, max_steps=20, **QUICK, **options)
    after = dict(adapted.named_parameters())
    assert all(torch.equal(p, after[n]) for n, p in frozen.items())
    assert sum(not torch.equal(p, after[n]) for n, p in trained.items()) >= 0.9 * len(trained)
    assert task().evaluate(adapted, "train")["loss"] < loss
    if name == "adalora":
        kept = sum(int((p != 0).sum()) for n, p in after.items() if "lora_E" in n)
        assert 0 < kept <= RANK * len(target_modules(tiny_model("llama")))


# What PEFT trains by its own config.
PLAIN = {
    "lora": LoraConfig(r=RANK),
    "rslora": LoraConfig(r=RANK, use_rslora=True),
    "dora": LoraConfig(r=RANK, use_dora=True),
    "lora+": LoraConfig(r=RANK),
    "pissa": LoraConfig(r=RANK),
    "olora": LoraConfig(r=RANK),
    "corda": LoraConfig(r=RANK),
    "lora-ga": LoraConfig(r=RANK),
    "adalora": AdaLoraConfig(init_r=3, target_r=RANK, total_step=20),
    "vera": VeraConfig(r=256),
}


@pytest.mark.parametrize("name", PLAIN)
def test_as_many_parameters_as_in_peft(name):
    config = PLAIN[name]
    config.task_type = "CAUSAL_LM"
    config.target_modules = {n.rpartition(".")[2] for n in target_modules(tiny_model("llama"))}
    assert trainable(seeded_adapt(METHODS[name], job())) == trainable(get_peft_model(tiny_model("llama"), config))


def test_full_trains_the_weights_of_the_targets_as_without_an_adapter():
    base, adapted = tiny_model("gpt2"), seeded_adapt(METHODS["full"], job("gpt2"))
    names, row = list(target_modules(base)), task().train[0]
    data = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
    for model in (base, adapted):
        model.eval()
        model(**data).loss.backward()
    inside = adapted.get_base_model().named_modules()
    copies = {n.split(".ln_tuning_layers")[0]: m for n, m in inside if n.endswith(".default")}
    assert sorted(copies) == sorted(names)
    for name in names:
        for plain, copy in zip(base.get_submodule(name).parameters(), copies[name].parameters(), strict=True):
            assert plain.grad.abs().max() > 0
            torch.testing.assert_close(copy.grad, plain.grad)
    theirs = {id(p) for name in names for p in base.get_submodule(name).parameters()}
    assert trainable(adapted) == sum(p.numel() for p in base.parameters() if id(p) in theirs)


@pytest.mark.parametrize("name", ["lora-fa", "tlora-paper", "captured"])
def test_methods_that_freeze_a_train_b_alone(name):
    shapes = {t.name: t for t in target_modules(tiny_model("llama")).values()}
    adapted = seeded_adapt(METHODS[name], job())
    layers = adapter_layers(adapted)
    assert trainable(adapted) == sum(layers[n].r["default"] * t.d_out for n, t in shapes.items())
    if name == "captured":  # its budget is of parameters
        assert trainable(adapted) <= RANK * sum(t.d_out for t in shapes.values())
    else:
        assert sum(ranks(adapted)) == RANK * len(shapes)


def test_eva_allocates_ranks_within_the_budget():
    allocated = ranks(seeded_adapt(METHODS["eva"], job()))
    assert sum(allocated) == RANK * len(target_modules(tiny_model("llama")))
    assert max(allocated) > RANK


def test_eva_uses_all_tokens_and_refuses_batches_that_have_too_few():
    """PEFT would loop forever: it takes as many vectors from each batch as it has tokens, or none."""
    rich = job(rank=12)  # more than twice as many tokens as labels: not refused
    assert max(int((batch["labels"] != -100).sum()) for batch in rich.batches(8)) < 24
    assert adapter_layers(seeded_adapt(METHODS["eva"], rich))
    with pytest.raises(ValueError, match="400 tokens"):
        seeded_adapt(METHODS["eva"], job(rank=200))


@pytest.mark.parametrize(
    "name", ["lora", "rslora", "dora", "pissa", "olora", "eva", "corda", "lora-ga", "tlora+", "captured"]
)
def test_the_adapted_model_starts_at_the_base(name):
    batch = task().collate(list(task().test))
    with torch.no_grad():
        expected = tiny_model("llama")(**batch).logits
        adapted = seeded_adapt(METHODS[name], job()).eval()
        torch.testing.assert_close(adapted(**batch).logits, expected, atol=2e-4, rtol=1e-3)


def test_pissa_starts_at_the_leading_singular_vectors():
    """Those of a full decomposition; LoRA-FA's random `A` does not; rsLoRA scales by the root of the rank."""
    name = "model.layers.0.mlp.down_proj"
    w = tiny_model("llama").get_submodule(name).weight.detach()
    best = torch.linalg.svdvals(w)[:RANK].square().sum()

    def captured(method: str) -> float:
        a = adapter_layers(seeded_adapt(METHODS[method], job()))[name].lora_A["default"].weight.detach()
        return float((w @ torch.linalg.qr(a.T).Q).square().sum() / best)

    assert captured("pissa") > 0.9  # PEFT iterates, without oversampling
    assert captured("lora-fa") < 0.7
    scaled = adapter_layers(seeded_adapt(METHODS["rslora"], job()))[name].scaling["default"]
    assert scaled == pytest.approx(RANK**0.5)


def test_loraplus_trains_b_faster():
    adapted = seeded_adapt(METHODS["lora+"], job())
    groups = METHODS["lora+"].optimizer(RANK, adapted, 1e-3).param_groups
    names = {id(p): n for n, p in adapted.named_parameters()}
    rates = {names[id(p)].split(".")[-3]: group["lr"] for group in groups for p in group["params"]}
    assert rates == {"lora_A": 1e-3, "lora_B": 16e-3}


@pytest.mark.parametrize("name", ["lora+", "tlora+", "lora-fa"])
def test_a_head_has_its_own_rate_with_any_optimizer(name):
    adapted = seeded_adapt(METHODS[name], job("bert"))
    optimizer = METHODS[name].optimizer(RANK, adapted, 1e-3)
    TrainingPhases(head_learning_rate=3e-4).set_rates(optimizer, adapted)
    names = {id(p): n for n, p in adapted.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    heads = {n for n in rates if ".modules_to_save." in n}
    assert {n.split(".")[-1]: rates[n] for n in heads} == {"weight": 3e-4, "bias": 3e-4}
    assert 3e-4 not in [rate for n, rate in rates.items() if n not in heads]
    assert rates.keys() >= {n for n, p in adapted.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("name", "kind"), [("lora-fa", "LoraFAOptimizer"), ("lora+", "AdamW"), ("lora", "AdamW")])
def test_methods_train_with_their_own_optimizer(name, kind):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            inner = kwargs["optimizer"].optimizer
            seen.append((type(inner).__name__, sorted({group["lr"] > 0.99e-2 for group in inner.param_groups})))

    adapted = seeded_adapt(METHODS[name], job())
    options = METHODS[name].training(RANK) | {"callbacks": [Watch()], "lr_scheduler_type": "constant"}
    tlora.train(adapted, task(), learning_rate=1e-3, max_steps=2, **QUICK, **options)
    assert seen[-1] == (kind, [False, True] if name == "lora+" else [False])


@pytest.mark.parametrize("name", ["eva", "corda", "captured"])
def test_a_cached_value_gives_the_same_adapter(name):
    cache = Cache()
    first, second = (seeded_adapt(METHODS[name], job(cache=cache)) for _ in range(2))
    assert cache.saved > 0
    fresh = seeded_adapt(METHODS[name], job())
    for (n, p), q, r in zip(first.named_parameters(), second.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(p, q), n
        assert torch.equal(p, r), n


def test_values_that_depend_on_the_seed_are_cached_by_seed():
    """A fresh head differs by seed, and with it gradients and scores; random directions do too."""
    cache = Cache()
    for seed in (0, 1):
        shared = Job(tiny_model("bert", seed=seed), task("bert"), RANK, seed, 20, 12, cache)
        alone = Job(tiny_model("bert", seed=seed), task("bert"), RANK, seed, 20, 12)
        pairs = zip(*(seeded_adapt(METHODS["captured"], j).named_parameters() for j in (shared, alone)), strict=True)
        for (name, p), (_, q) in pairs:
            assert torch.equal(p, q), name


def test_the_cache_drops_the_least_recently_used_and_counts_saved_seconds():
    cache, computed = Cache(size=2), []
    for key in ("a", "b", "a", "c", "a", "b"):
        cache(key, lambda key=key: computed.append(key))
    assert computed == ["a", "b", "c", "b"]
    inner = Cache()
    inner("outer", lambda: inner("inner", lambda: sum(range(10**5))))
    before = inner.saved
    inner("outer", lambda: 1 / 0)
    assert inner.saved > before


def test_adapters_are_seeded_and_the_global_generator_is_unchanged():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, two, other = (
        next(iter(adapter_layers(seeded_adapt(METHODS["lora"], job(seed=seed))).values())).lora_A["default"].weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_trained_in_float32_whatever_the_base_is(name, dtype):
    """PEFT casts its own adapters, and leaves or unfreezes what replaces them afterwards."""
    full = {n for n, p in seeded_adapt(METHODS[name], job()).named_parameters() if p.requires_grad}
    short = dataclasses.replace(job(), model=tiny_model("llama").to(dtype))
    dtypes = {n: p.dtype for n, p in seeded_adapt(METHODS[name], short).named_parameters() if p.requires_grad}
    assert dtypes == dict.fromkeys(full, torch.float32)


def test_recipes_are_methods():
    recipe = Recipe("flat", attach={"rows": "variance"}, allocate={"temperature": 0.0})
    method = choose_method(recipe)
    assert method.name == "flat"
    assert method.arguments == {"attach": {"rows": "variance"}, "allocate": {"temperature": 0.0}}
    assert set(ranks(seeded_adapt(method, job()))) == {RANK}
    assert pickle.loads(pickle.dumps(method)).arguments == method.arguments
    assert choose_method(Recipe.named("lora")) is METHODS["lora"]
    assert METHODS["captured"].arguments["attach"] == {"rows": "variance"}  # written out in the keys of runs
    assert METHODS["captured"].arguments["calibrate"] == {"fisher": True}
    namesake = choose_method(Recipe("captured"))  # another recipe of this name, which the keys tell apart
    assert namesake.arguments == {"attach": {"rows": "variance"}}
    assert METHODS["captured-freeze-late"].train == {"freeze_a_after": 0.2}


def test_a_recipe_by_captured_gradient_computes_the_directions_once():
    recipe = Recipe("along g", allocate={"by": "captured"}, task_subspaces={"kind": "g"})
    method, cache = choose_method(recipe), Cache()
    first, again = (seeded_adapt(method, dataclasses.replace(job(), cache=cache)) for _ in range(2))
    assert cache.saved > 0
    assert sum(ranks(first)) == RANK * len(target_modules(tiny_model("llama")))
    assert max(ranks(first)) > RANK
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))


def test_recipes_that_differ_after_the_plan_share_it():
    cache = Cache()
    frozen, trained = (seeded_adapt(METHODS[name], job(cache=cache)) for name in ("captured", "captured-trained"))
    assert cache.saved > 0
    assert all(torch.equal(p, q) for p, q in zip(frozen.parameters(), trained.parameters(), strict=True))
    assert trainable(trained) > trainable(frozen)


@pytest.mark.parametrize(
    ("name", "rows", "frozen"),
    [("tlora-paper", "orthonormal", True), ("captured", "variance", True), ("captured-trained", "variance", False)],
)
def test_a_recipe_is_the_pipeline_with_its_arguments(name, rows, frozen):
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, task().calibration(12), fisher=True, progress=False)
    if name == "tlora-paper":
        allocation = tlora.allocate(calibration.sensitivity, RANK)
        subspaces = tlora.task_subspaces(model, calibration, max_rank=allocation, progress=False)
    else:
        subspaces = tlora.task_subspaces(model, calibration, max_rank=4 * RANK, kind="fisher", progress=False)
        by_gradient = {"by": "captured", "subspaces": subspaces, "budget": "parameters", "adapt_scales": False}
        allocation = tlora.allocate(calibration.sensitivity, RANK, **by_gradient)
    expected = tlora.attach(tiny_model("llama"), subspaces, allocation, rows=rows, freeze_a=frozen)
    adapted = seeded_adapt(METHODS[name], job())
    assert trainable(adapted) == trainable(expected)
    assert all(torch.equal(p, q) for p, q in zip(adapted.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    ("method", "kind", "name"),
    [
        ("galore", ValueError, "galore"),
        (Method("lora", METHODS["dora"].adapt, METHODS["lora"].arguments), ValueError, "lora"),
        (Recipe("mine", train={"warmup_steps": 3}), TypeError, "warmup_steps"),
    ],
)
def test_a_method_must_be_distinct_in_the_store(method, kind, name):
    with pytest.raises(kind, match=name):
        choose_method(method)


def test_a_method_of_your_own():
    for method in (Method("mine", METHODS["lora"].adapt), Method("lora", METHODS["dora"].adapt, {"own": True})):
        assert choose_method(method) is method
