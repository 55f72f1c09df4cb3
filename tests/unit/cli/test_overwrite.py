"""What each command does to what stands where it is to write: its own results are replaced, everything else stays."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import tlora
import viz
from tests.helpers.adapted import adapted_model
from tests.helpers.commands import DATA, QUICK, RUN, done, invoke
from tlora.cli import pipeline, trained

pytestmark = pytest.mark.usefixtures("stages", "card_alone")

ADAPTER, EXPORT, RESULT = "adapter_model.safetensors", "export.json", "result.safetensors"
COMMANDS = {
    "init": ("init llama pairs.jsonl --samples 6 --rank 2 --output {}", ADAPTER),
    "run": (f"{RUN} {QUICK} --output {{}}", ADAPTER),
    "train": (f"train {DATA} alloc calib {QUICK} --output {{}}", ADAPTER),
    "compress": ("compress adapter --output {} --rank 1", ADAPTER),
    "combine": ("combine adapter=0.5 --output {}", ADAPTER),
    "extract": ("extract llama tuned --output {} --rank 2", ADAPTER),
    "export": ("export adapter --output {} --quiet", EXPORT),
    "merge": ("export adapter --output {} --format merged --quiet", EXPORT),
    "calibrate": (f"calibrate {DATA} --samples 6 --output {{}}", RESULT),
    "allocate": ("allocate calib --rank 2 --output {}", RESULT),
}
"""The line of each command, and the file by which its earlier result is known."""

INPUTS = {
    "compress": "adapter",
    "combine": "adapter",
    "export": "adapter",
    "calibrate": "llama/model",
    "allocate": "calib",
}
"""What a command reads, named as its output; for all others it is the folder of the model."""

OTHERS = ("a trained adapter", "another trainer's adapter", "a file", "a stranger's folder", "the input")


@pytest.fixture
def card_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the model card, and draw nothing."""
    plots = dict.fromkeys(("plot_spectrum", "plot_sensitivity", "plot_allocation", "plot_training"), lambda _: None)
    monkeypatch.setattr(trained, "load_viz", lambda: SimpleNamespace(card=viz.card, **plots))
    monkeypatch.setattr(trained, "draw_into", lambda *_: None)


@pytest.fixture(scope="module")
def standing(saved_stages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that may stand at an output, by name; each holds notes of the user."""
    folder = tmp_path_factory.mktemp("standing")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(saved_stages)
        patch.setattr(pipeline, "draw_pictures", lambda *_: "")
        for command in ("init", "compress", "combine", "extract", "export", "merge"):
            done(COMMANDS[command][0].format(folder / command))
    for name in ("run", "train", "a trained adapter"):
        shutil.copytree(saved_stages / "adapter", folder / name)
    for command, result in (("calibrate", "calib"), ("allocate", "alloc")):
        (folder / command).mkdir()
        shutil.copy(saved_stages / f"{result}.safetensors", folder / command / RESULT)
    other = adapted_model(init_lora_weights=False)
    other.save_pretrained(str(folder / "another trainer's adapter"), save_embedding_layers=False)
    (folder / "a stranger's folder").mkdir()
    for place in folder.iterdir():
        (place / "notes.txt").write_text("mine")
        if place.name != "init":  # which writes a page of its own
            (place / "README.md").write_text("mine")
    return folder


def output_of(command: str, there: str, standing: Path) -> str:
    """Put what stands there at the output of a command, and return how the command line names it."""
    writes_file = COMMANDS[command][1] == RESULT
    if there == "the input":
        return INPUTS.get(command, "llama")
    if there == "a file":
        Path("out.safetensors" if writes_file else "out").write_text("mine")
        return "out"
    if there != "nothing":
        shutil.copytree(standing / (command if there == "its own result" else there), "out")
    if writes_file:
        return {"another trainer's adapter": "out/adapter_model", "a trained adapter": "out/tlora/run"}.get(
            there, "out/result"
        )
    return "out"


def stamps() -> dict[str, tuple[bytes, int]]:
    """Content and time of every file here and behind the links."""
    paths = [Path(root, name) for root, _, names in os.walk(".", followlinks=True) for name in names]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def refused_cases() -> Iterator[tuple[str, str, str]]:
    for command, (_, marker) in COMMANDS.items():
        yield command, "its own result", ""
        for there in OTHERS:
            is_own = there == "a trained adapter" and command in ("run", "train")
            is_new = there == "a stranger's folder" and marker == RESULT
            yield from ((command, there, option) for option in ("", " --overwrite") if not is_own and not is_new)


@pytest.mark.parametrize(("command", "there", "option"), list(refused_cases()))
def test_what_a_command_has_not_written_stays_and_is_named(
    command: str, there: str, option: str, standing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, marker = COMMANDS[command]
    output = output_of(command, there, standing)
    before = stamps()
    for name in (
        "calibrate",
        "allocate",
        "train",
        "compress",
        "combine",
        "extract",
        "export",
    ):  # it refuses before it computes
        monkeypatch.setattr(tlora, name, None)
    refusal = invoke(line.format(output) + option)
    assert stamps() == before
    assert refusal.exit_code == 2, refusal.stdout
    stranger = "README.md" if there == "a stranger's folder" else output
    assert any(name in refusal.stderr for name in (stranger, marker)), refusal.stderr
    assert output in refusal.stderr


@pytest.mark.parametrize(
    ("command", "there"),
    [
        *((command, there) for command in COMMANDS for there in ("nothing", "its own result")),
        *((command, "a stranger's folder") for command in ("calibrate", "allocate")),
    ],
)
def test_a_command_writes_where_nothing_stands_and_replaces_its_own_result(
    command: str, there: str, standing: Path
) -> None:
    line, marker = COMMANDS[command]
    output = output_of(command, there, standing)
    before = stamps()
    done(line.format(output) + " --overwrite" * (there == "its own result"))
    after = stamps()
    own = {name for name in before if name.startswith("out/") and Path(name).name not in ("notes.txt", "README.md")}
    own |= {"out/README.md"} if command == "init" else set()
    assert {name: stamp for name, stamp in after.items() if name in before and name not in own} == {
        name: stamp for name, stamp in before.items() if name not in own
    }
    assert after[f"out/{marker}"] != before.get(f"out/{marker}")
    assert (command in ("init", "run", "train") and there == "nothing") <= Path("out/README.md").exists()
    assert not [name for name in after.keys() - before.keys() if not name.startswith("out/")]


def test_a_race_refuses_before_it_trains_where_its_winner_would_replace_another_adapter(standing: Path) -> None:
    shutil.copytree(standing / "another trainer's adapter", "out/adapter")
    Path("out/race.safetensors").write_text("of an earlier race")
    before = stamps()
    refusal = invoke(f"race {DATA} --output out --overwrite")
    assert (refusal.exit_code, f"out/adapter/{ADAPTER}" in refusal.stderr) == (2, True)
    assert stamps() == before
