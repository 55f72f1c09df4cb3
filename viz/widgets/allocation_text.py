"""What the AllocationExplorer says of a plan: in a few words, in a table of costs, and beside another plan."""

from __future__ import annotations

import html

import pandas as pd

from tlora.allocation.allocation import Allocation
from tlora.allocation.footprint import size_text
from viz import style
from viz.widgets.base import table


def costs(allocation: Allocation) -> str:
    """Table of what the plan costs, next to uniform LoRA at the same nominal rank."""
    ours, lora = allocation.footprint(), allocation.lora
    rows = [
        ("trainable parameters", "trainable_parameters", "{:,}".format),
        ("adapter, float32", "adapter_bytes", size_text),
        ("AdamW states, float32", "optimiser_bytes", size_text),
    ]
    heads = ["", "this plan", f"uniform LoRA, rank {allocation.rank}", "ratio"]
    pairs = [(what, getattr(ours, key), getattr(lora, key), write) for what, key, write in rows]
    return table(heads, [[what, write(a), write(b), style.percent(a / b)] for what, a, b, write in pairs])


def changed(changes: pd.DataFrame, kept: Allocation) -> str:
    """What is different from the kept plan, in a sentence or two."""
    moved = changes[changes["rank_change"] != 0]
    scaled = int((changes["scaling_change"] != 0).sum())
    words = "nothing changed" if not scaled else f"{scaled} scalings changed, no rank"
    if len(moved):
        gained, lost = int(moved["rank_change"].clip(lower=0).sum()), int(-moved["rank_change"].clip(upper=0).sum())
        largest = moved.sort_values("rank_change", key=abs, ascending=False, kind="stable").head(3)
        most = [f"{_signed(r['rank_change'])} {style.place(r)}" for _, r in largest.iterrows()]
        words = (
            f"{len(moved)} of {len(changes)} modules changed, {gained:,} ranks more and {lost:,} fewer, "
            f"{_signed(moved['parameters_change'].sum())} trainable parameters; most: {', '.join(most)}"
        )
    return f"<p style='margin: 6px 0'>Since the kept plan (rank {kept.rank}): {html.escape(words)}.</p>"


def _signed(number: int) -> str:
    return f"{number:+,}".replace("-", "−")
