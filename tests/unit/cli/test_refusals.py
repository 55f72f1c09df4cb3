"""What commands refuse before they compute, and what stays when a run breaks off."""

import errno
import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest
from transformers import TrainerCallback, ViTConfig

import tlora
from tests.helpers.commands import DATA, QUICK, RUN, done, invoke, next_command
from tlora.cli import pipeline

pytestmark = pytest.mark.usefixtures("workplace", "no_pictures")


def content(folder="."):
    """Every file and folder here, hidden ones too, by name; the bytes of files."""
    paths = [path for path in Path(folder).rglob("*") if not path.is_symlink()]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}


def refusal(line):
    """Run a command that is refused: exit 2, one message, nothing on stdout, every file as before. The message."""
    before = content()
    result = invoke(line)
    assert result.exit_code == 2, result.stdout
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert content() == before
    assert ("error: " in result.stderr) != ("Usage: " in result.stderr)
    return result.stderr


@pytest.fixture
def computes_nothing(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("computed something before refusing")

    for name in ("calibrate", "task_subspaces", "train"):
        monkeypatch.setattr(tlora, name, never)


@pytest.mark.usefixtures("computes_nothing")
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("--model llama --task nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("--model llama --task family_relationship", "'family_relationships'"),
        ("--model bert --task pairs.jsonl", "bert"),
        (f"{DATA} --config nowhere.yaml", "nowhere.yaml"),
        (f"{DATA} --samples 33", "take --samples 32 or fewer"),
        (f"{DATA} --train-samples 20", "--samples 32 (the default) asks for more than the 20"),
        (f"{DATA} --test-samples 40", "--test-samples 40 takes 40 of 40 samples and leaves 0 for train and validation"),
        ("--model llama --task one.jsonl", "with --test-samples 0 and --validation-samples 0"),
        (f"{DATA} --rank 8 --max-rank 4", "error: --max-rank and the sizes of the matrices have room"),
        (f"{DATA} --recipe tlora --covariance sketch --sketch-size 4 --rank 5", "--sketch-size"),
        (f"{DATA} --rank 33", "rank"),
        (f"{DATA} --rank many", "--rank"),
        (f"{DATA} --ranks 8", "--ranks"),
        (f"{DATA} --epochs -1", "--epochs"),
        (f"{DATA} --recipe tlora-trained --freeze-a-after 20", "--freeze-a-after"),
        (f"{DATA} --kind wcw", "--kind"),
        (f"{DATA} --device tpu", "--device"),
        (f"{DATA} --report-to nowhere", "--report-to"),
    ],
)
def test_run_refuses_before_it_computes(options, name):
    Path("one.jsonl").write_text('{"prompt": "w4", "completion": "w5"}\n')
    assert name in refusal(f"run {options} --output out")


@pytest.mark.usefixtures("computes_nothing")
def test_a_model_of_images_is_refused_alike_by_run_and_estimate():
    ViTConfig().save_pretrained("vit")
    told = refusal("estimate --model vit --teraflops 1")
    assert "images or sound are not supported" in told
    assert refusal("run --model vit --task pairs.jsonl --output out --quiet").endswith(told)


@pytest.mark.usefixtures("computes_nothing")
def test_run_replaces_no_folder_of_others():
    Path("thesis").mkdir()
    Path("thesis/chapter.txt").write_text("mine")
    Path("file").write_text("mine")
    for output in ("thesis", "thesis --overwrite", "file", ". --overwrite", "file/out"):
        assert output.split()[0] in refusal(f"{RUN} --output {output}")


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("runn", "Did you mean 'run'?"),
        (f"calibrate {DATA} --output calib", "--overwrite"),
        (f"calibrate {DATA} --output alloc --overwrite", "Allocation"),
        ("allocate nowhere --output other", "no result at nowhere.safetensors"),
        ("allocate alloc --output other", "Calibration"),
        ("allocate calib --output calib --overwrite", "Calibration"),
        ("allocate calib --kind g --output other", "--gradient"),
        (f"train {DATA} --calibration calib --allocation alloc --recipe tlora-paper --output other", "--kind fisher"),
        (f"race {DATA} --arm uniform --arm lora", "uniform"),
        (f"race {DATA} --arm lora", "--arm lora is the only arm"),
        (f"train {DATA} --allocation alloc --output other", "--calibration"),
        (f"train {DATA} --calibration calib --allocation alloc --output adapter", "--overwrite"),
        (f"train {DATA} --calibration calib --allocation alloc --output other --resume", "checkpoint"),
        (f"train {DATA} --calibration calib --allocation alloc --kind g --output other", "of kind fisher"),
        ("evaluate llama --task pairs.jsonl", "no adapter in llama"),
        ("evaluate adapter --task pairs.jsonl --model nowhere", "'nowhere'"),
        ("report nowhere", "no adapter in nowhere"),
        ("report adapter --output page.pdf", ".html"),
        ("export adapter adapter --overwrite", "adapter is read"),
        ("export adapter llama --format merged --overwrite", "llama is read"),
        ("export adapter other --engine llama.cpp --format peft", "llama.cpp"),
        ("compress nowhere/ small --rank 1", "no adapter in nowhere/"),
        ("compress adapter other --rank 1 --energy 0.5", "--energy"),
        ("compress adapter adapter --rank 1 --overwrite", "adapter"),
        ("inspect nowhere", "no adapter in nowhere: there is no such folder"),
        ("inspect llama", "no adapter in llama: it holds no adapter_config.json"),
        ("inspect adapter nowhere", "no adapter in nowhere"),
        ("combine adapter nowhere=0.5 both", "no adapter in nowhere"),
        ("combine adapter=1 adapter --overwrite", "adapter is read"),
        ("combine adapter=1e both", "adapter=1e"),
        ("combine adapter=1 adapter=0.5 both", "twice in adapter=1"),
        ("combine adapter both --calibration nowhere", "no result at nowhere"),
        ("estimate --model llama --teraflops 0", "--teraflops"),
    ],
)
def test_commands_refuse_what_does_not_fit(line, name):
    assert name in refusal(line)


@pytest.mark.usefixtures("stages")
def test_an_error_about_a_base_names_the_adapter_that_names_it():
    Path("llama").rename("elsewhere")
    for line in ("evaluate adapter --task pairs.jsonl", "export adapter whole --format merged"):
        assert "named by adapter/adapter_config.json: pass --model" in refusal(line)


@pytest.mark.usefixtures("stages")
def test_an_adapter_that_cannot_be_read_is_not_called_damaged(monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "adapter_model.safetensors")  # root may read
    assert "adapter_model.safetensors cannot be read" in refusal("inspect adapter")


def test_earlier_results_are_replaced_on_request():
    done(f"{RUN} {QUICK} --save-calibration --output out")
    Path("out/notes.txt").touch()
    assert Path("out/tlora/subspaces.safetensors").exists()
    assert "--overwrite" in refusal(f"{RUN} {QUICK} --output out")
    done(f"{RUN} {QUICK} --rank 3 --output out --overwrite")
    assert sum(tlora.TrainingRun.load("out").ranks.values()) == 3 * 14
    assert Path("out/notes.txt").exists()
    assert not Path("out/tlora/subspaces.safetensors").exists(), "a result of the earlier run"


def test_debug_shows_the_traceback(monkeypatch):
    assert isinstance(invoke(f"--debug run {DATA} --recipe lora --kind g --output out").exception, ValueError)
    monkeypatch.setenv("TLORA_DEBUG", "1")
    assert isinstance(invoke(f"run {DATA} --recipe lora --kind g --output out").exception, ValueError)


@pytest.fixture
def break_training(monkeypatch):
    """A function that lets training raise an error after so many steps; called without, it trains again."""
    train = tlora.train

    def break_after(error=None, steps=0):
        class Break(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == steps:
                    raise error

        monkeypatch.setattr(tlora, "train", partial(train, callbacks=[Break()]) if error else train)

    return break_after


def adapter_bytes(folder):
    return Path(folder, "adapter_model.safetensors").read_bytes()


def test_training_that_fails_keeps_the_calibration(break_training):
    break_training(RuntimeError("CUDA out of memory"), steps=1)
    result = invoke(f"{RUN} --lr 0.01 --output out")
    assert (result.exit_code, "error: CUDA out of memory" in result.stderr) == (2, True)
    assert not Path("out").exists()
    assert tlora.Calibration.load("out-unfinished/calibration").meta.samples == 6
    break_training()
    assert "out-unfinished" in refusal(f"{RUN} --lr 0.01 --output out")
    line = next_command(result.stderr)
    assert "--resume" not in line  # it broke before the first checkpoint
    done(line)
    done(f"{RUN} --lr 0.01 --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")
    assert Path("out-unfinished/calibration.safetensors").exists()  # the command line named it
    done(f"{RUN} {QUICK} --output out --overwrite")
    assert not Path("out-unfinished").exists()


def test_training_that_is_interrupted_is_saved_and_can_be_resumed(break_training):
    break_training(KeyboardInterrupt(), steps=3)
    result = invoke(f"{RUN} --lr 0.01 --output out")
    break_training()
    assert (result.exit_code, ", interrupted" in result.stdout) == (130, True)
    assert tlora.TrainingRun.load("out").interrupted
    line = next_command(result.stdout)
    assert "--resume --overwrite" in line
    resumed = done(line).stdout
    done(f"{RUN} --lr 0.01 --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")
    assert {path.stem for path in Path("out-unfinished").iterdir()} == {"calibration", "allocation"}
    assert next_command(resumed, "kept").startswith("out-unfinished")

    again = next_command(resumed, "again")
    assert tlora.TrainingRun.load("out").meta.recipe["command"] == f"tlora {again}"
    shutil.rmtree("out")
    done(again)
    assert adapter_bytes("out") == adapter_bytes("whole")
    assert "kept " not in done(f"{RUN} {QUICK} --output out --overwrite").stdout


@pytest.mark.parametrize("steps", [3, None], ids=["a second time", "after training"])
@pytest.mark.parametrize("options", ["", "--save-calibration"])
def test_an_interruption_while_the_pictures_are_drawn_names_the_adapter_and_resumes(
    steps, options, break_training, monkeypatch
):
    def interrupt(*args):
        raise KeyboardInterrupt

    if steps:
        break_training(KeyboardInterrupt(), steps)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "draw_pictures", interrupt)
        result = invoke(f"{RUN} --lr 0.01 --output out {options}")
    break_training()
    assert (result.exit_code, "\ninterrupted\nsaved  out\nkept   out-unfinished\n" in result.stderr) == (130, True)
    assert tlora.TrainingRun.load("out").interrupted == bool(steps)
    done(next_command(result.stderr))
    done(f"{RUN} --lr 0.01 --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")
    assert tlora.TrainingRun.load("out").after == tlora.TrainingRun.load("whole").after


def test_a_calibration_that_is_interrupted_leaves_nothing(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tlora, "calibrate", interrupt)
    before = content()
    result = invoke(f"{RUN} --output out")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted")
    assert content() == before


def test_a_full_disk_at_the_end_costs_neither_the_old_adapter_nor_the_new_one(monkeypatch):
    done(f"{RUN} {QUICK} --output out")
    before = content("out")
    write = Path.write_text

    def full(path, *text, **how):
        if path.name == "adapter_config.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *text, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        result = invoke(f"{RUN} --output out --overwrite")
    assert (result.exit_code, "No space left on device" in result.stderr) == (2, True)
    assert content("out") == before
    assert not list(Path().glob(".tlora-*"))
    line = next_command(result.stderr)
    assert shlex.split(line)[-2:] == ["--resume", "--overwrite"]
    done(line)
    done(f"{RUN} --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")
