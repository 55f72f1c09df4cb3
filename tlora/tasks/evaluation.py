"""Evaluate a model on tokenized rows: losses, classes, generated answers. The model is left as it was."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from tlora.models.forward import IGNORED, evaluation_mode, position_limit, to_device, token_logits
from tlora.tasks.chat import decode_tokens
from tlora.utils.progress import Bar, note_progress, progress_bar

Task = Any
"""A `tlora.Task`, whose file imports this one."""

# Most tokens, padding included, whose logits exist at once: 0.8 GB in float32 at a vocabulary of 50,000.
_TOKENS_AT_ONCE = 4096
# How a decoder begins an answer. All other generation settings that a model comes with would change its answers.
_START_SETTINGS = ("decoder_start_token_id", "bos_token_id", "forced_bos_token_id")


def batch_by_length(lengths: Sequence[int], batch_size: int, max_tokens: int | None = None) -> list[list[int]]:
    """Batch samples of similar length, the longest first: indices into ``lengths``, each once; ties stay in order.

    A batch has at most ``max_tokens``, padding included; a single sample may have more.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = bool(batches) and len(batches[-1]) < batch_size
        if fits and max_tokens is not None:
            fits = (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def evaluate_samples(
    model: Any, task: Task, rows: Dataset, batch_size: int, progress: bool
) -> dict[str, NDArray[np.float64]]:
    """Loss and metrics of each sample, by name and in the order of the rows; means are those of the split.

    The loss of a sample is weighted by its share of all labeled tokens.
    """
    with evaluation_mode(model):
        if task.kind == "classification":
            logits, labels = class_logits(model, task, rows, batch_size, progress), torch.tensor(rows["labels"][:])
            correct = (logits.argmax(1) == labels).double().numpy()
            return {"loss": _class_losses(logits, labels), task.metric: correct}
        values = {"loss": losses_of_samples(model, task, rows, batch_size, progress)}
        if task.score is not None:
            scores = task.score(list(rows), generate(model, task, rows, batch_size, progress))
            values |= {name: np.array(each, dtype=np.float64) for name, each in scores.items()}
    return values


def losses_of_samples(
    model: Any, task: Task, rows: Dataset, batch_size: int, progress: bool = False
) -> NDArray[np.float64]:
    """The ``loss`` of `evaluate_samples` alone; nothing is generated."""
    with evaluation_mode(model):
        if task.kind == "classification":
            logits = class_logits(model, task, rows, batch_size, progress)
            return _class_losses(logits, torch.tensor(rows["labels"][:]))
        totals, counts = summed_losses(model, task, rows, batch_size, progress)
    return (totals * len(rows) / counts.sum()).numpy()


def _class_losses(logits: Float[Tensor, "samples classes"], labels: Int64[Tensor, " samples"]) -> NDArray[np.float64]:
    return functional.cross_entropy(logits.double(), labels, reduction="none").numpy()


def summed_losses(
    model: Any, task: Task, rows: Dataset, batch_size: int, progress: bool
) -> tuple[Float[Tensor, " samples"], Int64[Tensor, " samples"]]:
    """Summed loss over the labeled tokens of each sample of a generation task, in float64, and their number.

    The model is in evaluation mode; both results are on the CPU, in the order of the rows.
    """
    losses = token_losses(model, task, rows, batch_size, progress)
    return torch.stack([each.sum() for each in losses]), torch.tensor([len(each) for each in losses])


def token_losses(
    model: Any, task: Task, rows: Dataset, batch_size: int, progress: bool
) -> list[Float[Tensor, " labels"]]:
    """Loss of each labeled token of each sample of a generation task, in nats, in the order of tokens and rows.

    The model is in evaluation mode; results are in float64 on the CPU. The first token of a causal model's sample is
    not predicted, and has no loss.
    """
    losses: dict[int, Tensor] = {}
    for indices, batch in _batches(model, task, rows, batch_size, progress, "loss"):
        logits, labels = token_logits(model, batch, use_cache=False)
        labeled = labels != IGNORED
        values = functional.cross_entropy(logits[labeled].float(), labels[labeled], reduction="none").cpu().double()
        losses |= zip(indices, values.split(labeled.sum(1).tolist()), strict=True)
    return [losses[index] for index in range(len(rows))]


def class_logits(
    model: Any, task: Task, rows: Dataset, batch_size: int, progress: bool
) -> Float[Tensor, "samples classes"]:
    """Logits of a classifier in evaluation mode, on the CPU in float32, in the order of the rows."""
    result = torch.empty(len(rows), task.num_labels or 0)
    for indices, batch in _batches(model, task, rows, batch_size, progress, "classes"):
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        if logits.shape != (len(indices), task.num_labels):
            raise ValueError(
                f"task {task.name!r} has {task.num_labels} classes, the model returns logits of shape "
                f"{tuple(logits.shape)} for {len(indices)} samples: load the model with "
                f"num_labels={task.num_labels}, or the task with architecture='causal' (classes become words)"
            )
        result[indices] = logits.float().cpu()
    return result


def predict(model: Any, task: Task, rows: Dataset, batch_size: int = 16, progress: bool = False) -> pd.DataFrame:
    """The model's answers to some rows of a split, as `tlora.Task.predict` returns them."""
    with evaluation_mode(model):
        if task.kind == "classification":
            predicted = class_logits(model, task, rows, batch_size, progress).argmax(1).tolist()
            labels = rows["labels"][:]
            correct = [float(a == b) for a, b in zip(predicted, labels, strict=True)]
            answers, predictions = ([task.classes[i] for i in ids] for ids in (labels, predicted))
            texts = {name: rows[name][:] for name in ("text", "text_pair") if name in rows.column_names}
            return pd.DataFrame(texts | {"answer": answers, "prediction": predictions, task.metric: correct})
        answers = generate(model, task, rows, batch_size, progress)
    scores = {} if task.score is None else task.score(list(rows), answers)
    texts = {"prompt": rows["prompt"][:], "answer": rows["answer"][:], "prediction": answers}
    return pd.DataFrame(texts | scores)


def generate(model: Any, task: Task, rows: Dataset, batch_size: int, progress: bool) -> list[str]:
    """Let the model, in evaluation mode, write answers greedily, up to the end of its turn.

    Returns
    -------
    list of str
        In the order of the rows, without the end token, white space kept.
    """
    written = generate_tokens(model, task, rows, batch_size, progress)
    return [decode_answer(task, row, tokens) for row, tokens in zip(rows, written, strict=True)]


def generate_tokens(model: Any, task: Task, rows: Dataset, batch_size: int, progress: bool) -> list[list[int]]:
    """The tokens of the answers of `generate`, end tokens included."""
    if not hasattr(model, "generate") or (hasattr(model, "can_generate") and not model.can_generate()):
        raise ValueError(f"{type(model).__name__} cannot write answers, which task {task.name!r} asks for")
    prompts = [row["input_ids"][: row["prompt_length"]] for row in rows]
    # Near the model's length limit an answer has the room that it has alone, whatever it is batched with.
    limit = _length_limit(task, model)
    room = [_answer_room(task, len(prompt), limit) for prompt in prompts]
    by_length = batch_by_length(list(map(len, prompts)), batch_size)
    batches = [list(group) for batch in by_length for _, group in itertools.groupby(batch, room.__getitem__)]
    answers: list[list[int]] = [[]] * len(rows)
    bar = progress_bar(batches, desc="answers", unit="batch", show=progress)
    for indices in bar:
        written = _generate_batch(model, task, [prompts[index] for index in indices], limit, bar)
        for index, tokens in zip(indices, written, strict=True):
            end = next((place for place, token in enumerate(tokens, 1) if token in task.stop_ids), len(tokens))
            answers[index] = tokens[:end]
    return answers


def has_ended(task: Task, written: Sequence[int]) -> bool:
    """Whether an answer of `generate_tokens` ended by itself; otherwise there was no room for more."""
    return bool(written) and written[-1] in task.stop_ids


def decode_answer(task: Task, row: Mapping[str, Any], written: Sequence[int]) -> str:
    """The text of the tokens written after a row's prompt, up to their end and without the template's frame."""
    prompt = [] if task.architecture == "seq2seq" else row["input_ids"][: row["prompt_length"]]
    stop = next((place for place, index in enumerate(written) if index in task.stop_ids), len(written))
    answer = [index for index in written[:stop] if index != task.pad_token_id]
    if task.architecture == "seq2seq":  # BART and others write tokens of their own before an answer
        start = task.tokenizer(text_target="")["input_ids"]
        start = list(itertools.takewhile(lambda index: index not in task.stop_ids, start))
        answer = answer[len(start) :] if answer[: len(start)] == start else answer
    decode = partial(decode_tokens, task.tokenizer, special=True)
    before, whole = decode(prompt), decode([*prompt, *answer])
    # Some tokenizers drop the space before the first word of a text; inside a text they keep it.
    text = whole[len(before) :] if whole.startswith(before) else decode(answer)
    frame = row.get("frame")
    head, _, rest = text.partition(frame) if frame else (text, "", "")
    return text if head.strip() else rest


def with_written(task: Task, row: Mapping[str, Any], written: Sequence[int], answer: str) -> dict[str, Any]:
    """The row with an answer that a model wrote in place of its own, labeled by the tokens that were written.

    The text of the answer may be tokenized otherwise.
    """
    if task.architecture == "seq2seq":
        return {**row, "labels": [*written], "answer": answer}
    prompt = row["input_ids"][: row["prompt_length"]]
    labels = [IGNORED] * len(prompt) + [*written]
    return {**row, "input_ids": [*prompt, *written], "labels": labels, "answer": answer}


def _generate_batch(
    model: Any, task: Task, prompts: Sequence[Sequence[int]], limit: float, bar: Bar
) -> list[list[int]]:
    # A decoder's answer follows its prompt, so padding is on the left; an encoder may count positions from the left.
    side = "right" if task.architecture == "seq2seq" else "left"
    rows = [{"input_ids": prompt, "labels": prompt} for prompt in prompts]
    batch = to_device(task.collate(rows, padding_side=side), model)
    width = batch["input_ids"].shape[1]
    config = model.generation_config
    start = _START_SETTINGS if task.architecture == "seq2seq" else ()
    settings = GenerationConfig(
        max_new_tokens=_answer_room(task, width, limit),
        do_sample=False,
        num_beams=1,
        eos_token_id=list(task.stop_ids) or config.eos_token_id,
        pad_token_id=task.pad_token_id,
        use_cache=True,
        **{name: getattr(config, name) for name in start},
    )
    with _generation_settings(model, settings):
        written = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([_CountTokens(bar, settings.max_new_tokens)]),
        )
    start_of_answer = 1 if task.architecture == "seq2seq" else width
    return [row[start_of_answer:] for row in written.tolist()]


class _CountTokens(StoppingCriteria):
    """Stops nothing; the bar says how many tokens are written."""

    def __init__(self, bar: Bar, most: int) -> None:
        self._bar, self._most, self._written = bar, most, 0

    def __call__(self, input_ids: Int64[Tensor, "rows tokens"], scores: Any, **kwargs: Any) -> Bool[Tensor, " rows"]:
        self._written += 1
        note_progress(self._bar, f"token {self._written} of at most {self._most}")
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextlib.contextmanager
def _generation_settings(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Replace the model's own settings inside: ``generate`` takes from them whatever the given ones leave open."""
    configs = {module: module.generation_config for module in model.modules() if "generation_config" in vars(module)}
    try:
        for module in configs:
            module.generation_config = settings
        yield
    finally:
        for module, config in configs.items():
            module.generation_config = config


def _answer_room(task: Task, width: int, limit: float) -> int:
    """Most tokens of an answer: those of the task's longest answer, within what the model can read."""
    return max(1, int(min(task.max_new_tokens, limit if task.architecture == "seq2seq" else limit - width)))


def _length_limit(task: Task, model: Any) -> float:
    """Tokens that the model reads at once; those it writes, for an encoder-decoder."""
    limit = math.inf if task.architecture == "seq2seq" else task.tokenizer.model_max_length
    table = position_limit(model)
    return min(limit, table[0]) if table else limit


def _batches(
    model: Any, task: Task, rows: Dataset, batch_size: int, progress: bool, label: str
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    lengths = [len(ids) for ids in rows["input_ids"][:]]
    batches = batch_by_length(lengths, batch_size, _TOKENS_AT_ONCE)
    for indices in progress_bar(batches, desc=label, unit="batch", show=progress):
        yield indices, to_device(task.collate(list(rows.select(indices))), model)
