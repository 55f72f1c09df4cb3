"""Refuse what cannot work before torch is imported: numbers, and paths that are missing or not free to write."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import typer

from tlora.utils.defaults import RECIPE_NAMES, TEXTS
from tlora.utils.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, result_file
from tlora.utils.files import foreign_lora

PICTURE_FORMATS = (".png", ".svg", ".pdf")
PAGE_FORMAT = ".html"
TABLE_FORMAT = ".csv"


def check_positive(value: float | None) -> float | None:
    """Refuse a number that is not above 0."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value:g} must be above 0")
    return value


def check_recipe(name: str) -> str:
    """Refuse what is not the name of a recipe."""
    if name == "tlora":
        raise typer.BadParameter(
            "'tlora' names two recipes: take captured, the default, or tlora-paper, the published method"
        )
    if name not in RECIPE_NAMES:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(RECIPE_NAMES)}")
    return name


def check_device(device: str | None) -> str | None:
    """Refuse what is not the name of a device."""
    if device is not None and not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", device):
        raise typer.BadParameter(f"{device!r} is not a device: use cpu, cuda or cuda:0")
    return device


def check_model(model: str | None) -> str | None:
    """Refuse a path that does not exist; other names may be packaged models or on the hub."""
    is_path = model and (model[0] in "/.~" or model.count("/") > 1 or model.endswith((".gguf", ".json")))
    if is_path and not Path(str(model)).exists():
        raise FileNotFoundError(f"no model in {model}: there is no such file or folder")
    return model


def check_task(task: str | None) -> str | None:
    """Refuse a path that does not exist; other names may be presets or tasks of reasoning-gym."""
    if task and ("/" in task or Path(task).suffix) and not Path(task).exists():
        raise FileNotFoundError(f"{task} does not exist: TASK is a file, a folder or the name of a task")
    return task


def check_texts(texts: list[str]) -> list[str]:
    """Refuse paths that do not exist; other names are packaged sets or tasks."""
    for text in texts:
        if ("/" in text or Path(text).suffix) and not Path(text).exists():
            raise FileNotFoundError(f"{text} does not exist: --text takes {', '.join(TEXTS)}, a file, or a task")
    return texts


def check_adapter(adapter: str | None) -> str | None:
    """Refuse a folder without an adapter; owner/name may be on the hub."""
    if adapter is None:
        return None
    folder = Path(adapter)
    if not folder.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@.+)?", adapter):
        return adapter
    if not folder.exists():
        raise FileNotFoundError(f"no adapter in {adapter}: there is no such folder")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(foreign_lora(folder) or f"no adapter in {adapter}: it holds no {name}")
        if not os.access(folder / name, os.R_OK):
            raise PermissionError(f"{folder / name} cannot be read: give yourself the permission (chmod u+r)")
    return adapter


def check_picture(picture: Path | None) -> Path | None:
    """Refuse a file for a picture in a format that matplotlib does not write here."""
    if picture is not None and picture.suffix.lower() not in PICTURE_FORMATS:
        raise typer.BadParameter(f"{picture}: end its name with one of {', '.join(PICTURE_FORMATS)}")
    return picture


def check_picture_or_page(path: Path | None) -> Path | None:
    """Refuse a file that is neither a picture nor a page."""
    return path if path is not None and path.suffix.lower() == PAGE_FORMAT else check_picture(path)


def check_explanation(path: Path | None) -> Path | None:
    """Refuse a file that is neither a picture, nor a page, nor a table."""
    return path if path is not None and path.suffix.lower() == TABLE_FORMAT else check_picture_or_page(path)


def check_saved_result(path: Path | None) -> Path | None:
    """Refuse a result that does not exist."""
    if path is not None and not result_file(path).is_file():
        raise FileNotFoundError(f"no result at {result_file(path)}")
    return path


def check_saved_results(paths: list[Path] | None) -> list[Path] | None:
    """Refuse results that do not exist."""
    for path in paths or ():
        check_saved_result(path)
    return paths


def parse_weight(text: str) -> tuple[str, float]:
    """Return the adapter and the weight of ``ADAPTER=WEIGHT``, 1 without a weight, refusing a folder without one."""
    name, _, weight = text.rpartition("=") if re.search(r"=[-+.\de]+$", text) else (text, "", "1")
    check_adapter(name)
    try:
        return name, float(weight)
    except ValueError as error:
        raise ValueError(f"{text} is not ADAPTER=WEIGHT, such as demo=0.5") from error
