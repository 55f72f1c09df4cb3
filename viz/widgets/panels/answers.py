"""What panels show of answers: their tokens, modules and changes of the adapter, as JSON values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tlora.explanation.attribution import Attribution, ExplainedAnswer
from tlora.explanation.compare_answers import ComparedAnswer
from tlora.utils.text import place_text
from viz.widgets.panels.parts import shorten, shorten_all

MODULES = 5
"""Modules that are named of an answer, those that contributed most."""


def switch_key(ranks: Mapping[int, int]) -> str:
    """Text that identifies a change of the adapter: the rank that is left of each changed module, by its number."""
    return ",".join(f"{k}:{ranks[k]}" for k in sorted(ranks))


def stored_switches(attribution: Attribution) -> dict[str, str]:
    """The key of each stored change, by its name."""
    keys = {}
    for label, names in attribution.switches.items():
        cut = re.search(r" rank (\d+)$", label)
        rank = int(cut[1]) if cut else 0
        keys[label] = switch_key({attribution.names.index(name): min(rank, attribution.ranks[name]) for name in names})
    return keys


def answer_values(attribution: Attribution, samples: Iterable[ExplainedAnswer]) -> list[dict[str, Any]]:
    """All that the browser shows of each answer; nats."""
    keys = stored_switches(attribution)
    return [
        {
            "prompt": one.prompt,
            "answer": one.answer,
            "tokens": one.tokens,
            "positions": one.positions,
            "base": nats(one.base),
            "adapter": nats(one.adapter),
            "choices": one.choices,
            "modules": [[shorten_all(token, 5) for token in measure] for measure in one.by_module],
            "head": nats(one.start - one.base),
            "generated": one.generated,
            "switched": {
                keys[label]: {"values": nats(values), "unchanged": one.unchanged[label].int().tolist()}
                for label, values in one.switched.items()
            },
        }
        for one in samples
    ]


def row_values(
    row: int, one: ComparedAnswer, attribution: Attribution | None = None, sample: ExplainedAnswer | None = None
) -> dict[str, Any]:
    """A row of the answers: its texts and marks, and if it was taken apart its tokens and largest modules; nats.

    ``row`` is its number in the table, and -1, -2 ... of requests of the reader's own. An answer that was cut ends with
    an ellipsis.
    """
    marks = {
        name: None if mark is None else bool(mark)
        for name, mark in (("base_right", one.base_right), ("adapter_right", one.adapter_right))
    }
    said = {"base": one.base + "…" * one.base_cut, "adapter": one.adapter + "…" * one.adapter_cut}
    texts = {"request": one.request, **said, "reference": one.reference}
    values = {"row": row, **texts, **marks, "changed": one.changed, "gain": shorten(one.gain, 5), "apart": None}
    if attribution is None or sample is None:
        return values
    places = [place_text(target.layer, target.projection, target.name) for target in attribution.targets.values()]
    contributions = sample.by_module[0].sum(0)
    order = contributions.abs().argsort(descending=True)[:MODULES].tolist()
    largest = [(places[k], float(contributions[k])) for k in order]
    if others := len(places) - len(largest):
        rest = float(contributions.sum()) - sum(value for _, value in largest)
        largest.append((f"{others} other{'s' * (others > 1)} together", rest))
    tokens = [sample.tokens[position] for position in sample.positions]
    apart = {
        "tokens": list(zip(tokens, shorten_all(sample.rise[0], 4), strict=True)),
        "modules": [(place, shorten(value)) for place, value in largest],
    }
    return values | {"apart": apart}


def nats(values: Any) -> list[list[float | None]]:
    """The two measures of each token, in digits enough for differences."""
    return [shorten_all(measure, 7) for measure in values]
