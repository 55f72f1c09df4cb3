"""Measure the side effects of an adapter, token by token, on text that it was not meant for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from datasets import Dataset
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from tlora.explanation.attribute import attribute
from tlora.explanation.attribution import CONFIDENCE, Attribution
from tlora.explanation.gated_adapter import GatedAdapter
from tlora.explanation.token_texts import token_texts
from tlora.models.forward import IGNORED, evaluation_mode
from tlora.models.weights import model_name
from tlora.numerics.statistics import ratio_interval
from tlora.results import Meta, Result
from tlora.tasks.evaluation import token_losses
from tlora.tasks.task import Task, check_architecture
from tlora.utils.validation import check_arguments, require_positive_int

BEFORE = 40
"""Characters of the text before a token."""


@dataclass(frozen=True, repr=False, eq=False)
class MeasuredText:
    """One text of `SideEffects`.

    Attributes
    ----------
    set : str
        Name of its set.
    number : int
        Its place in the set, from 0.
    tokens : list of str
        The text of each token.
    positions : list of int
        Places of the K measured tokens among ``tokens``.
    base, adapter : (K,) float64 tensor
        Their log-probabilities in the base and in the adapted model, nats.
    """

    set: str
    number: int
    tokens: list[str]
    positions: list[int]
    base: Float[Tensor, " tokens"]
    adapter: Float[Tensor, " tokens"]

    @property
    def rise(self) -> Float[Tensor, " tokens"]:
        """Change of each token's log-probability by the adapter, nats."""
        return self.adapter - self.base

    def before(self, position: int) -> str:
        """The end of the text before a token."""
        return "".join(self.tokens[max(0, position - BEFORE) : position])[-BEFORE:]


@dataclass(frozen=True, repr=False, eq=False)
class SideEffects(Result):
    """Changes of an adapter on other text, token by token; from `tlora.side_effects`.

    Attributes
    ----------
    samples : list of MeasuredText
        All texts, the one whose tokens lost most on average first.
    attribution : Attribution or None
        The tokens that lost most, taken apart by module; None if this was not asked for or no token lost.
    meta : Meta
        The base model and the number of texts.

    Examples
    --------
    >>> texts = tlora.load_texts(tokenizer, mine=["w4 w5 w6 w7", "w8 w9"])
    >>> effects = tlora.side_effects(adapted, texts, explain=2, progress=False)
    >>> effects.to_frame()[["set", "sample", "tokens", "loss_change"]].shape
    (2, 4)
    >>> effects.sets()[["set", "samples", "tokens"]].to_numpy().tolist()
    [['mine', 2, 4]]
    >>> effects.lost(3).columns.tolist()
    ['set', 'sample', 'position', 'before', 'token', 'base', 'adapter', 'rise']
    """

    samples: list[MeasuredText]
    attribution: Attribution | None
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "set": "name of the set",
        "sample": "number of the text in its set, from 0",
        "tokens": "number of measured tokens",
        "base_loss": "mean loss of the base model, nats per token",
        "adapter_loss": "mean loss of the adapted model",
        "loss_change": "their difference, above 0 if the adapter made the text less likely",
        "lost_most": "the token that lost most",
        "text": "beginning of the text",
    }
    set_columns: ClassVar[dict[str, str]] = {
        "set": "name of the set",
        "samples": "number of texts",
        "tokens": "number of measured tokens",
        "base_loss": "loss of the base model, mean over all tokens, nats",
        "adapter_loss": "loss of the adapted model",
        "loss_change": "their difference, above 0 if the adapter made the texts less likely",
        "low": "lower end of its 95 % interval over texts, NaN for one text",
        "high": "upper end",
    }
    token_columns: ClassVar[dict[str, str]] = {
        "set": "name of the set",
        "sample": "number of the text in its set, from 0",
        "position": "place among the text's tokens",
        "before": "end of the text before the token",
        "token": "text of the token",
        "base": "log-probability in the base model, nats",
        "adapter": "log-probability in the adapted model",
        "rise": "their difference, below 0 for a token that lost",
    }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per text, the worst first; see ``columns``."""
        rows = []
        for measured in self.samples:
            worst = measured.positions[int(measured.rise.argmin())]
            losses = _losses([measured])
            about = {"lost_most": measured.tokens[worst], "text": "".join(measured.tokens)[:60]}
            rows.append({"set": measured.set, "sample": measured.number} | losses | about)
        return pd.DataFrame(rows)[list(self.columns)]

    def sets(self) -> pd.DataFrame:
        """Return one row per set, in the order in which they were given; see ``set_columns``."""
        rows = []
        for name in self.meta.recipe["sets"]:
            samples = [one for one in self.samples if one.set == name]
            lost = np.array([-float(one.rise.sum()) for one in samples])
            low, high = ratio_interval(lost, np.array([len(one.positions) for one in samples]), CONFIDENCE)
            rows.append({"set": name, "samples": len(samples)} | _losses(samples) | {"low": low, "high": high})
        return pd.DataFrame(rows)[list(self.set_columns)]

    def tokens(self) -> pd.DataFrame:
        """Return one row per measured token, text by text; see ``token_columns``."""
        frames = []
        for measured in self.samples:
            columns = {
                "set": measured.set,
                "sample": measured.number,
                "position": measured.positions,
                "before": [measured.before(place) for place in measured.positions],
                "token": [measured.tokens[place] for place in measured.positions],
                "base": measured.base.numpy(),
                "adapter": measured.adapter.numpy(),
                "rise": measured.rise.numpy(),
            }
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def lost(self, count: int = 10) -> pd.DataFrame:
        """Return the ``count`` tokens that lost most, the first one most; see ``token_columns``."""
        tokens = self.tokens()
        return (
            tokens[tokens["rise"] < 0].nsmallest(require_positive_int(count, "count", 0), "rise").reset_index(drop=True)
        )

    def rose(self, count: int = 10) -> pd.DataFrame:
        """Return the ``count`` tokens that rose most, the first one most; see ``token_columns``."""
        tokens = self.tokens()
        return (
            tokens[tokens["rise"] > 0].nlargest(require_positive_int(count, "count", 0), "rise").reset_index(drop=True)
        )

    @property
    def headline(self) -> str:
        """The finding: the set whose loss rose most, with its interval."""
        worst = self.sets().nlargest(1, "loss_change").iloc[0]
        ends = "" if math.isnan(worst["low"]) else f" ({worst['low']:+.3f} to {worst['high']:+.3f})"
        return f"The loss of {worst['set']} changed by {worst['loss_change']:+.3f} nats per token{ends}"

    def _summary(self) -> str:
        changes = ", ".join(f"{row.set} {row.loss_change:+.3f}" for row in self.sets().itertuples())
        return f"{len(self.samples)} texts, change of the loss in nats per token: {changes}"


def _losses(samples: list[MeasuredText]) -> dict[str, float]:
    """Losses of all tokens of some texts."""
    tokens = sum(len(one.positions) for one in samples)
    base, adapter = (-sum(float(getattr(one, part).sum()) for one in samples) / tokens for part in ("base", "adapter"))
    change = -sum(float(one.rise.sum()) for one in samples) / tokens
    return {"tokens": tokens, "base_loss": base, "adapter_loss": adapter, "loss_change": change}


Row = dict[str, Any]
NO_TEXTS = "there are no texts: pass tlora.load_texts(tokenizer), or a dict of tasks"


def side_effects(
    adapted: PeftModel,
    texts: Mapping[str, Task],
    *,
    limit: int | None = 64,
    explain: int = 4,
    batch_size: int = 8,
    progress: bool = True,
) -> SideEffects:
    """Measure what an adapter changed on other text: the log-probability of each token, with and without it.

    Parameters
    ----------
    adapted : peft.PeftModel
        A base that writes text, with one active LoRA adapter, whoever trained it. It is not changed.
    texts : mapping of str to Task
        Sets of texts by name, as from `load_texts`; of a task its test samples. For an encoder-decoder, tasks that were
        loaded with ``architecture="seq2seq"``.
    limit : int, optional
        Most texts of a set, drawn with its seed; all if None.
    explain : int
        Tokens to take apart by `attribute`: those that lost most; of an encoder-decoder with what it writes before
        them. 0 for none.
    batch_size : int
        Most texts at a time.
    progress : bool
        Show progress bars.

    Returns
    -------
    SideEffects

    Raises
    ------
    ValueError
        If the adapter is not plain LoRA, the model is a classifier, a set is for another architecture or tokenizer or
        empty, or there are no sets.

    Notes
    -----
    The mean change over the tokens of a set is the change of its loss, with the opposite sign. Intervals are over
    texts: tokens of one text are not independent.

    Examples
    --------
    >>> effects = tlora.side_effects(adapted, tlora.load_texts(tokenizer), explain=0, progress=False)
    >>> effects.sets()["set"].tolist()
    ['prose', 'code', 'chat']
    """
    check_arguments(side_effects, locals())
    gated = GatedAdapter(adapted, "side_effects")
    if not texts:
        raise ValueError(NO_TEXTS)
    require_positive_int(batch_size, "batch_size")
    require_positive_int(explain, "explain", 0)
    measured: list[tuple[MeasuredText, Row]] = []
    rows = {name: task.rows("test", limit) for name, task in texts.items()}
    check_texts(gated.model, texts, rows)
    for name, task in texts.items():
        with gated.as_base() as base, evaluation_mode(base):
            before = token_losses(base, task, rows[name], batch_size, progress)
        with evaluation_mode(gated.peft):
            after = token_losses(gated.peft, task, rows[name], batch_size, progress)
        for number, (row, one, other) in enumerate(zip(rows[name], before, after, strict=True)):
            measured.append((_measured_text(gated, task, name, number, row, -one, -other), row))
    measured.sort(key=lambda pair: float(pair[0].rise.mean()))
    return SideEffects(
        samples=[one for one, _ in measured],
        attribution=_explain(adapted, texts, measured, explain, progress) if explain else None,
        meta=Meta(
            model_name(gated.model),
            "",
            {"sets": list(texts), "limit": limit, "explain": explain},
            None,
            len(measured),
        ),
    )


def check_texts(model: Any, texts: Mapping[str, Task], rows: Mapping[str, Dataset]) -> None:
    """Refuse sets of texts that a model cannot write, or whose tokens are not the model's."""
    size, first = model.config.get_text_config().vocab_size, next(iter(texts.values())).tokenizer
    for name, task in texts.items():
        if task.kind == "classification" or not model.can_generate():
            raise ValueError(
                f"{name}: a {type(model).__name__} and a task with classes have no tokens to compare: compare the "
                "classes of a model that writes none by task.evaluate(model), with the adapter and without it"
            )
        check_architecture(model, task, name)
        is_other = task.tokenizer is not first and task.tokenizer.get_vocab() != first.get_vocab()
        if is_other or max(map(max, rows[name]["input_ids"])) >= size:
            raise ValueError(
                f"{name} was read by a tokenizer that is not the model's: load all texts with the one that "
                "tlora.load_model returned"
            )


def _measured_text(
    gated: GatedAdapter, task: Task, name: str, number: int, row: Row, before: Tensor, after: Tensor
) -> MeasuredText:
    ids, labels = list(row["input_ids"]), list(row["labels"])
    places = [place for place, label in enumerate(labels) if label != IGNORED]
    if gated.model.config.is_encoder_decoder:
        ids, places = ids + labels, [len(ids) + place for place in places]
    places = places[len(places) - len(before) :]  # a first token is not predicted
    return MeasuredText(name, number, token_texts(task.tokenizer, ids), places, before, after)


def _explain(
    adapted: PeftModel,
    texts: Mapping[str, Task],
    measured: list[tuple[MeasuredText, Row]],
    count: int,
    progress: bool,
) -> Attribution | None:
    """Take the tokens that lost most apart; each text ends with the last of its own."""
    losers = sorted((float(rise), n, k) for n, (sample, _) in enumerate(measured) for k, rise in enumerate(sample.rise))
    rows = []
    for n in sorted({n for rise, n, _ in losers[:count] if rise < 0}):
        sample, row = measured[n]
        places = sorted(sample.positions[k] for rise, other, k in losers[:count] if other == n and rise < 0)
        before = len(sample.tokens) - len(row["labels"])  # what an encoder reads
        length = places[-1] + 1 - before
        # a decoder is given the labels as its inputs, so they stay
        labels = [label if before or at in places else IGNORED for at, label in enumerate(row["labels"][:length])]
        ids = row["input_ids"] if before else row["input_ids"][:length]
        answer = " … ".join(sample.tokens[place] for place in places)
        rows.append({"input_ids": ids, "labels": labels, "prompt": f"{sample.set} {sample.number}", "answer": answer})
    if not rows:
        return None
    task = replace(next(iter(texts.values())), name="side effects", test=Dataset.from_list(rows))
    return attribute(adapted, task, limit=len(rows), answers=False, progress=progress)
