"""Panel "By projection": ranks and scalings by projection, compared with a uniform allocation, and what each costs."""

from __future__ import annotations

from collections.abc import Callable

from tlora.allocation.allocation import Allocation
from tlora.allocation.footprint import BYTES, Footprint, uniform_footprints
from tlora.resources.estimate import ResourceEstimate
from tlora.utils.text import size_text
from viz.plots.allocation import left_out
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Column, Part, facts, number, percent, table, text, texts, whole


class AllocationPanel(Panel):
    """Sums by projection and how the ranks were decided; it follows the map."""

    name, title = "allocation", "By projection"
    about = "Ranks follow the scores, or the captured gradient, under a fixed budget."
    follows_allocation = True

    def parts_of(self, allocation: Allocation) -> list[Part]:
        """Two tables, and a sentence if another allocation was trained."""
        parts, run = [by_projection(allocation), _decisions(allocation)], self.results.run
        if run and run.ranks and run.ranks != allocation.stored_ranks:
            parts.insert(0, text("This is not the allocation of the adapter that was trained: their ranks differ."))
        return parts


def by_projection(allocation: Allocation) -> Part:
    """The allocation by projection; the uniform allocation holds excluded modules too."""
    columns: list[Column] = [
        ("projection", "projection", str),
        ("modules", "modules", whole),
        ("ranks", "ranks", whole),
        ("uniform", "uniform", whole),
        ("least", "least", whole),
        ("mean", "mean", number),
        ("most", "most", whole),
        ("mean_scaling", "mean scaling", number),
        ("parameters", "parameters of B", whole),
    ]
    return table(allocation.by_projection(), "Ranks by projection", columns)


def _decisions(allocation: Allocation) -> Part:
    reasons = allocation.to_frame()["decided_by"].value_counts()
    values = {
        "decided by": ", ".join(f"{reason} ({count})" for reason, count in reasons.items()),
        "left out": left_out(allocation),
        "set by hand": ", ".join(f"{name}: {rank}" for name, rank in allocation.edits.items()),
    }
    return facts("Decisions", values)


def compared_with_lora(allocation: Allocation, *, freeze_a: bool = True) -> Part:
    """Parameters and bytes of an allocation and of plain LoRA."""
    zero = f", {allocation.zero_parameters:,} of them zero for good" if allocation.zero_parameters else ""
    labels: list[tuple[str, Callable[[int], str]]] = [
        (f"trainable parameters{zero}", whole),
        ("all parameters", whole),
        ("adapter, float32", size_text),
        ("AdamW states, float32", size_text),
    ]
    rows = [
        [what, form(row.allocation), form(row.lora), percent(row.ratio)]
        for (what, form), row in zip(labels, allocation.costs(freeze_a=freeze_a).itertuples(), strict=True)
    ]
    head = ["", "this allocation", f"uniform LoRA, rank {allocation.rank}", "this allocation / LoRA"]
    return texts("Compared with uniform LoRA", head, rows)


def training_bytes(estimate: ResourceEstimate, adapter: Footprint, kind: str = "B") -> int:
    """Upper bound of the peak memory of training an adapter: that of the estimate's, and what this one adds."""
    uniform = uniform_footprints(estimate.shapes, estimate.meta.recipe["rank"])[kind]
    gradients = BYTES * (adapter.trainable_parameters - uniform.trainable_parameters)
    more = adapter.adapter_bytes - uniform.adapter_bytes + adapter.optimizer_bytes - uniform.optimizer_bytes
    return estimate.bytes[f"training {kind}"] + more + gradients
