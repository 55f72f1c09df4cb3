"""Constant tokens: what the chat template and the system prompt add to every sample, found by comparing samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from tlora.calibration.batches import Batch

Part = Literal["prompt", "later prompts", "answers", "ending"]
"""Parts of a sample: its first prompt, its prompts after an answer, its answers, and what follows the last answer.

A text to classify and the input of an encoder are a prompt, the labels of a decoder are an answer.
"""


class _Run(NamedTuple):
    """Consecutive tokens of one part: their places in the row, and their ids."""

    part: Part
    places: list[int]
    ids: list[int]


@dataclass(frozen=True)
class ConstantTokens:
    """The token ids with which a part of a sample begins and ends in all samples.

    Attributes
    ----------
    prefixes : dict of list of int
        The longest common prefix of all runs of a part.
    suffixes : dict of list of int
        The longest common suffix of what the prefix leaves of them, so that the two never overlap.
    """

    prefixes: dict[Part, list[int]]
    suffixes: dict[Part, list[int]]

    def mark(self, batch: Batch) -> Batch:
        """The batch with ``constant`` and ``target_constant`` set.

        A decoder reads each label one position later, and first the start token, which is the same in all samples.
        """
        constant = self._mask(batch.real, _input_runs(batch))
        if not batch.is_encoder_decoder:
            return replace(batch, constant=constant, target_constant=constant)
        labels = self._mask(batch.labeled, _target_runs(batch))
        read = torch.cat([torch.ones_like(labels[:, :1]), labels[:, :-1]], 1)
        return replace(batch, constant=constant, target_constant=read & batch.labeled)

    def _mask(
        self, tokens: Bool[Tensor, "samples tokens"], runs: Iterable[tuple[int, _Run]]
    ) -> Bool[Tensor, "samples tokens"]:
        mask = torch.zeros_like(tokens)
        for sample, (part, places, ids) in runs:
            before = len(_common_prefix([self.prefixes.get(part, []), ids]))
            after = len(_common_prefix([self.suffixes.get(part, [])[::-1], ids[::-1]]))
            mask[sample, places[:before] + places[len(places) - after :]] = True
        return mask


def find_constant_tokens(batches: Sequence[Batch]) -> ConstantTokens:
    """Compare the samples of prepared batches; the definition is that of ``tokens="task"`` in `tlora.calibrate`.

    The tokens of a sample are runs, alternately without and with a label. All runs of a part are compared; a part that
    occurs once has nothing constant. At least two samples must differ.
    """
    if len({fingerprint for batch in batches for fingerprint in batch.fingerprints}) < 2:
        raise ValueError(
            "constant tokens are found by comparing samples, and no two of these differ: pass at least two that do"
        )
    by_part: defaultdict[Part, list[list[int]]] = defaultdict(list)
    for batch in batches:
        for _, run in (*_input_runs(batch), *_target_runs(batch)):
            by_part[run.part].append(run.ids)
    several = {part: runs for part, runs in by_part.items() if len(runs) > 1}
    prefixes = {part: _common_prefix(runs) for part, runs in several.items()}
    rests = {part: [run[len(prefixes[part]) :][::-1] for run in runs] for part, runs in several.items()}
    return ConstantTokens(prefixes, {part: _common_prefix(runs)[::-1] for part, runs in rests.items()})


def count_constant(batches: Iterable[Batch]) -> list[int]:
    """The number of constant tokens in marked batches, and of all tokens; those of a decoder are counted too."""
    counts = torch.zeros(2, dtype=torch.int64)
    for batch in batches:
        counts += torch.stack([(batch.constant & batch.real).sum(), batch.real.sum()])
        if batch.is_encoder_decoder:
            counts += torch.stack([(batch.target_constant & batch.labeled).sum(), batch.labeled.sum()])
    return [int(count) for count in counts]


def _common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    return [column[0] for column in takewhile(lambda column: len({*column}) == 1, zip(*rows, strict=False))]


def _input_runs(batch: Batch) -> Iterator[tuple[int, _Run]]:
    """The runs of each sample's ``input_ids``, with the number of the sample."""
    are_labeled = not batch.is_encoder_decoder and batch.inputs["labels"].ndim == 2
    for sample, ids in enumerate(batch.inputs["input_ids"].tolist()):
        places = batch.real[sample].nonzero()[:, 0].tolist()
        # nothing predicts the first token: whether it has a label is up to the collator
        labeled = {*batch.labeled[sample].nonzero()[:, 0].tolist()} - {places[0]} if are_labeled else set()
        runs = [[*run] for _, run in groupby(places, labeled.__contains__)]
        for number, run in enumerate(runs):
            part: Part = "prompt" if number == 0 else "later prompts" if number < len(runs) - 1 else "ending"
            yield sample, _Run("answers" if run[0] in labeled else part, run, [ids[place] for place in run])


def _target_runs(batch: Batch) -> Iterator[tuple[int, _Run]]:
    """The labels of a separate decoder, as one run for each sample."""
    for sample, labels in enumerate(batch.inputs["labels"].tolist() if batch.is_encoder_decoder else ()):
        places = batch.labeled[sample].nonzero()[:, 0].tolist()
        yield sample, _Run("answers", places, [labels[place] for place in places])
