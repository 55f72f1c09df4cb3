"""Panel "Attribution": what each token of an answer gained, which modules did it, and what leaving them out costs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from tlora.explanation.attribution import CHANGES, Attribution, ExplainedAnswer
from tlora.utils.text import count_text
from viz.widgets.panels.parts import (
    Column,
    Part,
    intervals,
    number,
    panel,
    shorten_all,
    table,
    text,
    texts,
    whole,
)
from viz.widgets.results import Results

ABOUT = (
    "What each module of the trained adapter added to the tokens of an answer. Contributions add up to what the tokens "
    "gained; what leaving a module out costs is another number, since others may make up for it. Click a module, a row "
    "or a column of the map to switch it off."
)
PAGE_SAMPLES = 16
"""Most answers in a page without a kernel."""
COLUMNS: list[Column] = [
    ("module", "module", str),
    ("rank", "rank", whole),
    ("used_rank", "rank used", whole),
    ("contribution", "contributed, nats", number),
    ("interval", "95 % interval", str),
    ("cost", "cost of leaving it out", number),
    ("log_odds", "contributed, log-odds", number),
    ("cost_log_odds", "cost, log-odds", number),
]


def attribution_panel(results: Results, live: bool = False) -> list[dict[str, Any]]:
    """The panel; ``live`` if a kernel answers what is not stored."""
    attribution = results.attribution
    if attribution is None:
        return []
    targets = attribution.targets.values()
    rows, columns = list(dict.fromkeys(t.projection for t in targets)), sorted({t.layer for t in targets})
    part = {
        "kind": "attribution",
        "names": attribution.names,
        "rows": rows,
        "columns": columns,
        "row": [rows.index(target.projection) for target in targets],
        "column": [columns.index(target.layer) for target in targets],
        "ranks": list(attribution.ranks.values()),
        "samples": answer_values(attribution, attribution.samples if live else attribution.samples[:PAGE_SAMPLES]),
        "live": live,
    }
    largest = largest_modules(attribution, "The modules that contributed most, mean over answers")
    words = f"{attribution.sentence[:1].upper()}{attribution.sentence[1:]} {changed_tokens(attribution)}"
    return panel("attribution", "Attribution", ABOUT, [part, text(words), largest, *_answers(attribution)])


def largest_modules(attribution: Attribution, caption: str) -> Part:
    """A table of the modules that contributed most."""
    top = attribution.largest()
    top = top.assign(interval=intervals(top, "low", "high", number))
    return table(top, caption, COLUMNS, folded=True)


def changed_tokens(attribution: Attribution) -> str:
    """How many first choices are the base's, among its first three, or beyond."""
    counts = attribution.tokens()["change"].value_counts()
    same, near, beyond = (int(counts.get(change, 0)) for change in CHANGES)
    return (
        f"Of {count_text(same + near + beyond, 'answer token')}, the adapted model's first choice is the base's at "
        f"{same:,}, its second or third at {near:,}, and further down at {beyond:,}."
    )


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


def _answers(attribution: Attribution) -> list[dict[str, Any]]:
    """A table of the greedy answers of base and adapter, if there are any."""
    frame = attribution.answers()
    if not frame["adapter"].any():
        return []
    columns = {"prompt": "request", "answer": "explained", "base": "base answers", "adapter": "adapter answers"}
    matches = [name for name in ("base_match", "adapter_match") if name in frame]
    rows = [[*map(str, row[list(columns)]), *_matches(row[matches])] for _, row in frame.iterrows()]
    head = [*columns.values(), *(["base right", "adapter right"] if matches else [])]
    return [texts("Greedy answers of base and adapter", head, rows, (0, 1, 2, 3), folded=True)]


def _matches(row: pd.Series) -> list[str]:
    return ["yes" if match == 1 else "no" for match in row]
