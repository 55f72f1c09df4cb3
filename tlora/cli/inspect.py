"""`tlora inspect`: the files of one adapter, or what two of them share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import tlora
from tlora.cli.command_line import next_command, with_suffix
from tlora.cli.options import AdapterName, BaseModel, Json, OtherAdapter, option
from tlora.cli.output import print_json, summary_text
from tlora.utils.defaults import ENERGY
from tlora.utils.text import facts_text, range_text, ranks_text, table_text

if TYPE_CHECKING:
    from tlora.serving.survival import Survival


def inspect(
    ctx: typer.Context,
    adapter: AdapterName,
    other: OtherAdapter = None,
    survival: Annotated[
        bool,
        option("Measure", "Also read the base, and measure what quantization leaves of the adapter.", "--survival"),
    ] = False,
    model: BaseModel = None,
    as_json: Json = False,
) -> None:
    """Ranks, scales, the part of each rank that is used, and what each serving engine would compute.

    Of two adapters: whether they share base, modules and A, and how much their updates overlap. Reads the files of the
    adapters and nothing else, except for --survival; works on any PEFT LoRA adapter.

    Examples
    --------
    `tlora inspect demo`

    `tlora inspect owner/somebodys-adapter@main --json`

    `tlora inspect demo other`

    `tlora inspect demo --survival`
    """
    if other is not None and survival:
        raise ValueError("--survival measures one adapter: leave OTHER out")
    if model is not None and not survival:
        raise ValueError("--model is read for --survival alone: add it, or leave --model out")
    if other is not None:
        _inspect_both(ctx, adapter, other, as_json)
        return
    from tlora.serving.engines import FOREIGN

    inspection = tlora.inspect(adapter)
    measured = tlora.survival(adapter, model, progress=not as_json) if survival else None
    use, engines = inspection.rank_use(), inspection.engines()
    if as_json:
        records = {"modules": inspection.to_frame().to_dict("records"), "engines": engines.to_dict("records")}
        if measured is not None:
            findings = [measured.finding(format) for format in measured.formats]
            records["survival"] = measured.to_frame().assign(finding=findings).to_dict("records")
        print_json({"base": inspection.meta.model, **records})
        return
    ranks, scalings = inspection.ranks.values(), inspection.scalings.values()
    about = {
        "base": inspection.meta.model,
        "modules": f"{len(ranks)}, {ranks_text(ranks)}, scaling {range_text(scalings)}",
        "used": f"{use['used_rank'].sum():,} of {use['rank'].sum():,} directions hold {ENERGY:.0%} of each update",
        "besides": ", ".join(list(inspection.others)[:3]),
    }
    rows = [["least used", "rank", "used", "update norm"]]
    for row in use.sort_values("use").head(5).itertuples():
        rows.append([row.module, str(row.rank), str(row.used_rank), f"{row.update_norm:.3g}"])
    effects = {"engine": "what it computes from it"}
    for row in engines.itertuples():
        effects[str(row.engine)] = f"does not take it: {row.refused}" if row.refused else "as trained"
        if row.wrong:
            scaled = f"scaled {range_text((row.smallest, row.largest), '{:.2g}'.format)} times"
            effects[str(row.engine)] = f"{row.wrong} of {len(ranks)} modules {scaled}"
    typer.echo(f"{facts_text(about)}\n\n{table_text(rows)}\n\n{facts_text(effects)}\n")
    if measured is not None:
        typer.echo(f"{survival_text(measured)}\n")
    if engines["wrong"].any() or len(set(ranks)) > 1:
        following = {"adapter": adapter, "output": with_suffix(adapter, "-served")}
        typer.echo(summary_text({"next": next_command(ctx, "export", following)}))
    elif engines["refused"].isin(["", FOREIGN]).all():
        typer.echo("Every engine that reads PEFT's format computes what was trained.")


def survival_text(measured: Survival) -> str:
    """Return a table of what each format leaves of an adapter, and the finding for each."""
    rows = [["quantized to", "survives", "95 % interval", "base changes by", "modules"]]
    for row in measured.to_frame().itertuples():
        interval = f"{row.low:.1%} to {row.high:.1%}"
        cells = [f"{row.share:.1%}", interval, f"{row.grid_distance:.2%}", str(row.modules)]
        rows.append([str(row.format).upper(), *cells])
    findings = {format.upper(): measured.finding(format) for format in measured.formats}
    missing = {"not measured": "; ".join(f"{name}: {why}" for name, why in measured.unmeasured.items())}
    return f"{table_text(rows)}\n\n{facts_text(findings | missing)}"


def _inspect_both(ctx: typer.Context, adapter: str, other: str, as_json: bool) -> None:
    """Print what two adapters share."""
    from tlora.adapters.adapter import LoraAdapter, difference_of_bases
    from tlora.explanation.interference import compare_adapters

    first, second = LoraAdapter.read(adapter, "inspect"), LoraAdapter.read(other, "inspect")
    difference = difference_of_bases(first, second)
    found = None if difference else compare_adapters(first, second, (Path(adapter).name, Path(other).name))
    if as_json:
        modules = [] if found is None else found.to_frame().to_dict("records")
        print_json({"difference of bases": difference, "modules": modules})
        return
    if found is None:
        typer.echo(facts_text({"base": f"not the same: {difference}"}))
        return
    frame = found.to_frame()
    both = frame[(frame["rank_first"] > 0) & (frame["rank_second"] > 0)]
    alone = {adapter: int((frame["rank_second"] == 0).sum()), other: int((frame["rank_first"] == 0).sum())}
    energies = [sum(float(grams[0, at, at]) for grams in found.grams.values()) for at in (0, 1)]
    idle = [name for name, energy in zip((adapter, other), energies, strict=True) if not energy]
    compared = both.dropna()  # an update of zero has no directions
    overlaps = {
        side: f"{compared[side].mean():.1%} overlap on average, {compared[f'{side}_random'].mean():.1%} by chance"
        for side in ("reads", "writes")
        if len(compared)
    }
    about = {
        "base": f"the same: {found.meta.model}",
        "modules": ", ".join([f"{len(both)} in both", *(f"{n} in {name} alone" for name, n in alone.items() if n)]),
        "A": f"the same in {int(both['same_a'].sum())} of {len(both)} modules",
        **overlaps,
        "updates": f"cosine {compared['cosine_first'].mean():+.2f} on average" if len(compared) else "",
        "size": "" if idle else f"squared norm of all updates {found.overall[0]:.2g} times as large in {other}",
        "zero": ", ".join(f"all updates of {name}: it changes nothing" for name in dict.fromkeys(idle)),
    }
    if idle:
        typer.echo(facts_text(about))
        return
    rows = [["most overlap", "ranks", "reads", "writes", "cosine"]]
    for row in compared.assign(overlap=compared["reads"] * compared["writes"]).nlargest(5, "overlap").itertuples():
        ranks = f"{row.rank_first} and {row.rank_second}"
        rows.append([str(row.module), ranks, f"{row.reads:.1%}", f"{row.writes:.1%}", f"{row.cosine_first:+.2f}"])
    values = {"adapters": [adapter, other], "output": with_suffix(adapter, f"-and-{Path(other).name}")}
    following = summary_text({"next": next_command(ctx, "combine", values)})
    typer.echo(f"{facts_text(about)}\n\n{table_text(rows)}\n\n{following}")
