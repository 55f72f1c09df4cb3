"""Section on the allocation: where the rank went, beside a uniform allocation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields

import pandas as pd

from tlora.allocation.allocation import Allocation
from tlora.allocation.constraints import AllocationOptions
from viz.plots.allocation import left_out, whole
from viz.reports import formatting
from viz.reports.components import Column, Part, Section, Table, Text, facts, table
from viz.reports.contents import Findings
from viz.reports.rendering import allocation_picture


def allocation(found: Findings) -> Section:
    """Where the rank went, beside a uniform allocation."""
    about = (
        "Where the rank goes. Scores give more of the budget to modules the loss is more sensitive to. Compared with "
        "LoRA of the same rank everywhere, whose A is trained too."
    )
    missing = (
        "allocation = tlora.allocate(calibration.sensitivity, rank=8)\n"
        f'allocation.save("{found.folder}/tlora/allocation")'
    )
    allocation = found.allocation
    parts: list[Part] = []
    if allocation is not None:
        parts = [
            allocation_picture(allocation),
            *_warnings(found),
            beside_uniform(allocation, freeze_a=found.run is None or found.run.frozen_a),
            by_projection(allocation),
            _asked_for(allocation),
            *_by_hand(allocation),
            _rank_grid(allocation),
        ]
    return Section("allocation", "Allocation", about, parts, missing)


def _warnings(found: Findings) -> list[Part]:
    """What does not fit together."""
    allocation, run = found.allocation, found.run
    if allocation is None or run is None or not run.ranks or run.ranks == allocation.ranks:
        return []
    return [Text("This is not the allocation of the adapter that was trained: their ranks differ.")]


def beside_uniform(allocation: Allocation, *, freeze_a: bool = True) -> Table:
    """Parameters and bytes of an allocation, and of plain LoRA."""
    ours, lora = allocation.footprint(freeze_a=freeze_a), allocation.lora
    rows = [
        _compared("trainable parameters", ours.trainable_parameters, lora.trainable_parameters, formatting.whole),
        _compared("parameters in all", ours.parameters, lora.parameters, formatting.whole),
        _compared("adapter, float32", ours.adapter_bytes, lora.adapter_bytes, formatting.size),
        _compared("optimiser state of AdamW", ours.optimizer_bytes, lora.optimizer_bytes, formatting.size),
    ]
    columns = [
        Column("what", ""),
        Column("ours", "this allocation", str.strip),
        Column("lora", f"uniform LoRA, rank {allocation.rank}", str.strip),
        Column("part", "this allocation / LoRA", formatting.percent),
    ]
    return table(pd.DataFrame(rows), "Beside uniform LoRA", columns)


def _compared(what: str, ours: int, lora: int, form: Callable[[int], str]) -> dict[str, str | float]:
    return {"what": what, "ours": form(ours), "lora": form(lora), "part": ours / lora}


def by_projection(allocation: Allocation) -> Table:
    """The allocation summed up by projection; the uniform allocation holds what is excluded too."""
    groups = whole(allocation).groupby("projection", sort=False)
    frame = groups.agg(
        modules=("rank", "count"),
        total=("rank", "sum"),
        uniform=("uniform", "sum"),
        least=("rank", "min"),
        mean=("rank", "mean"),
        most=("rank", "max"),
        scaling=("scaling", "mean"),
        parameters=("parameters", "sum"),
    ).reset_index()
    columns = [
        Column("projection", "projection"),
        Column("modules", "modules", formatting.whole),
        Column("total", "ranks", formatting.whole),
        Column("uniform", "uniform", formatting.whole),
        Column("least", "least", formatting.whole),
        Column("mean", "mean", formatting.number),
        Column("most", "most", formatting.whole),
        Column("scaling", "mean scaling", formatting.number),
        Column("parameters", "parameters of B", formatting.whole),
    ]
    return table(frame, "By projection", columns)


def _asked_for(allocation: Allocation) -> Table:
    reasons = allocation.to_frame()["decided_by"].value_counts()
    values = {
        "budget": f"{allocation.budget_used:,} of {allocation.budget_total:,} {allocation.options.unit}",
        "decided by": ", ".join(f"{reason} ({count})" for reason, count in reasons.items()),
        "left out": left_out(allocation),
    }
    asked = {formatting.worded(name): _words(value) for name, value in changed_knobs(allocation).items()}
    return facts("What was asked for", asked | values)


def changed_knobs(allocation: Allocation) -> dict[str, object]:
    """Arguments of `tlora.allocate` that are not as by default; the rank is always among them."""
    changed: dict[str, object] = {}
    for option in fields(AllocationOptions):
        value = getattr(allocation.options, option.name)
        default = option.default if option.default_factory is MISSING else option.default_factory()
        if value != default and not (option.name == "alpha" and value == allocation.rank):
            changed[option.name] = value
    return changed


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {part}" for name, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _by_hand(allocation: Allocation) -> list[Part]:
    if not allocation.edits:
        return []
    return [facts("Ranks set by hand", {name: str(rank) for name, rank in allocation.edits.items()})]


def _rank_grid(allocation: Allocation) -> Table:
    """Ranks, one row a layer and one column a projection: the picture in numbers."""
    frame = allocation.to_frame()
    grid = frame.pivot(index="layer", columns="projection", values="rank")
    names = list(dict.fromkeys(frame["projection"]))
    columns = [Column("layer", "layer"), *(Column(name, name, formatting.whole) for name in names)]
    return table(grid.reset_index(), "Ranks by layer and projection", columns, folded=True)
