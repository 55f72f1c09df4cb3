"""What commands refuse before they compute, and what stays when a run breaks off."""

import errno
import json
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from transformers import TrainerCallback, ViTConfig

import tlora
from tests.helpers.commands import DATA, QUICK, RUN, done, invoke, next_command
from tests.helpers.disks import kills
from tlora import recipes
from tlora.calibration import calibrate
from tlora.calibration.checkpoint import Checkpoint
from tlora.cli import pipeline
from tlora.cli.unfinished import LOCK, UnfinishedRun
from tlora.models import loading

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


def never(*args, **kwargs):
    raise AssertionError("computed something before refusing")


@pytest.fixture
def computes_nothing(monkeypatch):
    for name in ("calibrate", "task_subspaces"):
        monkeypatch.setattr(recipes, name, never)
    monkeypatch.setattr(tlora, "train", never)


@pytest.mark.usefixtures("computes_nothing")
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ("llama nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("llama family_relationship", "'family_relationships'"),
        ("bert pairs.jsonl", "bert"),
        (f"{DATA} --config nowhere.yaml", "nowhere.yaml"),
        (f"{DATA} --samples 33", "take --samples 32 or fewer"),
        (f"{DATA} --train-samples 20", "--samples 32 (the default) asks for more than the 20"),
        (f"{DATA} --test-samples 40", "--test-samples 40 takes 40 of 40 samples and leaves 0 for train and validation"),
        ("llama one.jsonl", "with --test-samples 0 and --validation-samples 0"),
        (f"{DATA} --rank 8 --max-rank 4", "error: --max-rank and the sizes of the matrices have room"),
        (f"{DATA} --recipe captured --covariance sketch --sketch-size 4 --rank 5", "--sketch-size"),
        (f"{DATA} --rank 33", "rank"),
        (f"{DATA} --rank many", "--rank"),
        (f"{DATA} --ranks 8", "--ranks"),
        (f"{DATA} --epochs -1", "--epochs"),
        (f"{DATA} --recipe captured-trained --freeze-a-after 20", "--freeze-a-after"),
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
    told = refusal("estimate vit --teraflops 1")
    assert "images or sound are not supported" in told
    assert refusal("run vit pairs.jsonl --output out --quiet").endswith(told)


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
        (f"train {DATA} alloc calib --recipe tlora-paper --output other", "--kind fisher"),
        (f"race {DATA} --arm uniform --arm lora", "uniform"),
        (f"race {DATA} --arm lora", "--arm lora is the only arm"),
        (f"train {DATA} alloc --output other", "--no-init"),
        (f"train {DATA} alloc calib --output adapter", "--overwrite"),
        (f"train {DATA} alloc calib --output other --resume", "nothing to resume"),
        (f"train {DATA} alloc calib --kind g --output other", "of kind fisher"),
        ("evaluate llama pairs.jsonl", "no adapter in llama"),
        ("evaluate adapter pairs.jsonl --model nowhere", "'nowhere'"),
        ("report nowhere", "no adapter in nowhere"),
        ("report adapter --output page.pdf", ".html"),
        ("export adapter --output adapter --overwrite", "adapter is read"),
        ("export adapter --output llama --format merged --overwrite", "llama is read"),
        ("export adapter --output other --engine llama.cpp --format peft", "llama.cpp"),
        ("compress nowhere/ --output small --rank 1", "no adapter in nowhere/"),
        ("compress adapter --output other --rank 1 --energy 0.5", "--energy"),
        ("compress adapter --output adapter --rank 1 --overwrite", "adapter"),
        ("extract llama ./nowhere --output other", "no model in ./nowhere"),
        ("extract llama llama --output other", "same weights"),
        ("extract llama bert --output other", "architectures"),
        ("extract llama tuned --output other --data pairs.jsonl --calibration calib", "--calibration"),
        ("extract llama tuned --output tuned --overwrite", "tuned is read"),
        ("explain --prompt w4", "--tuned"),
        ("explain adapter --tuned tuned --prompt w4", "--tuned"),
        ("explain --tuned tuned --prompt w4", "--model"),
        ("inspect nowhere", "no adapter in nowhere: there is no such folder"),
        ("inspect llama", "no adapter in llama: it holds no adapter_config.json"),
        ("inspect adapter nowhere", "no adapter in nowhere"),
        ("combine adapter nowhere=0.5 --output both", "no adapter in nowhere"),
        ("combine adapter=1 --output adapter --overwrite", "adapter is read"),
        ("combine adapter=1e --output both", "adapter=1e"),
        ("combine adapter=1 adapter=0.5 --output both", "twice in adapter=1"),
        ("combine adapter --output both --calibration nowhere", "no result at nowhere"),
        ("estimate llama --teraflops 0", "--teraflops"),
    ],
)
def test_commands_refuse_what_does_not_fit(line, name):
    assert name in refusal(line)


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize(
    ("line", "way_out"),
    [("evaluate adapter one.jsonl", "test.jsonl"), ("estimate llama one.jsonl", "--length and --labels")],
)
def test_commands_without_sizes_name_a_way_out_of_their_own(line, way_out):
    Path("one.jsonl").write_text('{"prompt": "w4", "completion": "w5"}\n')
    told = refusal(line)
    assert way_out in told
    assert "=0" not in told
    if line.startswith("evaluate"):  # which takes it
        Path("one").mkdir()
        shutil.copy("one.jsonl", "one/test.jsonl")
        assert "1 test samples" in done("evaluate adapter one").stdout


@pytest.mark.usefixtures("stages")
def test_a_folder_of_test_samples_is_estimated():
    Path("one").mkdir()
    shutil.copy("pairs.jsonl", "one/test.jsonl")
    assert "40 samples" in done("estimate llama one --teraflops 1").stdout


@pytest.mark.usefixtures("stages")
def test_an_error_about_a_base_names_the_adapter_that_names_it():
    Path("llama").rename("elsewhere")
    for line in ("evaluate adapter pairs.jsonl", "export adapter --output whole --format merged"):
        assert "named by adapter/adapter_config.json: pass --model" in refusal(line)


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize(
    "line", ["evaluate adapter pairs.jsonl", "explain adapter --text prose.txt", "export adapter --output served"]
)
def test_the_hub_is_asked_once_for_the_revision_that_an_adapter_names(line, monkeypatch):
    Path("prose.txt").write_text("w4 w5 w6")
    adapter, folder = Path("adapter").resolve(), Path("llama").resolve()
    Path("adapter").unlink()
    shutil.copytree(adapter, "adapter", ignore=shutil.ignore_patterns("tlora"))  # the run records the config
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    named = {"base_model_name_or_path": "somebody/tiny", "revision": "abc"}
    Path("adapter/adapter_config.json").write_text(json.dumps(config | named))
    asked, load = [], loading._load
    monkeypatch.setattr(loading.HfApi, "model_info", lambda _, name, revision, **__: asked.append((name, revision)))
    monkeypatch.setattr(
        loading, "_load", lambda auto, _, name, **kw: load(auto, loading.Location(str(folder)), name, **kw)
    )
    loading._locate_on_hub.cache_clear()
    done(line)
    assert asked == [("somebody/tiny", "abc")]


@pytest.mark.usefixtures("stages")
def test_an_error_about_anything_else_does_not_send_the_user_to_another_base():
    Path("broken.jsonl").write_text("{")
    Path("empty.txt").touch()
    for line in ("evaluate adapter broken.jsonl", "explain adapter --text empty.txt"):
        assert "--model" not in refusal(line)


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize(
    "line",
    [
        "run llama few.jsonl --output out",
        "init llama few.jsonl --output out",
        "calibrate llama few.jsonl --output out",
        "train llama tests alloc calib --output out",
        "race llama tests --steps 1",
        "race llama few.jsonl --steps 1",
        "evaluate adapter broken.jsonl",
        "measure-scales adapter pairs.jsonl --text empty.txt --output out",
        "explain adapter --text empty.txt",
    ],
)
def test_data_are_read_before_the_model(line, monkeypatch):
    monkeypatch.setattr(tlora, "load_model", never)
    Path("tests").mkdir()
    Path("tests/test.jsonl").write_text(Path("pairs.jsonl").read_text())
    Path("few.jsonl").write_text("".join(Path("pairs.jsonl").read_text().splitlines(keepends=True)[:3]))
    Path("broken.jsonl").write_text("{")
    Path("empty.txt").touch()
    refusal(line)


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


def test_a_run_that_breaks_off_resumes_with_the_same_options_alone(break_training):
    break_training(RuntimeError("CUDA out of memory"), steps=1)
    result = invoke(f"{RUN} --lr 0.01 --output out")
    assert (result.exit_code, "error: CUDA out of memory" in result.stderr) == (2, True)
    break_training()
    assert "no adapter_config.json" in refusal("inspect out")  # nobody takes it for an adapter
    assert "--resume" in refusal(f"{RUN} --lr 0.01 --output out")
    for options, name in (("--lr 0.02", "--learning-rate 0.01"), ("--lr 0.01 --alpha 3", "without --alpha")):
        assert name in refusal(f"{RUN} {options} --output out --resume")
    line = next_command(result.stderr)
    assert shlex.split(line)[-1] == "--resume"
    done(f"{line} --quiet --device cpu")
    done(f"{RUN} --lr 0.01 --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")
    assert not Path("out/tlora/unfinished").exists()
    assert "finished" in refusal(f"{RUN} --lr 0.01 --output out --resume")


@pytest.mark.parametrize("recipe", ["captured", "tlora-paper", "lora"])
def test_a_run_that_is_interrupted_in_its_calibration_computes_the_rest(recipe, monkeypatch):
    passes = []

    def interrupt(model, targets, batches, statistics, **options):
        first = (batch for batch in batches if passes.append(batch) or len(passes) < 3)
        run_batches(model, targets, first, statistics, **options)
        raise KeyboardInterrupt

    asked = f"run {DATA} {QUICK} --recipe {recipe} --samples 24 --rank 2"
    run_batches = calibrate.run_batches
    with monkeypatch.context() as patch:
        patch.setattr(calibrate, "run_batches", interrupt)
        patch.setattr(Checkpoint, "is_due", lambda checkpoint: True)
        result = invoke(f"{asked} --output out")
    assert (result.exit_code, Path("out/adapter_config.json").exists()) == (130, False)
    samples = []
    with monkeypatch.context() as patch:
        count = lambda batches: (batch for batch in batches if samples.append(len(batch)) or True)  # noqa: E731
        patch.setattr(calibrate, "run_batches", lambda m, t, b, s, **options: run_batches(m, t, count(b), s, **options))
        done(next_command(result.stderr))
    assert 0 < sum(samples) < 24
    done(f"{asked} --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")
    names = {file.name for file in Path("whole/tlora").iterdir()}
    assert {file.name for file in Path("out/tlora").iterdir()} == names


@pytest.mark.usefixtures("computes_nothing")
@pytest.mark.parametrize("options", ["", " --resume", " --overwrite"])
@pytest.mark.parametrize("command", [f"{RUN} --output out", f"train {DATA} alloc calib --output out"])
def test_a_folder_that_another_run_writes_is_refused(command, options, stages):
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(); sys.stdin.read()"
    Path("out/tlora").mkdir(parents=True)
    lock = Path("out/tlora", LOCK)
    with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdin=-1, stdout=-1) as other:
        other.stdout.readline()
        assert "another run writes out" in refusal(command + options)
        other.kill()
    assert lock.exists()


def test_a_lock_that_a_killed_run_left_does_not_hold_and_goes():
    Path("out/tlora").mkdir(parents=True)
    Path("out/tlora", LOCK).touch()
    done(f"{RUN} {QUICK} --output out")
    assert not Path("out/tlora", LOCK).exists()


def test_a_run_holds_its_folder_while_it_computes(monkeypatch):
    told = []

    def run_again(*args, **kwargs):
        told.append(invoke(f"{RUN} --output out --overwrite").stderr)
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(tlora, "train", run_again)
    assert invoke(f"{RUN} --output out").exit_code == 2
    assert "another run writes out" in told[0]


def test_a_folder_with_nothing_but_a_killed_write_is_free():
    Path("out/tlora/.tlora-host-1-00000000").mkdir(parents=True)
    Path("out/tlora/.tlora-host-1-00000000/run.yaml").write_text("model: llama")
    done(f"{RUN} {QUICK} --output out")


@pytest.mark.posix
def test_unfinished_work_is_removed_as_a_whole(break_training):
    break_training(RuntimeError("CUDA out of memory"), steps=3)
    invoke(f"{RUN} --lr 0.01 --output begun")
    break_training()
    work = UnfinishedRun(Path("out/tlora/unfinished"))

    def begin():
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree("begun", "out")

    begin()
    names = {path.relative_to(work.folder) for path in work.folder.rglob("*")}
    for _ in kills(work.remove, begin):
        assert {path.relative_to(work.folder) for path in work.folder.rglob("*")} in (names, set())
    assert not Path("out").exists()


def test_a_run_resumes_in_the_precision_it_began_in(break_training):
    break_training(RuntimeError("CUDA out of memory"), steps=3)
    invoke(f"{RUN} --lr 0.01 --output out --dtype bfloat16")
    break_training()
    text = Path("out/tlora/unfinished/run.yaml").read_text()
    assert "dtype: bfloat16" in text
    assert "with --dtype bfloat16" in refusal(f"{RUN} --lr 0.01 --output out --dtype float32 --resume")
    result = invoke(f"{RUN} --lr 0.01 --output out --resume")  # this device would compute in float32
    assert (result.exit_code, "--dtype bfloat16" in result.stderr) == (2, True)


def test_a_run_that_has_computed_nothing_leaves_nothing(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "calibrate", interrupt)
    before = content()
    result = invoke(f"{RUN} --output out")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted")
    assert content() == before


def test_training_that_is_interrupted_is_saved_and_can_be_resumed(break_training):
    break_training(KeyboardInterrupt(), steps=3)
    result = invoke(f"{RUN} --lr 0.01 --output out")
    break_training()
    assert (result.exit_code, ", interrupted" in result.stdout) == (130, True)
    assert tlora.TrainingRun.load("out").interrupted
    resumed = done(next_command(result.stdout)).stdout
    done(f"{RUN} --lr 0.01 --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")
    assert not Path("out/tlora/unfinished").exists()
    again = next_command(resumed, "again")
    assert tlora.TrainingRun.load("out").meta.recipe["command"] == f"tlora {again}"
    shutil.rmtree("out")
    done(again)
    assert adapter_bytes("out") == adapter_bytes("whole")


def test_a_finished_adapter_stays_until_the_new_one_is_whole(break_training):
    done(f"{RUN} --lr 0.02 --output out")
    before = tlora.TrainingRun.load("out").after
    break_training(RuntimeError("CUDA out of memory"), steps=3)
    result = invoke(f"{RUN} --lr 0.01 --output out --overwrite")
    break_training()
    assert tlora.TrainingRun.load("out").after == before
    assert tlora.load_adapter("out", tlora.load_model("llama")[0]).active_adapter == "default"
    line = next_command(result.stderr)
    assert "--overwrite" not in line
    done(line)
    done(f"{RUN} --lr 0.01 --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")


@pytest.mark.parametrize("steps", [3, None], ids=["a second time", "after training"])
def test_an_interruption_while_the_pictures_are_drawn_names_the_adapter(steps, break_training, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    if steps:
        break_training(KeyboardInterrupt(), steps)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "draw_pictures", interrupt)
        result = invoke(f"{RUN} --lr 0.01 --output out --save-calibration")
    break_training()
    assert (result.exit_code, "\ninterrupted\nsaved  out\n" in result.stderr) == (130, True)
    assert tlora.TrainingRun.load("out").interrupted == bool(steps)
    done(next_command(result.stderr))
    done(f"{RUN} --lr 0.01 --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")
    assert tlora.TrainingRun.load("out").after == tlora.TrainingRun.load("whole").after


def test_a_folder_of_an_earlier_version_is_named(break_training):
    Path("out-unfinished").mkdir()
    assert "out-unfinished is left from an earlier version" in done(f"{RUN} {QUICK} --output out").stderr


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
    assert {name: content("out")[name] for name in before} == before
    assert not list(Path().glob(".tlora-*"))
    done(next_command(result.stderr))
    done(f"{RUN} --output whole")
    assert adapter_bytes("out") == adapter_bytes("whole")
