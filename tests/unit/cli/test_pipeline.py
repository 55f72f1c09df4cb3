"""The commands of the pipeline on tiny models: they follow one another, pass their options on, and write results."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
import typer
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

import tlora
import viz
from tests.helpers.commands import DATA, QUICK, RUN, done, invoke, next_command
from tests.helpers.experts import tiny_mixture
from tests.helpers.jobs import PAIRS
from tests.helpers.models import tiny_tokenizer
from tests.helpers.reported import panel_names
from tests.helpers.results import same
from tlora.calibration.covariance import SketchedCovariance
from tlora.calibration.spectrum import Spectrum
from tlora.cli import pipeline
from tlora.cli.main import app
from tlora.cli.output import allocation_text

pytestmark = pytest.mark.usefixtures("workplace", "no_pictures")
DRAW_PICTURES = pipeline.draw_pictures


def adapter_of(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder, "adapter_model.safetensors"))


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.arange(4, 24).reshape(2, 10)
    with torch.no_grad():
        return model.eval()(ids).logits


def test_init_writes_what_other_trainers_continue_from():
    text = done("init llama pairs.jsonl --samples 6 --rank 2 --recipe captured --output start").stdout
    assert "see start/README.md" in text
    base = LlamaForCausalLM.from_pretrained("llama")
    adapted = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained("llama"), "start", is_trainable=True)
    assert torch.equal(logits(adapted), logits(base))
    ranks = tlora.Allocation.load("start/tlora/allocation").ranks
    assert {len(tensor) for key, tensor in adapter_of("start").items() if "lora_A" in key} == set(ranks.values())
    assert not any(tensor.any() for key, tensor in adapter_of("start").items() if "lora_B" in key)
    assert invoke("init llama pairs.jsonl --output start").exit_code == 2


def test_each_command_names_the_next():
    line = f"calibrate {DATA} --samples 6 --output calib"
    names = []
    while line:
        names.append(line.split()[0])
        result = done(line).stdout
        line = next_command(result) if "next " in result else ""
    assert names == ["calibrate", "allocate", "train", "evaluate", "export"]
    base = AutoModelForCausalLM.from_pretrained("llama")
    before = logits(base)
    expected = logits(PeftModel.from_pretrained(base, "adapter"))
    merged = AutoModelForCausalLM.from_pretrained("adapter-merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    assert (expected - before).abs().max() > 1e-4
    assert AutoTokenizer.from_pretrained("adapter-merged")("w4 w5").input_ids == [4, 5]


def test_run_is_the_library_s_pipeline_and_saves_its_results():
    done(f"{RUN} --recipe tlora-paper --epochs 2 --lr 0.01 --output out")
    model, tokenizer = tlora.load_model("llama")
    task = tlora.load_task("pairs.jsonl", tokenizer)
    calibration = tlora.calibrate(model, task.calibration(6), progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=2)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=allocation, progress=False)
    adapted = tlora.attach(model, subspaces, allocation, rows="orthonormal")
    run = tlora.train(adapted, task, epochs=2, learning_rate=0.01, progress=False)

    assert all(tensor.equal(run.adapter[name]) for name, tensor in adapter_of("out").items())
    saved = tlora.TrainingRun.load("out")
    assert same(saved.before, run.before)
    assert same(saved.after, run.after)
    assert tlora.Allocation.load("out/tlora/allocation").ranks == allocation.ranks
    assert tlora.load_result("out/tlora/sensitivity").per_sample.equal(calibration.sensitivity.per_sample)
    assert Spectrum.load("out/tlora/spectrum").to_frame().equals(calibration.spectrum().to_frame())
    assert not Path("out/tlora/unfinished").exists()


STEPS = "--seed 3 --train-samples 20 --validation-samples 4 --test-samples 5"


@pytest.mark.parametrize("recipe", [
    "captured", "captured-trained", "tlora-paper", "lora", "captured --no-adapt-ranks", "captured --kind g",
    "tlora-paper --kind c", "captured --max-rank 3 --rows orthonormal",
])  # fmt: skip
def test_the_lines_that_the_steps_name_make_what_run_makes(recipe):
    done(f"run {DATA} --rank 2 --samples 6 {STEPS} --recipe {recipe} --output out")
    done(f"calibrate {DATA} {STEPS} --samples 6 --gradient --output calib")
    shown = done(f"allocate calib --rank 2 --recipe {recipe} --output alloc").stdout
    trained = done(next_command(shown)).stdout
    assert same(adapter_of("adapter"), adapter_of("out"))
    parameters = [re.search(r"[\d,]+ parameters, A \w+", text).group() for text in (shown, trained)]
    assert parameters[0] == parameters[1]


def test_a_sketch_of_what_the_loss_needs_limits_the_directions():
    """The gradients' statistics are sketched where inputs are wide, whatever the covariances are."""
    done(f"run {DATA} --samples 6 {QUICK} --rank 3 --sketch-size 8 --output out")
    done(f"run {DATA} --samples 6 {QUICK} --rank 3 --sketch-size 8 --no-adapt-ranks --output uniform")
    assert max(tlora.TrainingRun.load("out").ranks.values()) <= 8
    assert set(tlora.TrainingRun.load("uniform").ranks.values()) == {3}


def test_results_name_their_command():
    done(f"{RUN} {STEPS} --output out --save-calibration")

    run, calibration = tlora.TrainingRun.load("out"), tlora.Calibration.load("out/tlora/calibration")
    assert (run.meta.seed, run.meta.samples, calibration.meta.seed) == (3, 20, 3)
    assert tlora.Subspaces.load("out/tlora/subspaces").max_rank == max(run.ranks.values())
    command = run.meta.recipe["command"]
    results = tlora.load_result("out/tlora/sensitivity"), tlora.Allocation.load("out/tlora/allocation")
    assert {result.meta.recipe["command"] for result in (calibration, *results)} == {command}
    done(command.removeprefix("tlora ").replace("--output out", "--output again"))
    assert same(adapter_of("again"), adapter_of("out"))


def test_run_by_captured_gradient_is_the_library_s_pipeline():
    done(f"{RUN} {QUICK} --by captured --kind g --max-rank 6 --output out --save-calibration")
    calibration, allocation = (
        tlora.Calibration.load("out/tlora/calibration"),
        tlora.Allocation.load("out/tlora/allocation"),
    )
    model, _ = tlora.load_model("llama")
    subspaces = tlora.task_subspaces(model, calibration, max_rank=6, kind="g", progress=False)
    expected = tlora.allocate(calibration.sensitivity, 2, max_rank=6, by="captured", subspaces=subspaces)
    assert (allocation.ranks, allocation.energies) == (expected.ranks, expected.energies)
    assert tlora.TrainingRun.load("out").ranks == expected.ranks
    done("allocate out/tlora/calibration --rank 2 --max-rank 6 --by captured --kind g --output alloc")
    assert tlora.Allocation.load("alloc").energies == expected.energies
    uniform = tlora.allocate(calibration.sensitivity, 2, by="captured", subspaces=subspaces, adapt_ranks=False)
    uniform.save("uniform")  # keeps what directions of kind g capture, and follows none of them
    done(f"train {DATA} uniform out/tlora/calibration {QUICK} --kind c --output other")


def test_options_reach_the_functions():
    flags = "--alpha 4 --scaling allocated --budget parameters --max-rank 3 --tokens labels"
    done(f"{RUN} {QUICK} {flags} --no-freeze-a --rows variance --output out")
    options = tlora.Allocation.load("out/tlora/allocation").options
    values = (options.rank, options.alpha, options.scaling, options.budget, options.max_rank)
    assert values == (2, 4, "allocated", "parameters", 3)
    assert not tlora.TrainingRun.load("out").frozen_a
    assert tlora.load_result("out/tlora/sensitivity").meta.recipe["tokens"] == "labels"
    done("init llama pairs.jsonl --samples 6 --rank 2 --target-modules attention --output start")
    targets = tlora.Allocation.load("start/tlora/allocation").targets
    assert {target.part for target in targets.values()} == {"attention"}
    told = done("estimate llama --target-modules attention --teraflops 1 --json").stdout
    resources = json.loads(told, parse_constant=pytest.fail)  # NaN is no JSON
    assert (resources["modules"], resources["what_fits"][0]["most_samples"]) == (len(targets), None)
    assert "--load-in-4bit" in next_command(done("estimate llama --bits 4 --teraflops 1").stdout)
    assert "next " not in done("estimate llama --bits 8 --teraflops 1").stdout  # tlora run has no such option


def test_what_is_left_out_is_printed_as_text():
    said = done(f"calibrate {DATA} --samples 6 --tokens task --output calib").stderr
    assert [line.split() for line in said.splitlines() if "left out" in line] == [
        ["left", "out:", "answers", "...", "'</s>'"]
    ]


def test_an_estimate_measures_the_data_and_names_the_training_that_fits():
    task = tlora.load_task("pairs.jsonl", AutoTokenizer.from_pretrained("llama"))
    longest = max(map(len, task.train["input_ids"]))
    plain = done("estimate llama pairs.jsonl --rank 2 --teraflops 1 --memory 1").stdout
    assert f"samples of {longest} tokens" in plain
    assert next_command(plain).startswith("run llama pairs.jsonl --dtype float32 --rank 2")
    assert "--max-length" not in next_command(plain)
    resources = json.loads(done("estimate llama pairs.jsonl --memory 1 --teraflops 1 --json").stdout)
    assert resources["what_fits"][0]["training"] == "B"


@pytest.mark.parametrize(
    ("memory", "options"),
    [("0.3", set()), ("0.1", {"--batch-size", "--gradient-accumulation"}), ("0.08", {"--load-in-4bit"})],
)
def test_the_command_of_an_estimate_fits_by_the_estimate(memory, options):
    """The command is read back, and what it trains is estimated again."""
    run = typer.main.get_command(app).commands["run"]
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 4, "vocab_size": 2000}
    LlamaConfig(**sizes, num_hidden_layers=2).save_pretrained("wide")
    line = f"estimate wide --memory {memory} --length 128 --sketch-size 8 --dtype bfloat16"
    command = next_command(done(line).stdout)
    assert options <= {*command.split()}
    values = run.make_context("run", [*shlex.split(command)[1:], "--output", "trained"]).params
    assert values["max_length"] == 128
    names = ("batch_size", "dtype", "gradient_checkpointing", "sketch_size", "rank")
    options = {name: values[name] for name in names} | {"bits": 4 if values["load_in_4bit"] else None}
    peaks = tlora.estimate("wide", length=128, fisher=True, **options).bytes
    form = "whole" if values["covariance"] == "dense" else "sketched"
    form += " on the host" if values["statistics"] == "host" else ""
    stages = [f"calibration, covariances {form}", f"training {'A and B' if values['recipe'] == 'lora' else 'B'}"]
    assert max(peaks[stage] for stage in stages) <= 1e9 * float(memory)
    assert values["batch_size"] * values["gradient_accumulation"] == 8


def test_an_estimate_without_a_command_says_what_it_needs_in_python():
    said = done("estimate llama --optim paged_adamw_8bit --length 16 --memory 1").stdout
    assert "next " not in said
    assert "tlora.train(..., optim='paged_adamw_8bit')" in said
    nothing = done("estimate llama --length 16 --gpus 0 --teraflops 1 --memory 0.00001").stdout
    assert "nothing" in nothing
    assert "next " not in nothing


def test_an_estimate_gives_no_times_of_a_device_that_is_not_here(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    on_gpu, on_cpu = (done(f"estimate llama --length 16 --memory 1 --gpus {gpus}").stdout for gpus in (1, 0))
    assert "at least" not in on_gpu
    assert "teraflops per second of this CPU" in on_cpu
    assert "--device cpu" in next_command(on_cpu)


def test_an_estimate_of_a_config_names_the_model_that_it_belongs_to():
    told = done("estimate llama/config.json --teraflops 1").stdout
    assert next_command(told).startswith("run llama ")
    Path("alone.json").write_text(Path("llama/config.json").read_text())
    assert next_command(done("estimate alone.json --teraflops 1").stdout).startswith("run MODEL ")


def test_ranks_stay_within_a_sketch():
    sketched = f"{DATA} --samples 6 --covariance sketch --sketch-size 4"
    done(f"run {sketched} {QUICK} --recipe tlora-paper --rank 3 --output sketched")
    done(f"calibrate {sketched} --output some")
    done("allocate some --rank 3 --recipe tlora-paper --output within")
    most = max(tlora.TrainingRun.load("sketched").ranks.values())
    assert most == max(tlora.Allocation.load("within").ranks.values()) == 4


def test_a_base_is_quantized_on_request():
    done(f"{RUN} {QUICK} --output whole")
    done(f"{RUN} {QUICK} --load-in-4bit --output out")
    assert "--load-in-4bit" in tlora.TrainingRun.load("out").meta.recipe["command"]
    scores, whole = (tlora.load_result(f"{name}/tlora/sensitivity").per_sample for name in ("out", "whole"))
    assert not torch.allclose(scores, whole, rtol=1e-3)
    assert torch.corrcoef(torch.stack([scores.flatten(), whole.flatten()]))[0, 1] > 0.5  # how close depends on the CPU


def test_without_test_samples_the_validation_split_is_evaluated_and_named():
    result = done(f"{RUN} --test-samples 0 --validation-samples 3 --output out").stdout
    assert tlora.TrainingRun.load("out").evaluated_on == "validation"
    assert "3 validation samples  before  after" in result
    assert next_command(result) == "export out --output out-merged --format merged"  # there are no test samples
    done(f"{RUN} --test-samples 0 --validation-samples 0 --output neither")
    assert tlora.TrainingRun.load("neither").before == {}


def test_a_classifier_is_saved_evaluated_and_exported_with_its_head():
    done("run bert labels.jsonl --samples 6 --rank 2 --output out")
    base = AutoModelForSequenceClassification.from_pretrained("bert", num_labels=3, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(base, "out")
    task = tlora.load_task("labels.jsonl", AutoTokenizer.from_pretrained("bert"))
    after = tlora.TrainingRun.load("out").after
    assert task.evaluate(model) == pytest.approx(after)
    metrics = json.loads(done("evaluate out labels.jsonl --json").stdout)["metrics"]
    assert metrics["adapter"] == pytest.approx(after)
    done("export out --format merged --output merged")
    merged = AutoModelForSequenceClassification.from_pretrained("merged")
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-5, atol=1e-5)


def test_pictures_and_a_model_card_are_left(monkeypatch):
    monkeypatch.setattr(pipeline, "draw_pictures", DRAW_PICTURES)
    before = plt.get_fignums()
    done(f"{RUN} {QUICK} --output out")
    pictures = {path.name: path.read_bytes() for path in Path("out/pictures").iterdir()}
    assert pictures.keys() == {"spectrum.png", "sensitivity.png", "allocation.png", "training.png"}
    assert all(blob.startswith(b"\x89PNG") and len(blob) > 10_000 for blob in pictures.values())
    text = Path("out/README.md").read_text(encoding="utf-8")
    assert "](pictures/allocation.png)" in text
    assert "tlora run" in text
    assert plt.get_fignums() == before
    done(f"{RUN} {QUICK} --recipe lora --overwrite --output out")  # all ranks are the same
    assert {path.name for path in Path("out/pictures").iterdir()} == pictures.keys() - {"allocation.png"}


def test_pictures_of_a_mixture_have_a_row_per_parameter_and_a_map_of_its_experts(monkeypatch):
    monkeypatch.setattr(pipeline, "draw_pictures", DRAW_PICTURES)
    tiny_mixture(experts=16, num_hidden_layers=8).save_pretrained("mixture")
    tiny_tokenizer().save_pretrained("mixture")
    modules = "--target-modules attention --target-modules experts"
    done(f"{RUN.replace('llama', 'mixture')} {QUICK} {modules} --rank-by-expert --output out")
    allocation = tlora.Allocation.load("out/tlora/allocation")
    assert any(len(set(ranks)) > 1 for ranks in allocation.expert_ranks.values())
    said = f"{allocation.zero_parameters:,} of them zero for good"
    assert said in Path("out/README.md").read_text(encoding="utf-8")
    assert said in allocation_text(allocation)
    heights = {path.stem: len(plt.imread(path)) for path in Path("out/pictures").iterdir()}
    assert heights.keys() == {"spectrum", "sensitivity", "expert_use", "allocation", "training"}
    assert max(heights.values()) <= 150 * 6.5
    assert "experts" in panel_names(viz.report("out"))
    done(f"{RUN} {QUICK} --overwrite --output out")
    assert not Path("out/pictures/expert_use.png").exists()
    assert "experts" not in panel_names(viz.report("out"))


def test_a_page_with_text_of_samples_is_left_only_if_asked_for():
    def files_with_text():
        texts = [json.dumps(f" {word}").encode() for word in PAIRS[0]["prompt"].split()]
        known = "pairs.jsonl", "tokenizer.json", "README.md", "run.safetensors"  # the last two: a single sample
        files = [path for path in Path().rglob("*") if path.is_file() and path.name not in known]
        return {str(path) for path in files if any(text in path.read_bytes() for text in texts)}

    done(f"calibrate {DATA} --samples 6 --output calib")
    done(f"{RUN} {QUICK} --output out")
    assert not files_with_text()
    shown = done(f"calibrate {DATA} --samples 6 --gradient --read --overwrite --output calib").stdout
    done(f"{RUN} {QUICK} --read --overwrite --output out")
    assert files_with_text() == {"calib-reads.html", "out/reads.html"}
    assert re.search(r"calib-reads.html: .*wc .* %, g .* %, random .* %", shown)


@pytest.mark.usefixtures("stages")
def test_the_allocation_is_shown_by_projection():
    shown = done("allocate calib --rank 3 --recipe tlora-paper --output other").stdout
    allocation = tlora.Allocation.load("other")
    for projection, part in allocation.to_frame().groupby("projection"):
        (line,) = [line for line in shown.splitlines() if line.startswith(str(projection))]
        assert line.split()[1:4] == [str(len(part)), str(part["rank"].sum()), str(part["rank"].min())]
    assert "42 of 42 ranks (rank 3 in each of 14 modules)" in shown
    assert f"{allocation.lora.trainable_parameters:,}" in shown


def test_warnings_are_sentences():
    """Those of this package are shown, and those of its libraries are not."""
    result = done(f"run bert labels.jsonl --samples 6 {QUICK} --max-length 2 --output out")
    assert "warning: labels: max_length=2 truncated" in result.stderr
    assert "UserWarning" not in result.stderr
    assert "FutureWarning" not in result.stderr
    result = invoke(f"{RUN} --lr 1e30 --output diverged")
    assert (result.exit_code, "diverged" in result.stdout) == (1, True)
    assert tlora.TrainingRun.load("diverged").diverged


@pytest.mark.usefixtures("stages")
def test_a_calibration_of_another_task_is_warned_of():
    shutil.copy("pairs.jsonl", "others.jsonl")
    line = f"train llama others.jsonl alloc calib {QUICK} --output other"
    assert "calib was calibrated on pairs, and this trains on others" in done(line).stderr
    done(f"train {DATA} alloc {QUICK} --recipe lora --output lora")
    assert not tlora.TrainingRun.load("lora").frozen_a


def test_a_calibration_resumes_from_its_checkpoint_and_takes_more_samples():
    options = "--covariance sketch --sketch-size 12"
    done(f"calibrate {DATA} {options} --samples 4 --checkpoint steps --output few")
    result = done(f"calibrate {DATA} {options} --samples 6 --checkpoint steps --output more")
    assert next_command(result.stdout, "again").endswith(f"--output more --samples 6 {options} --checkpoint steps")
    calibration = tlora.Calibration.load("more")
    assert calibration.meta.samples == 6
    assert all(type(each) is SketchedCovariance for each in calibration.covariance.values())


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ("", {"kind": "wc", "rows": "orthonormal", "freeze_a": True}),
        ("--kind g", {"kind": "g", "rows": "orthonormal"}),
        ("--no-init", {"rows": None, "freeze_a": False}),
        ("--no-adapt-ranks", {"ranks": {2}}),
        ("--no-adapt-scales", {"scalings": {1.0}}),
    ],
)
def test_ablations_switch_off_what_they_name(flags, arguments):
    done(f"{RUN} {QUICK} {flags} --recipe tlora-paper --save-calibration --output out")
    run, subspaces = tlora.TrainingRun.load("out"), Path("out/tlora/subspaces.safetensors")
    values = {"ranks": set(run.ranks.values()), "scalings": set(run.scalings.values()), **run.meta.recipe["attach"]}
    values |= {"freeze_a": run.frozen_a, "kind": subspaces.exists() and tlora.Subspaces.load(subspaces).kind}
    assert {name: values[name] for name in arguments} == arguments
    assert (len(values["ranks"]) == 1, len(values["scalings"]) == 1) == ("ranks" in flags, "scales" in flags)
    assert sum(run.ranks.values()) == 2 * 14


def test_progress_is_on_stderr_and_quiet_is_quiet_also_without_matplotlib(monkeypatch):
    monkeypatch.setattr(pipeline, "draw_pictures", DRAW_PICTURES)
    monkeypatch.setitem(sys.modules, "viz", None)
    loud = done(f"{RUN} --output loud")
    assert "calibrating on 6 samples" in loud.stderr
    assert "no pictures" in loud.stderr
    assert "done in" not in loud.stdout
    quiet = done(f"{RUN} --output quiet --quiet")
    assert quiet.stderr == ""
    for text in ("before", "perplexity", "exact match", "4 test samples", "14 modules, ranks 1 to"):
        assert text in quiet.stdout
