"""Padding with another token than the model's own, models that read it, and batches as many samples as tokens long."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn

import tlora
from tests.helpers.models import singles, tiny_batch, tiny_config, tiny_model
from tests.helpers.padding import classifier, decoder, texts
from tlora.calibration.batches import CountedTokens
from tlora.calibration.covariance import CovarianceSum

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 2,
    "initializer_range": 0.2,
}


def calibrate(model: Any, batches: list[dict[str, torch.Tensor]]) -> tlora.Calibration:
    return tlora.calibrate(model, batches, progress=False)


def check_singles(model: Any, batch: dict[str, torch.Tensor], **tolerance: float) -> None:
    """That a batch gives the scores and covariances of its samples."""
    together, alone = calibrate(model, [batch]), calibrate(model, singles(batch))
    torch.testing.assert_close(together.sensitivity.per_sample, alone.sensitivity.per_sample, **tolerance)
    for name in alone.names:
        torch.testing.assert_close(together.covariance[name].dense(), alone.covariance[name].dense(), **tolerance)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_classifier_is_calibrated_on_texts_whatever_pads_them(family: str, padding: str) -> None:
    check_singles(decoder(family), texts((5, 3, 6), padding), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("token", [None, -1, 900])
def test_a_padding_token_that_a_model_has_not_is_not_given_to_it(token: int | None) -> None:
    model = tiny_model("llama")
    model.config.pad_token_id = token
    check_singles(model, tiny_batch("llama"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("family", "lengths"), [("llama", (4, 3, 2, 4)), ("bert", (3, 3, 2)), ("t5", (5, 4, 3, 4, 5))])
def test_a_square_batch_is_what_its_samples_are(family: str, lengths: tuple[int, ...]) -> None:
    check_singles(tiny_model(family), tiny_batch(family, lengths), rtol=1e-4, atol=1e-6)


MIXING = {
    "fnet": lambda: classifier(transformers.FNetConfig(**SIZES, pad_token_id=0)),
    "convbert": lambda: classifier(transformers.ConvBertConfig(**SIZES, pad_token_id=0, embedding_size=32)),
    "nystromformer": lambda: classifier(transformers.NystromformerConfig(**SIZES, pad_token_id=0)),
    "yoso": lambda: classifier(transformers.YosoConfig(**SIZES, pad_token_id=0)),
}
REFUSED = r"a sample of \d+ tokens gives a different result in a batch than on its own.*of one sample without padding"


@pytest.mark.parametrize("name", MIXING)
def test_a_model_that_reads_padding_is_refused(name: str) -> None:
    model, batch = MIXING[name](), texts((9, 8, 10))
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


def test_padding_that_the_last_module_reads_next_to_nothing_of_is_seen() -> None:
    """Each module's input is looked at: only the first block's differs, and the last one's by less than 1 %."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.mul_(1e-4)
    v_proj = model.model.layers[0].self_attn.v_proj
    forward = v_proj.forward
    v_proj.forward = lambda x: forward(x.mean(1, keepdim=True).expand_as(x))
    batch = tiny_batch("llama", (20, 3))
    with pytest.raises(RuntimeError, match=r"layers\.0\.self_attn\.o_proj .*padding"):
        calibrate(model, [batch])


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


def typed() -> dict[str, torch.Tensor]:
    """A batch whose token types are read: half of each text is of the second one."""
    batch = texts((5, 3, 6))
    types = (batch["attention_mask"].cumsum(1) > 2).long() * batch["attention_mask"]
    return batch | {"token_type_ids": types}


AS: dict[str, Callable[[torch.Tensor], Any]] = {
    "lists": torch.Tensor.tolist,
    "arrays": torch.Tensor.numpy,
    "tensors in a list": list,
    "arrays in a list": lambda x: list(x.numpy()),
}


@pytest.mark.parametrize("as_other", AS.values(), ids=AS)
def test_what_is_no_tensor_is_read_as_one(as_other: Callable[[torch.Tensor], Any]) -> None:
    """It was left out without a word, though the model reads it: scores were off by 80 %."""
    model, batch = tiny_model("bert"), typed()
    keys = ("input_ids", "attention_mask", "labels", "token_type_ids")
    expected = calibrate(model, [batch])
    found = calibrate(model, [batch | {key: as_other(batch[key]) for key in keys} | {"text": ["a", "b", "c"]}])
    assert found.sensitivity.per_sample.equal(expected.sensitivity.per_sample)
    assert found.sample_fingerprints.equal(expected.sample_fingerprints)
    plain = calibrate(model, [texts((5, 3, 6))])
    assert not torch.allclose(plain.sensitivity.per_sample, expected.sensitivity.per_sample, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32])
def test_a_mask_of_any_type_is_read(dtype: torch.dtype) -> None:
    model, batch = tiny_model("bert"), texts((5, 3, 6))
    found = calibrate(model, [batch | {"attention_mask": batch["attention_mask"].to(dtype)}])
    assert found.sensitivity.per_sample.equal(calibrate(model, [batch]).sensitivity.per_sample)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_label_that_is_predicted_from_a_masked_token_counts(family: str) -> None:
    """Its gradient was lost: scores were 5 to 76 % off those of autograd."""
    model, batch = tiny_model(family), tiny_batch(family, (7, 5, 9))
    batch["attention_mask"][0, 3] = batch["attention_mask"][2, 5:7] = 0
    batch["labels"][batch["attention_mask"] == 0] = -100
    calibration = calibrate(model, [batch])
    assert (batch["labels"][0, 4], batch["labels"][2, 7]) != (-100, -100)
    model.requires_grad_(True)
    for n, length in enumerate((7, 5, 9)):
        model.zero_grad()
        model(**{key: value[n : n + 1, :length] for key, value in batch.items()}).loss.backward()
        for column, name in enumerate(calibration.names):
            weight = model.get_submodule(name).weight
            expected = float((weight * weight.grad).abs().mean().detach())
            assert float(calibration.sensitivity.per_sample[n, column]) == pytest.approx(expected, rel=1e-4), name


def test_what_stands_at_padding_is_never_read() -> None:
    counted = torch.tensor([[True, True, False], [True, False, True]])
    x = torch.randn(2, 3, 4)
    tokens = CountedTokens.from_mask(counted, x.device)
    total, same = CovarianceSum(4), CovarianceSum(4)
    same.update(tokens.split_rows(x))
    x[~counted] = torch.tensor([[torch.nan] * 4, [torch.inf] * 4])
    total.update(tokens.split_rows(x))
    assert total.finish(2).dense().equal(same.finish(2).dense())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_classifier_that_names_no_padding_is_told_how(family: str) -> None:
    config = tiny_config(family, num_labels=2, pad_token_id=None)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    batch = tiny_batch("bert", (5, 3, 6))
    with pytest.raises(ValueError, match=r"ForSequenceClassification finds .* set model.config.pad_token_id ="):
        tlora.calibrate(model, [batch], progress=False)
    model.config.pad_token_id = 0
    assert tlora.calibrate(model, [batch], progress=False).meta.samples == 3


def planned(model: Any, batch: Any = None, **options: Any) -> tuple[tlora.Calibration, tlora.Allocation]:
    calibration = tlora.calibrate(model, [batch or tiny_batch(model)], progress=False, **options)
    return calibration, tlora.allocate(calibration.sensitivity, 4, max_rank=8)


TRAINED_OTHERWISE = r"a \w+ is trained with a loss of \S+ on a sample of \d+ tokens, and calibration would measure \S+,"


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_a_loss_of_ones_own_is_refused(family: str) -> None:
    model = tiny_model(family)
    forward = model.forward

    @functools.wraps(forward)
    def weighted(**kwargs: Any) -> Any:
        output = forward(**kwargs)
        if output.loss is not None:
            output.loss = output.loss * 1.01
        return output

    model.forward = weighted
    with pytest.raises(ValueError, match=TRAINED_OTHERWISE):
        calibrate(model, [tiny_batch(family)])


@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize("problem", [None, "single_label_classification"])
def test_what_a_classifier_takes_for_its_problem_is_as_before(problem: str | None, num_labels: int) -> None:
    """It is set in the config by the first loss that a model computes."""
    model = tiny_model("bert", num_labels=num_labels)
    model.config.problem_type = problem if num_labels == 2 else problem and "regression"
    before = model.config.problem_type
    calibrate(model, [texts((5, 3, 6)) | ({} if num_labels == 2 else {"labels": torch.tensor([0.5, -1.0, 2.0])})])
    assert model.config.problem_type == before


@pytest.mark.parametrize("name", ["BertForTokenClassification", "BertForMaskedLM"])
def test_labels_of_tokens_where_they_stand_are_refused(name: str) -> None:
    """Taken for labels of the tokens that follow, they gave scores that were off by a fifth."""

    class Mine(getattr(transformers, name)):  # type: ignore[misc]
        pass

    torch.manual_seed(0)
    model = Mine(tiny_config("bert")).eval()
    batch = tiny_batch("bert")
    batch["labels"] = batch["input_ids"].clamp(max=1).masked_fill(batch["attention_mask"] == 0, -100)
    for batches in ([batch], singles(batch)):
        with pytest.raises(ValueError, match=TRAINED_OTHERWISE):
            calibrate(model, batches)


def test_rows_with_labels_on_padding_are_refused() -> None:
    rows = Dataset.from_list([{"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0], "labels": [5, 6, 0]}])
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=r"row 0 .*labels on padding"):
        tlora.train(
            tlora.attach(model, None, planned(model)[1]), rows, learning_rate=0.05, batch_size=2, progress=False
        )
