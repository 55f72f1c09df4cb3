"""What the panel "Attribution" shows of answers: their tokens, modules and changes of the adapter, as JSON values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tlora.explanation.attribution import Attribution, ExplainedAnswer
from viz.widgets.panels.parts import shorten_all


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
            "modules": [[shorten_all(token) for token in measure] for measure in one.by_module],
            "head": nats(one.start - one.base),
            "generated": one.generated,
            "switched": {
                keys[label]: {"values": nats(values), "unchanged": one.unchanged[label].int().tolist()}
                for label, values in one.switched.items()
            },
        }
        for one in samples
    ]


def nats(values: Any) -> list[list[float | None]]:
    """The two measures of each token, in digits enough for differences."""
    return [shorten_all(measure, 7) for measure in values]
