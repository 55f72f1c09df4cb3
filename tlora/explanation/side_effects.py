"""What else did it change? Measure an adapter, token by token, on text that it was not meant for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch import Tensor

from tlora.explanation.attribute import attribute
from tlora.explanation.attribution import Attribution
from tlora.explanation.gated_adapter import GatedAdapter
from tlora.explanation.side_effects_result import MeasuredText, SideEffects
from tlora.explanation.token_texts import token_texts
from tlora.models.forward import IGNORED, evaluation_mode
from tlora.models.weights import model_name
from tlora.results import Meta
from tlora.tasks.evaluation import token_losses
from tlora.tasks.task import Task
from tlora.utils.validation import require_positive_int

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
    gated = GatedAdapter(adapted, "side_effects")
    if not texts:
        raise ValueError(NO_TEXTS)
    require_positive_int(batch_size, "batch_size")
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
    needed = "seq2seq" if model.config.is_encoder_decoder else "causal"
    size, first = model.config.get_text_config().vocab_size, next(iter(texts.values())).tokenizer
    for name, task in texts.items():
        if task.kind == "classification" or not model.can_generate():
            raise ValueError(
                f"{name}: a {type(model).__name__} and a task with classes have no tokens to compare: compare the "
                "classes of a model that writes none by task.evaluate(model), with the adapter and without it"
            )
        if task.architecture != needed:
            raise ValueError(
                f"{name} is for a model of architecture {task.architecture!r}, and a {type(model).__name__} is "
                f"{needed!r}: load it by tlora.load_task(..., architecture={needed!r})"
            )
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
    losers = sorted((float(rise), n, k) for n, (one, _) in enumerate(measured) for k, rise in enumerate(one.rise))
    rows = []
    for n in sorted({n for rise, n, _ in losers[:count] if rise < 0}):
        one, row = measured[n]
        places = sorted(one.positions[k] for rise, other, k in losers[:count] if other == n and rise < 0)
        before = len(one.tokens) - len(row["labels"])  # what an encoder reads
        length = places[-1] + 1 - before
        # a decoder is given the labels as its inputs, so they stay
        labels = [label if before or at in places else IGNORED for at, label in enumerate(row["labels"][:length])]
        ids = row["input_ids"] if before else row["input_ids"][:length]
        answer = " … ".join(one.tokens[place] for place in places)
        rows.append({"input_ids": ids, "labels": labels, "prompt": f"{one.set} {one.number}", "answer": answer})
    if not rows:
        return None
    task = replace(next(iter(texts.values())), name="side effects", test=Dataset.from_list(rows))
    return attribute(adapted, task, limit=len(rows), answers=False, progress=progress)
