"""The command line on tiny models: the commands follow one another, and leave what they say."""

import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM

import tlora
from tests.helpers.commands import DATA, QUICK, RUN, done, invoke, next_command
from tests.helpers.results import same
from tlora.calibration.covariance import SketchedCovariance
from tlora.calibration.spectrum import Spectrum
from tlora.cli import evaluate, main, pipeline
from tlora.cli.command_line import written
from tlora.cli.output import error_text
from tlora.cli.pipeline import allocate, calibrate, run, train

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("workplace", "no_pictures")
DRAW = pipeline._draw


def left(folder: str = ".") -> set[str]:
    """Files that are there, without what was there before."""
    before = ("llama", "bert", "t5", "pairs.jsonl", "labels.jsonl")
    files = [path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path) for path in files if path.parts[0] not in before}


def adapter_of(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder, "adapter_model.safetensors"))


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(4, 24).reshape(2, 10)
    with torch.no_grad():
        return model.eval()(ids).logits


def test_init_writes_what_other_trainers_continue_from() -> None:
    told = done("init llama --data pairs.jsonl --samples 6 --rank 2 --recipe tlora --output start").stdout
    assert "see start/README.md" in told
    base = LlamaForCausalLM.from_pretrained("llama")
    adapted = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained("llama"), "start", is_trainable=True)
    assert torch.equal(logits(adapted), logits(base))
    ranks = tlora.Allocation.load("start/tlora/allocation").ranks
    assert {len(tensor) for key, tensor in adapter_of("start").items() if "lora_A" in key} == set(ranks.values())
    assert not any(tensor.any() for key, tensor in adapter_of("start").items() if "lora_B" in key)
    assert "start holds an earlier result" in invoke("init llama --data pairs.jsonl --output start").stderr
    assert "has no effect" in invoke("init llama --data pairs.jsonl --no-init --rows variance -o no").stderr


def test_a_run_writes_the_file_that_repeats_it() -> None:
    training = "--gradient-accumulation 2 --gradient-checkpointing --lr 1e-2"
    done(f"{RUN} {QUICK} {training} --no-adapt-scales --recipe tlora --output one")
    done("run --config one/tlora/run.yaml --output two")
    one, two = (Path(folder, "tlora", "run.yaml").read_text() for folder in ("one", "two"))
    assert two == one.replace("output: one", "output: two")
    assert all(tensor.equal(adapter_of("two")[name]) for name, tensor in adapter_of("one").items())
    recipe = tlora.TrainingRun.load("two").meta.recipe
    assert (recipe["gradient_accumulation_steps"], recipe["gradient_checkpointing"]) == (2, True)
    assert set(tlora.Allocation.load("two/tlora/allocation").to_frame()["alpha"]) == {2}


def test_options_of_a_file_give_way_to_the_line_and_stand_above_the_recipe() -> None:
    Path("run.yaml").write_text(
        "model: llama\ntask: pairs.jsonl\nsamples: 6\nrank: 2\nlearning-rate: 1e-2\nrows: orthonormal\n"
        "recipe: tlora\nmax_steps: 1\neval_limit: 0\nmax_length:\n"
    )
    told = done("run --config run.yaml --rank 3 --output out").stdout
    assert "again     tlora run --model llama --task pairs.jsonl --output out --samples 6 --rank 3" in told
    recipe = tlora.TrainingRun.load("out").meta.recipe
    assert (recipe["learning_rate"], recipe["attach"]["rows"]) == (0.01, "orthonormal")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnig_rate: 1", "the option 'learnig_rate', which tlora run does not have: did you mean learning_rate"),
        ("config: other.yaml", "the option 'config', which tlora run does not have"),
        ("rank: [2", "run.yaml is not a YAML file"),
        ("rank", "run.yaml holds no options"),
        ("rank: much", "Invalid value for '--rank'"),
        ("report_to: nowhere", "report_to='nowhere' is unknown, or not installed"),
    ],
)
def test_a_file_that_holds_something_else_is_told(text: str, message: str) -> None:
    Path("run.yaml").write_text(text)
    told = invoke(f"run {DATA} --config run.yaml --output out")
    assert told.exit_code == 2
    assert message in told.stderr
    assert not Path("out").exists()


def test_each_command_names_the_next_until_a_model_that_needs_none_of_us():
    line = f"calibrate {DATA} --samples 6 --output calib"
    seen = []
    while line.split()[0] != "python":
        seen.append(line.split()[0])
        line = next_command(done(line).stdout)
    assert seen == ["calibrate", "allocate", "train", "evaluate", "merge"]
    ran = subprocess.run([sys.executable, *shlex.split(line)[1:]], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "LlamaForCausalLM" in ran.stdout

    base = AutoModelForCausalLM.from_pretrained("llama")
    before = logits(base)
    expected = logits(PeftModel.from_pretrained(base, "adapter"))
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained("adapter-merged")), expected, rtol=1e-5, atol=1e-5
    )
    assert (expected - before).abs().max() > 1e-4
    assert AutoTokenizer.from_pretrained("adapter-merged")("w4 w5").input_ids == [4, 5]


def test_run_is_the_library_s_walk_and_leaves_the_results_in_the_adapter_s_folder():
    done(f"{RUN} --recipe tlora-paper --epochs 2 --lr 0.01 --output out")
    model, tokenizer = tlora.load_model("llama")
    task = tlora.load_task("pairs.jsonl", tokenizer)
    calibration = tlora.calibrate(model, task.calibration(6), progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=2)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=allocation, progress=False)
    adapted = tlora.attach(model, subspaces, allocation, rows="orthonormal")
    run = tlora.train(adapted, task, epochs=2, learning_rate=0.01, progress=False)

    assert all(tensor.equal(run.adapter[name]) for name, tensor in adapter_of("out").items())
    found = tlora.TrainingRun.load("out")
    assert same(found.before, run.before)
    assert same(found.after, run.after)
    assert tlora.Allocation.load("out/tlora/allocation").ranks == allocation.ranks
    assert tlora.Sensitivity.load("out/tlora/sensitivity").per_sample.equal(calibration.sensitivity.per_sample)
    assert Spectrum.load("out/tlora/spectrum").to_frame().equals(calibration.spectrum().to_frame())
    assert {Path(name).parts[1] for name in left("out")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tlora",
    }
    assert not Path("out-unfinished").exists()


def test_steps_make_what_run_makes_and_results_say_how():
    options = "--seed 3 --train-samples 20 --validation-samples 4 --test-samples 5"
    done(f"{RUN} {options} --output out --save-calibration")
    done(f"calibrate {DATA} {options} --samples 6 --output calib")
    done("allocate calib --rank 2 --output alloc")
    done(f"train {DATA} {options} --calibration calib --allocation alloc --output adapter")
    one, other = adapter_of("out"), adapter_of("adapter")
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)

    run = tlora.TrainingRun.load("out")
    assert run.meta.seed == 3
    assert run.meta.samples == 20
    calibration = tlora.Calibration.load("out/tlora/calibration")
    assert calibration.meta.seed == 3
    assert tlora.Subspaces.load("out/tlora/subspaces").max_rank == max(run.ranks.values())
    first = run.meta.recipe["command"]
    for result in (
        calibration,
        tlora.Sensitivity.load("out/tlora/sensitivity"),
        tlora.Allocation.load("out/tlora/allocation"),
    ):
        assert result.meta.recipe["command"] == first
    done(first.removeprefix("tlora ").replace("--output out", "--output again"))
    assert Path("again/adapter_model.safetensors").read_bytes() == Path("out/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("init", [True, False])
@pytest.mark.parametrize("ranks", [True, False])
@pytest.mark.parametrize("scales", [True, False])
def test_ablations_switch_off_what_they_say(init, ranks, scales):
    flags = [
        f"--no-{name}" for name, on in (("init", init), ("adapt-ranks", ranks), ("adapt-scales", scales)) if not on
    ]
    done(f"{RUN} {QUICK} {' '.join(flags)} --recipe tlora-paper --output out")
    run, allocation = tlora.TrainingRun.load("out"), tlora.Allocation.load("out/tlora/allocation")
    assert run.ranks == allocation.ranks
    assert sum(run.ranks.values()) == 2 * 14
    assert (set(run.ranks.values()) != {2}) == ranks
    assert (set(run.scalings.values()) != {1.0}) == scales
    assert run.frozen_a == init
    grams = [a @ a.T for name, a in adapter_of("out").items() if "lora_A" in name]
    assert all(torch.allclose(gram, torch.eye(len(gram)), atol=1e-5) for gram in grams) == init


@pytest.mark.parametrize("kind", ["w", "c", "wc_half", "g", "g_whitened", "random"])
def test_kinds_of_subspace(kind):
    """`g` needs gradients, which `run` then keeps by itself."""
    done(f"{RUN} {QUICK} --kind {kind} --recipe tlora-paper --save-calibration --output out")
    subspaces = tlora.Subspaces.load("out/tlora/subspaces")
    assert subspaces.kind == kind
    name, rank = next(iter(tlora.TrainingRun.load("out").ranks.items()))
    assert adapter_of("out")[f"base_model.model.{name}.lora_A.weight"].equal(subspaces.basis(name, rank))


@pytest.mark.parametrize(("kind", "rows"), [("g", "variance"), ("g_whitened", "whitened")])
def test_rows_go_with_the_kind_as_in_python(kind, rows):
    done(f"{RUN} {QUICK} --kind {kind} --output out")
    assert tlora.TrainingRun.load("out").meta.recipe["attach"]["rows"] == rows


def test_knobs_of_the_allocation_and_of_a():
    flags = "--alpha 4 --scaling allocated --budget parameters --max-rank 3 --tokens labels"
    done(f"{RUN} {QUICK} {flags} --no-freeze-a --rows variance --output out")
    run, allocation = tlora.TrainingRun.load("out"), tlora.Allocation.load("out/tlora/allocation")
    options = allocation.options
    assert (options.rank, options.alpha, options.scaling, options.budget, options.max_rank) == (
        2,
        4,
        "allocated",
        "parameters",
        3,
    )
    assert max(run.ranks.values()) == 3
    assert not run.frozen_a
    assert tlora.Sensitivity.load("out/tlora/sensitivity").meta.recipe["tokens"] == "labels"
    norms = torch.cat([a.norm(dim=1) for name, a in adapter_of("out").items() if "lora_A" in name])
    assert (norms - 1).abs().min() > 1e-3


def test_evaluate_sees_the_samples_that_were_held_out():
    """With the sizes and the seed of the training, whatever the defaults."""
    done(f"{RUN} --seed 5 --test-samples 7 --epochs 2 --lr 0.02 --output out")
    run = tlora.TrainingRun.load("out")
    found = json.loads(done("evaluate out --task pairs.jsonl --base --json").stdout)
    assert found["samples"] == 7
    assert found["metrics"]["adapter"] == pytest.approx(run.after)
    assert found["metrics"]["base"] == pytest.approx(run.before)
    shown = done("evaluate out --task pairs.jsonl --base").stdout
    assert f"{run.before['loss']:.4g}  {run.after['loss']:.4g}".split() == shown.splitlines()[1].split()[1:]
    assert "base" not in json.loads(done("evaluate out --task pairs.jsonl --json --eval-limit 3").stdout)["metrics"]


def test_evaluate_knows_a_file_by_another_path_and_warns_where_it_cannot_tell():
    done(f"{RUN} --seed 5 --test-samples 7 --epochs 2 --lr 0.02 --output out")
    run = tlora.TrainingRun.load("out")
    result = done(f"evaluate out --task {Path('pairs.jsonl').resolve()} --json")
    assert json.loads(result.stdout)["metrics"]["adapter"] == pytest.approx(run.after)
    assert "warning" not in result.stderr
    model, tokenizer = tlora.load_model("llama")
    task = tlora.load_task("pairs.jsonl", tokenizer, seed=3)
    calibration = tlora.calibrate(model, task.calibration(8), progress=False)
    adapted = tlora.attach(model, None, tlora.allocate(calibration.sensitivity, 2))
    tlora.train(adapted, task, max_steps=2, evaluation_limit=0, progress=False).save("by_hand")
    assert "may have been among the training samples" in done("evaluate by_hand --task pairs.jsonl").stderr
    Path("pairs").mkdir()
    for name in ("train", "test"):
        shutil.copy("pairs.jsonl", f"pairs/{name}.jsonl")
    # This one has test samples of its own.
    assert "among the training samples" not in done("evaluate by_hand --task pairs").stderr


@pytest.mark.parametrize(
    ("task", "dealt"), [("rotten_tomatoes", True), ("sst2", False), ("family_relationships", False)]
)
def test_packages_have_one_split(task, dealt):
    assert evaluate._is_dealt(task) == dealt


def test_a_folder_of_data_needs_no_slash():
    Path("mine").mkdir()
    shutil.copy("pairs.jsonl", "mine/train.jsonl")
    done(f"{RUN.replace('pairs.jsonl', 'mine')} {QUICK} --output out")
    data = tlora.TrainingRun.load("out").meta.recipe["data"]
    assert (data["task"], data["train_samples"]) == ("mine", None)


def test_without_test_samples_the_validation_split_is_evaluated_and_named():
    result = done(f"{RUN} --test-samples 0 --validation-samples 3 --output out").stdout
    run = tlora.TrainingRun.load("out")
    assert run.evaluated_on == "validation"
    assert "(on 3 validation samples)" in result
    assert next_command(result) == "merge out out-merged"  # tlora evaluate has no test sample to take
    done(next_command(result))
    done(f"{RUN} --test-samples 0 --validation-samples 0 --output neither")
    assert tlora.TrainingRun.load("neither").before == {}


def test_classifier_is_saved_with_its_head():
    done("run --model bert --task labels.jsonl --samples 6 --rank 2 --output out")
    base = AutoModelForSequenceClassification.from_pretrained("bert", num_labels=3, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(base, "out")
    task = tlora.load_task("labels.jsonl", AutoTokenizer.from_pretrained("bert"))
    assert task.evaluate(model) == pytest.approx(tlora.TrainingRun.load("out").after)
    assert json.loads(done("evaluate out --task labels.jsonl --json").stdout)["metrics"]["adapter"] == pytest.approx(
        tlora.TrainingRun.load("out").after
    )
    done("merge out merged")
    merged = AutoModelForSequenceClassification.from_pretrained("merged")
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)


def test_encoder_decoder_reads_the_prompt_and_writes_the_answer():
    done("run --model t5 --task pairs.jsonl --samples 6 --rank 2 --output out")
    run = tlora.TrainingRun.load("out")
    assert any(name.startswith("decoder.") for name in run.ranks)
    assert run.after["loss"] < run.before["loss"]


def test_pictures_are_drawn_and_nothing_of_the_drawing_stays(monkeypatch):
    monkeypatch.setattr(pipeline, "_draw", DRAW)
    monkeypatch.setenv("MPLBACKEND", "svg")
    done(f"{RUN} {QUICK} --output out")
    pictures = {path.name: path.read_bytes() for path in Path("out/pictures").iterdir()}
    assert pictures.keys() == {"spectrum.png", "sensitivity.png", "allocation.png", "training.png"}
    assert all(blob.startswith(b"\x89PNG") and len(blob) > 10_000 for blob in pictures.values())
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []
    assert os.environ["MPLBACKEND"] == "svg"


def test_run_without_anything_to_draw_with_says_so_and_is_whole(monkeypatch):
    monkeypatch.setattr(pipeline, "_draw", DRAW)
    monkeypatch.setitem(sys.modules, "viz", None)
    result = done(f"{RUN} {QUICK} --output out")
    assert "no pictures" in result.stderr
    assert "pictures" not in result.stdout
    assert tlora.TrainingRun.load("out").ranks


def test_quiet_is_quiet_and_progress_is_no_result():
    loud = done(f"{RUN} --output loud")
    assert "calibrating on 6 samples" in loud.stderr
    assert "done in" in loud.stderr
    quiet = done(f"{RUN} --output quiet --quiet")
    assert quiet.stderr == ""
    for text in ("before", "perplexity", "exact match", "(on 4 test samples)", "14 modules, ranks 1 to"):
        assert text in quiet.stdout
    assert "done in" not in loud.stdout


def test_allocation_is_shown_by_projection():
    done(f"calibrate {DATA} --samples 6 --output calib")
    shown = done("allocate calib --rank 2 --output alloc").stdout
    allocation = tlora.Allocation.load("alloc")
    frame = allocation.to_frame()
    for projection, part in frame.groupby("projection"):
        (line,) = [line for line in shown.splitlines() if line.startswith(str(projection))]
        assert line.split()[1:4] == [str(len(part)), str(part["rank"].sum()), str(part["rank"].min())]
    assert "28 of 28 ranks (rank 2 in each of 14 modules)" in shown
    assert f"{allocation.trainable_parameters:,}" in shown
    assert f"{allocation.lora.trainable_parameters:,}" in shown


def test_lines_to_type_are_quoted_and_leave_out_what_is_default():
    values = {
        "model": "my models/llama",
        "task": "it's.jsonl",
        "output": Path("out"),
        "rank": 8,
        "alpha": 16.0,
        "adapt_ranks": False,
        "init": True,
        "quiet": True,
        "overwrite": True,
        "calibration": "not of run",
        "kind": "c",
        "scaling": "nominal",
    }
    line = written(run, values)
    assert shlex.split(line) == [
        *("tlora", "run", "--model", "my models/llama", "--task", "it's.jsonl", "--output", "out"),
        *("--alpha", "16.0", "--no-adapt-ranks", "--kind", "c", "--overwrite"),
    ]
    assert written(main.merge, {"adapter": "a", "output": "b"}) == "tlora merge a b"


def test_help_says_what_there_is_to_know():
    first = invoke("--help").stdout
    assert all(name in first for name in ("run", "calibrate", "allocate", "train", "evaluate", "merge"))
    for name in ("run", "calibrate", "allocate", "train", "evaluate", "merge"):
        page = invoke(f"{name} --help").stdout
        assert "Example" in page
        assert "tlora" in page


def test_options_of_one_name_are_one_option():
    """Of one default, one type and one help, whichever command takes it."""
    seen: dict[str, object] = {}
    for command in (run, calibrate, train, allocate):
        for name, option in inspect.signature(command).parameters.items():
            if name != "ctx" and (command, name) != (allocate, "calibration"):  # its argument
                kind, read = get_args(option.annotation)
                default = None if name == "recipe" else option.default  # run alone begins with nothing decided
                told = (default, kind, vars(read))
                assert seen.setdefault(name, told) == told, name


def test_module_is_the_command_and_brings_in_nothing_that_draws():
    code = (
        "import runpy, sys\n"
        "sys.argv = ['tlora', '--help']\n"
        "try:\n"
        "    runpy.run_module('tlora', run_name='__main__')\n"
        "finally:\n"
        "    print({'matplotlib', 'seaborn', 'viz', 'ipywidgets'} & sys.modules.keys())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "Usage: tlora" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "set()"


def test_version_names_what_decides_the_numbers():
    shown = invoke("--version").stdout
    assert shown.startswith("tlora ")
    assert f"torch {version('torch')}" in shown


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("no module 'x'"), "no module 'x'"),
        (ValueError("two\n  lines"), "two lines"),
        (OSError(28, "No space left on device", "out"), "out: No space left on device"),
        (FileNotFoundError("no adapter in x"), "no adapter in x"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_errors_read_as_one_sentence(error, text):
    assert error_text(error) == text


def test_a_calibration_goes_on_from_its_checkpoint_and_takes_more_samples(monkeypatch):
    options = "--covariance sketch --sketch-size 12"
    done(f"calibrate {DATA} {options} --samples 4 --checkpoint steps --output few")
    seen, forward = [], LlamaForCausalLM.forward

    def counted(self, *args, **inputs):
        if torch.is_grad_enabled():
            seen.append(len(inputs["input_ids"]))
        return forward(self, *args, **inputs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)
    result = done(f"calibrate {DATA} {options} --samples 6 --checkpoint steps --output more")
    assert sum(seen) == 2, "those that are in the checkpoint are not run again"
    assert f"--output more --samples 6 {options} --checkpoint steps\n" in result.stdout
    done(f"calibrate {DATA} {options} --samples 6 --output whole")
    more, whole = (tlora.Calibration.load(folder) for folder in ("more", "whole"))
    assert [folder.name for folder in Path("steps").iterdir()] == ["samples-000000006.safetensors"]
    assert more.meta.recipe["covariance"] == "sketch"
    assert more.meta.recipe["sketch_size"] == 12
    for name in whole.names:
        one, other = (each.covariance[name] for each in (more, whole))
        assert type(one) is SketchedCovariance
        torch.testing.assert_close(one.total, other.total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(more.sensitivity.per_sample, whole.sensitivity.per_sample, rtol=1e-4, atol=0)


def test_every_command_that_calibrates_adapts_the_modules_that_are_named() -> None:
    some = "--target-modules q_proj --target-modules v_proj"
    told = done(f"calibrate {DATA} --samples 6 {some} --output calib").stdout
    assert {target.projection for target in tlora.Calibration.load("calib").targets.values()} == {"q_proj", "v_proj"}
    assert some in told
    done("init llama --data pairs.jsonl --samples 6 --rank 2 --target-modules attention --output start")
    targets = tlora.Allocation.load("start/tlora/allocation").targets
    assert {target.part for target in targets.values()} == {"attention"}
    Path("mlp.yaml").write_text("target_modules: mlp")
    done(f"run {DATA} --samples 6 --rank 2 --max-steps 1 --eval-limit 0 --config mlp.yaml --output out")
    projections = {name.rpartition(".")[2] for name in tlora.TrainingRun.load("out").ranks}
    assert projections == {"gate_proj", "up_proj", "down_proj"}
    assert yaml.safe_load(Path("out/tlora/run.yaml").read_text())["target_modules"] == ["mlp"]
    found = json.loads(done("estimate llama --target-modules attention --teraflops 1 --json").stdout)
    assert found["modules"] == len(targets)


def test_a_base_is_quantised_on_request() -> None:
    done(f"{RUN} {QUICK} --output whole")
    done(f"{RUN} {QUICK} --load-in-4bit --output out")
    command = tlora.TrainingRun.load("out").meta.recipe["command"]
    assert "--load-in-4bit" in command
    scores, whole = (tlora.Sensitivity.load(f"{name}/tlora/sensitivity").per_sample for name in ("out", "whole"))
    assert not torch.allclose(scores, whole, rtol=1e-3)
    assert torch.corrcoef(torch.stack([scores.flatten(), whole.flatten()]))[0, 1] > 0.5  # how close depends on the CPU
    losses = [
        json.loads(done(f"evaluate out --task pairs.jsonl {flag} --json --quiet").stdout)["metrics"]["adapter"]["loss"]
        for flag in ("", "--load-in-4bit")
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)
