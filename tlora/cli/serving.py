"""Commands for serving: look at an adapter as engines see it, and write one that all of them read alike."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

import tlora
from tlora.allocation.footprint import ranks_text, size_text
from tlora.cli.command_line import flat, written
from tlora.cli.evaluate import next_to
from tlora.cli.options import Adapter, BaseModel, Overwrite, Placement, Quiet, option
from tlora.cli.output import Report, facts, table
from tlora.utils.defaults import EngineName, Format

UNKNOWN = "BASE.gguf"
"""Stands for a file that only the user can name."""

EXPORTING = """Examples:

`tlora export demo demo-served --engine vllm`

`tlora export demo demo.gguf --engine llama.cpp`

`tlora export demo demo-whole --format merged --dtype bfloat16`
"""
INSPECTING = """Examples:

`tlora inspect demo`

`tlora inspect owner/somebodys-adapter@main --json`
"""
COMPRESSING = """Examples:

`tlora compress demo demo-half --parameters 0.5`

`tlora compress owner/adapter small --energy 0.95 --calibration calibration --held-out other-samples`
"""


@flat
def inspect(
    adapter: Adapter,
    energy: Annotated[
        float, typer.Option(help="Share of an update's squared norm that the used directions hold.")
    ] = 0.99,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel="Output")] = False,
) -> None:
    """Ranks, scales, the part of each rank that is used, and what each serving engine would compute.

    Reads the adapter's two files and nothing else; works on any PEFT LoRA adapter.
    """
    from tlora.serving.engines import FOREIGN

    seen = tlora.inspect(adapter)
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
        typer.echo(facts({"next": written(export, {"adapter": adapter, "output": next_to(adapter, "-served")})}))
    elif engines["refused"].isin(["", FOREIGN]).all():
        typer.echo("Every engine that reads PEFT's format computes what was trained.")


@flat
def compress(
    adapter: Adapter,
    output: Annotated[Path, typer.Argument(help="Folder to write the smaller adapter to.", show_default=False)],
    rank: Annotated[int | None, option("Budget", "Cut every module to this rank at most.")] = None,
    parameters: Annotated[
        float | None, option("Budget", "Parameters of all A and B, or up to 1 a share of them; shared over modules.")
    ] = None,
    energy: Annotated[
        float | None, option("Budget", "Keep this share of the squared measure with the fewest parameters.")
    ] = None,
    error: Annotated[
        float | None, option("Budget", "Let no module lose more than this share of its update's norm.")
    ] = None,
    calibration: Annotated[
        Path | None,
        option("Measure", "Folder of `tlora calibrate` on the base: cut by the outputs on its task, not the weights."),
    ] = None,
    held_out: Annotated[
        Path | None, option("Measure", "The same, of other samples: say what is lost on them, too.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Cut the ranks of a LoRA adapter, anybody's, where it costs least in its weights or in its outputs on a task.

    Give one of --rank, --parameters, --energy and --error. The base model is not loaded. Embeddings and heads are kept
    as they are; what cannot be cut, such as DoRA, is refused by name.
    """
    from tlora.adapters.files import ADAPTER_WEIGHTS, refuse_trained
    from tlora.cli import steps

    refuse_trained(output)
    steps.check_output(output, ADAPTER_WEIGHTS, overwrite)
    known, others = (f if f is None else tlora.Calibration.load(f) for f in (calibration, held_out))
    found = tlora.compress(
        adapter, rank=rank, parameters=parameters, energy=energy, error=error, calibration=known, held_out=others
    )
    found.save_adapter(output)
    frame = found.to_frame()
    rows = [["most rank kept", "before", "kept", "error"]]
    for row in frame.sort_values("rank", ascending=False, kind="stable").head(5).itertuples():
        rows.append([str(row.module), str(row.rank_before), str(row.rank), f"{row.error:.1%}"])
    typer.echo(f"{facts(_cut(found))}\n\n{table(rows)}\n\n{facts({'next': written(inspect, {'adapter': output})})}")


def _cut(found: tlora.Compression) -> dict[str, str]:
    """What was kept and what is lost, in words."""
    from tlora.adapters.compression import MEASURES

    (before, after), ranks = found.parameters, found.ranks.values()
    left_out = sum(not rank for rank in ranks)
    return {
        "base": found.meta.model,
        "kept": f"{after:,} of {before:,} parameters, {sum(ranks):,} of {sum(found.original_ranks.values()):,} ranks"
        + (f"; {left_out} modules are left out" if left_out else ""),
        **{f"lost ({measure})": f"{found.error(measure):.1%} of {MEASURES[measure]}" for measure in found.measures},
    }


def _about(seen: tlora.Inspection, use: Any, energy: float) -> dict[str, str]:
    from tlora.serving.engines import VLLM_RANKS, vllm_max_rank

    ranks, scalings = seen.ranks.values(), seen.scalings.values()
    used, given = int(use["used_rank"].sum()), int(use["rank"].sum())
    return {
        "base": seen.meta.model,
        "modules": f"{len(ranks)}, {ranks_text(ranks)}, scalings {min(scalings):.3g} to {max(scalings):.3g}",
        "used": f"{used:,} of {given:,} directions hold {100 * energy:g} % of each update",
        "besides": ", ".join(list(seen.others)[:3]) + (", ..." if len(seen.others) > 3 else ""),
        "vLLM": f"--max-lora-rank {vllm_max_rank(max(ranks))}" if max(ranks) <= VLLM_RANKS[-1] else "",
    }


def _readings(engines: Any, modules: int) -> dict[str, str]:
    """What each engine makes of the adapter, in words."""
    told = {"engine": "what it makes of it"}
    for row in engines.itertuples():
        said = f"does not take it: {row.refused}" if row.refused else "as trained"
        if row.wrong:
            said = f"{row.wrong} of {modules} modules scaled {row.smallest:.2g} to {row.largest:.2g} times"
        told[str(row.engine)] = said
    return told


@flat
def export(
    adapter: Adapter,
    output: Annotated[
        Path, typer.Argument(help="Folder to write; for gguf also a file, NAME.gguf.", show_default=False)
    ],
    format: Annotated[
        Format | None,
        option("Output", "An adapter for PEFT's readers or for llama.cpp, or the whole model. Default: by the engine."),
    ] = None,
    engine: Annotated[
        EngineName | None,
        option("Output", "Check an adapter against this engine's limits, and pad it to its ranks; merged, it fits."),
    ] = None,
    dtype: Annotated[
        str | None,
        option("Output", "float32, bfloat16 or float16. Default: float32, or the model's own where it is merged."),
    ] = None,
    device: Annotated[str | None, option("Model", "cpu, cuda, cuda:1, ... Default: CUDA where there is one.")] = None,
    model: BaseModel = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write an adapter for serving: every engine computes from it what was trained.

    For PEFT's readers with one rank for all modules, the scaling folded into B, and no patterns. Whatever the format,
    what was written is read again, and its logits are compared with those of the trained adapter.
    """
    from tlora.adapters.hub import adapter_folder
    from tlora.cli import steps
    from tlora.serving.export import choose_format
    from tlora.serving.verify import PROMPTS, export_difference

    report, kind = Report(quiet), choose_format(format, engine)
    folder = adapter_folder(adapter)
    base, _ = steps.base_of(folder, model)
    _check_export(output, kind, overwrite, {"the adapter itself": folder, "its base model": base})
    computing = Placement(device=device, dtype="float32" if dtype == "float32" else None)
    with report.step(f"exporting {adapter}"):
        adapted, tokenizer = steps.loaded(folder, model, computing)
        written_to = tlora.export(adapted, output, format=kind, engine=engine, dtype=dtype, tokenizer=tokenizer)
    with report.step("comparing its logits with those of the adapter"):
        prompts = [tokenizer(text, return_tensors="pt", return_token_type_ids=False) for text in PROMPTS]
        difference, change = export_difference(adapted, written_to, prompts)
    told = {
        "saved": f"{written_to}, {size_text(_size(written_to))}",
        "exact": f"logits differ by at most {difference:.2g} on {len(prompts)} prompts, where the adapter changes them "
        f"by up to {change:.2g}",
        **({} if engine is None or kind == "merged" else _served(written_to, base, engine)),
        "next": written(inspect, {"adapter": written_to}) if kind == "peft" else "",
    }
    typer.echo(facts(told))


def _check_export(output: Path, kind: str, overwrite: bool, kept: dict[str, str | Path]) -> None:
    """Refuse, before anything is computed, what could not be written when it is."""
    from tlora.cli import steps
    from tlora.serving.export import RECORD, check_place, gguf_file

    path = gguf_file(output) if kind == "gguf" else output
    check_place(path, kind, kept)
    if kind != "gguf":
        steps.check_output(output, RECORD, overwrite)
    elif path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: replace it with --overwrite, or name another")


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _served(path: Path, base: str, engine: EngineName) -> dict[str, str]:
    """The command that serves what was written, and what is to be known for it; empty where there is none to tell."""
    from tlora.models.loading import external_name
    from tlora.serving.engines import SERVERS

    server = SERVERS[engine]
    if not server.start:
        return {}
    place, is_gguf = external_name(base)
    if server.reads == "gguf":
        told = {} if is_gguf else {"base": f"{UNKNOWN} is {base} as llama.cpp's convert_hf_to_gguf.py writes it"}
        return {"serve": _line(server, place if is_gguf else UNKNOWN, path)} | told
    if is_gguf:
        said = f"{server.engine.name} takes no adapter on a GGUF file, as {base} is: export it with --format merged"
        return {"serve": said}
    return {"serve": _line(server, place, path)}


def _line(server: Any, base: str, adapter: Path) -> str:
    rank = max(tlora.inspect(adapter).ranks.values()) if server.reads == "peft" else ""
    return server.start.format(base=shlex.quote(base), adapter=shlex.quote(str(adapter)), rank=rank)
