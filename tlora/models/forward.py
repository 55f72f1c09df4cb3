"""Run a model on padded batches so that each sample gives the result that it gives alone."""

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
"""Model classes that output one class, or one score, for a whole text."""
UNLIMITED = 2**30
"""A tokenizer without a length limit reports more tokens than this."""

_SUPPORTED = "pass a causal, encoder-decoder or text classification model"
_POSITION_TABLE = re.compile(r"(position[^.]*|wpe)$")  # end of the names of learned position embeddings


def pad_right(batch: Mapping[str, Tensor], is_encoder_decoder: bool) -> dict[str, Tensor]:
    """Move padding on the left of a batch to the right, in tensors of shape (B, T, ...).

    With padding on the right every model computes for a sample what it computes for that sample alone. With padding on
    the left GPT-2 would count absolute positions from the padding, and BERT would pool a padding token. The inputs of
    an encoder-decoder's decoder (``labels``, ``decoder_*``) stay.
    """
    mask = batch["attention_mask"]
    padding = mask.bool().int().argmax(1)
    if not bool(padding.any()):
        return dict(batch)
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    order = (torch.arange(mask.shape[1], device=mask.device) + padding[:, None]) % mask.shape[1]

    def moves(key: str, value: Tensor) -> bool:
        return value.shape[:2] == mask.shape and not (is_encoder_decoder and is_decoder_input(key))

    return {key: value[rows, order] if moves(key, value) else value for key, value in batch.items()}


def is_decoder_input(key: str) -> bool:
    """Whether an entry of an encoder-decoder model's batch belongs to its decoder's tokens."""
    return key == "labels" or key.startswith("decoder_")


def problem_type(config: Any) -> Literal["regression", "single_label_classification"]:
    """The name in transformers of the loss for one class, or one score, per text."""
    return "regression" if config.num_labels == 1 else "single_label_classification"


def check_problem(batch: Mapping[str, Tensor], model: Any) -> None:
    """Refuse a classifier whose config selects a loss for other labels than the batch has.

    A base that was trained for several labels per text would be trained with that loss, without a message.
    """
    config, labels = model.config, batch.get("labels")
    configured = getattr(config, "problem_type", None)
    if configured and labels is not None and labels.ndim == 1 and configured != problem_type(config):
        raise ValueError(
            f"config.problem_type is {configured!r}, which is not the loss of one label per text with "
            f"num_labels={config.num_labels}: set model.config.problem_type = {problem_type(config)!r}, as "
            "tlora.load_model does"
        )


def has_argument(model: nn.Module, argument: str) -> bool:
    """Whether the model's ``forward`` names this argument, or passes all of its arguments on."""
    parameters = inspect.signature(model.forward).parameters
    return argument in parameters or all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())


def sample_losses(model: Any, batch: Mapping[str, Tensor]) -> Float[Tensor, " samples"]:
    """Mean loss of each sample over its own labels, in nats; calibration backpropagates the sum.

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
        With graph. Causal models compute logits only at labeled positions if they can.
    """
    labels = batch["labels"]
    if labels.ndim > 1:
        return _mean_over_labels(*token_logits(model, batch))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    return _class_losses(model, _output(model, inputs).logits, labels)


def both_losses(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The loss that the model computes for one sample, as in training, and ours from the same logits.

    In nats; the first in the model's own precision. The model may set its config's ``problem_type``.
    """
    inputs = restrict_logits(model, batch)
    output, labels = _output(model, inputs), inputs["labels"]
    if not isinstance(getattr(output, "loss", None), Tensor):
        raise TypeError(f"a {type(get_base_model(model)).__name__} gives no loss of labels: {_SUPPORTED}")
    if labels.ndim > 1:
        return output.loss, _mean_over_labels(*_align_labels(model, output.logits, labels))[0]
    return output.loss, _class_losses(model, output.logits, labels)[0]


def _class_losses(model: Any, logits: Tensor, labels: Tensor) -> Tensor:
    _check_logits(model, logits, (len(labels), model.config.num_labels), labels)
    if logits.shape[-1] == 1:
        return (logits[:, 0].float() - labels).square()
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def token_logits(
    model: Any, batch: Mapping[str, Tensor], **options: Any
) -> tuple[Float[Tensor, "samples tokens vocabulary"], Int64[Tensor, "samples tokens"]]:
    """Logits of a model that writes text, and the label that each of them predicts; ``options`` go to the model."""
    inputs = restrict_logits(model, batch)
    labels = inputs["labels"]
    if not model.config.is_encoder_decoder:  # which makes the decoder's inputs from the labels
        inputs.pop("labels")
    return _align_labels(model, _output(model, inputs | options).logits, labels)


def _align_labels(model: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the label that each predicts: the next one, or the one at its position in an encoder-decoder."""
    _check_logits(model, logits, (*labels.shape, None), labels)
    return (logits, labels) if model.config.is_encoder_decoder else (logits[:, :-1], labels[:, 1:])


def _output(model: Any, inputs: Mapping[str, Any]) -> Any:
    """Run the model; an error inside it names the model and the shapes of its inputs."""
    name = type(get_base_model(model)).__name__
    try:
        output = model(**inputs)
    except (ObservationError, torch.OutOfMemoryError):
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in inputs.items() if isinstance(value, Tensor))
        raise RuntimeError(f"a {name} fails on {shapes}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(getattr(output, "logits", None), Tensor):
        outputs = ", ".join(output) if isinstance(output, Mapping) else type(output).__name__
        raise TypeError(f"a {name} gives no logits but {outputs}: {_SUPPORTED}")
    return output


def _check_logits(model: Any, logits: Tensor, expected: tuple[int | None, ...], labels: Tensor) -> None:
    """Refuse logits that are not one row per label; None stands for any size."""
    fits = logits.ndim == len(expected) and all(b in (None, a) for a, b in zip(logits.shape, expected, strict=True))
    if not fits:
        raise TypeError(
            f"a {type(get_base_model(model)).__name__} gives logits of shape {tuple(logits.shape)} for labels of shape "
            f"{tuple(labels.shape)}: {_SUPPORTED}"
        )


def restrict_logits(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Ask a causal model for its logits only where a label follows; a batch for another model is returned as it is.

    The output embedding is then multiplied for the labeled positions alone. In a large vocabulary that is most of the
    memory of a short answer to a long question, and a good part of the time. Call this before the batch is moved to a
    GPU: there the host would have to wait.

    Returns
    -------
    dict
        With ``logits_to_keep``, a list of K positions, and their labels, (B, K): the logits at one column still
        predict the label at the next.
    """
    is_done = batch["labels"].ndim == 1 or "logits_to_keep" in batch
    if is_done or not can_restrict_logits(get_base_model(model)):
        return dict(batch)
    return keep_labeled_positions(batch)


def can_restrict_logits(base: Any) -> bool:
    """Whether a model can compute its logits at some positions alone."""
    return not base.config.is_encoder_decoder and has_argument(base, "logits_to_keep")


def keep_labeled_positions(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Restrict a batch, as `restrict_logits` does for a model that can."""
    labels = batch["labels"]
    columns = (labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]
    nothing = labels.new_full((len(labels), 1), IGNORED)
    last = labels.shape[1] - 1  # predicts nothing, like the last column of any batch
    return dict(batch) | {
        "logits_to_keep": [*columns.tolist(), last],  # not a tensor, which would have to be on the last layer's device
        "labels": torch.cat([nothing, labels[:, columns + 1]], 1),
    }


def _mean_over_labels(logits: Tensor, labels: Tensor) -> Tensor:
    losses = functional.cross_entropy(
        logits.float().transpose(1, 2), labels.to(logits.device), ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(1) / (labels != IGNORED).sum(1).to(logits.device)


def fit_batch(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pad a batch with the model's own padding token before and after each text, and check that the model can read it.

    Classifiers locate the end of a text by that token. Masked tokens within a text stay, and so does the padding if
    the model names no padding token, or one without an embedding.
    """
    if "input_ids" not in batch:  # images
        return dict(batch)
    check_width(batch, model)
    check_problem(batch, model)
    token = getattr(model.config.get_text_config(), "pad_token_id", None)
    if token is None and len(batch["input_ids"]) > 1 and _needs_padding_token(get_base_model(model)):
        raise ValueError(
            f"a {type(get_base_model(model)).__name__} finds the end of each text by config.pad_token_id, which is "
            "None: set model.config.pad_token_id = tokenizer.pad_token_id, as tlora.load_model does"
        )
    if token is None or not 0 <= token < len(model.get_input_embeddings().weight):
        return dict(batch)
    mask = batch["attention_mask"]
    text = (mask.cumsum(1) > 0) & (mask.flip(1).cumsum(1).flip(1) > 0)
    return {**batch, "input_ids": batch["input_ids"].masked_fill(~text, token)}


def _needs_padding_token(model: Any) -> bool:
    """Whether it is a classifier built on a decoder, which classifies by the last token."""
    is_classifier = any(base.__name__ in TEXT_CLASSIFIERS for base in type(model).__mro__)
    return is_classifier and model.config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


@contextlib.contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Put a model in evaluation mode without gradients; restore the mode of every module, also after an error.

    4-bit layers of bitsandbytes do not pack themselves inside: they could not be trained afterwards.
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
    """Fit a batch to the model and move it to the device of its embeddings."""
    embeddings = model.get_input_embeddings()
    if int(batch["input_ids"].max()) >= len(embeddings.weight):
        raise ValueError(
            f"token {int(batch['input_ids'].max())} is beyond the {len(embeddings.weight)} embeddings of the model: "
            "the task was loaded with the tokenizer of another model"
        )
    device = input_device(embeddings)
    return {name: value.to(device) for name, value in fit_batch(model, batch).items()}


def input_device(module: Any) -> torch.device:
    """The device that a module computes on; accelerate may keep its weights elsewhere."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if device is None else torch.device(device)


def position_limit(model: nn.Module) -> tuple[int, str] | None:
    """The size of the smallest table of learned positions, in tokens, and its name; None if there is none."""
    configured = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    limits = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _POSITION_TABLE.search(name) and _reads_tokens(model, name):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from there
            room = module.num_embeddings - unused
            limits.append((min(room, configured or room), name))
    return min(limits, default=None)


def _reads_tokens(model: nn.Module, name: str) -> bool:
    """Whether a module belongs to a text model, and not to an image or audio model inside it."""
    parts = name.split(".")
    parents = (model.get_submodule(".".join(parts[:depth])) for depth in reversed(range(len(parts))))
    return next((m.main_input_name for m in parents if hasattr(m, "main_input_name")), "input_ids") == "input_ids"


def check_width(batch: Mapping[str, Tensor], model: Any) -> None:
    """Refuse more tokens than there are learned positions; torch would report an index out of range."""
    tokens = [batch["input_ids"]]
    if model.config.is_encoder_decoder and "labels" in batch and batch["labels"].ndim == 2:
        tokens.append(batch["labels"])
    width = max(each.shape[1] for each in tokens)
    limit, table = position_limit(get_base_model(model)) or (width, "")
    if width > limit:
        raise ValueError(
            f"a sample has {width} tokens, and the model reads at most {limit}, by {table}: load the task with "
            f"max_length={limit} or less"
        )
