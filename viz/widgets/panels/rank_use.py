"""Panel "Rank use": how many directions the trained update needs, compared with the rank it was given."""

from __future__ import annotations

import pandas as pd

from tlora.training.run import TrainingRun
from tlora.utils.defaults import ENERGY
from tlora.utils.text import count_text
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Column, Part, number, percent, table, text, whole

COLUMNS: list[Column] = [
    ("rank", "rank", whole),
    ("used_rank", "used", whole),
    ("use", "used / rank", percent),
    ("effective_rank", "effective rank", number),
    ("update_norm", "norm of s B A", number),
]


class RankUsePanel(Panel):
    """Rank used by projection and by module."""

    name, title = "rank-use", "Rank use"
    stage = "training"
    about = (
        f"How many directions the trained update s B A needs for {percent(ENERGY)} of its squared norm. Directions of "
        "small norm may still matter to the loss."
    )
    needs = ("run",)

    def parts(self) -> list[Part]:
        """A sentence and two tables; nothing if the run records no ranks."""
        run: TrainingRun = self.result
        if not run.ranks:
            return []
        use = run.rank_use(ENERGY)
        full, idle = int((use["used_rank"] == use["rank"]).sum()), int((use["used_rank"] == 0).sum())
        still = f", and {idle:,} did not move" if idle else ""
        words = f"{used_rank(use)}. {full:,} of {count_text(len(use), 'module')} use all of their rank{still}."
        parts: list[Part] = [text(words)]
        places = self.results.places
        if places and set(use["module"]) <= places[0].keys():
            parts.append(_by_projection(use.assign(projection=use["module"].map(places[1]))))
        caption = f"All {count_text(len(use), 'module')}"
        parts.append(table(use, caption, [("module", "module", str), *COLUMNS], folded=True))
        return parts


def used_rank(use: pd.DataFrame) -> str:
    """The finding in words: ``"1,234 of 1,680 ranks are used (73 %)"``."""
    used, total = int(use["used_rank"].sum()), int(use["rank"].sum())
    return f"{used:,} of {total:,} ranks are used ({percent(used / total)})"


def _by_projection(use: pd.DataFrame) -> Part:
    frame = use.groupby("projection", sort=False).agg(
        modules=("rank", "size"),
        rank=("rank", "sum"),
        used_rank=("used_rank", "sum"),
        effective_rank=("effective_rank", "mean"),
        update_norm=("update_norm", "mean"),
    )
    frame = frame.reset_index().assign(use=(frame["used_rank"] / frame["rank"]).to_numpy())
    columns: list[Column] = [("projection", "projection", str), ("modules", "modules", whole), *COLUMNS]
    return table(frame, "By projection: sums of ranks, means of the rest", columns)
