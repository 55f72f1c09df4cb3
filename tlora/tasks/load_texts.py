"""Load texts that an adapter was not trained on: packaged ones, a user's own, or another task."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from tlora.models.forward import IGNORED
from tlora.tasks.chat import first_tokens
from tlora.tasks.load import default_length, load_task
from tlora.tasks.sources import read_rows
from tlora.tasks.splits import SPLITS
from tlora.tasks.task import Task
from tlora.tasks.tokenization import Cuts
from tlora.utils.defaults import TEXTS
from tlora.utils.validation import check_arguments

SUFFIXES = (".txt", ".md")
"""Files of plain text."""

PACKAGED = Path(__file__).with_name("texts")
"""Texts that were written for this package: ``prose.txt``, ``code.txt`` with ``---`` between pieces, ``chat.jsonl``."""


def load_texts(
    tokenizer: PreTrainedTokenizerBase, *sources: str | os.PathLike[str], **own: Iterable[str]
) -> dict[str, Task]:
    """Load sets of texts on which to measure what an adapter changed besides its task.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        The model's.
    *sources : str or path-like
        - A packaged set: ``"prose"`` (16 paragraphs), ``"code"`` (12 pieces of Python, JavaScript, SQL, ...),
          ``"chat"`` (12 requests, answers being measured), or ``"template"`` (the same conversations, the tokens that
          the chat template writes being measured).
        - A ``.txt`` or ``.md`` file: each paragraph is a text.
        - Anything else is a task for `load_task`, whose test samples are measured.

        Without sources and texts of your own, all packaged sets; ``"template"`` only if the tokenizer has a chat
        template.
    **own : iterable of str
        Texts of your own, by the name of their set.

    Returns
    -------
    dict of Task
        By name of the set. Every token of a text is a label, except the first. Texts are cut at 1,024 tokens, or at the
        tokenizer's limit if that is less.

    Raises
    ------
    ValueError
        If ``"template"`` is asked for and there is no chat template, a set has no text of two tokens or more, two sets
        have one name, or a source is unknown.
    FileNotFoundError
        If a file does not exist.

    Examples
    --------
    >>> texts = tlora.load_texts(tokenizer, "code", mine=["w4 w5 w6", "w7 w8"])
    >>> {name: len(task.test) for name, task in texts.items()}
    {'code': 12, 'mine': 2}
    """
    check_arguments(load_texts, locals())
    if not sources and not own:
        sources = tuple(name for name in TEXTS if name != "template" or tokenizer.chat_template)
    named: dict[str, str | os.PathLike[str]] = {}
    for source in sources:
        name = Path(source).stem
        if name in named or name in own:
            raise ValueError(
                f"two sets of texts would be called {name!r}: rename the file {source}, or pass name=texts"
            )
        named[name] = source
    texts = {name: _load(name, source, tokenizer) for name, source in named.items()}
    return texts | {name: _plain(name, each, tokenizer) for name, each in own.items()}


def _load(name: str, source: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> Task:
    match source:
        case "prose":
            return _plain(name, paragraphs(PACKAGED / "prose.txt"), tokenizer)
        case "code":
            return _plain(name, code_pieces(), tokenizer)
        case "chat":
            return _chat(tokenizer)
        case "template":
            return _template(tokenizer)
    path = Path(source)
    if path.suffix.lower() in SUFFIXES:
        return _plain(name, paragraphs(path), tokenizer)
    return load_task(source, tokenizer)


def paragraphs(path: Path) -> list[str]:
    """The paragraphs of a file of plain text."""
    return [text.strip("\n") for text in re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))]


def code_pieces() -> list[str]:
    """The packaged pieces of code."""
    return (PACKAGED / "code.txt").read_text(encoding="utf-8").split("---\n")


def conversations() -> list[dict[str, str]]:
    """The packaged requests and answers: ``prompt`` and ``completion``."""
    return [row for _, row in read_rows(PACKAGED / "chat.jsonl")]


def _chat(tokenizer: PreTrainedTokenizerBase) -> Task:
    """Requests and answers, in the chat template if there is one and on lines of their own otherwise."""
    end = "" if tokenizer.chat_template else "\n"
    rows = [row | {"prompt": row["prompt"] + end} for row in conversations()]
    task = load_task({"test": Dataset.from_list(rows)}, tokenizer, architecture="causal", metric="loss")
    return replace(task, name="chat")


def _template(tokenizer: PreTrainedTokenizerBase) -> Task:
    """The conversations of `_chat` with labels on the tokens that the chat template writes.

    A system prompt that all conversations begin with has labels in the first one alone.
    """
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template: leave 'template' out, or set tokenizer.chat_template")
    rows: list[dict[str, Any]] = []
    for contents in (row.values() for row in conversations()):
        messages = [{"role": role, "content": c} for role, c in zip(("user", "assistant"), contents, strict=True)]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        starts = [text.rindex(content) for content in contents]
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = [(start, start + len(content)) for start, content in zip(starts, contents, strict=True)]
        skipped = [any(a < end and b > start for start, end in spans) for a, b in encoded["offset_mapping"]]
        ids = encoded["input_ids"]
        first = rows[0]["input_ids"] if rows else []
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, first, strict=False)))
        rows.append(_row(text, ids, [True] * shared + skipped[shared:], tokenizer))
    return _task("template", rows, tokenizer)


def _plain(name: str, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Task:
    """Texts to continue, without a token for their end: they need not end there."""
    rows = []
    for text in texts:
        ids = [*first_tokens(tokenizer), *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        rows.append(_row(text, ids, [False] * len(ids), tokenizer))
    return _task(name, [row for row in rows if len(row["input_ids"]) > 1], tokenizer)


def _row(text: str, ids: list[int], skipped: Sequence[bool], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """A row with labels on all tokens but the first and those that are skipped."""
    limit = default_length(tokenizer)
    labels = [IGNORED if skip or not n else token for n, (token, skip) in enumerate(zip(ids, skipped, strict=True))]
    return {"input_ids": ids[:limit], "labels": labels[:limit], "prompt_length": 0, "prompt": "", "answer": text}


def _task(name: str, rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Task:
    if not rows:
        raise ValueError(f"{name} has no text of two tokens or more: give at least one")
    test = Dataset.from_list(rows)
    none = test.select([])
    return Task(
        name=name,
        kind="generation",
        train=none,
        validation=none,
        test=test,
        tokenizer=tokenizer,
        architecture="causal",
        metric="loss",
        score=None,
        max_length=default_length(tokenizer),
        cuts=dict.fromkeys(SPLITS, Cuts()),
    )
