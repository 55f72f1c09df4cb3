"""What the site holds beside its written pages: lists of names, commands, notebooks, pictures. No model is needed."""

from __future__ import annotations

import ast
import contextlib
import importlib
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
import typer
from docutils.nodes import make_id
from matplotlib import pyplot
from typer.cli import get_docs_for_click

import tlora
import viz
from tlora.cli.main import app
from tlora.result_kinds import LOADABLE
from viz.glossary import GLOSSARY, SAME

HERE = Path(__file__).parent
ROOT = HERE.parent
matplotlib.use("Agg")

PACKAGES = {"tlora": "tlora: from a model to an adapter", "viz": "viz: pictures, widgets and pages"}
STAGES = {
    "models": "A base model",
    "resources": "What it will take",
    "tasks": "A task",
    "calibration": "Stages 1 and 2: covariance and sensitivity",
    "subspaces": "Stage 3: subspaces",
    "allocation": "Stage 4: allocation",
    "adapters": "The adapter",
    "training": "Stage 5: training",
    "serving": "Serving",
    "explanation": "What an adapter reads and did",
    "recipes": "Recipes and races",
    "comparison": "Recipes and races",
    "result_kinds": "Files of results",
    "plots": "Pictures",
    "widgets": "Widgets and their page",
    "card": "Model card",
}
"""Headings of the reference, by the folder that a name is from."""


def write_lists() -> None:
    """A list for each package, by stage: what is public has a page, and nothing else has."""
    for package, title in PACKAGES.items():
        stub = Path(importlib.import_module(package).__file__).with_name("__init__.pyi").read_text()
        stages: dict[str, list[str]] = {}
        for folder, name in re.findall(r"^from \.(\w+)\S* import (\w+) as", stub, re.M):
            stages.setdefault(STAGES[folder], []).append(name)
        for name in returned() if package == "tlora" else ():
            stages[STAGES[name.split(".")[0]]].append(name)
        text = (
            f"{title}\n{'=' * len(title)}\n\n.. automodule:: {package}\n   :no-members:\n   :no-inherited-members:\n\n"
        )
        for stage, names in stages.items():
            listed = "\n".join(f"   {name}" for name in names)
            text += f"{stage}\n{'-' * len(stage)}\n\n.. currentmodule:: {package}\n\n"
            text += f".. autosummary::\n   :toctree:\n   :nosignatures:\n\n{listed}\n\n"
        (HERE / "reference" / f"{package}.rst").write_text(text)


def returned() -> list[str]:
    """Classes of results that functions return, which are not public names; below `tlora`."""
    kinds = (kind for name, kind in LOADABLE.items() if name not in tlora.__all__)
    return [f"{kind.__module__.removeprefix('tlora.')}.{kind.__name__}" for kind in kinds]


def seen_in() -> dict[str, list[str]]:
    """The pages that name each public name most often, at most six: concepts, how-to, gallery, notebooks."""
    folders = (HERE / "concepts", HERE / "howto", HERE / "gallery", ROOT / "notebooks")
    counts: dict[str, Counter[str]] = {}
    for path in (path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in (".md", ".ipynb")):
        place = f"{path.parent.name}/{path.stem}"
        for name in re.findall(r"(?<![\w.])((?:tlora|viz)\.\w+)", path.read_text()):
            counts.setdefault(name, Counter())[place] += 1
    return {name: [place for place, _ in found.most_common(6)] for name, found in counts.items()}


def commands() -> str:
    """Every command with its options, as typer describes them."""
    group = typer.main.get_command(app)
    text = get_docs_for_click(obj=group, ctx=typer.Context(group), name="tlora")
    return re.sub(r"^## ", "### ", text[text.index("## `tlora run`") :], flags=re.M)


def glossary() -> str:
    """Every word of the widgets with its sentence; other labels of the same word above it."""
    entries = {word: [word, *(label for label, same in SAME.items() if same == word)] for word in GLOSSARY}
    lines = [
        "\n".join(entries[word]) + f"\n  {sentence}\n"
        for word, sentence in sorted(GLOSSARY.items(), key=lambda item: item[0].lower())
    ]
    return "\n".join(["```{glossary}", *lines, "```", ""])


def copy_notebooks() -> None:
    """Sphinx reads no file outside of its folder; links from the copies lead to the pages of the site.

    Cells that are collapsed in JupyterLab are collapsed there, too, for which myst_nb has a tag.
    """
    shutil.copytree(ROOT / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
    copies = [HERE / "notebooks" / "README.md", *sorted((HERE / "notebooks").glob("*.ipynb"))]
    for path in copies:
        text = path.read_text().replace("../docs/", "../")
        path.write_text(re.sub(r'"jupyter": \{\s*"source_hidden": true\s*\}', '"tags": ["hide-input"]', text))
    names = "\n".join(path.stem for path in copies[1:])
    with copies[0].open("a") as page:
        page.write(f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n")


def write_pages() -> None:
    """The scenes, the widgets of the first page, and the workbench of the gallery; of the results of its pictures."""
    data = HERE / "gallery" / "data"
    names = ("sensitivity", "capture", "run", "estimate", "spectrum", "activations", "attribution")
    scores, capture, run, estimate, spectrum, activations, attribution = (
        tlora.load_result(data / name) for name in names
    )
    pages = HERE / "pages"
    pages.mkdir(exist_ok=True)
    viz.scenes(pages / "scenes.html")
    viz.report(attribution, pages / "answer.html")
    bench = viz.Workbench(scores, estimate=estimate, activations=activations)
    bench.page(pages / "workbench.html", texts=True)
    parts = {"capture": capture, "run": run, "estimate": estimate, "spectrum": spectrum}
    viz.Workbench(scores, **parts).page(pages / "report.html")


def with_pictures(text: str) -> str:
    """The gallery's text with what each block of code has drawn below it."""
    pictures = HERE / "gallery" / "pictures"
    pictures.mkdir(exist_ok=True)
    names: dict[str, Any] = {}

    def below(block: re.Match[str]) -> str:
        if (png := drawn(block[1], names, pictures / f"{block.start()}.png")) is None:
            return block[0]
        return f"{block[0]}\n![{block[1].splitlines()[-1]}](pictures/{png.name})\n"

    with contextlib.chdir(HERE / "gallery"):
        return with_cards(re.sub(r"^```python\n(.*?)^```\n", below, text, flags=re.M | re.S))


def with_cards(text: str) -> str:
    """The gallery's text with a card for the first picture of each section in place of the comment "cards"."""
    cards = [
        f':::{{grid-item-card}} {title}\n:img-top: {picture[1]}\n:link: "#{make_id(title)}"\n:::\n'
        for title, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
        if (picture := re.search(r"!\[.*?\]\((.*?)\)", section))
    ]
    return text.replace("<!-- cards -->", "\n".join(["::::{grid} 1 2 3 3\n:gutter: 2\n", *cards, "::::"]))


def drawn(code: str, names: dict[str, Any], file: Path) -> Path | None:
    """Run code; a file with the figure it has made or the widget on its last line, or None."""
    *lines, last = ast.parse(code).body
    exec(compile(ast.Module(lines, []), str(file), "exec"), names)
    if not isinstance(last, ast.Expr):
        exec(compile(ast.Module([last], []), str(file), "exec"), names)
        return None
    value = eval(compile(ast.Expression(last.value), str(file), "eval"), names)
    if hasattr(value, "_repr_png_"):
        file.write_bytes(value._repr_png_())
    elif pyplot.get_fignums():
        pyplot.savefig(file, dpi=110, bbox_inches="tight")
        pyplot.close("all")
    else:
        return None
    return file


def source_read(sphinx: object, page: str, source: list[str]) -> None:
    """Pages link to the notebooks where they are in the repository; three are finished here."""
    source[0] = source[0].replace("../notebooks/", "notebooks/")
    if page == "cli":
        source[0] += commands()
    if page == "glossary":
        source[0] += glossary()
    if page == "gallery/index":
        source[0] = with_pictures(source[0])


def make() -> None:
    """Write all that Sphinx reads."""
    (HERE / "reference").mkdir(exist_ok=True)
    write_lists()
    copy_notebooks()
    write_pages()
