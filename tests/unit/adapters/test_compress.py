"""Adapters that are cut: against a dense SVD and dense weighted least squares, and what cannot be cut."""

import itertools
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from scipy.linalg import fractional_matrix_power

import tlora
from tests.helpers.adapted import adapted_model
from tests.helpers.calibrations import calibration
from tests.helpers.models import singles, tiny_batch, tiny_model
from tlora.adapters.compression import Compression

MODULES = ["q_proj", "v_proj", "down_proj"]


def other_adapter(family="llama", **changes) -> PeftModel:
    """LoRA by PEFT alone, B not zero, ranks and alphas by pattern."""
    arguments = {"r": 6, "lora_alpha": 9, "target_modules": MODULES, "init_lora_weights": False}
    arguments |= {"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"layers.1.mlp.down_proj": 2}} | changes
    torch.manual_seed(0)
    return get_peft_model(tiny_model(family), LoraConfig(**arguments))


def updates(model: PeftModel) -> dict[str, np.ndarray]:
    """s B A of every layer, as PEFT computes it."""
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    return {n: m.get_delta_weight("default").detach().double().numpy() for n, m in layers.items()}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tiny_batch("llama", seed=5)).logits


def reload(smaller: Compression, folder) -> PeftModel:
    return tlora.load_adapter(smaller.save_adapter(folder), tiny_model("llama"))


@pytest.mark.parametrize("rslora", [False, True])
def test_plain_is_the_truncated_svd(tmp_path, rslora):
    model = other_adapter(use_rslora=rslora)
    smaller = tlora.compress(model, rank=3)
    cut = updates(reload(smaller, tmp_path))
    for name, dense in updates(model).items():
        u, s, v = np.linalg.svd(dense)
        best = (u[:, :3] * s[:3]) @ v[:3]
        assert np.linalg.norm(cut[name] - best) < 1e-5 * np.linalg.norm(dense)
        row = smaller.to_frame().set_index("module").loc[name]
        assert row["error"] == pytest.approx(np.sqrt((s[3:] ** 2).sum() / (s**2).sum()), rel=1e-4)
        assert row["energy"] == pytest.approx(1 - row["error"] ** 2)


@pytest.mark.parametrize("options", [{}, {"covariance": "sketch", "sketch_size": 12}], ids=["dense", "sketch"])
def test_on_the_task_is_the_weighted_least_squares_optimum(tmp_path, options):
    model, known = other_adapter(), calibration(**options)
    smaller = tlora.compress(model, rank=3, calibration=known)
    cut, plain = updates(reload(smaller, tmp_path)), updates(reload(tlora.compress(model, rank=3), tmp_path / "plain"))
    for name, dense in updates(model).items():
        m = known.covariance[name].second_moment().dense().double().numpy()
        root = fractional_matrix_power(m + 1e-12 * np.trace(m) * np.eye(len(m)), 0.5).real
        whole = np.linalg.norm(dense @ root)
        least = np.sqrt((np.linalg.svd(dense @ root, compute_uv=False)[3:] ** 2).sum())
        error, of_plain = (np.linalg.norm((dense - each[name]) @ root) for each in (cut, plain))
        assert error <= least + 1e-4 * whole
        assert of_plain > error
        assert np.linalg.matrix_rank(cut[name], tol=1e-5) == 3
        assert smaller.to_frame().set_index("module").loc[name, "error"] == pytest.approx(error / whole, abs=1e-4)


def test_what_is_lost_on_held_out_samples_is_that_of_their_outputs(tmp_path):
    model = other_adapter()
    held = [tiny_batch("llama", seed=9, lengths=(8, 11))]
    measured = tlora.calibrate(tiny_model("llama"), held, progress=False)
    smaller = tlora.compress(model, parameters=0.5, calibration=calibration(), held_out=measured)
    whole, cut = updates(model), updates(reload(smaller, tmp_path))
    base, seen = tiny_model("llama"), {name: [] for name in whole}
    for name, inputs in seen.items():
        base.get_submodule(name).register_forward_pre_hook(lambda _, x, inputs=inputs: inputs.append(x[0][0]))
    with torch.no_grad():
        for single in singles(held[0]):
            base(**single)
    x = {name: torch.cat(inputs).double().numpy() for name, inputs in seen.items()}
    lost = {name: np.linalg.norm(x[name] @ (whole[name] - cut.get(name, 0)).T) for name in whole}
    there = {name: np.linalg.norm(x[name] @ whole[name].T) for name in whole}
    frame = smaller.to_frame().set_index("module")["held_out_error"]
    assert dict(frame) == pytest.approx({name: lost[name] / there[name] for name in whole}, abs=1e-4)
    overall = np.sqrt(sum(v**2 for v in lost.values()) / sum(v**2 for v in there.values()))
    assert smaller.error("held out") == pytest.approx(overall, abs=1e-4)
    last = smaller.curves(30).query("cut == 'task' and parameters <= @smaller.parameters[1]").iloc[-1]
    assert last["measure"] == "held out"
    assert last["error"] >= overall - 1e-9


def test_directions_that_an_update_does_not_have_cost_nothing(tmp_path):
    model = other_adapter()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter[:, 2:] = 0
    smaller = tlora.compress(model, energy=1.0)
    assert set(smaller.ranks.values()) == {2}
    assert float((logits(reload(smaller, tmp_path)) - logits(model)).abs().max()) < 1e-5


@pytest.mark.parametrize("budget", [100, 1200, 2063, 10**6])
def test_a_budget_is_never_exceeded_and_less_than_a_rank_is_left(budget):
    smaller = tlora.compress(other_adapter(), parameters=budget)
    frame = smaller.to_frame()
    spent = int(frame["parameters"].sum())
    assert spent == smaller.parameters[1] <= budget
    more = frame[frame["rank"] < frame["rank_before"]]
    assert more.empty or budget - spent < (more["d_out"] + more["d_in"]).min()


def test_no_other_ranks_of_the_same_parameters_keep_more():
    """By trying all of them."""
    model = other_adapter(target_modules=["v_proj", "down_proj"], r=3, rank_pattern={})
    energies = {name: np.linalg.svd(dense, compute_uv=False)[:3] ** 2 for name, dense in updates(model).items()}
    costs = {name: sum(dense.shape) for name, dense in updates(model).items()}
    for budget in range(50, sum(3 * cost for cost in costs.values()), 37):
        smaller = tlora.compress(model, parameters=budget)
        spent, kept = smaller.parameters[1], sum(energies[n][:k].sum() for n, k in smaller.ranks.items())
        tried = [dict(zip(energies, ranks, strict=True)) for ranks in itertools.product(range(4), repeat=len(energies))]

        def best(most):
            fits = (ranks for ranks in tried if sum(costs[n] * k for n, k in ranks.items()) <= most)  # noqa: B023
            return max(sum(energies[n][:k].sum() for n, k in ranks.items()) for ranks in fits)

        first = max(values[0] for values in energies.values())
        assert kept >= best(budget) - first
        greedy = tlora.compress(model, energy=kept / sum(map(np.sum, energies.values())) * (1 - 1e-6))
        if greedy.parameters[1] == spent:  # the order used it up
            assert kept == pytest.approx(best(spent), rel=1e-5)


def test_contributions_share_a_budget():
    """In proportion to the energies they change nothing; where they are nothing or negative nothing is kept."""
    model = other_adapter()
    plain = tlora.compress(model, parameters=0.5)
    sums = {name: float((dense**2).sum()) for name, dense in updates(model).items()}
    assert tlora.compress(model, parameters=0.5, contributions=sums).ranks == plain.ranks
    unwanted = [name for name in sums if name.endswith("v_proj")]
    most = tlora.compress(model, energy=1.0, contributions=sums | dict.fromkeys(unwanted, -1.0)).ranks
    assert [name for name, rank in most.items() if not rank] == unwanted


def test_energy_and_error_are_kept_with_as_little_as_it_takes():
    model = other_adapter()
    kept = tlora.compress(model, energy=0.8)
    assert kept.error() ** 2 <= 0.2
    fewer = {name: rank - 1 for name, rank in kept.ranks.items() if rank}
    assert any(
        sum(float(e[0, 0, : fewer[name] if name == n else kept.ranks[name]].sum()) for name, e in kept.energies.items())
        < 0.8 * sum(float(e[0, 0].sum()) for e in kept.energies.values())
        for n in fewer
    )
    bounded = tlora.compress(model, error=0.4)
    for name, smaller in bounded.energies.items():
        shares = smaller[0, 0].flip(0).cumsum(0).flip(0) / smaller[0, 0].sum()
        assert bounded.ranks[name] == int((shares.sqrt() > 0.4).sum())


def test_ranks_by_name(tmp_path):
    first, second, *others = updates(other_adapter())
    smaller = tlora.compress(other_adapter(), rank={first: 0, second: 2})
    assert smaller.ranks == smaller.original_ranks | {first: 0, second: 2}
    assert updates(reload(smaller, tmp_path)).keys() == {second, *others}


def test_from_a_folder_as_from_the_model(tmp_path):
    model = other_adapter()
    model.save_pretrained(tmp_path)
    one, other = (tlora.compress(each, energy=0.9, calibration=calibration()) for each in (model, tmp_path))
    assert one.ranks == other.ranks
    assert all(torch.equal(tensor, other.adapter[key]) for key, tensor in one.adapter.items())
    assert not other.fingerprints, "PEFT writes none"
    with pytest.raises(ValueError, match="another model"):
        tlora.load_adapter(one.save_adapter(tmp_path / "one"), tiny_model("llama", seed=1))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings", "ignore:Setting `save_embedding_layers`")
def test_embeddings_heads_and_biases_are_kept_as_they_are(tmp_path):
    options = {"target_modules": [*MODULES, "embed_tokens"], "modules_to_save": ["lm_head"], "use_rslora": True}
    model = other_adapter(**options)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(1.5)
    model.save_pretrained(tmp_path / "whole")
    before = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    kept = [key for key in before if ".lora_A." not in key and ".lora_B." not in key]
    assert any("lora_embedding_A" in key for key in kept)
    assert any("lm_head" in key for key in kept)
    smaller = tlora.compress(tmp_path / "whole", rank=2)
    after = load_file(smaller.save_adapter(tmp_path / "cut") / "adapter_model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in kept)
    whole = tlora.compress(tmp_path / "whole", rank=6)
    assert float((logits(reload(whole, tmp_path / "same")) - logits(model)).abs().max()) < 1e-5


def test_gpt2_and_classifiers(tmp_path):
    for family in ("gpt2", "bert"):
        model = adapted_model(family, init_lora_weights=False)
        smaller = tlora.compress(model, rank=2, calibration=calibration(family, target_modules=None))
        again = tlora.load_adapter(smaller.save_adapter(tmp_path / family), tiny_model(family))
        whole, cut = updates(model), updates(again)
        for name, dense in whole.items():
            assert np.linalg.matrix_rank(cut[name], tol=1e-5) == 2
            assert np.linalg.norm(cut[name] - dense) < np.linalg.norm(dense)


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_converted_pissa(tmp_path):
    """As PEFT converts it: plain LoRA of twice the rank on the base as it was."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=3, target_modules=MODULES, init_lora_weights="pissa"))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    expected = logits(model)
    with pytest.raises(ValueError, match=r"init_lora_weights='pissa' has changed the base's own weights"):
        tlora.compress(model, rank=2)
    model.save_pretrained(tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    smaller = tlora.compress(tmp_path / "lora", rank=6)
    assert set(smaller.original_ranks.values()) == {6}
    assert float((logits(reload(smaller, tmp_path / "cut")) - expected).abs().max()) < 1e-4


ADAPTERS = {
    "DoRA": (lambda: other_adapter(use_dora=True), "use_dora=True"),
    "OLoRA": (lambda: other_adapter(init_lora_weights="olora"), "init_lora_weights='olora'"),
    "untrained": (lambda: other_adapter(init_lora_weights=True), "every update is zero"),
}


@pytest.mark.parametrize(("adapter", "words"), ADAPTERS.values(), ids=ADAPTERS)
def test_refusals_of_adapters(adapter, words):
    with pytest.raises(ValueError, match=words):
        tlora.compress(adapter(), energy=0.9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "no budget"),
        ({"rank": 2, "energy": 0.9}, "rank and energy"),
        ({"rank": 0}, "rank"),
        ({"rank": {"lm_head": 1}}, "lm_head"),
        ({"rank": {"model.layers.0.self_attn.q_proj": -1}}, "rank of model"),
        ({"energy": 1.1}, "energy"),
        ({"error": -0.1}, "error"),
        ({"parameters": 20}, "use 48 or more"),
        ({"rank": 2, "contributions": {}}, "parameters= or energy="),
        ({"parameters": 0.5, "contributions": {"model.layers.0.mlp.down_proj": math.nan}}, "contributions"),
        ({"parameters": 0.5, "contributions": {}}, "lacks model.layers.0.mlp.down_proj"),
    ],
)
def test_refusals_of_budgets(options, words):
    with pytest.raises(ValueError, match=words):
        tlora.compress(other_adapter(), **options)


def test_refusals_of_calibrations():
    model, own = other_adapter(), calibration()
    wide = tiny_model("llama", intermediate_size=64)
    for options, error, words in (
        (
            {"calibration": tlora.calibrate(tiny_model("llama", seed=1), [tiny_batch("llama")], progress=False)},
            ValueError,
            "another weight there",
        ),
        (
            {"held_out": tlora.calibrate(wide, [tiny_batch("llama")], progress=False)},
            ValueError,
            r"held-out calibration is of another model: .* is \(32, 64\) there",
        ),
        ({"calibration": calibration(target_modules=["q_proj", "v_proj"])}, ValueError, "down_proj"),
        ({"calibration": own, "held_out": calibration()}, ValueError, "8 samples are in both"),
        ({"calibration": own.sensitivity}, TypeError, "calibration is a Sensitivity: pass a Calibration"),
    ):
        with pytest.raises(error, match=words):
            tlora.compress(model, rank=2, **options)
