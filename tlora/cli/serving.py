"""Commands for saved adapters: inspect one or two, cut one, combine several, and export one for serving."""

from __future__ import annotations

import shlex
from functools import reduce
from pathlib import Path
from typing import Annotated

import typer

import tlora
from tlora.cli.checks import check_positive, check_saved_result, check_saved_results, parse_weight
from tlora.cli.command_line import next_command, with_suffix
from tlora.cli.loading import base_name, load_adapted
from tlora.cli.options import (
    AdapterName,
    BaseModel,
    Device,
    Json,
    OtherAdapter,
    Output,
    Overwrite,
    Placement,
    Quiet,
    option,
)
from tlora.cli.output import Report, print_json
from tlora.utils.defaults import ENERGY, CombineMethod, Dtype, EngineName, Format
from tlora.utils.file_names import ADAPTER_WEIGHTS, EXPORT_RECORD, GGUF_ADAPTER
from tlora.utils.files import check_place
from tlora.utils.text import facts_text, range_text, ranks_text, size_text, table_text

UNKNOWN = "BASE.gguf"
"""Stands for a file that only the user can name."""


def inspect(
    ctx: typer.Context,
    adapter: AdapterName,
    other: OtherAdapter = None,
    as_json: Json = False,
) -> None:
    """Ranks, scales, the part of each rank that is used, and what each serving engine would compute.

    Of two adapters: whether they share base, modules and A, and how much their updates overlap. Reads the files of the
    adapters and nothing else; works on any PEFT LoRA adapter.

    Examples
    --------
    `tlora inspect demo`

    `tlora inspect owner/somebodys-adapter@main --json`

    `tlora inspect demo other`
    """
    if other is not None:
        _inspect_both(ctx, adapter, other, as_json)
        return
    from tlora.serving.engines import FOREIGN

    inspection = tlora.inspect(adapter)
    use, engines = inspection.rank_use(), inspection.engines()
    if as_json:
        records = {"modules": inspection.to_frame().to_dict("records"), "engines": engines.to_dict("records")}
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
    if engines["wrong"].any() or len(set(ranks)) > 1:
        following = {"adapter": adapter, "output": with_suffix(adapter, "-served")}
        typer.echo(facts_text({"next": next_command(ctx, "export", following)}))
    elif engines["refused"].isin(["", FOREIGN]).all():
        typer.echo("Every engine that reads PEFT's format computes what was trained.")


def _inspect_both(ctx: typer.Context, adapter: str, other: str, as_json: bool) -> None:
    """Print what two adapters share."""
    from tlora.adapters.adapter import LoraAdapter, difference_of_bases
    from tlora.explanation.interference import compare_adapters

    one, two = LoraAdapter.read(adapter, "inspect"), LoraAdapter.read(other, "inspect")
    difference = difference_of_bases(one, two)
    found = None if difference else compare_adapters(one, two, (Path(adapter).name, Path(other).name))
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
    following = {"adapters": [adapter, other], "output": with_suffix(adapter, f"-and-{Path(other).name}")}
    typer.echo(
        f"{facts_text(about)}\n\n{table_text(rows)}\n\n{facts_text({'next': next_command(ctx, 'combine', following)})}"
    )


def compress(
    ctx: typer.Context,
    adapter: AdapterName,
    output: Output,
    rank: Annotated[int | None, option("Budget", "Cut every module to this rank at most.", min=1)] = None,
    parameters: Annotated[
        float | None,
        option("Budget", "Parameters of all A and B, or up to 1 a share of them.", callback=check_positive),
    ] = None,
    energy: Annotated[
        float | None,
        option("Budget", "Keep this share of the squared measure with the fewest parameters.", min=0, max=1),
    ] = None,
    error: Annotated[
        float | None,
        option("Budget", "Let no module lose more than this share of its update's norm.", min=0, max=1),
    ] = None,
    calibration: Annotated[
        Path | None,
        option("Measure", "Of the base: cut by the outputs on its task, not the weights.", callback=check_saved_result),
    ] = None,
    held_out: Annotated[
        Path | None,
        option("Measure", "Another, of other samples: print what is lost on them too.", callback=check_saved_result),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Cut the ranks of a LoRA adapter, anybody's, where it costs least in its weights or in its outputs on a task.

    Give one of --rank, --parameters, --energy and --error. The base model is not loaded. Embeddings and heads are kept
    as they are; what cannot be cut, such as DoRA, is refused by name.

    Examples
    --------
    `tlora compress demo --parameters 0.5 --output demo-half`

    `tlora compress owner/adapter --energy 0.95 --calibration calibration --held-out other-samples --output small`
    """
    if sum(value is not None for value in (rank, parameters, energy, error)) != 1:
        raise ValueError("give one of --rank, --parameters, --energy and --error")
    check_place(output, ADAPTER_WEIGHTS, overwrite=overwrite, inputs=[adapter])
    from tlora.adapters.compression import MEASURES
    from tlora.adapters.files import COMPRESS, refuse_other_writer

    refuse_other_writer(output, COMPRESS)
    own, other = (None if path is None else tlora.Calibration.load(path) for path in (calibration, held_out))
    compression = tlora.compress(
        adapter, rank=rank, parameters=parameters, energy=energy, error=error, calibration=own, held_out=other
    )
    compression.save_adapter(output)
    before, after = compression.parameters
    kept, whole = sum(compression.ranks.values()), sum(compression.original_ranks.values())
    summary = {
        "base": compression.meta.model,
        "kept": f"{after:,} of {before:,} parameters, {kept:,} of {whole:,} ranks",
        **{f"lost ({m})": f"{compression.error(m):.1%} of {MEASURES[m]}" for m in compression.measures},
    }
    most = compression.to_frame().sort_values("rank", ascending=False, kind="stable").head(5).itertuples()
    rows = [[str(r.module), str(r.rank_before), str(r.rank), f"{r.error:.1%}"] for r in most]
    typer.echo(f"{facts_text(summary)}\n\n{table_text([['most rank kept', 'before', 'kept', 'error'], *rows])}\n")
    typer.echo(facts_text({"next": next_command(ctx, "inspect", {"adapter": output})}))


def combine(
    ctx: typer.Context,
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[=WEIGHT]...",
            help="Folder of each adapter, or its name on the hub, and its weight in the sum. Default weight: 1.",
        ),
    ],
    output: Output,
    method: Annotated[
        CombineMethod, option("Method", "The exact sum, or what PEFT's functions of these names make of the updates.")
    ] = "sum",
    rank: Annotated[
        int | None,
        option(
            "Method",
            "Cut every module to this rank at most. Default: the rank that a sum needs, and for the other methods the "
            "largest of the adapters.",
            min=1,
        ),
    ] = None,
    density: Annotated[float, option("Method", "Share of entries that the other methods keep.", min=0, max=1)] = 0.5,
    head: Annotated[str | None, option("Method", "Adapter whose head to keep, if several have one.")] = None,
    seed: Annotated[int, option("Method", "Seed of the entries that the dare methods drop.", min=0)] = 0,
    calibration: Annotated[
        list[Path] | None,
        option(
            "Measure",
            "Of the base on the task of each adapter; may be repeated. Cut by the outputs on all of them.",
            callback=check_saved_results,
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Put LoRA adapters of one base together: their exact weighted sum, the same cut to a rank, or a merge by PEFT.

    The base model is not loaded. The sum keeps the rank of the adapters where they have the same A, and has the sum of
    their ranks elsewhere. What cannot be combined, such as DoRA or another base, is refused by name.

    Examples
    --------
    `tlora combine demo other --output both`

    `tlora combine demo=1 other=0.5 --rank 8 --calibration one --calibration other-calibration --output both`

    `tlora combine demo other --method ties --density 0.3 --output both`
    """
    weights = dict(map(parse_weight, adapters))
    if len(weights) < len(adapters):
        raise ValueError(f"an adapter is named twice in {' '.join(adapters)}: give it one weight")
    check_place(output, ADAPTER_WEIGHTS, overwrite=overwrite, inputs=weights)
    from tlora.adapters.files import COMBINE, refuse_other_writer

    refuse_other_writer(output, COMBINE)
    known = [tlora.Calibration.load(path) for path in calibration or ()]
    combination = tlora.combine(
        weights,
        method=method,
        rank=rank,
        calibration=reduce(tlora.Calibration.merge, known) if known else None,
        density=density,
        head=head,
        seed=seed,
    )
    combination.save_adapter(output)
    frame = combination.to_frame()
    parts = " + ".join(f"{weight:g} * {name}" for name, weight in weights.items())
    summary = {
        "base": combination.meta.model,
        "combined": parts if method == "sum" else f"{parts}, by {method}",
        "modules": f"{len(frame)}, {ranks_text(frame['rank'])}, {frame['parameters'].sum():,} parameters",
        "A": f"the same in {frame['same_a'].sum()} of {len(frame)} modules",
        "lost": f"up to {frame['error'].max():.1%} of a module's update" if frame["error"].any() else "nothing",
        "head": f"that of {combination.head}" if combination.head else "",
        "next": next_command(ctx, "inspect", {"adapter": output}),
    }
    typer.echo(facts_text(summary))


def export(
    ctx: typer.Context,
    adapter: AdapterName,
    output: Annotated[Path, option("Output", "Folder to write; for gguf also a file, NAME.gguf.", "--output", "-o")],
    format: Annotated[
        Format | None,
        option("Output", "An adapter for PEFT's readers or for llama.cpp, or the whole model. Default: by the engine."),
    ] = None,
    engine: Annotated[
        EngineName | None,
        option("Output", "Check an adapter against this engine's limits, and pad it to its ranks; merged, it fits."),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        option("Output", "Precision of what is written. Default: float32; for merged, the model's own."),
    ] = None,
    device: Device = None,
    model: BaseModel = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write an adapter for serving: every engine computes from it what was trained.

    For PEFT's readers with one rank for all modules, the scaling folded into B, and no patterns; merged, with the
    adapter folded into the weights of its base, a whole model that transformers loads on its own. Whatever the format,
    what was written is read again, and its logits are compared with those of the trained adapter.

    Examples
    --------
    `tlora export demo --engine vllm --output demo-served`

    `tlora export demo --engine llama.cpp --output demo.gguf`

    `tlora export demo --format merged --dtype bfloat16 --output demo-whole`
    """
    for earlier in (output, output / EXPORT_RECORD, output / GGUF_ADAPTER):
        if earlier.is_file():
            check_place(earlier, overwrite=overwrite)
    from tlora.adapters.hub import adapter_folder
    from tlora.serving.export import check_export_place, choose_format, gguf_file
    from tlora.serving.verify import PROMPTS, export_difference

    report, kind, folder = Report(quiet), choose_format(format, engine, output), adapter_folder(adapter)
    base, _ = base_name(folder, model)
    place = gguf_file(output) if kind == "gguf" else output
    check_export_place(place, kind, [folder, base], overwrite)
    placement = Placement(device=device, dtype="float32" if dtype == "float32" else None)
    with report.step(f"exporting {adapter}"):
        adapted, tokenizer = load_adapted(folder, model, placement)
        path = tlora.export(adapted, output, format=kind, engine=engine, dtype=dtype, tokenizer=tokenizer)
    with report.step("comparing its logits with those of the adapter"):
        prompts = [tokenizer(text, return_tensors="pt", return_token_type_ids=False) for text in PROMPTS]
        difference, change = export_difference(adapted, path, prompts)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    summary = {
        "saved": f"{path}, {size_text(sum(file.stat().st_size for file in files))}",
        "exact": f"logits differ by at most {difference:.2g} on {len(prompts)} prompts, on which the adapter changes "
        f"them by up to {change:.2g}",
        **({} if engine is None or kind == "merged" else serving_facts(path, base, engine)),
        "next": next_command(ctx, "inspect", {"adapter": path}) if kind == "peft" else "",
    }
    typer.echo(facts_text(summary))


def serving_facts(path: Path, base: str, engine: EngineName) -> dict[str, str]:
    """Return the command that serves an export, and what to know about its base; empty for an engine without one."""
    from tlora.models.loading import external_name
    from tlora.serving.engines import SERVERS

    server = SERVERS[engine]
    place, is_gguf = external_name(base)
    if not server.start:
        return {}
    if server.reads == "peft" and is_gguf:
        text = f"{server.engine.name} takes no adapter on a GGUF file, as {base} is: export it with --format merged"
        return {"serve": text}
    rank = max(tlora.inspect(path).ranks.values()) if server.reads == "peft" else ""
    known = place if server.reads == "peft" or is_gguf else UNKNOWN
    line = server.start.format(base=shlex.quote(known), adapter=shlex.quote(str(path)), rank=rank)
    explanation = f"{UNKNOWN} is {base} as llama.cpp's convert_hf_to_gguf.py writes it" if known == UNKNOWN else ""
    return {"serve": line, "base": explanation}
