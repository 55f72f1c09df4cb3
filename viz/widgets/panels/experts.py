"""Panel "Experts": how many tokens each routed expert got, and how much of the work it does."""

from __future__ import annotations

from typing import Any

import pandas as pd

from tlora.calibration.expert_use import ExpertUse
from tlora.calibration.experts import PRIOR_ROWS
from tlora.utils.text import count_text
from viz.glossary import GLOSSARY
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Column, Part, percent, shorten_all, table, text, whole

TOP = 8
"""Experts in the table of those that do most of the work."""


class ExpertsPanel(Panel):
    """A sentence, a map of the experts by layer, and the experts that do most of the work."""

    name, title = "experts", "Experts"
    stage = "allocation"
    about = "Which routed experts of the mixture the samples of the task use."
    needs = ("expert_use",)

    def parts(self) -> list[Part]:
        """The map takes ranks from the allocation, if the experts are among its modules."""
        use: ExpertUse = self.result
        frame = use.to_frame()
        holders = list(dict.fromkeys(use.modules))
        experts = {
            "kind": "experts",
            "layers": [use.layers[use.modules.index(module)] for module in holders],
            "column": [holders.index(module) for module in use.modules],
            "expert": use.experts,
            "measures": measures(use, frame),
            "parameters": [
                [k for k, name in enumerate(self.context.names) if name.rpartition(".")[0] == module]
                for module in holders
            ],
        }
        top = frame.nlargest(TOP, "score").assign(place=lambda rows: rows.apply(expert_place, axis=1))
        columns: list[Column] = [
            ("place", "expert", str),
            ("tokens", "tokens routed", whole),
            ("share", "work", percent),
        ]
        caption = f"The {len(top)} experts that do most of the work, of {len(frame):,}"
        return [text(f"{use.headline}. {routing(frame)}"), experts, table(top, caption, columns, folded=True)]


def measures(use: ExpertUse, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """What the map can show of each expert: counts, shares, and differences with the ends of their intervals."""
    shown = [
        _measure("tokens", "tokens", "count", frame["tokens"], GLOSSARY["tokens routed"]),
        _measure("work", "of the work", "percent", frame["share"], GLOSSARY["work"]),
    ]
    squared = frame["squared_gradient"]
    if squared.sum() > 0:
        shares, unit = squared / squared.sum(), "of the squared gradient"
        shown.append(_measure("squared gradient", unit, "percent", shares, GLOSSARY["squared gradient"]))
    if use.other_meta is not None:
        other = use.other_meta.task or "other text"
        about = f"Work minus that on {other}, in percentage points."
        unit = f"points of the work more or less than on {other}"
        difference = _measure(f"compared with {other}", unit, "points", frame["difference"], about)
        shown.append(difference | {end: shorten_all(frame[end], 4) for end in ("low", "high")})
    return shown


def _measure(name: str, unit: str, kind: str, values: pd.Series, about: str) -> dict[str, Any]:
    numbers = values.tolist() if kind == "count" else shorten_all(values, 4)
    return {"name": name, "about": about, "unit": unit, "kind": kind, "values": numbers}


def routing(frame: pd.DataFrame) -> str:
    """Which experts got the most tokens, and how many got none, or fewer than they borrow from their layer."""
    tokens = frame["tokens"]
    most, none, few = tokens.max(), int((tokens == 0).sum()), int(tokens.between(1, PRIOR_ROWS - 1).sum())
    top = frame[tokens == most]
    who = expert_place(top.iloc[0]).capitalize() if len(top) == 1 else f"{len(top):,} experts"
    sentences = [f"{who} got the most tokens, {most:,}{'' if len(top) == 1 else ' each'}"]
    if none:
        sentences.append(f"{count_text(none, 'expert')} got none: directions come from the whole layer there")
    if few:
        words = f"got 1 to {PRIOR_ROWS - 1}, fewer than the {PRIOR_ROWS} that each borrows from its layer"
        sentences.append(f"{count_text(few, 'expert')} {words}")
    if not none and not few:
        sentences.append(f"Every expert got at least {PRIOR_ROWS}")
    return ". ".join(sentences) + "."


def expert_place(row: pd.Series) -> str:
    """An expert in words: ``"layer 3 expert 7"``."""
    return f"layer {row['layer']} expert {row['expert']}"
