"""`tlora explain --data`: a table of the answers of base and adapter to held-out requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import tlora
from tlora.cli.checks import PAGE_FORMAT, TABLE_FORMAT
from tlora.cli.evaluate import compare_with_training, is_split_here, recorded_data
from tlora.cli.loading import base_name, load_adapted, load_data
from tlora.cli.options import Placement
from tlora.cli.output import Report, load_viz
from tlora.utils.files import replace_file
from tlora.utils.text import count_text, facts_text, table_text

if TYPE_CHECKING:
    from tlora.explanation.compare_answers import AnswerTable

SHOWN, WIDTH = 20, 20
"""Rows that are printed, and characters of a text in them."""


def explain_data(
    adapter: str,
    data: str,
    split: str | None,
    limit: int,
    rows: Sequence[int],
    output: Path | None,
    model: str | None,
    placement: Placement,
    report: Report,
) -> None:
    """Print the table, and write it to a table or a page."""
    from tlora.adapters.hub import adapter_folder

    folder = adapter_folder(adapter)
    name, where = base_name(folder, model)
    task, split, words = _load_rows(adapter, folder, name, where, data, split, report)
    count = len(task.rows(split, limit))
    if out := [row for row in rows if not 0 <= row < count]:
        raise ValueError(f"--rows {out[0]}: there are {count} rows, from 0")
    with report.step(f"loading {adapter}"):
        adapted, _ = load_adapted(folder, model, placement)
    with report.step("comparing answers"):
        table = tlora.compare_answers(adapted, task, split=split, limit=limit, explain=rows, progress=report.progress)
    _print_rows(table)
    said = {"rows": f"{len(table.answers)} of {words}"}
    if output is not None:
        _write(table, output)
        said["saved"] = str(output)
    typer.echo(f"{facts_text(said)}\n")
    typer.echo(f"{table.headline}.")


def _load_rows(
    adapter: str, folder: Path, name: str, where: dict[str, Any], data: str, split: str | None, report: Report
) -> tuple[tlora.Task, str, str]:
    """Return the task, the split, and what the rows are in words."""
    from tlora.tasks.load import task_files

    record, recorded, is_trained_on, copied = recorded_data(folder, data)
    is_file = len(task_files(data)) == 1 and not Path(data).is_dir()
    split = split or ("test" if is_trained_on or not is_file else "all")
    if split == "all":
        if not is_file:
            raise ValueError(f"--split all takes a file, and {data} has splits: choose train, validation or test")
        task = _load_file(folder, name, where, data, report)
        overlap = f", with those that {adapter} was trained on" if is_trained_on else ""
        return task, "test", f"all {count_text(len(task.test), 'row')} of {data}{overlap}{copied}"
    task = load_data(name, recorded, report, **where)
    if record is not None:
        compare_with_training(adapter, data, task, record.meta, is_trained_on)
    count = count_text(len(task.rows(split)), f"{split} sample")
    held_out = ", held out in training" if is_trained_on and split == "test" and is_split_here(data) else ""
    return task, split, f"{count} of {data}{held_out}{copied}"


def _load_file(folder: Path, name: str, where: dict[str, Any], data: str, report: Report) -> tlora.Task:
    from tlora.adapters.files import read_training_record, validate_adapter
    from tlora.adapters.load_adapter import saved_classes
    from tlora.models.loading import load_config, load_tokenizer, set_length_limit
    from tlora.tasks.requests import load_requests

    record, config = read_training_record(folder), load_config(name, **where)
    count = saved_classes(folder, *validate_adapter(folder, "tlora"), record)
    classes = (record.meta and record.meta.recipe.get("classes")) or []
    if count and not classes:
        classes = [f"LABEL_{index}" for index in range(count)]
    architecture = "classification" if count else "seq2seq" if config.is_encoder_decoder else "causal"
    tokenizer = set_length_limit(load_tokenizer(name, **where), config)
    with report.step(f"reading {data} for {name}"):
        return load_requests(data, tokenizer, architecture, classes, progress=report.progress)


def _print_rows(table: AnswerTable) -> None:
    """Print the rows that are newly wrong, newly right and changed first."""
    order = table.reading_order
    lines = [["row", "request", "base", "", "adapter", "", "reference", "gain"]]
    for row in order[:SHOWN]:
        one = table.answers[row]
        base, adapter = one.base + "…" * one.base_cut, one.adapter + "…" * one.adapter_cut
        said = [_cut(base), _mark(one.base_right), _cut(adapter), _mark(one.adapter_right)]
        lines.append([str(row), _cut(one.request, end=True), *said, _cut(one.reference or ""), f"{one.gain:+.2f}"])
    typer.echo(f"{table_text(lines)}\n")
    if len(order) > SHOWN:
        typer.echo(f"{len(order) - SHOWN} more rows: --output answers{PAGE_FORMAT} or answers{TABLE_FORMAT} has all\n")


def _mark(right: bool | None) -> str:
    return "" if right is None else "right" if right else "wrong"


def _cut(text: str, end: bool = False) -> str:
    """A text on one line, in a few characters: its beginning, or its end."""
    line = " ".join(text.split())
    if len(line) <= WIDTH:
        return line
    return f"…{line[1 - WIDTH :]}" if end else f"{line[: WIDTH - 1]}…"


def _write(table: AnswerTable, output: Path) -> None:
    if output.suffix.lower() == TABLE_FORMAT:
        with replace_file(output) as fresh:
            table.to_frame().to_csv(fresh, index=False)
    else:
        load_viz().report(table, output)
