"""The model card: the README of an adapter's folder, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, StrictUndefined, Template

from tlora.models.loading import PACKAGED
from tlora.utils.file_names import ADAPTER_CONFIG
from tlora.utils.text import count_text
from tlora.utils.validation import check_arguments
from viz.widgets.panels.allocation import by_projection, compared_with_lora
from viz.widgets.panels.parts import Part
from viz.widgets.panels.rank_use import ENERGY, used_rank
from viz.widgets.panels.reproduce import attach_arguments, caveat, commands, num_labels_argument, python_calls, versions
from viz.widgets.panels.training import ending, metrics_table
from viz.widgets.results import Results, load_results

PICTURE = Path("pictures", "allocation.png")
"""The picture of the allocation that ``tlora run`` draws."""
CLASSES = {
    "CAUSAL_LM": ("AutoModelForCausalLM", "text-generation"),
    "SEQ_CLS": ("AutoModelForSequenceClassification", "text-classification"),
    "SEQ_2_SEQ_LM": ("AutoModelForSeq2SeqLM", "text2text-generation"),
}
"""By PEFT's task type, the class of transformers that loads the base, and the hub's name of the task."""


def card(folder: str | os.PathLike[str]) -> str:
    """The text of a model card: what the adapter is, its allocation, its metrics, and how to load it.

    Parameters
    ----------
    folder : path-like
        The folder of an adapter, as ``tlora run`` leaves it. The card links to the picture of the allocation if the
        folder has one: ``pictures/allocation.png``.

    Returns
    -------
    str
        Markdown under the hub's YAML header, for ``README.md`` in the folder.

    Raises
    ------
    FileNotFoundError
        If the folder holds no adapter, or no results.

    Examples
    --------
    >>> import tempfile
    >>> folder = run.save(tempfile.mkdtemp() + "/adapter")
    >>> print(viz.card(folder))
    ---
    library_name: peft
    ...
    """
    check_arguments(card, locals())
    results, path = load_results(folder), Path(folder)
    config = json.loads((path / ADAPTER_CONFIG).read_bytes())
    base = str(config.get("base_model_name_or_path") or results.model)
    run, allocation, name = results.run, results.allocation, path.resolve().name
    ranks = set(allocation.ranks.values()) if allocation else set()
    return _template().render(
        header=hub_header(base, config),
        title=results.title,
        base=base,
        task=results.task,
        samples=count_text(allocation.meta.samples or 0, "sample") if allocation else "",
        plain=len(ranks) < 2 and attach_arguments(results).get("kind", "wc") is None,
        ranks=ranks,
        frozen=run is not None and run.frozen_a,
        ending=ending(run) if run else "",
        head=config.get("task_type") == "SEQ_CLS",
        example=run.meta.recipe.get("example") if run else None,
        split=run.evaluated_on if run else "",
        metrics=metrics_table(run) if run and (run.before or run.after) else None,
        allocation=allocation,
        picture=PICTURE.as_posix() if (path / PICTURE).is_file() else "",
        by_projection=by_projection(allocation) if allocation else None,
        compared=compared_with_lora(allocation, freeze_a=run is None or run.frozen_a) if allocation else None,
        use=used_rank(run.rank_use(ENERGY)) if run and run.ranks else "",
        peft=_peft_code(base, config, results, name),
        tlora=f"import tlora\n\nmodel = tlora.load_adapter({name!r})",
        again="\n".join(commands(results)) or python_calls(results),
        caveat=caveat(results),
        versions=versions(results),
    )


@cache
def _template() -> Template:
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )  # fmt: skip
    environment.filters |= {"escaped": escape, "fenced": fence, "markdown": markdown_table}
    return environment.from_string(Path(__file__).with_name("card.md").read_text("utf-8"))


def escape(text: object) -> str:
    """Text on one line in which Markdown and HTML mean nothing."""
    one_line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", one_line.replace("&", "&amp;").replace("<", "&lt;"))


def fence(code: str, language: str) -> str:
    """A block of code, fenced by more backticks than are in it."""
    marks = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return f"{marks}{language}\n{code}\n{marks}"


def markdown_table(part: Part) -> str:
    """A table of a panel in Markdown."""
    lines = ["| " + " | ".join(map(escape, row)) + " |" for row in [part["head"], *part["rows"]]]
    rule = "|" + "|".join("---" if i in part["text"] else "--:" for i in range(len(part["head"]))) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def hub_header(base: str, config: dict[str, Any]) -> str:
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


def _peft_code(base: str, config: dict[str, Any], results: Results, name: str) -> str:
    """Code that loads the adapter without this package."""
    loader, _ = CLASSES.get(config.get("task_type") or "", ("AutoModel", ""))
    imports, arguments = base_arguments(base)
    lines = [*imports, "from peft import PeftModel", f"from transformers import {loader}", ""]
    lines.append(f"base = {loader}.from_pretrained({arguments}{num_labels_argument(results)})")
    return "\n".join([*lines, f"model = PeftModel.from_pretrained(base, {name!r})"])


def base_arguments(base: str) -> tuple[list[str], str]:
    """Imports, and the arguments that say where the base is; a packaged one lies in a Python package's folder."""
    if base not in PACKAGED:
        return [], repr(base)
    package, file = PACKAGED[base]
    imports = ["from importlib.util import find_spec", "from pathlib import Path", ""]
    folder = f"Path(find_spec({package!r}).origin).parent"
    if file.endswith(".gguf"):
        return imports, f"{folder}, gguf_file={file!r}"
    return imports, f"{folder} / {file!r}"
