"""Commands for serving: look at an adapter as engines see it, and write one that all of them read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from tlora import cli_steps as steps
from tlora.cli_adapter import Folder
from tlora.cli_options import BaseModel, Overwrite, Placement, Quiet, flat, written
from tlora.cli_report import Report, facts, table
from tlora.engines import VLLM_RANKS, vllm_max_rank
from tlora.export import export as write_export
from tlora.inspection import Inspection
from tlora.inspection import inspect as read
from tlora.run import ADAPTER_CONFIG

INSPECTING = """Examples:

`tlora inspect demo`

`tlora inspect somebodys-adapter --json`
"""


@flat
def inspect(
    adapter: Folder,
    energy: Annotated[
        float, typer.Option(help="Share of an update's squared norm that the used directions hold.")
    ] = 0.99,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel="Output")] = False,
) -> None:
    """Ranks, scales, the part of each rank that is used, and what each serving engine would compute.

    Reads the adapter's two files and nothing else; works on any PEFT LoRA adapter.
    """
    seen = read(adapter)
    use, engines = seen.rank_use(energy), seen.engines()
    if as_json:
        modules = seen.to_frame().assign(used_rank=use["used_rank"])
        records = {"modules": modules.to_dict("records"), "engines": engines.to_dict("records")}
        typer.echo(json.dumps({"base": seen.meta.model, **records}, indent=2))
        return
    by_use = use.sort_values("use")
    rows = [["least used", "rank", "used", "update norm"]]
    rows += [[r.module, str(r.rank), str(r.used_rank), f"{r.update_norm:.3g}"] for r in by_use.head(5).itertuples()]
    typer.echo(f"{facts(_about(seen, use, energy))}\n\n{table(rows)}\n\n{facts(_readings(engines, len(seen.ranks)))}\n")
    if engines["wrong"].any() or len(set(seen.ranks.values())) > 1:
        typer.echo(facts({"next": written(export, {"adapter": adapter, "output": steps.beside(adapter, "-served")})}))
    else:
        typer.echo("Every engine that reads PEFT's format computes what was trained.")


def _about(seen: Inspection, use: pd.DataFrame, energy: float) -> dict[str, str]:
    ranks, scalings = seen.ranks.values(), seen.scalings.values()
    used, given = int(use["used_rank"].sum()), int(use["rank"].sum())
    return {
        "base": seen.meta.model,
        "modules": f"{len(ranks)}, ranks {min(ranks)} to {max(ranks)}, "
        f"scalings {min(scalings):.3g} to {max(scalings):.3g}",
        "used": f"{used:,} of {given:,} directions hold {100 * energy:g} % of each update",
        "besides": ", ".join(list(seen.others)[:3]) + (", ..." if len(seen.others) > 3 else ""),
        "vLLM": f"--max-lora-rank {vllm_max_rank(max(ranks))}" if max(ranks) <= VLLM_RANKS[-1] else "",
    }


def _readings(engines: pd.DataFrame, modules: int) -> dict[str, str]:
    """What each engine makes of the adapter, in words."""
    told = {"engine": "what it makes of it"}
    for row in engines.itertuples():
        said = f"refuses: {row.refused}" if row.refused else "as trained"
        if row.wrong:
            said = f"{row.wrong} of {modules} modules scaled {row.smallest:.2g} to {row.largest:.2g} times"
        told[str(row.engine)] = said
    return told


@flat
def export(
    adapter: Folder,
    output: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    placement: Placement,
    model: BaseModel = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """One rank for all modules, the scaling folded into B, no patterns: every engine computes the same from it."""
    steps.check_output(output, ADAPTER_CONFIG, overwrite)
    with Report(quiet).step(f"exporting {adapter}"):
        adapted, _ = steps.loaded(adapter, model, placement)
        write_export(adapted, output)
    typer.echo(facts({"saved": str(output), "next": written(inspect, {"adapter": output})}))
