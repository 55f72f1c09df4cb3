"""Methods of a comparison: each trains, with PEFT's own number of parameters, and leaves the next one's base alone."""

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
from tlora.models.weights import copy_sharing_weights
from tlora.recipes import Recipe
from tlora.training.phases import TrainingPhases


def trainable(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    found = {}
    for family in ("llama", "bert"):
        folder = tmp_path_factory.mktemp("models") / family
        tiny_model(family).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        found[family] = str(folder)
    return found


WITH_A_HEAD = ("lora", "full", "tlora")
OTHERS_WITH_A_HEAD = ("lora+", "lora-ga", "tlora+", "eva", "corda", "lora-fa", "adalora", "vera")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, "llama") for name in METHODS if name != HEAD),
        *((name, "bert") for name in WITH_A_HEAD),
        *(pytest.param(name, "bert", marks=pytest.mark.slow) for name in OTHERS_WITH_A_HEAD),
    ],
)
def test_trains_and_the_next_base_is_as_before(name, family, folders):
    before = {n: p.clone() for n, p in tlora.load_model(folders[family])[0].named_parameters()}
    cell = Condition(Settings(folders[family], 6, 4, 12), "pairs", {}, METHODS[name], RANK)
    memory = Cache()
    rates = (1e-2, 1e-2) if name in ("pissa", "tlora") else (1e-2,)
    records = [run(cell, task(family), rate, 0, "test", memory) for rate in rates]
    for record in records:
        assert record["status"] == "done", record
        assert math.isfinite(record["last_training_loss"])
        assert record["trainable_parameters"] > record["head_parameters"] == (66 if family == "bert" else 0)
        assert record["metrics"] == records[0]["metrics"]  # the same run gives the same numbers
    after = dict(tlora.load_model(folders[family])[0].named_parameters())
    assert all(torch.equal(before[n], after[n]) for n in before if not n.startswith("classifier"))


@pytest.mark.parametrize("name", ["lora", "eva", "corda", "lora-ga", "vera", "full", "tlora+", "tlora"])
def test_the_modules_that_are_chosen_are_adapted_and_no_other(name):
    adapted = seeded_adapt(METHODS[name], job(target_modules=["q_proj", "v_proj"]))
    layers = [n for n, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)]
    assert {n.rpartition(".")[2] for n in layers} == {"q_proj", "v_proj"}
    key = Condition(Settings("llama", 6, 4, 12, target_modules="mlp"), "pairs", {}, METHODS[name], RANK).about()
    plain = Condition(Settings("llama", 6, 4, 12), "pairs", {}, METHODS[name], RANK).about()
    assert key == plain | {"target_modules": "mlp"}  # and runs of all modules keep the keys that they have


NO_RANK_LEFT = pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape")  # in a module of AdaLoRA


@NO_RANK_LEFT
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {HEAD}))
def test_training_moves_every_adapter_and_no_weight_of_the_base(name):
    adapted = seeded_adapt(METHODS[name], job())
    frozen = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    moved = {n: p.clone() for n, p in adapted.named_parameters() if p.requires_grad}
    make = METHODS[name].optimizer
    data = task()
    loss = data.evaluate(adapted, "train")["loss"]
    trained = tlora.train(
        adapted, data, learning_rate=1e-2, max_steps=20, batch_size=4, evaluation_limit=0, progress=False,
        callbacks=[c() for c in METHODS[name].callbacks],
        optimizer=make and (lambda model, rate: make(RANK, model, rate)),
    )  # fmt: skip
    now = dict(adapted.named_parameters())
    assert all(torch.equal(p, now[n]) for n, p in frozen.items())
    assert sum(not torch.equal(p, now[n]) for n, p in moved.items()) >= 0.9 * len(moved)
    assert data.evaluate(adapted, "train")["loss"] < loss
    assert trained.trainable_parameters == trainable(adapted)


# What PEFT itself trains when asked by the shortest way there is.
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
    plain = get_peft_model(tiny_model("llama"), config)
    adapted = seeded_adapt(METHODS[name], job())
    assert trainable(adapted) == plain.get_nb_trainable_parameters()[0] == trainable(plain)


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


def test_full_is_trained_in_float32_and_left_in_the_type_of_the_base():
    """A single step of the rate is below what bfloat16 can hold beside most weights."""
    options = {"learning_rate": 1e-4, "max_steps": 40, "batch_size": 4, "evaluation_limit": 0, "progress": False}
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        base = tiny_model("llama").bfloat16().to(dtype)
        adapted = seeded_adapt(METHODS["full"], dataclasses.replace(job(), model=base))
        weights = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
        before = {n: p.detach().float().clone() for n, p in weights.items()}
        tlora.train(adapted, task(), **options)
        assert {p.dtype for p in weights.values()} == {dtype}
        moved.append(torch.cat([(p.detach().float() - before[n]).flatten() for n, p in weights.items()]))
    full, short = moved
    assert (short - full).abs().mean() < 0.5 * full.abs().mean()  # 0.9 where steps are lost; products are bfloat16's


def test_lora_fa_and_tlora_train_b_alone():
    shapes = {t.name: t for t in target_modules(tiny_model("llama")).values()}
    for name in ("lora-fa", "tlora-paper", "tlora"):
        adapted = seeded_adapt(METHODS[name], job())
        layers = adapter_layers(adapted)
        assert trainable(adapted) == sum(layers[n].r["default"] * t.d_out for n, t in shapes.items())
        assert sum(layer.r["default"] for layer in layers.values()) == RANK * len(shapes)


def test_eva_shares_its_ranks_out_within_the_budget():
    layers = adapter_layers(seeded_adapt(METHODS["eva"], job()))
    ranks = [layer.r["default"] for layer in layers.values()]
    assert sum(ranks) == RANK * len(target_modules(tiny_model("llama")))
    assert max(ranks) > RANK


def test_eva_takes_all_tokens_and_refuses_batches_that_have_too_few():
    """PEFT would go round for ever: of each batch it takes as many vectors as it has tokens, or none."""
    rich = job(rank=12)  # more than twice as many tokens as labels: not refused
    labelled = [int((batch["labels"] != -100).sum()) for batch in rich.batches(8)]
    assert max(labelled) < 24
    assert adapter_layers(seeded_adapt(METHODS["eva"], rich))
    with pytest.raises(ValueError, match=r"EVA takes 400 tokens a batch at rank 200, there are \d+: take a lower rank"):
        seeded_adapt(METHODS["eva"], job(rank=200))


@pytest.mark.parametrize(
    "name", ["lora", "rslora", "dora", "pissa", "olora", "eva", "corda", "lora-ga", "tlora+", "tlora"]
)
def test_starts_where_the_base_is(name):
    data = task()
    batch = data.collate(list(data.test))
    with torch.no_grad():
        expected = tiny_model("llama")(**batch).logits
        adapted = seeded_adapt(METHODS[name], job()).eval()
        torch.testing.assert_close(adapted(**batch).logits, expected, atol=2e-4, rtol=1e-3)


def test_initialisations_are_theirs():
    """PiSSA's A holds what the leading singular vectors of the weight do, found here by a full decomposition."""
    base = tiny_model("llama")
    name = "model.layers.0.mlp.down_proj"
    w = base.get_submodule(name).weight.detach()
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
def test_a_head_has_its_own_rate_whatever_the_optimiser(name):
    adapted = seeded_adapt(METHODS[name], job("bert"))
    optimizer = METHODS[name].optimizer(RANK, adapted, 1e-3)
    TrainingPhases(head_learning_rate=3e-4).set_rates(optimizer, adapted)
    names = {id(p): n for n, p in adapted.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    heads = {n.split(".")[-1]: rate for n, rate in rates.items() if ".modules_to_save." in n}
    assert heads == {"weight": 3e-4, "bias": 3e-4}
    assert 3e-4 not in [rate for n, rate in rates.items() if ".modules_to_save." not in n]
    assert rates.keys() >= {n for n, p in adapted.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {HEAD, "full"}))
def test_a_base_that_others_share_stays_as_it_is(name):
    base = tiny_model("llama")
    before = {key: value.clone() for key, value in base.state_dict().items()}
    seeded_adapt(METHODS[name], dataclasses.replace(job(), model=copy_sharing_weights(base)))
    assert all(value.equal(before[key]) for key, value in base.state_dict().items())


@NO_RANK_LEFT
def test_adalora_ends_within_its_budget():
    adapted = seeded_adapt(METHODS["adalora"], job())
    tlora.train(
        adapted, task(), learning_rate=1e-2, max_steps=20, batch_size=4, evaluation_limit=0, progress=False,
        callbacks=[c() for c in METHODS["adalora"].callbacks],
    )  # fmt: skip
    kept = sum(int((p != 0).sum()) for n, p in adapted.named_parameters() if "lora_E" in n)
    assert 0 < kept <= RANK * len(target_modules(tiny_model("llama")))


@pytest.mark.parametrize("name", ["eva", "corda", "tlora"])
def test_what_is_remembered_gives_the_same_adapter(name):
    memory = Cache()
    first, second = (seeded_adapt(METHODS[name], job(cache=memory)) for _ in range(2))
    assert memory.saved > 0
    fresh = seeded_adapt(METHODS[name], job())
    for (n, p), q, r in zip(first.named_parameters(), second.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(p, q), n
        assert torch.equal(p, r), n


def test_what_depends_on_the_seed_is_remembered_by_seed():
    """A fresh head differs by seed, and with it gradients and scores; random directions do too."""
    memory = Cache()
    for seed in (0, 1):
        model = tiny_model("bert", seed=seed)
        shared = Job(model, task("bert"), RANK, seed, 20, 12, memory)
        alone = Job(tiny_model("bert", seed=seed), task("bert"), RANK, seed, 20, 12)
        pairs = zip(*(seeded_adapt(METHODS["tlora"], j).named_parameters() for j in (shared, alone)), strict=True)
        for (name, p), (_, q) in pairs:
            assert torch.equal(p, q), name


@pytest.mark.parametrize(("name", "kind"), [("lora-fa", "LoraFAOptimizer"), ("lora+", "AdamW"), ("lora", "AdamW")])
def test_methods_train_with_their_own_optimiser(name, kind):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            inner = kwargs["optimizer"].optimizer
            seen.append((type(inner).__name__, sorted({group["lr"] > 0.99e-2 for group in inner.param_groups})))

    make = METHODS[name].optimizer
    adapted = seeded_adapt(METHODS[name], job())
    tlora.train(
        adapted, task(), learning_rate=1e-3, max_steps=2, batch_size=4, evaluation_limit=0, progress=False,
        callbacks=[Look()], lr_scheduler_type="constant", optimizer=make and (lambda m, rate: make(RANK, m, rate)),
    )  # fmt: skip
    assert seen[-1] == (kind, [False, True] if name == "lora+" else [False])


def test_memory_forgets_what_was_not_asked_for_longest_and_counts_what_it_saves():
    memory, made = Cache(most=2), []
    for key in ("a", "b", "a", "c", "a", "b"):
        memory(key, lambda key=key: made.append(key))
    assert made == ["a", "b", "c", "b"]
    inner = Cache()
    inner("outer", lambda: inner("inner", lambda: sum(range(10**5))))
    before = inner.saved
    inner("outer", lambda: 1 / 0)
    assert inner.saved > before


def test_adapters_are_seeded_and_the_global_generator_is_left_alone():
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


def test_recipes_are_methods_too():
    recipe = Recipe("flat", attach={"rows": "variance"}, allocate={"temperature": 0.0})
    method = choose_method(recipe)
    assert method.name == "flat"
    assert method.arguments == {"attach": {"rows": "variance"}, "allocate": {"temperature": 0.0}}
    assert {layer.r["default"] for layer in adapter_layers(seeded_adapt(method, job())).values()} == {RANK}
    plain = Recipe(
        "plain", task_subspaces=None, attach={"freeze_a": False}, allocate={"adapt_ranks": False, "adapt_scales": False}
    )
    assert trainable(seeded_adapt(choose_method(plain), job())) == trainable(seeded_adapt(METHODS["lora"], job()))
    assert pickle.loads(pickle.dumps(method)).arguments == method.arguments


def test_the_recipe_tlora_is_what_the_functions_do_by_default_and_the_paper_has_unit_rows():
    assert Recipe.named("tlora-paper").arguments() == {"attach": {"rows": "orthonormal"}}
    assert Recipe.named("tlora").arguments() == {}
    assert METHODS["tlora"].arguments == {"attach": {"rows": "variance"}}  # in the keys of runs
    with pytest.raises(KeyError, match="no recipe 'paper': choose one of tlora-paper, tlora, tlora-trained"):
        Recipe.named("paper")
    data, model = task(), tiny_model("llama")
    calibration = tlora.calibrate(model, data.calibration(12), progress=False)
    allocation = tlora.allocate(calibration.sensitivity, RANK)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=allocation, progress=False)
    for name, rows, frozen in (
        ("tlora-paper", "orthonormal", True),
        ("tlora", None, True),
        ("tlora-trained", "variance", False),
    ):
        expected = tlora.attach(tiny_model("llama"), subspaces, allocation, rows=rows, freeze_a=frozen)
        adapted = seeded_adapt(METHODS[name], job())
        assert trainable(adapted) == trainable(expected)
        assert all(torch.equal(p, q) for p, q in zip(adapted.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    ("method", "kind", "words"),
    [
        ("qalora", ValueError, "Did you mean qa-lora"),
        ("LoRA", ValueError, "Did you mean lora"),
        ("galore", ValueError, "There are lora, rslora"),
        (3, TypeError, "got a int"),
        (Recipe("pissa"), ValueError, "has the name of another method"),
        (Recipe("mine", train={"warmup_steps": 3}), TypeError, "warmup_steps.*leave train= out"),
    ],
)
def test_other_methods_are_refused(method, kind, words):
    with pytest.raises(kind, match=words):
        choose_method(method)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"attach": {"row": "variance"}}, r"'row' of attach\(\)"),
        ({"allocate": {"rank": 8}}, r"'rank' of allocate\(\)"),
        ({"train": {"seed": 8}}, r"'seed' of train\(\)"),
        ({"task_subspaces": {"model": 8}}, r"'model' of task_subspaces\(\)"),
        ({"calibrate": {"tokens": {1}}}, "JSON"),
    ],
)
def test_recipes_refuse_what_is_not_theirs_to_say(arguments, words):
    with pytest.raises(TypeError, match=words):
        Recipe("mine", **arguments)


@pytest.mark.parametrize("name", ["lora", "lora-ga", "rslora", "tlora-paper"])
def test_no_recipe_takes_the_runs_of_another_method(name):
    """What a recipe of defaults alone has in its key, plain LoRA has: nothing but its name."""
    with pytest.raises(ValueError, match=f"recipe '{name}' has the name of another method"):
        choose_method(Recipe(name))
    with pytest.raises(ValueError, match=f"there is already a method '{name}'"):
        choose_method(Method(name, lambda job: None, METHODS[name].arguments))
    assert choose_method(METHODS[name]) is METHODS[name]
    assert choose_method(Method(name, lambda job: None, {"of": "my own"})).arguments == {"of": "my own"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"full", HEAD}))  # those are the base's own weights
def test_adapters_are_trained_in_float32_whatever_the_base_is(name, dtype):
    """PEFT casts what it makes; what is put in its place afterwards it leaves in the base's type, or unfreezes."""
    given = job()
    full = {n for n, p in seeded_adapt(METHODS[name], given).named_parameters() if p.requires_grad}
    short = dataclasses.replace(given, model=tiny_model("llama").to(dtype), memory=Cache())
    found = {n: p.dtype for n, p in seeded_adapt(METHODS[name], short).named_parameters() if p.requires_grad}
    assert found == dict.fromkeys(full, torch.float32)


def test_the_recipe_lora_is_plain_lora():
    """PEFT's own, to the bit."""
    assert choose_method(Recipe.named("lora")) is METHODS["lora"]
    data, model = task(), tiny_model("llama")
    allocation = tlora.allocate(
        tlora.calibrate(model, data.calibration(12), progress=False).sensitivity, RANK, **Recipe.named("lora").allocate
    )
    adapted = tlora.attach(model, None, allocation, **Recipe.named("lora").attach)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(target_modules(tiny_model("llama"))))
        expected = get_peft_model(tiny_model("llama"), config)
    assert trainable(adapted) == trainable(expected)
    theirs = expected.state_dict()
    for name, tensor in adapted.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_recipes_keep_their_own_copy():
    given = {"rows": "variance"}
    recipe = Recipe("mine", attach=given, train={"warmup_steps": 0})
    given["rows"] = "orthonormal"
    assert recipe.attach == {"rows": "variance"}
    assert repr(recipe) == "Recipe(mine: attach(rows='variance'), train(warmup_steps=0))"
    assert repr(Recipe("plain")) == "Recipe(plain: all as by default)"
    assert recipe.flat() == {"rows": "variance", "warmup_steps": 0}


def test_a_method_of_ones_own():
    method = Method("mine", METHODS["lora"].adapt)
    assert choose_method(method) is method
