"""Training: what changes and what does not, reproducibility, checkpoints, and the ways it can end."""

from __future__ import annotations

import gc
import math
import re
import shutil
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import TrainerCallback

from tests.adapted import adapted_model, quick_collections, token_rows  # noqa: F401
from tests.helpers import tiny_model
from tlora.training.callbacks import ModuleRecorder
from tlora.training.dataset import Rows
from tlora.training.train import _as_task, train

QUICK: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 4, "progress": False}


@dataclass(frozen=True)
class HeldOut:
    """What `train` asks of a task: splits, a name, batches, and a metric."""

    train: Dataset
    validation: Dataset
    test: Dataset
    name: str = "random tokens"

    def collate(self, examples: Any) -> dict[str, torch.Tensor]:
        return Rows(self.train, 0).collate(examples)

    def evaluate(self, model: Any, split: str, limit: int | None, *, progress: bool) -> dict[str, float]:
        return {f"{split} {progress}": math.inf if limit is None else float(limit)}


def held_out(kind: type[HeldOut] = HeldOut, train: Dataset | None = None, test: int = 4) -> Any:
    return kind(train or token_rows(), token_rows(8, seed=1), token_rows(8, seed=2).select(range(test)))


class At(TrainerCallback):
    """Does something once, when a step begins."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            self.action(kwargs["model"])


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step >= self.step


class Endings(TrainerCallback):
    seen = 0

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen += 1


def interrupt(model: Any) -> None:
    raise KeyboardInterrupt


def state_of(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def condition_of(model: PeftModel) -> list[Any]:
    modules = [
        (
            m.training,
            len(m._forward_hooks),
            getattr(m, "gradient_checkpointing", None),
            "forward" in vars(m),
            "_require_grads_hook" in vars(m),
        )
        for m in model.modules()
    ]
    parameters = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return [*modules, *parameters, model.config.use_cache]


def test_only_b_changes() -> None:
    model = adapted_model()
    before = state_of(model)
    run = train(model, token_rows(), epochs=2, **QUICK)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "lora_B" in name}
    assert len(changed) == 4
    assert run.frozen_a
    assert run.trainable_parameters == sum(before[name].numel() for name in changed)


def test_training_lowers_the_loss_and_says_so() -> None:
    run = train(adapted_model(), token_rows(4), epochs=30, **(QUICK | {"learning_rate": 0.1}))
    assert run.after["train_loss"] < 0.7 * run.before["train_loss"]
    assert run.history["loss"].iloc[-1] < 0.7 * run.history["loss"].iloc[0]
    assert not run.interrupted
    assert not run.diverged
    assert run.seconds > 0


def test_schedule_is_cosine_after_three_percent_warm_up() -> None:
    run = train(adapted_model(), token_rows(), max_steps=40, **QUICK)
    warm = math.ceil(0.03 * 40)
    steps = range(40)
    expected = [
        1e-2 * (t / warm if t < warm else 0.5 * (1 + math.cos(math.pi * (t - warm) / (40 - warm)))) for t in steps
    ]
    assert run.history["learning_rate"].tolist() == pytest.approx(expected)
    assert run.history["step"].tolist() == [t + 1 for t in steps]
    assert run.history["epoch"].iloc[-1] == pytest.approx(10)


def test_first_loss_is_the_mean_over_the_labelled_tokens_of_the_batch() -> None:
    model, rows = adapted_model(), token_rows(4)
    batch = Rows(rows, 0).collate(list(rows))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    nats = -logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = nats[labels != -100].mean().item()
    run = train(model, rows, epochs=2, evaluation_limit=0, **QUICK)
    assert run.history["loss"].iloc[0] == pytest.approx(expected, rel=1e-5)
    assert run.before == run.after == {}


def test_one_seed_gives_one_run_and_another_seed_another() -> None:
    first, second, other = (train(adapted_model(), token_rows(), epochs=2, seed=seed, **QUICK) for seed in (3, 3, 4))
    assert first.history.equals(second.history)
    assert first.module_history.equals(second.module_history)
    assert all(torch.equal(tensor, second.adapter[name]) for name, tensor in first.adapter.items())
    assert not first.history["loss"].equals(other.history["loss"])


def test_what_the_evaluation_draws_does_not_change_training() -> None:
    class Drawing(HeldOut):
        def evaluate(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            return {"drawn": torch.rand(5).sum().item()}

    def bert(kind: type[HeldOut], **options: Any) -> Any:  # dropout makes it listen to the global generator
        run = train(adapted_model("bert"), kind(rows, rows, rows), **QUICK | options)
        return run.history["loss"].tolist(), run.history["eval_loss"].count()

    rows = token_rows(classes=2)
    losses, _ = bert(HeldOut, eval_strategy="no")
    assert bert(Drawing, eval_strategy="no") == (losses, 0)
    assert bert(HeldOut, eval_strategy="steps", eval_steps=1) == (losses, 4)


def test_a_look_at_the_base_in_between_leaves_a_frozen() -> None:
    class Comparing(HeldOut):
        def evaluate(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            with model.disable_adapter():  # PEFT makes A trainable when this ends, unless told not to
                return {"base": 0.0}

    model = adapted_model(declare_frozen=False)
    initial = state_of(model)
    train(model, held_out(Comparing), **QUICK)
    frozen = [name for name in initial if "lora_B" not in name]
    assert all(torch.equal(initial[name], model.state_dict()[name]) for name in frozen)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_B" not in name)


@pytest.mark.parametrize("declare_frozen", [True, False])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path, declare_frozen: bool) -> None:
    def fresh() -> PeftModel:
        return adapted_model(declare_frozen=declare_frozen)

    options = QUICK | {"epochs": 2, "save_steps": 3, "evaluation_limit": 0}
    whole = train(fresh(), token_rows(), output_dir=tmp_path / "whole", **options)
    with pytest.warns(UserWarning, match="stopped training after 4 of 8 steps"):
        train(fresh(), token_rows(), output_dir=tmp_path / "cut", callbacks=[StopAfter(4)], **options)
    model = fresh()
    resumed = train(model, token_rows(), output_dir=tmp_path / "cut", resume=True, **options)
    assert resumed.history.equals(whole.history)
    assert resumed.module_history.equals(whole.module_history)
    assert resumed.adapter.keys() == whole.adapter.keys()
    for name, tensor in whole.adapter.items():
        assert torch.equal(tensor, resumed.adapter[name])
    initial = fresh().state_dict()
    frozen = [name for name in initial if "lora_A" in name]
    assert all(torch.equal(initial[name], model.state_dict()[name]) for name in frozen)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_A" in name)


def test_resume_takes_the_last_whole_checkpoint_or_a_path(tmp_path: Path) -> None:
    options = QUICK | {"epochs": 2, "save_steps": 2, "evaluation_limit": 0, "save_total_limit": 4}
    whole = train(adapted_model(), token_rows(), output_dir=tmp_path, **options)
    for cut in ("checkpoint-8", "checkpoint-6"):
        (tmp_path / cut / "trainer_state.json").write_text('{"epoch": 1, "glob')
    resumed = train(adapted_model(), token_rows(), output_dir=tmp_path, resume=True, **options)
    assert resumed.meta.recipe["resume"].endswith("checkpoint-4")
    assert resumed.history.equals(whole.history)
    path = tmp_path / "checkpoint-2"
    again = train(adapted_model(), token_rows(), output_dir=tmp_path / "new", resume=path, **options)
    assert again.history.equals(whole.history)


@pytest.mark.parametrize("name", ["optimizer.pt", "module_history.json", "adapter_model.safetensors", "sealed.json"])
def test_a_checkpoint_that_lacks_or_damaged_a_file_is_passed_over(tmp_path: Path, name: str) -> None:
    options = QUICK | {"epochs": 2, "save_steps": 2, "evaluation_limit": 0, "save_total_limit": 4}
    whole = train(adapted_model(), token_rows(), output_dir=tmp_path, **options)
    file = tmp_path / "checkpoint-8" / name
    blob = bytearray(file.read_bytes())
    blob[len(blob) // 2] ^= 1
    file.write_bytes(blob)
    (tmp_path / "checkpoint-6" / name).unlink()  # as a kill before it was written leaves it
    resumed = train(adapted_model(), token_rows(), output_dir=tmp_path, resume=True, **options)
    assert resumed.meta.recipe["resume"].endswith("checkpoint-4")
    assert resumed.history.equals(whole.history)
    assert resumed.module_history.equals(whole.module_history)
    damaged = shutil.copytree(tmp_path / "checkpoint-4", tmp_path / "checkpoint-9")
    (damaged / "scheduler.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no whole checkpoint in .*checkpoint-9"):
        train(adapted_model(), token_rows(), output_dir=tmp_path, resume=damaged, **options)


def test_a_checkpoint_of_another_trainer_has_no_seal_and_is_taken_by_its_path(tmp_path: Path) -> None:
    options = QUICK | {"epochs": 2, "save_steps": 2, "evaluation_limit": 0, "save_total_limit": 4}
    whole = train(adapted_model(), token_rows(), output_dir=tmp_path, **options)
    (tmp_path / "checkpoint-4" / "sealed.json").unlink()
    path = tmp_path / "checkpoint-4"
    again = train(adapted_model(), token_rows(), output_dir=tmp_path / "new", resume=path, **options)
    assert again.history.equals(whole.history)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "module_history.json", ".sealed.json"])
def test_a_checkpoint_that_cannot_be_written_does_not_end_training(tmp_path: Path, name: str) -> None:
    """The disk is full from one file of one checkpoint on: what was trained is the same, and the others are there."""
    options = QUICK | {"epochs": 2, "save_steps": 2, "evaluation_limit": 0, "save_total_limit": 4}
    whole = train(adapted_model(), token_rows(), output_dir=tmp_path / "whole", **options)
    folder = tmp_path / "full"

    class Full(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            (folder / "checkpoint-4" / name).mkdir(parents=True)  # even root cannot write a file there

    with pytest.warns(UserWarning, match=r"checkpoint-4 could not be written \(.*training goes on, and earlier"):
        run = train(adapted_model(), token_rows(), output_dir=folder, callbacks=Full(), **options)
    assert run.history.equals(whole.history)
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-2", "checkpoint-6", "checkpoint-8"]
    assert train(adapted_model(), token_rows(), output_dir=folder, resume=True, **options).history.equals(whole.history)


def test_resume_refuses_what_it_cannot_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="output_dir"):
        train(adapted_model(), token_rows(), resume=True, **QUICK)
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        train(adapted_model(), token_rows(), resume=True, output_dir=tmp_path, **QUICK)
    train(adapted_model(), token_rows(), output_dir=tmp_path, evaluation_limit=0, **QUICK)
    with pytest.raises(ValueError, match=r"another adapter: .*down_proj.lora_A.weight has shape \(4, 48\)"):
        train(adapted_model(r=5), token_rows(), output_dir=tmp_path, resume=True, **QUICK)


def test_resume_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    options = QUICK | {"save_steps": 2, "evaluation_limit": 0, "learning_rate": 1e-2, "resume": True}
    with pytest.warns(UserWarning, match="stopped training after 2 of"):
        train(adapted_model(), token_rows(), output_dir=tmp_path, callbacks=StopAfter(2), **options | {"resume": False})
    for change, words in (
        ({"learning_rate": 1e-4}, r"learning_rate=0.01, and 0.0001 is asked for"),
        ({"seed": 7}, "seed=0, and 7"),
        ({"batch_size": 2}, "samples a step=4, and 2"),
        ({"weight_decay": 0.1}, "weight_decay=0.0, and 0.1"),
        ({"lr_scheduler_type": "constant"}, "lr_scheduler_type=cosine, and constant"),
    ):
        with pytest.raises(ValueError, match=words):
            train(adapted_model(), token_rows(), output_dir=tmp_path, **options | change)
    with pytest.raises(ValueError, match=r"training samples=16, and 8"):
        train(adapted_model(), token_rows(8), output_dir=tmp_path, **options)
    for scales in ({"lora_alpha": 80}, {"alpha_pattern": {r"^.*\.1\..*$": 75}}, {"use_rslora": True}):
        with pytest.raises(ValueError, match="of the same shapes with other scales"):
            train(adapted_model(**scales), token_rows(), output_dir=tmp_path, **options)
    same = {"batch_size": 2, "gradient_accumulation_steps": 2, "optim": "adamw_torch"}
    longer = train(adapted_model(), token_rows(), output_dir=tmp_path, **options | same | {"epochs": 2})
    assert longer.history["step"].max() == 8


def test_checkpoints_need_a_folder_and_leave_none_behind(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    train(adapted_model(), token_rows(), **QUICK)
    assert list(tmp_path.iterdir()) == []
    model = adapted_model()
    model.peft_config["default"].base_model_name_or_path = "nobody/nothing"  # and no hub is asked for it
    train(model, token_rows(), output_dir=tmp_path / "here", **QUICK)
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be a positive number, got 0.0"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate"),
        ({"epochs": -1}, ValueError, "epochs must be a positive number, got -1"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive number of samples, got 0"),
        ({"batch_size": 2.5}, ValueError, "batch_size"),
        ({"evaluation_limit": -1}, ValueError, "evaluation_limit"),
        ({"learning_rat": 1}, TypeError, "no argument 'learning_rat': did you mean learning_rate"),
        ({"wram_up_steps": 1}, TypeError, "did you mean warmup_steps"),
        ({"zzzzzz": 1}, TypeError, "see transformers.TrainingArguments"),
        ({"num_train_epochs": 2}, TypeError, "takes epochs= in place of num_train_epochs="),
        ({"do_train": True}, TypeError, "no argument 'do_train'"),
        ({"lr_scheduler_type": "cosin"}, ValueError, "cosin"),
        ({"eval_strategy": "epoch"}, ValueError, "needs validation samples"),
        ({"save_strategy": "epoch"}, ValueError, "pass output_dir="),
    ],
)
def test_refuses_arguments_before_anything_runs(change: dict, error: type, message: str) -> None:
    model = adapted_model()
    before, condition = state_of(model), condition_of(model)
    with pytest.raises(error, match=message):
        train(model, token_rows(), **(QUICK | change))
    assert condition_of(model) == condition
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_refuses_models_that_cannot_be_trained() -> None:
    with pytest.raises(TypeError, match="got LlamaForCausalLM: attach an adapter first"):
        train(tiny_model("llama"), token_rows(), **QUICK)  # type: ignore[arg-type]
    frozen = adapted_model().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing in the model requires a gradient"):
        train(frozen, token_rows(), **QUICK)
    merged = adapted_model()
    merged.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into .*q_proj: call model.unmerge_adapter"):
        train(merged, token_rows(), **QUICK)
    leaking = adapted_model()
    leaking.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"model\.norm\.weight would be trained but is not saved"):
        train(leaking, token_rows(), **QUICK)


def test_refuses_data_that_cannot_be_trained_on() -> None:
    with pytest.raises(TypeError, match="got list"):
        train(adapted_model(), [{"input_ids": [1]}], **QUICK)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no training samples"):
        train(adapted_model(), token_rows().select([]), **QUICK)
    with pytest.raises(ValueError, match="no column 'labels'"):
        train(adapted_model(), token_rows().remove_columns("labels"), **QUICK)


def test_interrupt_returns_the_run_so_far() -> None:
    model = adapted_model()
    model.get_base_model().model.layers[0].train()  # an unusual condition, to be found again
    condition = condition_of(model)
    endings = Endings()
    with pytest.warns(UserWarning, match="interrupted after 2 of 4 steps"):
        run = train(model, held_out(), callbacks=[At(3, interrupt), endings], **QUICK)
    assert endings.seen == 1
    assert run.interrupted
    assert not run.diverged
    assert run.history["step"].tolist() == [1, 2]
    assert run.before
    assert run.after == {}
    assert condition_of(model) == condition
    assert torch.isfinite(model(torch.tensor([[3, 4, 5]])).logits).all()
    assert train(model, token_rows(), **QUICK).history["step"].tolist() == [1, 2, 3, 4]


def test_interrupt_closes_every_bar(capfd: pytest.CaptureFixture[str]) -> None:
    class InEvaluation(TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            interrupt(None)

    with pytest.warns(UserWarning, match="interrupted after 1 of 4 steps"):
        train(adapted_model(), held_out(), callbacks=[InEvaluation()], **(QUICK | {"progress": True}))
    assert "1/4" in capfd.readouterr().err
    assert not list(tqdm._instances)


def test_interrupt_of_an_evaluation_is_an_interrupt_too() -> None:
    class Interrupting(HeldOut):
        def evaluate(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            if any(b.any() for n, b in model.named_parameters() if "lora_B" in n):
                raise KeyboardInterrupt
            return {"accuracy": 0.5}

    with pytest.warns(UserWarning, match="run.after is empty"):
        run = train(adapted_model(), held_out(Interrupting), **QUICK)
    assert (run.before, run.after, run.interrupted) == ({"accuracy": 0.5}, {}, False)


def test_stop_button_ends_training_and_still_evaluates() -> None:
    endings = Endings()
    with pytest.warns(UserWarning, match="a callback stopped training after 2 of 4 steps"):
        run = train(adapted_model(), token_rows(), callbacks=[StopAfter(2), endings], **QUICK)
    assert endings.seen == 1
    assert run.interrupted
    assert run.history["step"].tolist() == [1, 2]
    assert run.after["train_loss"] != run.before["train_loss"]


def break_loss(model: PeftModel) -> None:
    head = model.get_base_model().lm_head
    head.register_forward_hook(lambda module, args, output: output * torch.nan)


def break_gradient(model: PeftModel) -> None:
    b = next(p for name, p in model.named_parameters() if "lora_B" in name)
    b.register_hook(lambda gradient: gradient + torch.inf)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (break_loss, "the loss became nan at step 3"),
        (break_gradient, "the gradient norm became .* at step 3"),
    ],
)
def test_weights_never_see_what_is_not_finite(action: Any, message: str) -> None:
    model = adapted_model()
    with pytest.warns(UserWarning, match=message):
        run = train(model, token_rows(), callbacks=[At(3, action)], **QUICK)
    with pytest.warns(UserWarning, match="stopped"):
        sound = train(adapted_model(), token_rows(), callbacks=StopAfter(2), **QUICK)  # one alone is as good as a list
    assert run.diverged
    assert not run.interrupted
    assert run.after == {}
    assert all(torch.equal(tensor, sound.adapter[name]) for name, tensor in run.adapter.items())
    assert run.history.equals(sound.history)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_error_in_a_callback_leaves_the_model_as_it_was() -> None:
    def fail(model: Any) -> None:
        raise RuntimeError("from the callback")

    model = adapted_model()
    condition = condition_of(model)
    options = QUICK | {"gradient_checkpointing": True}
    with pytest.raises(RuntimeError, match="from the callback"):
        train(model, token_rows(), callbacks=[At(2, fail)], **options)
    assert condition_of(model) == condition


def test_warns_of_a_b_that_stays_zero() -> None:
    model = adapted_model()
    b = next(p for name, p in model.named_parameters() if "lora_B" in name)
    b.register_hook(torch.zeros_like)
    with pytest.warns(UserWarning, match=r"B is still zero after 4 steps in model\.layers\.0\.self_attn\.q_proj:"):
        train(model, token_rows(), **QUICK)
    with pytest.warns(UserWarning, match="and 1 more"):
        train(adapted_model(), token_rows(), max_steps=1, **QUICK)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_gradient_checkpointing_trains_the_same(family: str) -> None:
    rows = token_rows(classes=2) if family == "bert" else token_rows()
    plain, model = (adapted_model(family), adapted_model(family))
    condition = condition_of(model)
    first = train(plain, rows, **QUICK)
    second = train(model, rows, gradient_checkpointing=True, **QUICK)
    assert first.history["loss"].tolist() == pytest.approx(second.history["loss"].tolist(), rel=1e-5)
    assert condition_of(model) == condition


def test_bf16_passes_through_and_is_taken_off_again() -> None:
    model = adapted_model()
    ids = torch.tensor([[3, 4, 5, 6]])
    run = train(model, token_rows(), bf16=True, use_cpu=True, **QUICK)
    assert "forward" not in vars(model)
    with torch.no_grad():
        assert model(ids).logits.dtype == torch.float32
        base = adapted_model()
        base.load_state_dict(model.state_dict())
        assert torch.equal(model(ids).logits, base(ids).logits)
    exact = train(adapted_model(), token_rows(), **QUICK)
    losses = run.history["loss"].to_numpy(), exact.history["loss"].to_numpy()
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert (losses[0] != losses[1]).any()


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
def test_families(family: str) -> None:
    model = adapted_model(family)
    run = train(model, token_rows(classes=2 if family == "bert" else 0), epochs=2, **QUICK)
    assert len(run.ranks) == len([n for n in model.state_dict() if "lora_B" in n])
    head = [name for name in run.adapter if "classifier" in name]
    assert bool(head) == (family == "bert")
    assert all(b.any() for name, b in run.adapter.items() if "lora_B" in name)


def test_evaluation_limit_reaches_every_evaluation() -> None:
    run = train(adapted_model(), held_out(), evaluation_limit=3, **QUICK)
    assert run.before == run.after == {"test False": 3.0}
    unlimited = train(adapted_model(), held_out(test=0), **QUICK)
    assert unlimited.before == unlimited.after == {"validation False": math.inf}
    none = train(adapted_model(), held_out(), evaluation_limit=0, **QUICK)
    assert none.before == none.after == {}
    assert none.history["eval_loss"].isna().all()


def test_eval_loss_is_the_validation_loss_at_that_step() -> None:
    model, task = adapted_model(), held_out()
    run = train(model, task, **QUICK)
    assert run.history["eval_loss"].notna().tolist() == [True] * 4  # each quarter of four steps
    assert task.validation is not None
    halves = [task.collate([task.validation[i] for i in part]) for part in (range(4), range(4, 8))]
    with torch.no_grad():
        expected = sum(model(**half).loss.item() for half in halves) / 2
    assert run.history["eval_loss"].iloc[-1] == pytest.approx(expected, rel=1e-5)
    epochs = train(adapted_model(), task, epochs=2, eval_strategy="epoch", **QUICK)
    assert epochs.history["eval_loss"].notna().tolist() == [False, False, False, True] * 2


def test_rows_spread_over_a_sorted_dataset() -> None:
    rows = Dataset.from_dict({"input_ids": [[i, i] for i in range(100)], "labels": [[i, i] for i in range(100)]})
    seen: list[int] = []

    class Counting(Rows):
        def collate(self, examples: Any) -> dict[str, torch.Tensor]:
            seen.extend(example["input_ids"][0] for example in examples)
            return token_batch

    token_batch = Rows(token_rows(1), 0).collate(list(token_rows(1)))
    Counting(rows, 0).loss(adapted_model(), 3)
    assert seen == [0, 50, 99]


def test_a_row_without_a_label_is_named() -> None:
    labels = [[1, 2], [-100, -100], [3, 4]]
    for useless in (labels, [[1, 2], [5, -100]]):  # nothing predicts a first token
        rows = Dataset.from_dict({"input_ids": [[1, 2]] * len(useless), "labels": useless})
        with pytest.raises(ValueError, match=r"row 1 of the dataset has no label that counts, .*-100"):
            train(adapted_model(), rows, **QUICK)
    Rows(Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[5, -100]]}), 0)
    one_number = Dataset.from_dict({"input_ids": [[5, 6]] * 4, "labels": [[0.5]] * 4})
    assert _as_task(one_number, adapted_model("bert")).train is one_number  # a classifier uses it


def test_a_task_of_ones_own_needs_no_test_samples() -> None:
    class Mine:
        name, train, validation = "mine", token_rows(), None
        collate = staticmethod(Rows(token_rows(), 0).collate)

    assert train(adapted_model(), Mine(), **QUICK | {"evaluation_limit": 0}).evaluated_on == ""


def test_loss_of_rows_is_the_mean_of_single_rows_in_evaluation_mode() -> None:
    model, rows = adapted_model("bert"), token_rows(5, classes=2)
    expected = 0.0
    with torch.no_grad():
        for row in rows:
            logits = model.eval()(torch.tensor([row["input_ids"]])).logits[0]
            expected -= logits.log_softmax(0)[row["labels"]].item() / 5
    assert Rows(rows, 0).loss(model.train(), 256) == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_attention_masks_pad_and_are_kept() -> None:
    rows = Dataset.from_list(
        [
            {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [0, 1, 1]},
            {"input_ids": [8, 4], "labels": [8, 4], "attention_mask": [1, 1]},
        ]
    )
    batch = Rows(rows, 9).collate(list(rows))
    assert batch["input_ids"].tolist() == [[6, 7, 5], [8, 4, 9]]  # padding on the left goes to the right
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 0]]
    assert batch["labels"].tolist() == [[6, 7, -100], [8, 4, -100]]
    bare = Rows(rows.remove_columns("attention_mask"), 9).collate(list(rows.remove_columns("attention_mask")))
    assert bare["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_progress_false_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    train(adapted_model(), held_out(), **QUICK)
    assert capfd.readouterr() == ("", "")
    train(adapted_model(), held_out(), **(QUICK | {"progress": True}))
    shown = capfd.readouterr()
    assert "4/4" in shown.err
    assert re.search(r"loss=[\d.]+, eval_loss=[\d.]+", shown.err)
    assert shown.out == ""


def test_nothing_holds_the_model_afterwards() -> None:
    model = adapted_model()
    watched = [weakref.ref(module) for module in model.modules()]
    recorder = ModuleRecorder(every=1)
    run = train(model, token_rows(), callbacks=[recorder], **QUICK)
    del model
    gc.collect()
    assert not [module for module in watched if module() is not None]
    assert run.module_history["step"].unique().tolist() == [1, 2, 3, 4]
