"""The study of preferences: its loss is TRL's, its gradient autograd's, and the page is that of the store."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from scipy import stats

from benchmarks.lab.store import Store
from benchmarks.quality import preferences
from benchmarks.quality.pages import fill_blocks
from tests.helpers.models import tiny_model, tiny_tokenizer
from tests.helpers.trainers import THEIR_WARNINGS

PAIRS = [
    {"prompt": f"w{4 + n} w9", "chosen": f" w{10 + n} w7 w8", "rejected": f" w{20 + n} w17" + " w18" * (n % 3)}
    for n in range(8)
]


def test_the_page_is_of_the_store() -> None:
    text = preferences.PAGE.read_text()
    assert fill_blocks(text, "preferences", preferences.TABLES) == text, (
        "run python -m benchmarks.quality.preferences --table"
    )


@THEIR_WARNINGS
def test_the_loss_of_held_out_pairs_is_that_of_trl() -> None:
    tokenizer = tiny_tokenizer()
    task = preferences.answers_of({"train": PAIRS[:4], "validation": PAIRS[:2], "test": PAIRS[4:]}, tokenizer)
    base = tiny_model("llama")
    before = preferences.log_ratios(base, task, "test")
    adapted = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    trainer = preferences.train_pairs(adapted, tokenizer, PAIRS[:4], rate=0.02, seed=0, max_steps=4)
    theirs = trainer.evaluate(Dataset.from_list(PAIRS[4:]))
    margins = preferences.BETA * (preferences.log_ratios(adapted, task, "test") - before)
    ours = preferences.losses_of({"margins": margins.tolist()})
    assert abs(theirs["eval_loss"] - np.log(2)) > 1e-3
    assert ours.mean() == pytest.approx(theirs["eval_loss"], abs=1e-5)
    assert margins.mean() == pytest.approx(theirs["eval_rewards/margins"], abs=1e-5)


def test_captured_is_of_the_gradient_of_the_difference() -> None:
    model, name = tiny_model("llama"), "model.layers.0.mlp.down_proj"
    task = preferences.answers_of({"train": PAIRS, "validation": PAIRS[:2], "test": PAIRS[:2]}, tiny_tokenizer())
    batch = task.collate([task.train[0], task.train[1]])
    (gradient,) = preferences.pair_gradients(model, batch, [name])

    expected = 0
    for place, sign in ((0, 1), (1, -1)):
        row = task.train[place]
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        count = (labels[:, 1:] != -100).sum()
        loss = model(input_ids=ids, labels=labels).loss  # the mean over tokens
        expected -= sign * count * torch.autograd.grad(loss, model.get_submodule(name).weight)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)

    best = preferences.signed_directions(model, [batch], [name])
    values = np.linalg.svd(gradient.numpy(), compute_uv=False)
    captured, total = preferences.captured_gradient(model, [batch], [name], {"signed": best})
    assert total == pytest.approx((values**2).sum(), rel=1e-4)
    assert captured["signed"] == pytest.approx([(values[:rank] ** 2).sum() for rank in preferences.RANKS], rel=1e-4)


def test_a_near_miss_differs_in_one_part() -> None:
    assert preferences.is_near_miss("office.fan=on", "office.fan=30")
    assert preferences.is_near_miss("office.fan=on", "attic.fan=on")
    assert not preferences.is_near_miss("office.fan=on", "office.fan=on")
    assert not preferences.is_near_miss("office.fan=on", "attic.lamp=on")


def test_a_calibration_has_as_many_answers_of_either_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [{"prompt": f"w{n} ", "chosen": "w7", "rejected": "w8 w9"} for n in range(4, 60)]
    task = preferences.answers_of({"train": pairs, "validation": pairs[:2], "test": pairs[:2]}, tiny_tokenizer())
    monkeypatch.setattr(preferences, "load_pairs", lambda kind: {"train": pairs})
    monkeypatch.setattr(preferences, "load_answers", lambda kind: task)
    lengths = {}
    for answers in ("both", "chosen"):
        batches = preferences.calibration_batches("commands", answers, seed=0)
        lengths[answers] = [int((row != -100).sum()) for batch in batches for row in batch["labels"]]
    short = lengths["chosen"][0]
    assert lengths["chosen"] == [short] * 32
    assert lengths["both"] == [short, short + 1] * 16


def test_a_difference_is_paired_by_seed_at_the_best_rate(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(preferences, "STORE", store := Store(tmp_path / "runs.jsonl"))
    raised = {"both": (1.0, 0.8, 0.9), "chosen": (0.5, 0.6, 0.1)}
    for arm, values in raised.items():
        for rate in preferences.RATES:
            margins = {"margins": [3.0] * 4} if rate == preferences.RATES[1] else {}  # the others diverged
            key = preferences.race_key("commands", arm, rate, preferences.SEARCH_SEED)
            store.append({"key": key, "trained": 1000, **margins})
        for seed, value in enumerate(values):
            key = preferences.race_key("commands", arm, preferences.RATES[1], seed)
            store.append({"key": key, "trained": 1000, "margins": [value] * 3 + [-0.1]})
    losses = {arm: np.log(1 + np.exp(-np.array(values))) for arm, values in raised.items()}
    fourth = np.log(1 + np.exp(0.1))
    first, second = preferences.race_table().splitlines()[2:]
    assert first.split(" | ")[5:] == [f"{0.75 * losses['both'].mean() + 0.25 * fourth:.3f}", "0.75", " |"]
    mean = 0.75 * (losses["chosen"] - losses["both"]).mean()
    low, high = stats.t.interval(0.95, 2, mean, stats.sem(0.75 * (losses["chosen"] - losses["both"])))
    cell = second.split(" | ")[-1].removesuffix(" |")
    shown = [float(part) for part in cell.replace("(", "").replace(")", "").replace(" to ", " ").split()]
    assert shown[0] == pytest.approx(mean, abs=6e-4)
    assert shown[1] <= low + 6e-4  # pairs that differ make it wider, never narrower
    assert shown[2] >= high - 6e-4


def test_what_was_expected_is_judged_when_all_has_run(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(preferences, "STORE", store := Store(tmp_path / "runs.jsonl"))
    assert preferences.expectation_table().count("not run yet") == 6
    margins = {"both": 1.0, "chosen": 1.01, "random": 0.5, "LoRA": 1.5}  # chosen: 0.003 nats ahead, in every pair
    for kind, (arm, margin), seed in itertools.product(preferences.KINDS, margins.items(), (100, *preferences.SEEDS)):
        for rate in preferences.RATES if seed == 100 else preferences.RATES[:1]:
            store.append({"key": preferences.race_key(kind, arm, rate, seed), "trained": 10, "margins": [margin] * 4})
    captured = {"both": [50.0, 80.0], "signed": [50.5, 80.0], "chosen": [46.0, 80.0], "random": [1.0, 5.0]}
    for kind, state, seed in itertools.product(preferences.KINDS, preferences.STATES, preferences.SEEDS):
        key = {"part": "capture", "kind": kind, "state": state, "seed": seed}
        store.append({"key": key, "captured": captured, "total": 100.0})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in preferences.expectation_table().splitlines()]
    assert [line[-1] for line in lines[2:]] == [
        "holds", "does not hold", "holds", "holds", "does not hold", "does not hold",
    ]  # fmt: skip
    assert lines[2][1:3] == ["-0.5, -0.5"] * 2
    assert lines[3][1:3] == ["+4.0, +4.0"] * 2
