"""The model card: the README of an adapter's folder, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from tlora.adapters.files import ADAPTER_CONFIG
from tlora.models.loading import PACKAGED
from viz.reports import contents, formatting
from viz.reports.allocation import beside_uniform, by_projection
from viz.reports.contents import Findings
from viz.reports.rendering import template
from viz.reports.reproduce import attached, caveat, classes, commands, snippet, versions
from viz.reports.training import ENERGY, metrics_table, used_rank

PICTURE = Path("pictures", "allocation.png")
"""Where ``tlora run`` draws the allocation."""

# PEFT's task type -> the class of transformers that loads the base, and the hub's name of the task.
CLASSES = {
    "CAUSAL_LM": ("AutoModelForCausalLM", "text-generation"),
    "SEQ_CLS": ("AutoModelForSequenceClassification", "text-classification"),
    "SEQ_2_SEQ_LM": ("AutoModelForSeq2SeqLM", "text2text-generation"),
}


def card(folder: str | os.PathLike[str]) -> str:
    """The text of a model card: what the adapter is, its allocation, its metrics, and how to load it.

    Parameters
    ----------
    folder : path-like
        The folder of an adapter, as ``tlora run`` leaves it. The allocation's picture is linked to where it is there:
        ``pictures/allocation.png``.

    Returns
    -------
    str
        Markdown under the hub's YAML header, for ``README.md`` in the folder.

    Raises
    ------
    FileNotFoundError
        If the folder holds no adapter, or no results.
    ValueError
        If a result is damaged.
    """
    found, path = contents.load(folder), Path(folder)
    config = json.loads((path / ADAPTER_CONFIG).read_bytes())
    base = str(config.get("base_model_name_or_path") or found.model)
    run, allocation = found.run, found.allocation
    ranks = set(allocation.ranks.values()) if allocation else set()
    return template("card.md").render(
        header=_header(base, config),
        title=found.title,
        base=base,
        task=found.task,
        samples=formatting.several(allocation.meta.samples or 0, "sample") if allocation else "",
        plain=len(ranks) < 2 and attached(found).get("kind", "wc") is None,
        ranks=ranks,
        frozen=run is not None and run.frozen_a,
        head=config.get("task_type") == "SEQ_CLS",
        metrics=metrics_table(run) if run and (run.before or run.after) else None,
        allocation=allocation,
        picture=PICTURE.as_posix() if (path / PICTURE).is_file() else "",
        by_projection=by_projection(allocation) if allocation else None,
        beside=beside_uniform(allocation, freeze_a=run is None or run.frozen_a) if allocation else None,
        use=f"{used_rank(run.rank_use(ENERGY))}" if run and run.ranks else "",
        peft=_peft(base, config, found, path.resolve().name),
        tlora=f"import tlora\n\nmodel = tlora.load({path.resolve().name!r})",
        again="\n".join(commands(found)) or snippet(found),
        caveat=caveat(found),
        versions=versions(found),
    )


def _header(base: str, config: dict[str, Any]) -> str:
    """The YAML of the hub; a base that is not an id there, such as a folder, is named in the text alone."""
    try:
        validate_repo_id(base)
    except HFValidationError:
        on_hub = None
    else:
        on_hub = None if Path(base).exists() else base
    _, pipeline = CLASSES.get(config.get("task_type") or "", (None, None))
    tags = ["lora", "tlora"]
    return ModelCardData(base_model=on_hub, library_name="peft", pipeline_tag=pipeline, tags=tags).to_yaml()


def _peft(base: str, config: dict[str, Any], found: Findings, name: str) -> str:
    """Code that loads the adapter without this package."""
    loader, _ = CLASSES.get(config.get("task_type") or "", ("AutoModel", ""))
    imports, place = _place(base)
    lines = [*imports, "from peft import PeftModel", f"from transformers import {loader}", ""]
    lines.append(f"base = {loader}.from_pretrained({place}{classes(found)})")
    return "\n".join([*lines, f"model = PeftModel.from_pretrained(base, {name!r})"])


def _place(base: str) -> tuple[list[str], str]:
    """Imports, and the arguments that say where the base is; a packaged one lies in a Python package's folder."""
    if base not in PACKAGED:
        return [], repr(base)
    package, file = PACKAGED[base]
    imports = ["from importlib.util import find_spec", "from pathlib import Path", ""]
    folder = f"Path(find_spec({package!r}).origin).parent"
    if file.endswith(".gguf"):
        return imports, f"{folder}, gguf_file={file!r}"
    return imports, f"{folder} / {file!r}"
