"""Evaluate a model on tokenised rows: losses, classes, generated answers. The model is left as it was."""
# ruff: noqa: D102  (the attributes of EvaluatedTask are documented by tlora.Task)

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tlora.models.forward import IGNORED, evaluation_mode, position_limit, to_device, token_logits
from tlora.tasks.chat import decode_tokens
from tlora.tasks.metrics import Score

# Most tokens, padding included, whose logits exist at once: 0.8 GB in float32 at a vocabulary of 50,000.
_TOKENS_AT_ONCE = 4096
# What a decoder begins an answer with. The other generation settings that a model comes with would change its answers.
_BEGINNING = ("decoder_start_token_id", "bos_token_id", "forced_bos_token_id")


class EvaluatedTask(Protocol):
    """What evaluation reads of a task; `tlora.Task` documents each of these."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def score(self) -> Score | None: ...
    @property
    def num_labels(self) -> int | None: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def pad_token_id(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    def collate(self, examples: Sequence[Mapping[str, Any]], padding_side: str = ...) -> dict[str, Tensor]: ...


def batch_by_length(lengths: Sequence[int], batch_size: int, most_tokens: int | None = None) -> list[list[int]]:
    """Batches of samples of similar length, the longest first.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each sample.
    batch_size : int
        Most samples of a batch.
    most_tokens : int, optional
        Most tokens of a batch, padding included; a single sample may have more.

    Returns
    -------
    list of list of int
        Indices into ``lengths``, each once; ties stay in order.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = bool(batches) and len(batches[-1]) < batch_size
        if fits and most_tokens is not None:
            fits = (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= most_tokens
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def evaluate_samples(
    model: Any, task: EvaluatedTask, rows: Dataset, batch_size: int, progress: bool
) -> dict[str, NDArray[np.float64]]:
    """Loss and metrics of each sample by name, (N,) in the order of the rows; their means are those of the split.

    A sample's loss is weighted by its part of all labelled tokens.
    """
    with evaluation_mode(model):
        if task.kind == "classification":
            logits, labels = class_logits(model, task, rows, batch_size, progress), torch.tensor(rows["labels"][:])
            right = (logits.argmax(1) == labels).double().numpy()
            return {"loss": _class_losses(logits, labels), task.metric: right}
        found = {"loss": losses_of_samples(model, task, rows, batch_size, progress)}
        if task.score is not None:
            scores = task.score(list(rows), generate(model, task, rows, batch_size, progress))
            found |= {name: np.array(each, dtype=np.float64) for name, each in scores.items()}
    return found


def losses_of_samples(
    model: Any, task: EvaluatedTask, rows: Dataset, batch_size: int, progress: bool = False
) -> NDArray[np.float64]:
    """The ``loss`` of `evaluate_samples` alone, for which nothing is generated."""
    with evaluation_mode(model):
        if task.kind == "classification":
            logits = class_logits(model, task, rows, batch_size, progress)
            return _class_losses(logits, torch.tensor(rows["labels"][:]))
        totals, counts = summed_losses(model, task, rows, batch_size, progress)
    return (totals * len(rows) / counts.sum()).numpy()


def _class_losses(logits: Float[Tensor, "samples classes"], labels: Int64[Tensor, " samples"]) -> NDArray[np.float64]:
    return functional.cross_entropy(logits.double(), labels, reduction="none").numpy()


def summed_losses(
    model: Any, task: EvaluatedTask, rows: Dataset, batch_size: int, progress: bool
) -> tuple[Float[Tensor, " samples"], Int64[Tensor, " samples"]]:
    """Summed loss of the labelled tokens of each sample of a generation task, and how many it has.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        In evaluation mode.
    task : tlora.Task
        Where the rows come from.
    rows : Dataset
        Tokenised.
    batch_size : int
        Most samples at a time.
    progress : bool
        Show a progress bar.

    Returns
    -------
    losses : (samples,) float64 tensor
        Nats, in the order of the rows, on the CPU.
    counts : (samples,) int64 tensor
        Tokens.
    """
    losses = torch.zeros(len(rows), dtype=torch.float64)
    counts = torch.zeros(len(rows), dtype=torch.int64)
    for indices, batch in _batches(model, task, rows, batch_size, progress, "loss"):
        logits, labels = token_logits(model, batch, use_cache=False)
        labelled = labels != IGNORED
        each = functional.cross_entropy(logits[labelled].float(), labels[labelled], reduction="none").cpu().double()
        owner = torch.tensor(indices)[labelled.nonzero()[:, 0].cpu()]
        losses.index_add_(0, owner, each)
        counts[indices] = labelled.sum(1).cpu()
    return losses, counts


def class_logits(
    model: Any, task: EvaluatedTask, rows: Dataset, batch_size: int, progress: bool
) -> Float[Tensor, "samples classes"]:
    """Logits of a classifier, on the CPU in float32, in the order of the rows.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        In evaluation mode, with a classification head.
    task : tlora.Task
        Where the rows come from.
    rows : Dataset
        Tokenised.
    batch_size : int
        Most samples at a time.
    progress : bool
        Show a progress bar.

    Raises
    ------
    ValueError
        If the model gives anything but one logit a class.
    """
    found = torch.empty(len(rows), task.num_labels or 0)
    for indices, batch in _batches(model, task, rows, batch_size, progress, "classes"):
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        if logits.shape != (len(indices), task.num_labels):
            raise ValueError(
                f"task {task.name!r} has {task.num_labels} classes, the model gives logits of the shape "
                f"{tuple(logits.shape)} for {len(indices)} samples: load the model with "
                f"num_labels={task.num_labels}, or the task with architecture='causal' (classes become words)"
            )
        found[indices] = logits.float().cpu()
    return found


def generate(model: Any, task: EvaluatedTask, rows: Dataset, batch_size: int, progress: bool) -> list[str]:
    """Answers that the model writes, greedily, up to the end of its turn.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel
        In evaluation mode.
    task : tlora.Task
        Where the rows come from; it says how long an answer may get and where it stops.
    rows : Dataset
        Tokenised.
    batch_size : int
        Most samples at a time.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of str
        In the order of the rows, without the end token, white space kept.

    Raises
    ------
    ValueError
        If the model cannot generate.
    """
    if not hasattr(model, "generate") or (hasattr(model, "can_generate") and not model.can_generate()):
        raise ValueError(f"{type(model).__name__} cannot write answers, which task {task.name!r} asks for")
    read = list(rows)
    prompts = [row["input_ids"][: row["prompt_length"]] for row in read]
    # Where the model reads no more, an answer has the room that it has alone, whatever it is batched with.
    most = _most(task, model)
    room = [_room(task, len(prompt), most) for prompt in prompts]
    alike = [
        itertools.groupby(batch, room.__getitem__) for batch in batch_by_length(list(map(len, prompts)), batch_size)
    ]
    batches = [list(group) for groups in alike for _, group in groups]
    answers = [""] * len(rows)
    for indices in tqdm(batches, desc="answers", unit="batch", disable=not progress):
        some = [prompts[index] for index in indices]
        for index, written in zip(indices, _answers(model, task, some, most), strict=True):
            answers[index] = decode_answer(task, read[index], written)
    return answers


def decode_answer(task: EvaluatedTask, row: Mapping[str, Any], written: Sequence[int]) -> str:
    """The text of the tokens written after a row's prompt, up to their end and without the template's frame."""
    prompt = [] if task.architecture == "seq2seq" else row["input_ids"][: row["prompt_length"]]
    text = _decode(task, prompt, written)
    frame = row.get("frame")
    head, _, rest = text.partition(frame) if frame else (text, "", "")
    return text if head.strip() else rest


def _answers(model: Any, task: EvaluatedTask, prompts: Sequence[Sequence[int]], most: float) -> list[list[int]]:
    # Padding on the left where the answer follows the prompt; an encoder may count positions from the left.
    side = "right" if task.architecture == "seq2seq" else "left"
    rows = [{"input_ids": prompt, "labels": prompt} for prompt in prompts]
    batch = to_device(task.collate(rows, padding_side=side), model)
    width = batch["input_ids"].shape[1]
    own = model.generation_config
    beginning = _BEGINNING if task.architecture == "seq2seq" else ()
    settings = GenerationConfig(
        max_new_tokens=_room(task, width, most),
        do_sample=False,
        num_beams=1,
        eos_token_id=list(task.stop_ids) or own.eos_token_id,
        pad_token_id=task.pad_token_id,
        use_cache=True,
        **{name: getattr(own, name) for name in beginning},
    )
    with _generating(model, settings):
        written = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=settings
        )
    if task.architecture == "seq2seq":
        width = 1  # the decoder's start token
    return [row[width:] for row in written.tolist()]


@contextlib.contextmanager
def _generating(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """By these settings alone: ``generate`` takes what they leave open from the model's, which it gets back."""
    own = {module: module.generation_config for module in model.modules() if "generation_config" in vars(module)}
    try:
        for module in own:
            module.generation_config = settings
        yield
    finally:
        for module, its in own.items():
            module.generation_config = its


def _room(task: EvaluatedTask, width: int, most: float) -> int:
    """Tokens that an answer may have: as many as the longest of the task, within what the model can read."""
    return max(1, int(min(task.max_new_tokens, most if task.architecture == "seq2seq" else most - width)))


def _most(task: EvaluatedTask, model: Any) -> float:
    """Tokens that the model reads at once; of an encoder-decoder, those that it writes."""
    told = math.inf if task.architecture == "seq2seq" else task.tokenizer.model_max_length
    table = position_limit(model)
    return min(told, table[0]) if table else told


def _decode(task: EvaluatedTask, prompt: Sequence[int], written: Sequence[int]) -> str:
    """The text that the written tokens add to the prompt's."""
    stop = next((place for place, index in enumerate(written) if index in task.stop_ids), len(written))
    decode = partial(decode_tokens, task.tokenizer, special=True)
    before = decode(prompt)
    said = [index for index in written[:stop] if index != task.pad_token_id]
    if task.architecture == "seq2seq":  # BART and others write tokens of their own before an answer
        first = list(itertools.takewhile(lambda index: index not in task.stop_ids, _first(task)))
        said = said[len(first) :] if said[: len(first)] == first else said
    whole = decode([*prompt, *said])
    if whole.startswith(before):  # tokenizers that drop the space of a text's first word do so only here
        return whole[len(before) :]
    return decode(said)


def _first(task: EvaluatedTask) -> list[int]:
    """What stands before every answer of an encoder-decoder."""
    return list(task.tokenizer(text_target="")["input_ids"])


def _batches(
    model: Any, task: EvaluatedTask, rows: Dataset, batch_size: int, progress: bool, what: str
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    lengths = [len(ids) for ids in rows["input_ids"][:]]
    batches = batch_by_length(lengths, batch_size, _TOKENS_AT_ONCE)
    for indices in tqdm(batches, desc=what, unit="batch", disable=not progress):
        yield indices, to_device(task.collate(list(rows.select(indices))), model)
