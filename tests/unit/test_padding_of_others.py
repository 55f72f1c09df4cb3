"""Padding with another token than the model's own, models that read it, and batches as many samples as tokens long."""

from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn

import tlora
from tests.helpers import singles, tiny_batch, tiny_config, tiny_model, tiny_tokenizer

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 2,
    "initializer_range": 0.2,
}


def classifier(config: transformers.PretrainedConfig) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForSequenceClassification.from_config(config).eval()


def decoder(family: str, pad: int = 3) -> Any:
    """A classifier that finds the end of a text by a padding token; texts are padded with 0."""
    return classifier(tiny_config(family, num_labels=2, pad_token_id=pad))


def texts(lengths: tuple[int, ...], padding: str = "right") -> dict[str, torch.Tensor]:
    """A batch that is padded with 0, with a class for each sample."""
    return tiny_batch("bert", lengths, padding)


def calibrate(model: Any, batches: list[dict[str, torch.Tensor]]) -> tlora.Calibration:
    return tlora.calibrate(model, batches, progress=False)


def check_singles(model: Any, batch: dict[str, torch.Tensor], **tolerance: float) -> None:
    """That a batch gives the scores and covariances of its samples."""
    together, alone = calibrate(model, [batch]), calibrate(model, singles(batch))
    torch.testing.assert_close(together.sensitivity.per_sample, alone.sensitivity.per_sample, **tolerance)
    for name in alone.names:
        torch.testing.assert_close(together.covariance[name].dense(), alone.covariance[name].dense(), **tolerance)


# Padding with another token than the model's.


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_classifier_is_calibrated_on_texts_whatever_pads_them(family: str, padding: str) -> None:
    check_singles(decoder(family), texts((5, 3, 6), padding), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("token", [None, -1, 900])
def test_a_padding_token_that_a_model_has_not_is_not_given_to_it(token: int | None) -> None:
    model = tiny_model("llama")
    model.config.pad_token_id = token
    check_singles(model, tiny_batch("llama"), rtol=1e-4, atol=1e-6)


def test_a_classifier_is_evaluated_on_texts_whatever_pads_them() -> None:
    words = [" ".join(f"w{5 + (7 * n + 3 * i) % 40}" for i in range(2 + n % 6)) for n in range(60)]
    rows = Dataset.from_list([{"text": text, "label": n % 2} for n, text in enumerate(words)])
    task = tlora.load_task(rows, tiny_tokenizer())
    alone, together = (task.evaluate(decoder("llama"), batch_size=size)["loss"] for size in (1, 16))
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("padding", ["right", "left"])
def test_rows_are_padded_as_the_model_reads_them(padding: str) -> None:
    """Rows that bring their padding: a classifier is measured and trained as on those without."""
    batch = texts((5, 3, 6), padding)
    padded = [{key: value[n].tolist() for key, value in batch.items()} for n in range(3)]
    bare = [
        {"input_ids": batch["input_ids"][n][batch["attention_mask"][n].bool()].tolist(), "labels": padded[n]["labels"]}
        for n in range(3)
    ]
    found = []
    for rows in (padded, bare):
        model = decoder("llama")
        plan = tlora.allocate(calibrate(model, singles(batch)).sensitivity, 4)
        run = tlora.train(
            tlora.attach(model, None, plan), Dataset.from_list(rows), learning_rate=1e-2, batch_size=3, epochs=3,
            logging_steps=1, progress=False,
        )  # fmt: skip
        found.append([*run.history["loss"].dropna(), run.before["train_loss"], run.after["train_loss"]])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# As many samples as tokens.


@pytest.mark.parametrize("lengths", [(4, 4, 4, 4), (4, 3, 2, 4), (2, 2)])
def test_tokens_before_samples_are_refused_in_a_square_batch(lengths: tuple[int, ...]) -> None:
    sizes = {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "pad_token_id": 0}
    model, batch = classifier(transformers.XLNetConfig(**sizes, initializer_range=0.2)), texts(lengths)
    if len(lengths) == 2:  # in parts of one sample it can be read
        check_singles(model, batch, rtol=1e-4, atol=1e-6)
        return
    with pytest.raises(RuntimeError, match="tokens first and its samples second"):
        calibrate(model, [batch])


@pytest.mark.parametrize(("family", "lengths"), [("llama", (4, 3, 2, 4)), ("bert", (3, 3, 2)), ("t5", (5, 4, 3, 4, 5))])
def test_a_square_batch_is_what_its_samples_are(family: str, lengths: tuple[int, ...]) -> None:
    check_singles(tiny_model(family), tiny_batch(family, lengths), rtol=1e-4, atol=1e-6)


# Models that read padding, or other samples.

MIXING = {
    "fnet": lambda: classifier(transformers.FNetConfig(**SIZES, pad_token_id=0)),
    "convbert": lambda: classifier(transformers.ConvBertConfig(**SIZES, pad_token_id=0, embedding_size=32)),
    "yoso": lambda: classifier(transformers.YosoConfig(**SIZES, pad_token_id=0)),
}
REFUSED = r"a sample of \d+ tokens is another in a batch than alone.*batches of one sample without padding"


@pytest.mark.parametrize("name", MIXING)
def test_a_model_that_reads_padding_is_refused(name: str) -> None:
    model, batch = MIXING[name](), texts((5, 3, 6))
    with pytest.raises(RuntimeError, match=REFUSED):
        calibrate(model, [batch])
    calibrate(model, singles(batch))


def test_padding_that_comes_late_or_around_one_sample_is_seen() -> None:
    model, batch = MIXING["fnet"](), texts((5, 3, 6))
    alike, padded = texts((6, 6)), {key: value[:1] for key, value in batch.items()}
    for batches in ([alike, batch], [*singles(batch), padded]):
        with pytest.raises(RuntimeError, match=REFUSED):
            calibrate(model, batches)
    calibrate(model, [alike])


class _Mixed(nn.Module):
    """An MLP that adds what it makes of the sample before."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(x) + self.mlp(x).roll(1, 0)


def test_a_model_that_reads_other_samples_is_refused() -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp = _Mixed(model.model.layers[0].mlp)
    with pytest.raises(RuntimeError, match=REFUSED):
        calibrate(model, [tiny_batch("llama", (6, 6))])


class _Mean(nn.Module):
    """A head that takes the mean of all tokens, padding included."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1, keepdim=True).expand_as(x)


def test_a_head_that_reads_padding_is_refused() -> None:
    model = tiny_model("bert")
    model.bert.pooler = nn.Sequential(_Mean(), model.bert.pooler)
    with pytest.raises(RuntimeError, match=REFUSED):
        calibrate(model, [texts((2, 20))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "bert", "t5", "opt"])
def test_a_model_that_does_not_is_taken(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    for seed in range(3):
        calibrate(model, [tiny_batch(family, (6, 6), seed=seed), tiny_batch(family, (12, 3, 30), seed=seed)])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        calibrate(model, [tiny_batch(family)])


def test_looking_at_one_sample_alone_leaves_no_trace() -> None:
    """The sums are those of samples that were looked at by nobody, random state and hooks those from before."""
    model, batch = tiny_model("llama"), tiny_batch("llama")
    state, hooks = torch.get_rng_state(), [dict(module._forward_hooks) for module in model.modules()]
    check_singles(model, batch, rtol=1e-4, atol=1e-6)
    assert torch.get_rng_state().equal(state)
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    assert not any(module.training for module in model.modules())
