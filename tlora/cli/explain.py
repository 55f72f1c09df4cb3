"""`tlora explain`: which modules of an adapter made an answer more likely, and what it changed on other text."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import typer

import tlora
from tlora.cli.answers import explain_data
from tlora.cli.checks import (
    PAGE_FORMAT,
    PICTURE_FORMATS,
    TABLE_FORMAT,
    check_adapter,
    check_explanation,
    check_model,
    check_task,
)
from tlora.cli.command_line import flatten_options
from tlora.cli.loading import base_name, load_adapted, load_texts_for
from tlora.cli.options import BaseModel, Placement, Quiet, Texts, option
from tlora.cli.output import Report, draw_into, load_viz
from tlora.utils.files import check_place
from tlora.utils.text import facts_text, table_text

EXTRACTED = 64
"""Rank at which a full fine-tune is explained."""
LIMIT = 64
"""Rows of a table of answers."""
Rows = Literal["train", "validation", "test", "all"]


@flatten_options
def explain(
    placement: Placement,
    adapter: Annotated[
        str | None,
        typer.Argument(
            metavar="[ADAPTER]",
            help="Folder of a PEFT LoRA adapter, or its name on the hub: owner/name, owner/name@revision.",
            callback=check_adapter,
        ),
    ] = None,
    prompt: Annotated[str | None, option("Data", "The request, or the text to classify.")] = None,
    answer: Annotated[
        str | None, option("Data", "The answer to explain, or the class. Default: the adapter's own.")
    ] = None,
    text: Texts = (),  # type: ignore[assignment]
    data: Annotated[
        str | None,
        option(
            "Data",
            "Requests for a table of answers: a file, whose rows may lack references, a folder, or the name of a task.",
            "--data",
            callback=check_task,
        ),
    ] = None,
    split: Annotated[
        Rows | None,
        option(
            "Data",
            "Rows of --data. Default: the test samples that were held out when the adapter was trained on it, else all "
            "of a file.",
        ),
    ] = None,
    limit: Annotated[int, option("Data", "Most rows of --data, drawn at random.", min=1)] = LIMIT,
    rows: Annotated[
        list[int],
        option("Data", "Row of the table, from 0, to take apart by module. May be repeated.", "--rows"),
    ] = (),  # type: ignore[assignment]
    model: BaseModel = None,
    tuned: Annotated[
        str | None,
        option("Model", "A full fine-tune of --model, in place of an adapter.", "--tuned", callback=check_model),
    ] = None,
    rank: Annotated[int, option("Model", "Rank of the adapter that is extracted from --tuned.", min=1)] = EXTRACTED,
    output: Annotated[
        Path | None,
        option(
            "Output",
            f"Picture to draw: {', '.join(PICTURE_FORMATS)}; or a page, {PAGE_FORMAT}. Of --data a page, or a table, "
            f"{TABLE_FORMAT}.",
            "--output",
            "-o",
            callback=check_explanation,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Which module did it, and what else did it change? Give --prompt, --data or --text; for any LoRA adapter.

    With --prompt, one answer is taken apart: what base and adapter answer; what each token of the answer gained, in
    nats; what the ten largest modules contributed to that, and what leaving each of them out costs. The contributions
    of all modules add up to the gain.

    With --data, base and adapter answer many requests: a table says which answers are right and which changed. As a
    page it can be sorted and filtered, and a row opens as a conversation; --rows says what each of its tokens gained.

    With --text, the adapter is measured on text that it was not meant for: the change of the loss of each set, and the
    tokens that lost and gained most, with the modules that contributed most.

    A full fine-tune is explained by the adapter that `tlora extract` takes from it: give --model and --tuned. What the
    fine-tune adds to an answer beyond that adapter is a row, not in the adapter.

    Examples
    --------
    `tlora explain demo --prompt "Set the blind in the kitchen to 90 percent."`

    `tlora explain owner/somebodys-adapter --prompt "2 + 2 =" --answer "4" --output answer.png`

    `tlora explain demo --data requests.jsonl --output answers.html`

    `tlora explain demo --text prose --text code --text notes.txt --output worst.png`

    `tlora explain --model models/base --tuned models/tuned --prompt "2 + 2 ="`
    """
    from tlora.adapters.hub import adapter_folder

    if (adapter is None) == (tuned is None):
        raise ValueError("give an ADAPTER, or a full fine-tune by --tuned")
    if tuned is not None and model is None:
        raise ValueError("--tuned needs its base: give --model")
    if (prompt is not None) + (data is not None) + bool(text) != 1:
        raise ValueError("give --prompt for one answer, --data for a table of answers, or --text for other text")
    if prompt is None and answer is not None:
        raise ValueError("--answer belongs to --prompt: leave it out with --text and --data")
    if data is None and (rows or split is not None or limit != LIMIT):
        raise ValueError("--split, --limit and --rows belong to --data: leave them out")
    is_table = output is not None and output.suffix.lower() == TABLE_FORMAT
    if output and (is_table if data is None else not is_table and output.suffix.lower() != PAGE_FORMAT):
        formats = f"{TABLE_FORMAT} or {PAGE_FORMAT}" if data else f"{', '.join(PICTURE_FORMATS)} or {PAGE_FORMAT}"
        raise ValueError(f"{output}: end its name with {formats}")
    if data is not None and tuned is not None:
        raise ValueError("--data compares an adapter with its base: take one from --tuned by `tlora extract`")
    if output:
        check_place(output)
        if not is_table:
            load_viz()  # or it names the extra that is missing, before the work
    report, fine_tune = Report(quiet), None
    if data is not None:
        explain_data(str(adapter), data, split, limit, rows, output, model, placement, report)
        return
    folder = None if adapter is None else adapter_folder(adapter)
    name, where = (str(model), {}) if folder is None else base_name(folder, model)
    texts = load_texts_for(name, text, **where) if text else {}
    if folder is not None:
        with report.step(f"loading {adapter}"):
            adapted, tokenizer = load_adapted(folder, model, placement)
    else:
        adapted, tokenizer, fine_tune = _load_extracted(name, str(tuned), rank, placement, report)
    if prompt is None:
        _explain_texts(adapted, texts, output, report)
    else:
        _explain_answer(adapted, tokenizer, prompt, answer, fine_tune, output, report)


def _load_extracted(base: str, tuned: str, rank: int, placement: Placement, report: Report) -> tuple[Any, Any, Any]:
    """Return the base with the adapter that is in the fine-tune, its tokenizer, and the fine-tune itself."""
    with report.step(f"extracting from {tuned}"):
        extraction = tlora.extract(base, tuned, rank, progress=report.progress)
    report.say(f"  {extraction!r}")
    with report.step(f"loading {tuned}"), TemporaryDirectory() as folder:
        extraction.save_adapter(folder)
        adapted, tokenizer = load_adapted(Path(folder), base, placement)
        fine_tune, _ = tlora.load_model(tuned, **placement.arguments())
    adapted.config.id2label, adapted.config.label2id = fine_tune.config.id2label, fine_tune.config.label2id
    return adapted, tokenizer, fine_tune


def _explain_answer(
    adapted: Any, tokenizer: Any, prompt: str, answer: str | None, tuned: Any, output: Path | None, report: Report
) -> None:
    from tlora.explanation.attribution import HEAD, REST

    with report.step("explaining the answer"):
        result = tlora.attribute(adapted, prompt, answer, tokenizer=tokenizer, tuned=tuned, progress=report.progress)
    (sample,) = result.samples
    said = dict(zip(("base answers", "adapter answers"), sample.generated, strict=True))
    typer.echo(
        f"{facts_text({name: _line(text) for name, text in said.items()} | {'explained': _line(sample.answer)})}\n"
    )
    rows = [["token", "gain", "base", "adapter", "rank in base", "base's choice"]]
    for row in result.tokens().itertuples():
        numbers = [f"{row.rise:+.2f}", f"{row.base:.2f}", f"{row.adapter:.2f}", f"{row.base_rank:,}"]
        rows.append([_line(str(row.token)), *numbers, _line(str(row.base_choice))])
    typer.echo(f"{table_text(rows)}\n")
    others = {HEAD: result.head, REST: result.rest}
    more = [[label, "", f"{nats:+.2f}", "", "", ""] for label, nats in others.items() if nats]
    typer.echo(f"{table_text([_HEADER, *map(_module_row, result.largest().itertuples()), *more])}\n")
    _draw(output, "plot_attribution", result)
    typer.echo(result.sentence)


def _explain_texts(adapted: Any, texts: dict[str, tlora.Task], output: Path | None, report: Report) -> None:
    with report.step("measuring other text"):
        effects = tlora.side_effects(adapted, texts, progress=report.progress)
    rows = [["set", "texts", "tokens", "loss of base", "of adapter", "change", "95 % interval"]]
    for row in effects.sets().itertuples():
        losses = [f"{row.base_loss:.3f}", f"{row.adapter_loss:.3f}", f"{row.loss_change:+.3f}"]
        ends = f"{row.low:+.3f} to {row.high:+.3f}" if row.samples > 1 else "-"
        rows.append([row.set, str(row.samples), str(row.tokens), *losses, ends])
    typer.echo(f"{table_text(rows)}\n")
    for title, tokens in (("lost most", effects.lost(5)), ("gained most", effects.rose(5))):
        rows = [[title, "change", "base", "adapter", "set", "after"]]
        for row in tokens.itertuples():
            numbers = [f"{row.rise:+.2f}", f"{row.base:.2f}", f"{row.adapter:.2f}"]
            rows.append([_line(row.token), *numbers, row.set, _line(row.before[-24:])])
        typer.echo(f"{table_text(rows)}\n")
    if effects.attribution is not None:
        modules = map(_module_row, effects.attribution.largest(5).itertuples())
        typer.echo(f"{table_text([_HEADER, *modules])}\n")
    _draw(output, "plot_side_effects", effects)
    typer.echo(f"{effects.headline}.")


def _draw(output: Path | None, plot: str, result: Any) -> None:
    if output:
        viz = load_viz()
        if output.suffix.lower() == PAGE_FORMAT:
            viz.report(result, output)
        else:
            draw_into(output, viz, getattr(viz, plot)(result))
        typer.echo(f"{facts_text({'saved': str(output)})}\n")


_HEADER = ["module", "rank", "contributed", "cost", "log-odds", "cost"]


def _module_row(row: Any) -> list[str]:
    odds = [f"{row.log_odds:+.2f}", f"{row.cost_log_odds:+.2f}"]
    return [row.module, str(row.rank), f"{row.contribution:+.2f}", f"{row.cost:+.2f}", *odds]


def _line(text: str) -> str:
    """A text in quotes, on one line."""
    return "“{}”".format(text.replace("\n", "\\n"))
