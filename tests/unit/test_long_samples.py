"""Samples longer than a model with learnt positions reads: cut by default, refused where they come all the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset

import tlora
from tests.adapted import adapted_model, token_rows
from tests.helpers import tiny_batch, tiny_model, tiny_tokenizer
from tlora.tasks.evaluation import generate
from tlora.tasks.load import load_task_of

READ = {"gpt2": 64, "opt": 64, "bert": 80, "roberta": 78}
"""Positions of the tiny models; RoBERTa counts from behind its padding token."""


def saved(folder: Path, family: str) -> Path:
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{4 + (start + 7 * n) % 60}" for n in range(count))


def asked(prompt: int, answer: int = 2, rows: int = 12) -> Dataset:
    return Dataset.from_list([{"prompt": words(prompt, n), "completion": words(answer, n)} for n in range(rows)])


def with_the_model(folder: Path, data: Path) -> tlora.Task:
    return tlora.load_task(str(data), tlora.load_model(folder)[1])


def by_its_name(folder: Path, data: Path) -> tlora.Task:
    return load_task_of(str(folder), str(data))


@pytest.mark.parametrize("load", [with_the_model, by_its_name])
@pytest.mark.parametrize(("family", "most"), [("gpt2", 64), ("llama", 64), ("bert", 80)])
def test_a_task_is_cut_to_what_the_model_reads(
    tmp_path: Path, family: str, most: int, load: Callable[[Path, Path], tlora.Task]
) -> None:
    """The tokenizer was never told."""
    folder = saved(tmp_path / family, family)
    rows = [{"text": words(200, n), "label": n % 2} for n in range(12)]
    if family != "bert":
        rows = [{"prompt": words(9, n), "completion": words(200, n)} for n in range(12)]
    Dataset.from_list(rows).to_json(tmp_path / "data.jsonl")
    with pytest.warns(UserWarning, match=f"max_length={most} truncated"):
        task = load(folder, tmp_path / "data.jsonl")
    assert task.max_length == most
    assert {len(ids) for ids in task.train["input_ids"][:]} == {most}


def test_prompts_that_fill_the_model_are_what_is_to_be_shortened(tmp_path: Path) -> None:
    _, tokenizer = tlora.load_model(saved(tmp_path, "gpt2"))
    with pytest.raises(ValueError, match=r"max_length=64 cuts off every answer .* the model reads no more"):
        tlora.load_task(asked(100), tokenizer)


@pytest.mark.parametrize("family", READ)
def test_calibration_names_the_length_and_the_limit(family: str) -> None:
    model, most = tiny_model(family), READ[family]
    words = rf"a sample has {most + 1} tokens, and the model reads at most {most}, by .*: load the task with max_length"
    with pytest.raises(ValueError, match=words):
        tlora.calibrate(model, [tiny_batch(model, (most + 1, 5))], progress=False)
    assert tlora.calibrate(model, [tiny_batch(model, (most, 5))], progress=False).meta.samples == 2


def test_rotary_positions_have_no_limit() -> None:
    model = tiny_model("llama")
    assert tlora.calibrate(model, [tiny_batch(model, (65, 5))], progress=False).meta.samples == 2


@pytest.mark.parametrize("use", ["evaluate", "train"])
def test_evaluation_and_training_name_the_limit_too(use: str) -> None:
    task = tlora.load_task(asked(100), tiny_tokenizer())
    model = adapted_model("gpt2")
    uses: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: task.evaluate(model),
        "train": lambda: tlora.train(model, task.train, max_steps=1, progress=False),
    }
    with pytest.raises(
        ValueError, match=r"a sample has 1\d\d tokens, and the model reads at most 64, by transformer.wpe"
    ):
        uses[use]()


def test_answers_end_where_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest prompt and the longest answer are of different samples, and together longer than the model."""
    rows = [*asked(50, 2, 6), *asked(4, 40, 6)]
    task = tlora.load_task(Dataset.from_list(rows), tiny_tokenizer(), metric="exact_match")
    assert max(map(len, task.train["input_ids"][:])) < 64 < 50 + task.max_new_tokens
    model, ends = tiny_model("gpt2"), []
    write = model.generate

    def noted(**given: Any) -> Any:
        ends.append(given["input_ids"].shape[1] + given["generation_config"].max_new_tokens)
        return write(**given)

    monkeypatch.setattr(model, "generate", noted)
    generate(model, task, task.train, batch_size=4, progress=False)
    assert max(ends) == 64


def test_rows_that_are_short_enough_are_trained_on() -> None:
    run = tlora.train(adapted_model("gpt2"), token_rows(), max_steps=1, warmup_steps=0, progress=False)
    assert run.steps == 1


def test_answers_of_an_encoder_decoder_have_a_limit_of_their_own() -> None:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 64}
    config = transformers.BartConfig(max_position_embeddings=40, **sizes, **heads)
    model = transformers.BartForConditionalGeneration(config).eval()
    ids = torch.full((1, 5), 7)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full((1, 41), 7)}
    with pytest.raises(ValueError, match=r"a sample has 41 tokens, and the model reads at most 40, by model.decoder"):
        tlora.calibrate(model, [batch], progress=False)
    short = batch | {"labels": batch["labels"][:, :40]}
    assert tlora.calibrate(model, [short], progress=False).meta.samples == 1
