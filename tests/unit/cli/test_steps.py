"""What the command line refuses, and what stays when a run breaks off."""

import errno
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import tlora
from tests.helpers.commands import DATA, QUICK, RUN, done, invoke, next_command
from tlora.cli import steps

pytestmark = pytest.mark.usefixtures("workplace", "no_pictures")


def content(folder: str | Path = ".") -> dict[str, bytes]:
    """Every file and folder here, hidden ones too, by name; the bytes of files."""
    paths = [path for path in Path(folder).rglob("*") if not path.is_symlink()]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}


def refused(line: str) -> str:
    """Run a command that is refused: one sentence, exit 2, nothing on stdout, every file as before. The sentence."""
    before = content()
    result = invoke(line)
    assert result.exit_code == 2, result.stdout
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert content() == before
    errors = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return errors[0].removeprefix("error: ")


@pytest.fixture
def computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is refused before the model has run."""

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("computed something before refusing")

    monkeypatch.setattr(steps, "calibrate", never)
    monkeypatch.setattr(steps, "task_subspaces", never)
    monkeypatch.setattr(steps, "train", never)


@pytest.mark.usefixtures("computes_nothing")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--model lama --task pairs.jsonl", "no model 'lama'"),
        ("--model llama --task nix.jsonl", "nix.jsonl does not exist"),
        ("--model llama --task family_relationship", "Did you mean 'family_relationships'?"),
        ("--model bert --task pairs.jsonl", "bert is an encoder and writes no text"),
        (f"{DATA} --samples 33", "33 calibration samples asked for, the training split of 'pairs' has 32"),
        (f"{DATA} --recipe tlora --covariance sketch --sketch-size 4 --rank 5", "raise max_rank"),
        ("--model llama --task nix.jsonl --dtype fp16", "dtype='fp16' is not a floating-point type"),
        (f"{DATA} --train-samples 1000", "1000"),
        (f"{DATA} --device tpu", "device='tpu' is not a device"),
        (f"{DATA} --dtype int8", "dtype='int8'"),
        (f"{DATA} --rank 33", "take a rank of"),
        (f"{DATA} --recipe tlora --rank 8 --max-rank 4", "max_rank"),
        (f"{DATA} --alpha 0", "alpha must be above 0"),
        (f"{DATA} --lr 0", "learning_rate must be above 0"),
        (f"{DATA} --epochs -1", "epochs must be above 0"),
        (f"{DATA} --kind wc", "--kind wc has no effect where A is random, by --recipe lora or --no-init"),
        (f"{DATA} --recipe tlora --no-init --rows variance", "or take --recipe tlora without --no-init"),
        (f"{DATA} --budget parameters", "--budget parameters has no effect where all ranks are the same"),
        (
            f"{DATA} --recipe tlora --a-learning-rate 1e-4",
            "--a-learning-rate 0.0001 is for an A that is trained: add --no-freeze-a",
        ),
        (f"{DATA} --recipe tlora-trained --freeze-a-after 20", "freeze_a_after"),
    ],
)
def test_run_refuses_before_it_computes(options, says):
    assert says in refused(f"run {options} --output out")


@pytest.mark.parametrize(
    "option",
    [
        "--rank 0",
        "--samples 0",
        "--batch-size 0",
        "--kind wcw",
        "--scaling both",
        "--covariance both",
        "--sketch-size 0",
        "--eval-limit -1",
        "--ranks",
    ],
)
def test_options_are_checked_where_they_are_read(option):
    result = invoke(f"run {DATA} --output out {option}")
    assert result.exit_code == 2
    assert option.split()[0] in result.stderr
    assert not Path("out").exists()


@pytest.mark.usefixtures("computes_nothing")
def test_run_refuses_folders_that_are_not_its_to_replace(monkeypatch):
    Path("thesis").mkdir()
    Path("thesis/chapter.txt").write_text("mine")
    Path("file").write_text("mine")
    assert "thesis exists and holds no adapter_model.safetensors" in refused(f"{RUN} --output thesis")
    assert "thesis exists and holds no" in refused(f"{RUN} --output thesis --overwrite")
    assert "file is a file" in refused(f"{RUN} --output file")
    assert "exists and holds no" in refused(f"{RUN} --output . --overwrite")
    assert "cannot write" in refused(f"{RUN} --output file/out")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f"calibrate {DATA} --checkpoint pairs.jsonl --output other", "'pairs.jsonl' is a file: name a folder"),
        ("allocate nix --output other", "no result at nix.safetensors"),
        ("allocate alloc --output other", "alloc.safetensors holds Allocation, not Calibration"),
        ("allocate calib --output alloc", "alloc.safetensors holds an earlier result: replace it with --overwrite"),
        (f"calibrate {DATA} --output calib", "--overwrite"),
        (
            f"calibrate {DATA} --output alloc --overwrite",
            "alloc.safetensors holds Allocation, which Calibration would replace",
        ),
        (
            "allocate calib --output calib --overwrite",
            "calib.safetensors holds Calibration, which Allocation would replace",
        ),
        (f"train {DATA} --calibration calib --allocation alloc --output adapter", "--overwrite"),
        (
            "train --model nix --task pairs.jsonl --allocation alloc --output other",
            "pass --calibration, or --no-init",
        ),
        (
            f"train {DATA} --calibration alloc --allocation alloc --output other",
            "holds Allocation, not Calibration",
        ),
        (f"train {DATA} --calibration calib --allocation calib --output other", "holds Calibration, not Allocation"),
        (f"train {DATA} --calibration calib --allocation alloc --output other --resume", "no whole checkpoint"),
        (
            "train --model t5 --task pairs.jsonl --calibration calib --allocation alloc --output other",
            "these results are of another model",
        ),
        (
            f"train {DATA} --calibration calib --allocation alloc --kind g --output other",
            "kind='g' needs the mean gradient",
        ),
        ("evaluate nix --task pairs.jsonl", "no adapter in nix"),
        ("evaluate calib --task pairs.jsonl", "no adapter in calib"),
        ("evaluate adapter --task pairs.jsonl --model nix", "no model 'nix'"),
        ("report adapter --output page.pdf", "end its name with .html"),
        ("merge adapter llama", "never overwritten"),
        ("merge adapter adapter", "never overwritten"),
        ("merge nix out", "no adapter in nix"),
        ("estimate llama --teraflops 0", "speed must be above 0 and finite, got 0"),
        ("estimate llama --memory -1", "memory must be above 0 and finite, got -1"),
        ("estimate bert --length 600", "length=600: the model reads at most 80 tokens"),
    ],
)
def test_commands_refuse_what_does_not_fit(line, says, steps_taken):
    assert says in refused(line)


def test_what_needs_no_calibration_is_trained_without(steps_taken):
    done(f"train {DATA} {QUICK} --recipe lora --allocation alloc --output other")
    assert not tlora.TrainingRun.load("other").frozen_a


def test_a_base_that_has_moved_is_named_by_the_adapter(steps_taken):
    Path("llama").rename("elsewhere")
    for line in ("evaluate adapter --task pairs.jsonl", "merge adapter whole"):
        result = invoke(line)
        assert result.exit_code == 2
        assert "no model 'llama'" in result.stderr
        assert "(named by adapter/adapter_config.json: pass --model where it is elsewhere now)" in result.stderr


def test_a_calibration_of_another_task_is_warned_of(steps_taken):
    Path("others.jsonl").write_bytes(Path("pairs.jsonl").read_bytes())
    line = f"train --model llama --task others.jsonl {QUICK} --calibration calib --allocation alloc --output other"
    assert "calib is of pairs, and this trains on others: is that meant?" in done(line).stderr


def test_a_allocation_keeps_within_a_sketch():
    sketched = f"{DATA} --samples 6 --covariance sketch --sketch-size 4"
    done(f"run {sketched} {QUICK} --recipe tlora --rank 3 --output sketched")
    most = max(tlora.TrainingRun.load("sketched").ranks.values())
    done(f"calibrate {sketched} --output some")
    done("allocate some --rank 3 --output within")
    assert most == max(tlora.Allocation.load("within").ranks.values()) == 4
    done(f"calibrate {DATA} --samples 6 --output whole")
    done("allocate whole --rank 6 --output beyond")
    line = f"train {DATA} --calibration some --allocation beyond --output other"
    assert "is beyond the sketch of its inputs, which has 4 columns" in refused(line)


@pytest.fixture(scope="module")
def taken(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration, an allocation and an adapter of the tiny model."""
    folder = tmp_path_factory.mktemp("taken")
    with pytest.MonkeyPatch.context() as patch:
        for file in saved.iterdir():
            (folder / file.name).symlink_to(file)
        patch.chdir(folder)
        patch.setattr("tlora.cli.pipeline._draw", lambda *_: "")
        done(f"calibrate {DATA} --samples 6 --output calib")
        done("allocate calib --rank 2 --output alloc")
        done(f"train {DATA} {QUICK} --calibration calib --allocation alloc --output adapter")
    return folder


@pytest.fixture
def steps_taken(taken: Path, workplace: Path) -> None:
    for name in ("calib.safetensors", "alloc.safetensors", "adapter"):
        (workplace / name).symlink_to(taken / name)


def test_earlier_results_are_replaced_where_it_is_asked_for():
    done(f"{RUN} {QUICK} --save-calibration --output out")
    Path("out/notes.txt").touch()
    assert Path("out/tlora/subspaces.safetensors").exists()
    assert "replace it with --overwrite" in refused(f"{RUN} {QUICK} --output out")
    done(f"{RUN} {QUICK} --rank 3 --output out --overwrite")
    assert sum(tlora.TrainingRun.load("out").ranks.values()) == 3 * 14
    assert Path("out/notes.txt").exists()
    assert not Path("out/tlora/subspaces.safetensors").exists(), "a result of the earlier run"


def test_debug_shows_where_an_error_comes_from(monkeypatch):
    assert isinstance(invoke(f"--debug run {DATA} --lr 0 --output out").exception, ValueError)
    monkeypatch.setenv("TLORA_DEBUG", "1")
    assert isinstance(invoke(f"run {DATA} --lr 0 --output out").exception, ValueError)


def test_warnings_are_sentences():
    """That a text was cut is ours to say; what libraries warn each other of is not."""
    result = done(f"run --model bert --task labels.jsonl --samples 6 {QUICK} --max-length 2 --output out")
    assert "warning: labels: max_length=2 truncated" in result.stderr
    assert "UserWarning" not in result.stderr
    assert "FutureWarning" not in result.stderr


def breaking(error: BaseException, at: int) -> Callable[[], None]:
    """Let training raise after so many steps. What is returned mends it."""

    class Break(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == at:
                raise error

    patch = pytest.MonkeyPatch()
    patch.setattr(steps, "train", partial(steps.train, callbacks=[Break()]))
    return patch.undo


def test_training_that_fails_leaves_what_came_before_it():
    mend = breaking(RuntimeError("CUDA out of memory"), at=1)
    result = invoke(f"{RUN} --lr 0.01 --output out")
    assert result.exit_code == 2
    assert "error: CUDA out of memory" in result.stderr
    assert not Path("out").exists()
    assert tlora.Calibration.load("out-unfinished/calibration").meta.samples == 6
    mend()
    assert "out-unfinished is left from an interrupted run" in refused(f"{RUN} --lr 0.01 --output out")
    line = next_command(result.stderr)
    assert "--resume" not in line  # it broke before the first checkpoint
    done(line)
    done(f"{RUN} --lr 0.01 --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")
    assert Path("out-unfinished/calibration.safetensors").exists()  # named by the user by now
    done(f"{RUN} {QUICK} --output out --overwrite")
    assert not Path("out-unfinished").exists()


def adapter_bytes(folder: str) -> bytes:
    return Path(folder, "adapter_model.safetensors").read_bytes()


def test_training_that_is_interrupted_is_kept_and_can_go_on():
    mend = breaking(KeyboardInterrupt(), at=3)
    result = invoke(f"{RUN} --lr 0.01 --output out")
    mend()
    assert result.exit_code == 130
    assert ", interrupted" in result.stdout
    run = tlora.TrainingRun.load("out")
    assert run.interrupted
    line = next_command(result.stdout)
    assert "--resume --overwrite" in line
    done(line)
    done(f"{RUN} --lr 0.01 --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")
    assert {path.name for path in Path("out-unfinished").iterdir()} == {
        "calibration.safetensors",
        "allocation.safetensors",
    }


def test_calibration_that_is_interrupted_leaves_nothing(monkeypatch):
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "calibrate", interrupt)
    before = content()
    result = invoke(f"{RUN} --output out")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted"
    assert content() == before


def test_full_disk_at_the_end_costs_neither_the_old_adapter_nor_the_new_one(monkeypatch):
    done(f"{RUN} {QUICK} --output out")
    before = content("out")
    write = Path.write_text

    def full(path: Path, *text: str, **how: str) -> None:
        if path.name == "adapter_config.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *text, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        result = invoke(f"{RUN} --output out --overwrite")
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert content("out") == before
    assert not list(Path().glob(".tlora-*"))
    line = next_command(result.stderr)
    assert shlex.split(line)[-2:] == ["--resume", "--overwrite"]
    done(line)
    done(f"{RUN} --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")


def test_training_that_diverges_is_saved_and_says_so():
    result = invoke(f"{RUN} --lr 1e30 --output out")
    assert result.exit_code == 1
    assert "not finite" in result.stderr or "nan" in result.stderr
    assert tlora.TrainingRun.load("out").diverged
    assert "diverged" in result.stdout
