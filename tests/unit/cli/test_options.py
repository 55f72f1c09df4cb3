"""Options: from a recipe, from a file, from the command line; and the lines to type that are made of them."""

import shlex
from pathlib import Path

import pytest
import typer
import yaml

import tlora
from tests.helpers.commands import DATA, QUICK, RUN, done, invoke, next_command
from tlora import recipes
from tlora.cli.command_line import format_command, in_options
from tlora.cli.main import app
from tlora.cli.options import AdapterFlags, AllocationFlags, CalibrationFlags, TrainingFlags, build_recipe
from tlora.recipes import RECIPES

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
GROUPS = (AllocationFlags, AdapterFlags, TrainingFlags)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_its_arguments(name):
    recipe = build_recipe(name, *(group() for group in GROUPS))
    values = recipe.train.pop("freeze_a_after", None) if recipe.attach.get("freeze_a", True) else None
    assert (recipe, values) == (RECIPES[name], None)


def test_options_take_precedence_over_the_recipe():
    recipe = build_recipe(
        "captured-freeze-late", AdapterFlags(rows="orthonormal", kind="g"), TrainingFlags(freeze_a_after=0.5)
    )
    assert (recipe.kind, recipe.train) == ("g", {"freeze_a_after": 0.5})
    assert recipe.attach == {"freeze_a": False, "rows": "orthonormal"}
    recipe = build_recipe("lora", AllocationFlags(adapt_scales=True), AdapterFlags(init=True))
    assert (recipe.allocate["adapt_ranks"], recipe.allocate["adapt_scales"], recipe.kind) == (False, True, "wc")
    recipe = build_recipe("tlora-paper", AdapterFlags(init=False))
    assert (recipe.kind, recipe.attach["freeze_a"]) == (None, False)
    recipe = build_recipe("captured", CalibrationFlags(target_modules=["mlp"], tokens="labels"))
    assert recipe.calibrate == {"target_modules": "mlp", "tokens": "labels"}


@pytest.mark.parametrize(
    ("recipe", "group", "name"),
    [
        ("lora", AdapterFlags(kind="wc"), "--kind"),
        ("lora", AdapterFlags(freeze_a=True), "--freeze-a"),
        ("captured", AdapterFlags(init=False, rows="variance"), "--rows"),
        ("lora", AllocationFlags(budget="parameters"), "--budget"),
        ("captured", AllocationFlags(adapt_ranks=False, max_rank=9), "--max-rank"),
        ("captured", AdapterFlags(kind="wc"), "by=score or adapt_ranks=False"),
        ("captured", AdapterFlags(init=False), "adapt_ranks=False"),
        ("tlora-paper", AllocationFlags(by="captured"), "kind=g or fisher"),
        ("captured", TrainingFlags(a_learning_rate=1e-4), "--a-learning-rate"),
        ("tlora-paper", TrainingFlags(freeze_a_after=0.2), "--freeze-a-after"),
    ],
)
def test_options_without_effect_are_refused(recipe, group, name):
    groups = [group if isinstance(group, kind) else kind() for kind in GROUPS]
    with pytest.raises(ValueError, match=name):
        build_recipe(recipe, *groups)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("take test=0 and validation=0", "take --test-samples 0 and --validation-samples 0"),
        ("a larger train=: or more", "a larger --train-samples: or more"),
        ("max_rank is 4, raise max_rank", "--max-rank is 4, raise --max-rank"),
        ("covariance='sketch', gradient_accumulation_steps=8.", "--covariance sketch, --gradient-accumulation 8."),
        ("freeze_a=True, freeze_a=False", "--freeze-a, --no-freeze-a"),
        ("rank 8 by seed, recipe tlora", "rank 8 by seed, recipe tlora"),
        ("data/max_rank.jsonl of 'max_rank', tlora.load_adapter(max_rank=3)", None),
        ("target_modules=['q_proj'], format='merged', optim='sgd'", None),
    ],
)
def test_arguments_of_the_library_are_told_as_options(text, expected):
    assert in_options(text, COMMANDS["run"]) == (expected or text)


@pytest.mark.usefixtures("workplace", "no_pictures")
def test_a_run_without_a_recipe_says_what_lora_would_do_better():
    said = done(f"run {DATA} --samples 6 {QUICK} --output one").stderr
    assert "plain LoRA learned more" in " ".join(said.split())  # it is folded
    assert "plain LoRA" not in done(f"run {DATA} --samples 6 {QUICK} --recipe lora --output two").stderr
    one, two = (tlora.TrainingRun.load(name) for name in ("one", "two"))
    assert (one.frozen_a, two.frozen_a) == (True, False)
    assert set(two.ranks.values()) == {8} < set(one.ranks.values())
    done("run --config one/tlora/run.yaml --recipe lora --output three")
    three = tlora.TrainingRun.load("three")
    assert all(tensor.equal(two.adapter[name]) for name, tensor in three.adapter.items())


@pytest.mark.usefixtures("workplace", "no_pictures")
def test_a_run_writes_the_file_that_repeats_it():
    training = "--gradient-accumulation 2 --gradient-checkpointing --lr 1e-2"
    done(f"{RUN} {QUICK} {training} --no-adapt-scales --target-modules mlp --output one")
    done("run --config one/tlora/run.yaml --output two")
    one, two = (Path(folder, "tlora", "run.yaml").read_text() for folder in ("one", "two"))
    assert two == one.replace("output: one", "output: two")
    assert yaml.safe_load(one)["target_modules"] == ["mlp"]
    assert same_adapter("one", "two")
    recipe = tlora.TrainingRun.load("two").meta.recipe
    assert (recipe["gradient_accumulation_steps"], recipe["gradient_checkpointing"]) == (2, True)
    assert set(tlora.Allocation.load("two/tlora/allocation").to_frame()["alpha"]) == {2}


@pytest.mark.usefixtures("workplace", "no_pictures")
@pytest.mark.parametrize("command", [f"{RUN} {QUICK}", f"init {DATA} --samples 4", f"calibrate {DATA} --samples 4"])
def test_a_calibration_checkpoints_as_training_does(command, monkeypatch):
    asked = []
    calibrate = recipes.calibrate
    monkeypatch.setattr(recipes, "calibrate", lambda *args, gradient_checkpointing, **options: (
        asked.append(gradient_checkpointing) or calibrate(*args, **options)
    ))  # fmt: skip
    done(f"{command} --output one")
    done(f"{command} --gradient-checkpointing --output two")
    assert asked == [None, True]


def same_adapter(one, two):
    return Path(one, "adapter_model.safetensors").read_bytes() == Path(two, "adapter_model.safetensors").read_bytes()


@pytest.mark.usefixtures("workplace", "no_pictures")
def test_the_line_takes_precedence_over_the_file():
    Path("run.yaml").write_text(
        "model: llama\ntask: pairs.jsonl\nsamples: 6\nrank: 2\nlearning-rate: 1e-2\nrows: orthonormal\n"
        "recipe: captured\nsteps: 1\neval_limit: 0\nmax_length:\ntarget_modules: attention\n"
    )
    result = done("run --config run.yaml --rank 3 --output out").stdout
    line = "run llama pairs.jsonl --output out --target-modules attention --samples 6 --rank 3 --rows orthonormal"
    assert next_command(result, "again").startswith(line)
    recipe = tlora.TrainingRun.load("out").meta.recipe
    assert (recipe["learning_rate"], recipe["attach"]["rows"]) == (0.01, "orthonormal")


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("learnig_rate: 1", "run.yaml: tlora run has no option 'learnig_rate': did you mean 'learning_rate'"),
        ("lr: 1e-3", "run.yaml: tlora run has no option 'lr': did you mean 'learning_rate'?"),
        ("Learning_Rate: 1", "run.yaml: tlora run has no option 'Learning_Rate': did you mean 'learning_rate'?"),
        ("LR: 1", "run.yaml: tlora run has no option 'LR': did you mean 'learning_rate'?"),
        ("zzz: 1", "run.yaml: tlora run has no option 'zzz'\n"),
        ("config: other.yaml", "'config'"),
        ("rank: [2", "run.yaml"),
        ("rank", "run.yaml"),
        ("rank: much", "--rank"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text, name):
    Path("run.yaml").write_text(text)
    result = invoke(f"run {DATA} --config run.yaml --output out")
    assert (result.exit_code, name in result.stderr) == (2, True), result.stderr


def test_lines_to_type_are_quoted_and_leave_out_defaults():
    values = {
        "model": "my models/llama",
        "task": "it's.jsonl",
        "output": Path("out"),
        "target_modules": ["q_proj", "v_proj"],
        "rank": 8,
        "alpha": 16.0,
        "adapt_ranks": False,
        "init": None,
        "quiet": True,
        "overwrite": True,
        "calibration": "not of run",
        "kind": "c",
    }
    assert shlex.split(format_command(COMMANDS["run"], values)) == [
        *("tlora", "run", "my models/llama", "it's.jsonl", "--output", "out"),
        *("--target-modules", "q_proj", "--target-modules", "v_proj"),
        *("--alpha", "16.0", "--no-adapt-ranks", "--kind", "c", "--overwrite"),
    ]
    values = {"adapter": "a", "output": "b", "format": "merged"}
    assert format_command(COMMANDS["export"], values) == "tlora export a --output b --format merged"
