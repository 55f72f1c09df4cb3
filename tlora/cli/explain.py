"""`tlora explain`: which modules of an adapter made an answer more likely."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import tlora
from tlora.cli.checks import PICTURE_FORMATS, check_picture
from tlora.cli.command_line import flatten_options
from tlora.cli.loading import load_adapted
from tlora.cli.options import AdapterName, BaseModel, Placement, Quiet, option
from tlora.cli.output import Report, draw_into, facts, load_viz, table

EXPLAIN_EXAMPLES = """Examples:

`tlora explain demo --prompt "Set the blind in the kitchen to 90 percent."`

`tlora explain owner/somebodys-adapter --prompt "2 + 2 =" --answer "4" --output answer.png`
"""


@flatten_options
def explain(
    adapter: AdapterName,
    placement: Placement,
    prompt: Annotated[str, option("Data", "The request, or the text to classify.")],
    answer: Annotated[
        str | None, option("Data", "The answer to explain, or the class. Default: the adapter's own.")
    ] = None,
    model: BaseModel = None,
    output: Annotated[
        Path | None,
        option("Output", f"Picture to draw: {', '.join(PICTURE_FORMATS)}.", "--output", "-o", callback=check_picture),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Which module did it? One answer of an adapter, anybody's, taken apart.

    What base and adapter answer; what each token of the answer gained, in nats; what the ten largest modules
    contributed to that, and what leaving each of them out costs. The contributions of all modules add up to the gain.
    """
    from tlora.adapters.hub import adapter_folder

    report = Report(quiet)
    with report.step(f"loading {adapter}"):
        adapted, tokenizer = load_adapted(adapter_folder(adapter), model, placement)
    with report.step("explaining the answer"):
        result = tlora.attribute(adapted, prompt, answer, tokenizer=tokenizer, progress=report.progress)
    (sample,) = result.samples
    said = dict(zip(("base answers", "adapter answers"), sample.generated, strict=True))
    typer.echo(f"{facts({name: _line(text) for name, text in said.items()} | {'explained': _line(sample.answer)})}\n")
    rows = [["token", "gain", "base", "adapter", "rank in base", "base's choice"]]
    for row in result.tokens().itertuples():
        numbers = [f"{row.rise:+.2f}", f"{row.base:.2f}", f"{row.adapter:.2f}", f"{row.base_rank:,}"]
        rows.append([_line(str(row.token)), *numbers, _line(str(row.base_choice))])
    typer.echo(f"{table(rows)}\n")
    typer.echo(f"{table([_HEADER, *map(_module_row, result.largest().itertuples())])}\n")
    if output:
        viz = load_viz()
        draw_into(output, viz, viz.plot_attribution(result))
        typer.echo(f"{facts({'saved': str(output)})}\n")
    typer.echo(result.sentence)


_HEADER = ["module", "rank", "contributed", "cost", "log-odds", "cost"]


def _module_row(row: Any) -> list[str]:
    odds = [f"{row.log_odds:+.2f}", f"{row.cost_log_odds:+.2f}"]
    return [row.module, str(row.rank), f"{row.contribution:+.2f}", f"{row.cost:+.2f}", *odds]


def _line(text: str) -> str:
    """A text in quotes, on one line."""
    return "“{}”".format(text.replace("\n", "\\n"))
