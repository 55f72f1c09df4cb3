"""A tokenized task: samples with labels, batches for calibration, evaluation."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from jaxtyping import Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from tlora.models.forward import IGNORED
from tlora.models.targets import Model, output_embeddings
from tlora.tasks.chat import decode_tokens
from tlora.tasks.evaluation import batch_by_length, evaluate_samples, predict
from tlora.tasks.metrics import Score
from tlora.tasks.splits import SPLITS
from tlora.tasks.tokenization import Cuts
from tlora.utils.defaults import BATCH_SIZE
from tlora.utils.validation import check_arguments, require_choice, require_positive_int, with_checked_arguments


def architecture_of(model: Any) -> str:
    """Return the ``architecture`` of the tasks that a model takes."""
    if output_embeddings(model) is None:
        return "classification"
    return "seq2seq" if model.config.is_encoder_decoder else "causal"


def classes_of(model: Any) -> list[str]:
    """Return the classes of a classifier by index, as its config names them."""
    return [str(model.config.id2label[index]) for index in range(model.config.num_labels)]


def check_architecture(model: Any, task: Task, name: str) -> None:
    """Refuse a task for a model of another architecture; ``name`` is what the message calls the task."""
    if task.architecture != (needed := architecture_of(model)):
        raise ValueError(
            f"{name} is for a model of architecture {task.architecture!r}, and a {type(model).__name__} is {needed!r}: "
            f"load it by tlora.load_task(..., architecture={needed!r})"
        )


def first_batches(task: Task, samples: int) -> list[dict[str, Tensor]]:
    """Collate the first validation samples of a task, in batches."""
    rows = [task.validation[i] for i in range(min(samples, len(task.validation)))]
    return [task.collate(rows[i : i + BATCH_SIZE]) for i in range(0, len(rows), BATCH_SIZE)]


class Batches(list[dict[str, Tensor]]):
    """Batches with the name of their task and the seed that drew them."""

    def __init__(self, batches: Sequence[dict[str, Tensor]], task: str, seed: int) -> None:
        super().__init__(batches)
        self.task = task
        self.seed = seed

    def __getitem__(self, index: Any) -> Any:
        """Return a batch, or the batches of a slice."""
        item = super().__getitem__(index)
        return Batches(item, self.task, self.seed) if isinstance(index, slice) else item


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """A tokenized task: data to train, calibrate and evaluate on. Made by `tlora.load_task`.

    Attributes
    ----------
    name : str
        Name of the task.
    kind : str
        ``"generation"`` or ``"classification"``.
    train, validation, test : datasets.Dataset
        ``input_ids`` and ``labels``: token ids with -100 for tokens without a label, or a class index. Also the
        columns that metrics read: ``prompt``, ``answer`` and ``prompt_length`` (tokens before the answer), or
        ``text``.
    tokenizer : transformers.PreTrainedTokenizerBase
        Unchanged.
    architecture : str
        ``"causal"``, ``"seq2seq"`` or ``"classification"``.
    metric : str
        Name of the headline metric among those that `evaluate` returns.
    score : callable or None
        Maps rows and generated answers to scores by name; None if nothing is generated.
    classes : tuple of str
        Names of the classes, in the order of their indices; empty for other tasks.
    max_length : int
        Most tokens of a sample.
    max_new_tokens : int
        Most tokens of a generated answer: the length of the task's longest answer.
    stop_ids : tuple of int
        Tokens that end an answer.
    cuts : dict of Cuts
        By split, how many samples ``max_length`` truncated, and how many lost all labels and were dropped.
    seed : int
        Seed of the splits and of the calibration samples.

    Examples
    --------
    >>> int(task.describe().loc["test", "samples"])
    4
    >>> sorted(task.evaluate(model, limit=2))
    ['exact_match', 'loss', 'perplexity']
    >>> task.predict(model, limit=2).columns.tolist()
    ['prompt', 'answer', 'prediction', 'exact_match']
    """

    name: str
    kind: str
    train: Dataset
    validation: Dataset
    test: Dataset
    tokenizer: PreTrainedTokenizerBase
    architecture: str
    metric: str
    score: Score | None
    classes: tuple[str, ...] = ()
    max_length: int = 1024
    max_new_tokens: int = 1
    stop_ids: tuple[int, ...] = ()
    cuts: dict[str, Cuts] = field(default_factory=dict)
    seed: int = 0

    @property
    def num_labels(self) -> int | None:
        """Number of classes; None for generation."""
        return len(self.classes) if self.kind == "classification" else None

    @property
    def pad_token_id(self) -> int:
        """Token that pads ``input_ids``; padding is masked, so any will do if the tokenizer has none."""
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(index for index in ids if index is not None)

    @with_checked_arguments
    def calibration(self, samples: int, batch_size: int = BATCH_SIZE, max_tokens: int | None = None) -> Batches:
        """Draw batches of training samples to calibrate on; the same call returns the same samples.

        Parameters
        ----------
        samples : int
            Number of samples. A smaller number draws a subset: the first 16 are among the 32.
        batch_size : int
            Most samples of a batch. Samples of a batch have similar lengths, so there is little padding.
        max_tokens : int, optional
            Most tokens of a batch, padding included: the memory of a pass grows with them. A longer sample is a batch
            of its own. To fill a GPU whatever the lengths, set this and a large ``batch_size``.

        Returns
        -------
        list of dict of Tensor
            ``input_ids`` (B, T), ``attention_mask`` (B, T) and ``labels``, see `collate`. The list has the
            attributes ``task`` and ``seed``.
        """
        for name, value in (("samples", samples), ("batch_size", batch_size), ("max_tokens", max_tokens)):
            if value is not None:
                require_positive_int(value, name)
        if samples > (known := len(self.train)):
            way = f"take samples={known} or fewer, or more training samples" if known else "it needs a training split"
            raise ValueError(
                f"samples={samples} asks for more than the {known} training samples of {self.name!r}: {way}"
            )
        indices = np.random.default_rng(self.seed).permutation(len(self.train))[:samples]
        rows = list(self.train.select(indices))
        batches = batch_by_length([len(row["input_ids"]) for row in rows], batch_size, max_tokens)
        collated = [self.collate([rows[index] for index in batch]) for batch in batches]
        return Batches(collated, self.name, self.seed)

    def collate(self, examples: Sequence[Mapping[str, Any]], padding_side: str = "right") -> dict[str, Tensor]:
        """Collate samples into one padded batch.

        Parameters
        ----------
        examples : sequence of mapping
            Rows of a split: ``input_ids`` and ``labels``.
        padding_side : str
            ``"right"``, so that positions count from the first token in any model; or ``"left"``.

        Returns
        -------
        dict of Tensor
            int64: ``input_ids`` (B, T); ``attention_mask`` (B, T), 0 at padding; ``labels``: (B, T) with -100
            for tokens without a label, (B, T_decoder) for ``"seq2seq"``, (B,) for classification.
            ``token_type_ids`` (B, T) if the tokenizer distinguishes two texts by them.
        """
        pad = partial(_pad, side=padding_side)
        ids = [example["input_ids"] for example in examples]
        batch = {
            "input_ids": pad(ids, self.pad_token_id),
            "attention_mask": pad([[1] * len(row) for row in ids], 0),
        }
        labels = [example["labels"] for example in examples]
        if self.kind == "classification":
            batch["labels"] = torch.tensor(labels)
        else:
            batch["labels"] = _pad(labels, IGNORED, "right" if self.architecture == "seq2seq" else padding_side)
        if "token_type_ids" in examples[0]:
            batch["token_type_ids"] = pad([example["token_type_ids"] for example in examples], 0)
        return batch

    def evaluate(
        self,
        model: Model,
        split: str = "test",
        limit: int | None = None,
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> dict[str, float]:
        """Compute loss, perplexity and the metrics of the task.

        Parameters
        ----------
        model : transformers.PreTrainedModel or peft.PeftModel
            On any device; its training or evaluation mode is restored.
        split : str
            ``"train"``, ``"validation"`` or ``"test"``.
        limit : int, optional
            Evaluate on this many samples, drawn with the seed of the task; all by default.
        batch_size : int
            Most samples at a time.
        progress : bool
            Show progress bars.

        Returns
        -------
        dict of float
            ``loss``: mean over all labeled tokens (over all samples, for classification), nats.
            ``perplexity``: its exponential. Then the task's own metrics, between 0 and 1.

        Raises
        ------
        ValueError
            If the split is unknown or empty, a number is not positive, or the model does not fit the task.
        """
        check_arguments(Task.evaluate, locals())
        require_positive_int(batch_size, "batch_size")
        values = evaluate_samples(model, self, self.rows(split, limit), batch_size, progress)
        means = {name: float(by_sample.mean()) for name, by_sample in values.items()}
        perplexity = math.inf if means["loss"] >= 700 else math.exp(means["loss"])
        return {"loss": means["loss"], "perplexity": perplexity} | means

    def predict(
        self,
        model: Model,
        split: str = "test",
        limit: int | None = 20,
        *,
        batch_size: int = 16,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Return the model's answers, sample by sample, to inspect them.

        Parameters
        ----------
        model, split, limit, batch_size, progress
            As for `evaluate`; 20 samples by default.

        Returns
        -------
        pandas.DataFrame
            ``prompt`` (or ``text``), ``answer`` (the reference), ``prediction``, and a column for each
            metric.
        """
        check_arguments(Task.predict, locals())
        require_positive_int(batch_size, "batch_size")
        return predict(model, self, self.rows(split, limit), batch_size, progress)

    def describe(self) -> pd.DataFrame:
        """Tabulate the size of each split.

        Returns
        -------
        pandas.DataFrame
            Indexed by split: ``samples``; ``tokens`` and ``labeled`` (tokens with a label; 0 for classification);
            ``longest`` (tokens, before truncation); ``truncated`` and ``dropped`` (samples).
        """
        return pd.DataFrame({split: self._sizes(split) for split in SPLITS}, dtype=object).T.astype(int)

    def _sizes(self, split: str) -> dict[str, int]:
        rows = getattr(self, split).select_columns(["input_ids", "labels"]).with_format("numpy")
        cuts = self.cuts.get(split, Cuts())
        labels = rows["labels"] if self.kind == "generation" and len(rows) else ()
        return {
            "samples": len(rows),
            "tokens": sum(map(len, rows["input_ids"])) if len(rows) else 0,
            "labeled": sum(int((row != IGNORED).sum()) for row in labels),
            "longest": cuts.longest,
            "truncated": cuts.truncated,
            "dropped": cuts.dropped,
        }

    @with_checked_arguments
    def rows(self, split: str = "test", limit: int | None = None) -> Dataset:
        """Return samples of a split.

        Parameters
        ----------
        split : str
            ``"train"``, ``"validation"`` or ``"test"``.
        limit : int, optional
            This many samples, drawn with the seed of the task; all by default.

        Returns
        -------
        datasets.Dataset
            In the order of the split.
        """
        require_choice(split, "split", SPLITS)
        rows: Dataset = getattr(self, split)
        if not len(rows):
            raise ValueError(f"the {split} split of {self.name!r} is empty: choose another, or load it with {split}=")
        if limit is None or limit >= len(rows):
            return rows
        require_positive_int(limit, "limit")
        # A random draw, not the first rows: files are often sorted by class.
        return rows.select(np.sort(np.random.default_rng(self.seed).permutation(len(rows))[:limit]))

    def __repr__(self) -> str:
        sizes = "/".join(str(len(getattr(self, split))) for split in SPLITS)
        return f"Task({self.name}: {self.kind}, {sizes} train/validation/test samples, metric {self.metric})"

    def _repr_html_(self) -> str:
        table = self.describe().to_html()
        sample = next((rows for rows in (self.train, self.test) if len(rows)), None)
        return f"<p><b>{html.escape(repr(self))}</b></p>{table}{self._sample_html(sample[0]) if sample else ''}"

    def _sample_html(self, row: Mapping[str, Any]) -> str:
        """The first sample as the model reads it, with the text that is trained on in bold."""
        if self.kind == "classification":
            text, name = html.escape(row["text"][:500]), html.escape(self.classes[row["labels"]])
            return f"<p>{text} &rarr; <b>{name}</b></p>"
        start = row["prompt_length"]
        answer = row["labels"] if self.architecture == "seq2seq" else row["input_ids"][start:]
        pieces = (row["input_ids"][:start], answer)
        before, after = (html.escape(decode_tokens(self.tokenizer, ids, special=True)) for ids in pieces)
        return f"<pre style='white-space: pre-wrap'>{before[-1000:]}<b>{after[:1000]}</b></pre>"


def _pad(rows: Sequence[Sequence[int]], value: int, side: str) -> Int64[Tensor, "samples tokens"]:
    tensors = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)
