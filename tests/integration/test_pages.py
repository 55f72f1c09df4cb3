"""The code on every page of docs runs, in the order in which it stands there."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests.helpers.experts import tiny_mixture
from tests.helpers.jobs import PAIRS
from tests.helpers.models import tiny_tokenizer
from tests.helpers.pages import DOCS, ROOT, WRITTEN, blocks, commands, run
from tests.helpers.trainers import THEIR_WARNINGS
from tlora.models import loading
from tlora.tasks import load as tasks
from tlora.tasks.reasoning_gym import generate_splits

pytestmark = [THEIR_WARNINGS, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
RUN = {"python", "sh", "yaml"}
# Tests of their own look at what comes of these; the build draws the gallery, and the first page is the README.
ELSEWHERE = {"howto/own_trainer.md", "gallery/index.md", "index.md"}
# Pages that take ten seconds or more: each command there has a test of its own.
LONG = {"cli.md", "howto/lm_eval.md", "howto/beat_uniform.md", "howto/several_gpus.md"}
PAGES = [
    page for path in WRITTEN
    if (page := path.relative_to(DOCS).as_posix()) not in ELSEWHERE
    and RUN & {language for language, _ in blocks(path.read_text())}
]  # fmt: skip


def few(name: str, sizes: dict[str, int | None], *options: Any) -> Any:
    """Fewer questions than are drawn by default."""
    small = {"train": 48, "validation": 8, "test": 8}
    return generate_splits(name, {split: size or small[split] for split, size in sizes.items()}, *options)


@pytest.fixture
def place(workplace: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> Iterator[Path]:
    """A folder with what pages start from: tiny models by the names of the packaged ones, and a file of requests."""
    tiny = {"smollm2-135m": ("tests", str(workplace / "llama")), "minilm": ("tests", str(workplace / "bert"))}
    monkeypatch.setattr(loading, "PACKAGED", tiny)
    monkeypatch.setattr(tasks, "generate_splits", few)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    (workplace / "base").symlink_to(workplace / "llama")
    tiny_mixture(moe_intermediate_size=32).save_pretrained(workplace / "mixture")
    tiny_tokenizer().save_pretrained(workplace / "mixture")
    rows = [pair | {"completion": f" {pair['completion']}"} for pair in PAIRS]
    smart_home = workplace / "notebooks" / "data" / "smart_home"
    smart_home.mkdir(parents=True)
    others = [row | {"prompt": f"w50 {row['prompt']}"} for row in rows[:8]]
    parts = {"requests.jsonl": rows, smart_home / "train.jsonl": rows, smart_home / "test.jsonl": others}
    for file, some in parts.items():
        (workplace / file).write_text("".join(json.dumps(row) + "\n" for row in some))
    matplotlib.use("Agg")
    yield workplace
    plt.close("all")


@pytest.mark.parametrize("path", [*WRITTEN, ROOT / "README.md"], ids=lambda path: path.name)
def test_every_block_says_what_becomes_of_it(path: Path) -> None:
    languages = {language for language, _ in blocks(path.read_text())}
    assert {name for name in languages if not name.startswith("{")} <= RUN | {"text", "bash"}


@pytest.mark.parametrize("path", [*WRITTEN, ROOT / "README.md"], ids=lambda path: path.name)
def test_programs_and_tests_that_a_page_names_are_there(path: Path) -> None:
    text = path.read_text()
    modules = re.findall(r"python -m ((?:benchmarks|tests)[\w.]*)", text)
    files = re.findall(r"(?<![\w/.])((?:benchmarks|tests|notebooks|docs)/[\w/.-]*\.(?:py|sh|jsonl|ipynb))", text)
    places = [module.replace(".", "/") for module in modules]
    named = [f"{place}/__main__.py" if (ROOT / place).is_dir() else f"{place}.py" for place in places] + files
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.rest
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] if page in LONG else []) for page in PAGES]
)
def test_a_page_runs_from_top_to_bottom(page: str, place: Path) -> None:
    run((DOCS / page).read_text(), page)


@pytest.mark.rest
def test_so_does_the_readme(place: Path) -> None:
    run((ROOT / "README.md").read_text().split("## In your own trainer")[0], "README.md")


def test_the_first_page_has_the_code_of_the_readme() -> None:
    pages = [(ROOT / "README.md").read_text().split("## In your own trainer")[0], (DOCS / "index.md").read_text()]
    readme, first = ([ast.dump(ast.parse(text)) for kind, text in blocks(page) if kind == "python"] for page in pages)
    assert first == readme
    typed = [{line for kind, text in blocks(page) if kind == "sh" for line in commands(text)} for page in pages]
    assert {line for line in typed[1] if line.startswith("tlora")} <= typed[0]
