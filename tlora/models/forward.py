"""The loss of each sample alone, from one padded batch."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from tlora.models.hooks import ObservationError
from tlora.models.weights import get_base_model, intact

IGNORED = -100


TEXT_CLASSIFIERS = {*MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()}
"""Classes of models that give one class, or one score, to a whole text."""


_KNOWN = "pass a causal, encoder-decoder or text classification model"
"""The way out where the loss of a model is unknown."""

_TABLE = re.compile(r"(position[^.]*|wpe)$")  # ends the names of tables of learned positions
UNLIMITED = 2**30
"""A tokenizer that was never told how much its model reads says more than this."""


def pad_right(batch: Mapping[str, Tensor], is_encoder_decoder: bool) -> dict[str, Tensor]:
    """The batch with padding on the left moved to the right.

    With the padding on the right every model, whatever its positions and wherever it pools, computes for a sample
    what it computes for that sample alone: GPT-2 would count absolute positions from the padding, and BERT would
    pool a padded token.

    Parameters
    ----------
    batch : mapping
        Tensors; those of shape (B, T, ...) move, the decoder's own (``labels``, ``decoder_*`` of an
        encoder-decoder model) stay.
    is_encoder_decoder : bool
        Whether the labels belong to a decoder of its own.

    Returns
    -------
    dict of Tensor
        Same shapes.
    """
    mask = batch["attention_mask"]
    padding = mask.bool().int().argmax(1)
    if not bool(padding.any()):
        return dict(batch)
    columns = torch.arange(mask.shape[1], device=mask.device)
    order = (columns + padding[:, None]) % mask.shape[1]
    moved = {}
    for key, value in batch.items():
        own = is_encoder_decoder and is_decoder_input(key)
        along = value.ndim >= 2 and value.shape[:2] == mask.shape and not own
        moved[key] = value[torch.arange(len(mask), device=mask.device)[:, None], order] if along else value
    return moved


def is_decoder_input(key: str) -> bool:
    """Whether an entry of an encoder-decoder model's batch belongs to its decoder's tokens."""
    return key == "labels" or key.startswith("decoder_")


def problem_type(config: Any) -> Literal["regression", "single_label_classification"]:
    """What transformers calls the loss of one class, or one score, of each text."""
    return "regression" if config.num_labels == 1 else "single_label_classification"


def check_problem(batch: Mapping[str, Tensor], model: Any) -> None:
    """Refuse a classifier whose own loss, which it is trained with, is not that of its labels.

    Raises
    ------
    ValueError
        If its config says so, as that of a base for several labels of a text does.
    """
    found, labels = getattr(model.config, "problem_type", None), batch.get("labels")
    if found and labels is not None and labels.ndim == 1 and found != (asked := problem_type(model.config)):
        raise ValueError(
            f"config.problem_type is {found!r}, which is not the loss of one label for each text with "
            f"num_labels={model.config.num_labels}: set model.config.problem_type = {asked!r}, as tlora.load_model does"
        )


def has_argument(model: nn.Module, argument: str) -> bool:
    """Whether the model's ``forward`` names this argument, or hands all of its arguments on."""
    named = inspect.signature(model.forward).parameters
    return argument in named or all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in named.values())


def sample_losses(model: Any, batch: Mapping[str, Tensor]) -> Float[Tensor, " samples"]:
    """Mean loss of each sample over its own labels, in nats; its sum is what calibration backpropagates.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Causal, encoder-decoder or sequence classification model.
    batch : mapping
        ``input_ids``, ``attention_mask``, ``labels``, as tensors on the model's device, padded on the right. Labels
        are (B,) class indices or (B, T) token ids, -100 where a token does not count.

    Returns
    -------
    (B,) float32 tensor
        With graph.

    Notes
    -----
    Causal models that can restrict their logits to some positions are asked for the labelled ones only: the output
    embedding is then multiplied for those alone.
    """
    labels = batch["labels"]
    if labels.ndim > 1:
        return _mean_over_labels(*token_logits(model, batch))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    return _class_losses(model, _output(model, inputs).logits, labels)


def both_losses(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The loss that the model itself computes of one sample, as it does in training, and ours of the same logits.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Causal, encoder-decoder or sequence classification model. It may set its config's ``problem_type``.
    batch : mapping
        Of one sample, as for `sample_losses`.

    Returns
    -------
    tuple of two scalar tensors
        In nats; the first in the precision that the model computes it in.

    Raises
    ------
    TypeError
        If the model gives no loss.
    """
    asked = restrict_logits(model, batch)
    output, labels = _output(model, asked), asked["labels"]
    if not isinstance(getattr(output, "loss", None), Tensor):
        raise TypeError(f"a {type(get_base_model(model)).__name__} gives no loss of labels: {_KNOWN}")
    if labels.ndim > 1:
        return output.loss, _mean_over_labels(*_predicted(model, output.logits, labels))[0]
    return output.loss, _class_losses(model, output.logits, labels)[0]


def _class_losses(model: Any, logits: Tensor, labels: Tensor) -> Tensor:
    _check_logits(model, logits, (len(labels), model.config.num_labels), labels)
    if logits.shape[-1] == 1:
        return (logits[:, 0].float() - labels).square()
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def token_logits(
    model: Any, batch: Mapping[str, Tensor], **options: Any
) -> tuple[Float[Tensor, "samples tokens vocabulary"], Int64[Tensor, "samples tokens"]]:
    """Logits of a model that writes text, and the label that each of them predicts.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        Causal or encoder-decoder.
    batch : mapping
        As for `sample_losses`; labels (B, T).
    **options
        Passed on to the model.
    """
    asked = restrict_logits(model, batch)
    labels = asked["labels"]
    if not model.config.is_encoder_decoder:  # others make the decoder's inputs of the labels
        asked.pop("labels")
    return _predicted(model, _output(model, asked | options).logits, labels)


def _predicted(model: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the label that each predicts: the next one, or, in an encoder-decoder, that of its own position."""
    _check_logits(model, logits, (*labels.shape, None), labels)
    return (logits, labels) if model.config.is_encoder_decoder else (logits[:, :-1], labels[:, 1:])


def _output(model: Any, inputs: Mapping[str, Any]) -> Any:
    """What a pass gives, logits among it; what goes wrong inside the model is told with what it was called with."""
    name = type(get_base_model(model)).__name__
    try:
        output = model(**inputs)
    except (ObservationError, torch.OutOfMemoryError):
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        given = ", ".join(f"{key} {tuple(value.shape)}" for key, value in inputs.items() if isinstance(value, Tensor))
        why = " ".join(str(error).split())[:200]
        raise RuntimeError(f"a {name} fails on {given}: {why}") from error
    if not isinstance(getattr(output, "logits", None), Tensor):
        found = ", ".join(output) if isinstance(output, Mapping) else type(output).__name__
        raise TypeError(f"a {name} gives no logits but {found}: {_KNOWN}")
    return output


def _check_logits(model: Any, logits: Tensor, expected: tuple[int | None, ...], labels: Tensor) -> None:
    """Refuse logits that are not one row for each label; None stands for any size."""
    fit = logits.ndim == len(expected) and all(b in (None, a) for a, b in zip(logits.shape, expected, strict=True))
    if not fit:
        raise TypeError(
            f"a {type(get_base_model(model)).__name__} gives logits of shape {tuple(logits.shape)} for labels of shape "
            f"{tuple(labels.shape)}: {_KNOWN}"
        )


def restrict_logits(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The batch with a causal model asked for its logits only where a label follows.

    The output embedding is then multiplied for the labelled positions alone, which is most of the memory of a short
    answer to a long question in a large vocabulary, and a good part of the time.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        One that cannot restrict its logits is given the batch as it is.
    batch : mapping
        As for `sample_losses`; labels (B, T). On a GPU the host would wait here: look at it before it is moved there.
        One that was here before is returned as it is.

    Returns
    -------
    dict
        With ``logits_to_keep``, a list of K positions, and the labels of these, (B, K), such that as ever the logits at
        one column predict the label at the next.
    """
    asked = batch["labels"].ndim == 1 or "logits_to_keep" in batch or not can_restrict_logits(get_base_model(model))
    return dict(batch) if asked else keep_labeled_positions(batch)


def can_restrict_logits(base: Any) -> bool:
    """Whether a model can be asked for its logits at some positions alone."""
    return not base.config.is_encoder_decoder and has_argument(base, "logits_to_keep")


def keep_labeled_positions(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The batch as `restrict_logits` gives it to a model that can leave logits out."""
    labels = batch["labels"]
    columns = (labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]
    nothing = labels.new_full((len(labels), 1), IGNORED)
    last = labels.shape[1] - 1  # predicts nothing, like the last column of any batch
    return dict(batch) | {
        "logits_to_keep": [*columns.tolist(), last],  # no tensor, which had to be where the last layer is
        "labels": torch.cat([nothing, labels[:, columns + 1]], 1),
    }


def _mean_over_labels(logits: Tensor, labels: Tensor) -> Tensor:
    losses = functional.cross_entropy(
        logits.float().transpose(1, 2), labels.to(logits.device), ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(1) / (labels != IGNORED).sum(1).to(logits.device)


def fit_batch(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch as the model reads it: with its own padding token before and after each text.

    By that token classifiers find the end of a text. What is masked within a text stays.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        One that names no padding token, or none that it has an embedding of, is given the batch as it is.
    batch : mapping
        ``input_ids`` and ``attention_mask`` (B, T), and whatever else.

    Raises
    ------
    ValueError
        If the batch is longer than the model reads, or of several texts for a classifier that needs a padding token and
        has none.
    """
    if "input_ids" not in batch:  # pictures
        return dict(batch)
    check_width(batch, model)
    check_problem(batch, model)
    token = getattr(model.config.get_text_config(), "pad_token_id", None)
    if token is None and len(batch["input_ids"]) > 1 and _ends_at_padding(get_base_model(model)):
        raise ValueError(
            f"a {type(get_base_model(model)).__name__} finds the end of each text by config.pad_token_id, which is "
            "None: set model.config.pad_token_id = tokenizer.pad_token_id, as tlora.load_model does"
        )
    if token is None or not 0 <= token < len(model.get_input_embeddings().weight):
        return dict(batch)
    mask = batch["attention_mask"]
    text = (mask.cumsum(1) > 0) & (mask.flip(1).cumsum(1).flip(1) > 0)
    return {**batch, "input_ids": batch["input_ids"].masked_fill(~text, token)}


def _ends_at_padding(model: Any) -> bool:
    """Whether it is a classifier made of a decoder, which reads the class off the last token."""
    of_texts = any(base.__name__ in TEXT_CLASSIFIERS for base in type(model).__mro__)
    return of_texts and model.config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


@contextlib.contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets back the mode it had, also after an error.

    No 4-bit layer of bitsandbytes packs itself meanwhile: it could not be trained after that, and narrow ones fail.

    Parameters
    ----------
    model : torch.nn.Module
        Any.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), intact(model):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def to_device(batch: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The batch with the model's padding, where its embeddings are, wherever its other layers may be."""
    embeddings = model.get_input_embeddings()
    if int(batch["input_ids"].max()) >= len(embeddings.weight):
        raise ValueError(
            f"token {int(batch['input_ids'].max())} is beyond the {len(embeddings.weight)} embeddings of the model: "
            "the task was loaded with the tokenizer of another model"
        )
    place = input_device(embeddings)
    return {name: value.to(place) for name, value in fit_batch(model, batch).items()}


def input_device(module: Any) -> torch.device:
    """Where a module computes: where accelerate says, for its weights may be kept elsewhere."""
    placed = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if placed is None else torch.device(placed)


def position_limit(model: nn.Module) -> tuple[int, str] | None:
    """Tokens that the smallest table of learned positions has room for, and its name; None where there is none."""
    asked = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _TABLE.search(name) and _reads_tokens(model, name):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from there
            room = module.num_embeddings - unused
            found.append((min(room, asked or room), name))
    return min(found, default=None)


def _reads_tokens(model: nn.Module, name: str) -> bool:
    """Whether a module is of a model of texts, and not of one of pictures or of sound inside of it."""
    parts = name.split(".")
    parents = (model.get_submodule(".".join(parts[:depth])) for depth in reversed(range(len(parts))))
    return next((m.main_input_name for m in parents if hasattr(m, "main_input_name")), "input_ids") == "input_ids"


def check_width(batch: Mapping[str, Tensor], model: Any) -> None:
    """Refuse more tokens than there are learned positions: torch would tell of an index out of range.

    Parameters
    ----------
    batch : mapping
        ``input_ids`` (B, T), and ``labels`` of an encoder-decoder that writes (B, T').
    model : transformers.PreTrainedModel or peft.PeftModel
        The model that will read it.

    Raises
    ------
    ValueError
        If a sample is longer.
    """
    written = [tokens for tokens in (batch.get("labels"),) if tokens is not None and tokens.ndim == 2]
    read = [batch["input_ids"], *(written if model.config.is_encoder_decoder else [])]
    width = max(tokens.shape[1] for tokens in read)
    most, table = position_limit(get_base_model(model)) or (width, "")
    if width > most:
        raise ValueError(
            f"a sample has {width} tokens, and the model reads at most {most}, by {table}: load the task with "
            f"max_length={most} or less"
        )
