"""Token by token against the model with and without its adapter, and the mean against the loss of the task."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoraConfig, get_peft_model

import tlora
from tests.helpers.adapted import condition
from tests.helpers.exact_adapters import adapter, layers, task, values
from tests.helpers.models import tiny_model, tiny_tokenizer
from tlora.explanation.side_effects import MeasuredText, SideEffects
from tlora.results import Meta

FAMILIES = ["llama", "gpt2", "gpt_neox", "t5"]


def texts(family: str) -> dict[str, tlora.Task]:
    """Two sets; an encoder-decoder has no texts without a prompt."""
    if family == "t5":
        return {"one": task(family), "other": task(family)}
    own = tlora.load_texts(tiny_tokenizer(), mine=["w4 w5 w6 w7 w8", "w9 w10", "w4 w9 w4"])
    rows = [row | {"labels": row["input_ids"]} for row in own["mine"].test]  # also the first token, never predicted
    return {"one": task(family)} | own | {"whole": replace(own["mine"], test=Dataset.from_list(rows))}


def measure(family: str, **options: Any) -> tuple[Any, dict[str, tlora.Task], SideEffects]:
    model, sets = adapter(family), texts(family)
    return model, sets, tlora.side_effects(model, sets, progress=False, **{"explain": 0} | options)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_token_has_the_log_probabilities_of_both_models(family):
    model, sets, effects = measure(family, batch_size=2)
    assert len(effects.samples) == sum(len(each.test) for each in sets.values())
    for one in effects.samples:
        row = sets[one.set].test[one.number]
        np.testing.assert_allclose(one.adapter, values(model, sets[one.set], row)[0], rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            np.testing.assert_allclose(one.base, values(model, sets[one.set], row)[0], rtol=1e-5, atol=1e-5)
        labels = [sets[one.set].tokenizer.decode([label]) for label in row["labels"] if label != -100]
        assert [one.tokens[place].strip() for place in one.positions] == labels[len(labels) - len(one.positions) :]
    means = [float(one.rise.mean()) for one in effects.samples]
    assert means == sorted(means)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_is_the_change_of_the_loss(family):
    model, sets, effects = measure(family)
    table, tokens = effects.sets().set_index("set"), effects.tokens()
    assert list(table.index) == list(sets)
    for name, each in sets.items():
        after = each.evaluate(model)["loss"]
        with model.disable_adapter():
            before = each.evaluate(model)["loss"]
        row = table.loc[name]
        assert (row["base_loss"], row["adapter_loss"]) == pytest.approx((before, after), abs=1e-6)
        assert row["loss_change"] == pytest.approx(after - before, abs=1e-6)
        assert -tokens.loc[tokens["set"] == name, "rise"].mean() == pytest.approx(row["loss_change"], abs=1e-12)


def test_the_interval_is_that_of_a_ratio_over_texts():
    """By the delete-one jackknife, on texts of very different lengths."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(60):
        count = int(torch.randint(20, 60, (), generator=generator))
        rise = -2 + 0.3 * torch.randn((), generator=generator) + torch.randn(count, generator=generator)
        base = torch.full((count,), -3.0, dtype=torch.float64)
        samples.append(MeasuredText("many", number, ["w"] * count, list(range(count)), base, base + rise.double()))
    row = SideEffects(samples, None, Meta(recipe={"sets": ["many"]})).sets().iloc[0]
    totals = np.array([-float(one.rise.sum()) for one in samples])
    counts = np.array([len(one.positions) for one in samples])
    without = (totals.sum() - totals) / (counts.sum() - counts)
    error = np.sqrt(59 / 60 * ((without - without.mean()) ** 2).sum())
    half = pytest.importorskip("scipy.stats").t.ppf(0.975, 59) * error
    assert (row["high"] - row["low"]) / 2 == pytest.approx(half, rel=0.02)
    assert (row["high"] + row["low"]) / 2 == pytest.approx(row["loss_change"])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_zero_changes_no_token(family):
    model = adapter(family)
    for layer in layers(model).values():
        for part in (*layer.lora_B.parameters(), *layer.lora_embedding_B.parameters()):
            part.data.zero_()
    effects = tlora.side_effects(model, texts(family), progress=False)
    assert (effects.tokens()["rise"] == 0).all()
    assert effects.attribution is None
    assert effects.lost().empty
    assert effects.rose().empty


def test_tokens_that_lost_and_rose_most_with_what_stands_before():
    _, _, effects = measure("llama")
    tokens = effects.tokens()
    lost, rose = effects.lost(3), effects.rose(3)
    assert lost["rise"].tolist() == sorted(tokens["rise"])[:3]
    assert rose["rise"].tolist() == sorted(tokens["rise"], reverse=True)[:3]
    for row in lost.itertuples():
        (one,) = [s for s in effects.samples if (s.set, s.number) == (row.set, row.sample)]
        assert "".join(one.tokens[: row.position]).endswith(row.before)
        assert one.tokens[row.position] == row.token


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_tokens_that_lost_most_are_taken_apart(family):
    model, _, effects = measure(family, explain=3)
    assert effects.attribution is not None
    explained = np.sort(np.concatenate([one.rise[0] for one in effects.attribution.samples]))
    lost = effects.lost(3)["rise"].to_numpy()
    if family == "t5":  # with what is written before them
        assert all(np.isclose(explained, each, rtol=1e-4).any() for each in lost)
    else:
        np.testing.assert_allclose(explained, lost, rtol=1e-4, atol=1e-5)
    assert effects.attribution.names == list(layers(model))
    assert effects.attribution.gap < 0.02


def test_a_trained_head_counts_as_the_adapter_s():
    model = adapter("llama", target_modules=["q_proj"], modules_to_save=["lm_head"], rank_pattern={})
    sets = texts("llama")
    effects = tlora.side_effects(model, sets, explain=0, progress=False)
    with model.disable_adapter():
        before = sets["mine"].evaluate(model)["loss"]
    assert effects.sets().set_index("set").loc["mine", "base_loss"] == pytest.approx(before, abs=1e-6)


def test_the_model_is_left_as_it_was():
    model = adapter("llama").train()
    before, parameters = condition(model), copy.deepcopy(model.state_dict())
    tlora.side_effects(model, texts("llama"), progress=False)
    assert condition(model) == before
    assert all(torch.equal(value, parameters[name]) for name, value in model.state_dict().items())


def dora() -> Any:
    return get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], use_dora=True))


def pissa() -> Any:
    return get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"))


def other_words(word: str) -> dict[str, tlora.Task]:
    """Texts by a tokenizer that has a word more than the model."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["more"])
    return tlora.load_texts(tokenizer, theirs=[f"w4 w5 {word}"])


def empty() -> tlora.Task:
    return tlora.load_task({"train": Dataset.from_list([{"prompt": "w4", "completion": "w5"}])}, tiny_tokenizer(),
                           validation=0, test=0)  # fmt: skip


REFUSED = {
    "IA3": (lambda: get_peft_model(tiny_model("llama"), IA3Config(task_type="CAUSAL_LM")), lambda: {}, "LoRA"),
    "DoRA": (dora, lambda: texts("llama"), "use_dora"),
    "PiSSA": (pissa, lambda: texts("llama"), "init_lora_weights"),
    "another tokenizer": (lambda: adapter("llama"), lambda: texts("llama") | other_words("w6"), "theirs"),
    "a larger tokenizer": (lambda: adapter("llama"), lambda: other_words("more"), "theirs"),
    "classifier": (lambda: adapter("bert"), lambda: {"mine": task("bert")}, "mine"),
    "classes for a causal model": (lambda: adapter("llama"), lambda: {"mine": task("bert")}, "mine"),
    "texts for an encoder-decoder": (lambda: adapter("t5"), lambda: texts("llama"), "seq2seq"),
    "no texts": (lambda: adapter("llama"), lambda: {}, "load_texts"),
    "nothing to test on": (lambda: adapter("llama"), lambda: {"mine": empty()}, "empty"),
}


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize(
    "function",
    [tlora.side_effects, lambda model, sets, **k: tlora.measure_scales(model, task("llama"), sets, split="test", **k)],
)
def test_what_cannot_be_measured_is_refused(case, function):
    model, sets, named = REFUSED[case]
    with pytest.raises(ValueError, match=named):
        function(model(), sets(), progress=False)


@pytest.mark.parametrize(("explain", "error"), [(-1, ValueError), (2.0, TypeError)])
def test_tokens_to_explain_are_a_whole_number(explain, error):
    with pytest.raises(error, match=r"explain.* whole number"):
        tlora.side_effects(adapter("llama"), texts("llama"), explain=explain, progress=False)
