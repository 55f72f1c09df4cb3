"""Tokenize the rows of a task: input tokens, labels, and cuts at the length limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from tlora.models.forward import IGNORED
from tlora.tasks.chat import conversation_segments, end_tokens, first_tokens, is_trained_on, read_tools, tokenize
from tlora.utils.progress import progress_bar

ARCHITECTURES = ("causal", "seq2seq", "classification")

_CHUNK = 1000  # rows tokenized at a time, so that Python's lists of them never exist all at once
_TOKENS = List(Value("int32"))


@dataclass(frozen=True)
class Cuts:
    """Samples of a split that the length limit cut.

    Attributes
    ----------
    truncated : int
        Samples that lost tokens.
    dropped : int
        Those of them that lost all their labels and were left out.
    longest : int
        Tokens of the longest sample before the cut.
    """

    truncated: int = 0
    dropped: int = 0
    longest: int = 0

    def __add__(self, other: Cuts) -> Cuts:
        longest = max(self.longest, other.longest)
        return Cuts(self.truncated + other.truncated, self.dropped + other.dropped, longest)


@dataclass(frozen=True)
class Format:
    """Settings that turn the rows of a task into tokens.

    Attributes
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Never changed.
    architecture : str
        ``"causal"``, ``"seq2seq"`` or ``"classification"``.
    max_length : int
        Most tokens of a sample; of the encoder's and of the decoder's each, for ``"seq2seq"``.
    chat : bool
        Whether prompt and completion go through the chat template.
    separator : str
        Between prompt and completion if they do not.
    """

    tokenizer: PreTrainedTokenizerBase
    architecture: str
    max_length: int
    chat: bool
    separator: str = ""

    def encode(self, rows: Dataset, split: str = "", progress: bool = False) -> tuple[Dataset, Cuts]:
        """Tokenize the rows of a split: ``prompt`` and ``completion``, ``messages``, or ``text`` and ``label``.

        Returns
        -------
        rows : Dataset
            ``input_ids``, ``labels`` and the other columns of the rows. For generation also ``prompt_length``
            (tokens before the last answer), ``prompt`` and ``answer`` (texts), and ``frame``, the text that the
            template writes between the two.
        cuts : Cuts
            The samples that were cut.
        """
        features = self._features(rows)
        parts = [Dataset.from_dict({name: [] for name in features}, features=features)]
        cuts = Cuts()
        chunks = range(0, len(rows), _CHUNK)
        for start in progress_bar(chunks, desc=f"tokenizing {split}", unit="k", show=progress):
            encoded = []
            for row, cut in self._encode_rows(rows.select(range(start, min(start + _CHUNK, len(rows)))), split, start):
                cuts += cut
                if not cut.dropped:
                    encoded.append(row)
            columns = {name: [row[name] for row in encoded] for name in features}
            parts.append(Dataset.from_dict(columns, features=features))
        return concatenate_datasets(parts), cuts

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that may end a turn of a chat."""
        return end_tokens(self.tokenizer)

    @cached_property
    def _first_ids(self) -> list[int]:
        return first_tokens(self.tokenizer)

    @cached_property
    def _ends(self) -> list[str]:
        """The same as text; cached, because there may be hundreds."""
        return list(self.tokenizer.convert_ids_to_tokens(sorted(self.end_ids)))

    def _features(self, rows: Dataset) -> Features:
        source = ("prompt", "completion", "messages", "tools", "label")
        kept = {name: feature for name, feature in rows.features.items() if name not in source}
        if self.architecture == "classification":
            has_types = "text_pair" in rows.column_names and "token_type_ids" in self.tokenizer.model_input_names
            types = {"token_type_ids": _TOKENS} if has_types else {}
            return Features({"input_ids": _TOKENS, "labels": Value("int64")} | types | kept)
        own_features = {"prompt_length": Value("int32")} | dict.fromkeys(("prompt", "answer", "frame"), Value("string"))
        return Features({"input_ids": _TOKENS, "labels": _TOKENS} | own_features | kept)

    def _encode_rows(self, rows: Dataset, split: str, start: int) -> Iterator[tuple[dict[str, Any], Cuts]]:
        if self.architecture == "classification":
            yield from self._encode_classification(rows)
            return
        for number, row in enumerate(rows, start=start + 1):
            try:
                yield self._encode_seq2seq(row) if self.architecture == "seq2seq" else self._encode_causal(row)
            except ValueError as error:
                raise ValueError(f"{split} sample {number}: {error}") from error

    def _encode_causal(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], Cuts]:
        messages = row.get("messages")
        if messages is None and self.chat:
            turns = (("user", row["prompt"]), ("assistant", row["completion"]))
            messages = [{"role": role, "content": content} for role, content in turns]
        if messages is None:
            segments = [(row["prompt"] + self.separator, False), (row["completion"], True)]
            ends = frozenset({self.tokenizer.eos_token_id} - {None})
            ids, labels, starts = tokenize(self.tokenizer, segments, ends, self._first_ids)
            answers = [row["completion"]]
        else:
            segments = conversation_segments(self.tokenizer, messages, read_tools(row.get("tools")))
            ids, labels, starts = tokenize(self.tokenizer, segments, self.end_ids)
            answers = [message.get("content") or "" for message in messages if is_trained_on(message)]
        cut = labels[: self.max_length]
        turn = max(0, sum(start < self.max_length for start in starts) - 1)
        before = "".join(text for text, _ in segments[: 2 * turn + 1])
        frame = self._frame(segments[2 * turn + 1][0], answers[turn].strip())
        return dict(row) | {
            "input_ids": ids[: self.max_length],
            "labels": cut,
            "prompt_length": starts[turn],
            "prompt": row.get("prompt", before),
            "answer": answers[turn],
            "frame": frame.lstrip(),
        }, Cuts(len(ids) > self.max_length, all(label == IGNORED for label in cut), len(ids))

    def _frame(self, turn: str, answer: str) -> str:
        """The text of a turn before the answer; the answer is looked for at the end, as the frame may repeat it."""
        body = turn.rstrip()
        for end in self._ends:
            body = body.removesuffix(end).rstrip()
        start = len(body) - len(answer) if body.endswith(answer) else turn.find(answer)
        return turn[: max(0, start)] if answer else ""

    def _encode_seq2seq(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], Cuts]:
        limit = {"truncation": True, "max_length": self.max_length}
        whole = self.tokenizer(row["prompt"], verbose=False)["input_ids"]
        ids = self.tokenizer(row["prompt"], **limit)["input_ids"]
        labels = self.tokenizer(text_target=row["completion"], verbose=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        if end is not None and labels[-1:] != [end]:
            labels = [*labels, end]
        longest = max(len(whole), len(labels))
        return dict(row) | {
            "input_ids": ids,
            "labels": labels[: self.max_length],
            "prompt_length": len(ids),
            "answer": row["completion"],
            "frame": "",
        }, Cuts(longest > self.max_length, not labels, longest)

    def _encode_classification(self, rows: Dataset) -> Iterator[tuple[dict[str, Any], Cuts]]:
        texts = [rows[name][:] for name in ("text", "text_pair") if name in rows.column_names]
        whole = self.tokenizer(*texts, verbose=False)["input_ids"]
        cut = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        types = cut.get("token_type_ids", [[]] * len(rows))
        for row, long, ids, kinds in zip(rows, whole, cut["input_ids"], types, strict=True):
            tokens = {"input_ids": ids, "labels": row["label"], "token_type_ids": kinds}
            yield dict(row) | tokens, Cuts(len(long) > self.max_length, not ids, len(long))
