"""`tlora export`: write an adapter for serving."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

import tlora
from tlora.cli.command_line import next_command
from tlora.cli.loading import base_name, load_adapted
from tlora.cli.options import AdapterName, BaseModel, Device, Overwrite, Placement, Quiet, option
from tlora.cli.output import Report, summary_text
from tlora.utils.defaults import Dtype, EngineName, Format
from tlora.utils.file_names import EXPORT_RECORD, GGUF_ADAPTER
from tlora.utils.files import check_place
from tlora.utils.text import size_text

UNKNOWN = "BASE.gguf"
"""Stands for a file that only the user can name."""


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
    target = gguf_file(output) if kind == "gguf" else output
    check_export_place(target, kind, [folder, base], overwrite)
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
        "quantize": quantization_fact(adapted) if kind == "merged" else "",
        "next": next_command(ctx, "inspect", {"adapter": path}) if kind == "peft" else "",
    }
    typer.echo(summary_text(summary))


def quantization_fact(adapted: Any) -> str:
    """Return what is left of the adapter if the merged model is quantized; empty if that cannot be measured."""
    try:
        return tlora.survival(adapted, rows=64, progress=False).headline
    except (ModuleNotFoundError, ValueError):  # no format is installed or fits, or the adapter is not plain LoRA
        return ""


def serving_facts(path: Path, base: str, engine: EngineName) -> dict[str, str]:
    """Return the command that serves an export, and what to know about its base; empty for an engine without one."""
    from tlora.models.loading import external_name
    from tlora.serving.engines import SERVERS

    server = SERVERS[engine]
    argument, is_gguf = external_name(base)
    if not server.start:
        return {}
    if server.reads == "peft" and is_gguf:
        text = f"{server.engine.name} takes no adapter on a GGUF file, as {base} is: export it with --format merged"
        return {"serve": text}
    rank = max(tlora.inspect(path).ranks.values()) if server.reads == "peft" else ""
    known = argument if server.reads == "peft" or is_gguf else UNKNOWN
    line = server.start.format(base=shlex.quote(known), adapter=shlex.quote(str(path)), rank=rank)
    explanation = f"{UNKNOWN} is {base} as llama.cpp's convert_hf_to_gguf.py writes it" if known == UNKNOWN else ""
    return {"serve": line, "base": explanation}
