"""Training: what it does to the adapter and leaves of the model, what it records, how it ends."""

import copy
import gc
import math
import re
import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import tqdm.auto
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import TrainerCallback

import tlora
from tests.helpers.adapted import adapted_model, condition, token_rows
from tests.helpers.models import tiny_batch, tiny_model
from tests.helpers.trainings import HeldOut, StopAfter, held_out, state_of, two_adapters
from tlora.adapters.attach import attach_options
from tlora.training.callbacks import ModuleRecorder
from tlora.training.dataset import Rows
from tlora.training.train import NOT_ATTACHED, train

QUICK: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 4, "progress": False}


class At(TrainerCallback):
    """Does something once, when a step begins, and counts the ends of training."""

    ends = 0

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            self.action(kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends += 1


def interrupt(model: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_records_how_a_began() -> None:
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch("llama")], progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    allocation = tlora.allocate(calibration.sensitivity, rank=3, max_rank=8)
    options: dict[str, Any] = {"rows": "orthonormal", "freeze_a": False, "seed": 3}
    adapted = tlora.attach(model, subspaces, allocation, **options)
    for began_at_zero in (True, False):
        run = train(adapted, token_rows(), max_steps=2, **QUICK)
        assert run.meta.recipe["attach"] == {"kind": "wc"} | options
        assert run.meta.recipe["b_began_at_zero"] == began_at_zero
        assert ("from a B that was not zero" in repr(run)) != began_at_zero
    assert attach_options(copy.deepcopy(adapted)) is None
    second = tlora.attach(model, None, allocation, replace=True)
    assert attach_options(adapted) == {"kind": None, "rows": None, "freeze_a": True, "seed": 0}
    by_peft = get_peft_model(second.unload(), LoraConfig(target_modules=["q_proj"]))
    assert train(by_peft, token_rows(), max_steps=2, **QUICK).meta.recipe["attach"] == NOT_ATTACHED


def test_only_b_changes_and_the_loss_falls() -> None:
    model = adapted_model()
    before = state_of(model)
    run = train(model, token_rows(4), epochs=30, **QUICK | {"learning_rate": 0.1})
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "lora_B" in name}
    assert run.frozen_a
    assert run.trainable_parameters == sum(before[name].numel() for name in changed)
    assert run.after["train_loss"] < 0.7 * run.before["train_loss"]
    assert not run.interrupted
    assert not run.diverged


def test_schedule_is_cosine_after_a_tenth_of_warm_up() -> None:
    run = train(adapted_model(), token_rows(), max_steps=40, **QUICK)
    warm = 4
    steps = range(40)
    expected = [
        1e-2 * (t / warm if t < warm else 0.5 * (1 + math.cos(math.pi * (t - warm) / (40 - warm)))) for t in steps
    ]
    assert run.history["learning_rate"].tolist() == pytest.approx(expected)
    assert run.history["step"].tolist() == [t + 1 for t in steps]
    assert run.history["epoch"].iloc[-1] == pytest.approx(10)


def test_first_loss_is_the_mean_over_the_labeled_tokens_of_the_batch() -> None:
    model, rows = adapted_model(), token_rows(4)
    batch = Rows(rows, 0).collate(list(rows))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    nats = -logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = nats[labels != -100].mean().item()
    run = train(model, rows, epochs=2, evaluation_limit=0, **QUICK)
    assert run.history["loss"].iloc[0] == pytest.approx(expected, rel=1e-5)


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


def test_a_run_records_the_memory_that_it_peaked_at() -> None:
    held = psutil.Process().memory_info().rss
    assert train(adapted_model(), token_rows(), **QUICK).peak_bytes == pytest.approx(held, rel=0.5)


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


def test_interrupt_returns_the_run_so_far() -> None:
    model = adapted_model()
    model.get_base_model().model.layers[0].train()  # an unusual condition, to be found again
    before, callback = condition(model), At(3, interrupt)
    with pytest.warns(UserWarning, match="2 of 4 steps"):
        run = train(model, held_out(), callbacks=[callback], **QUICK)
    assert (callback.ends, run.interrupted, run.diverged, run.after) == (1, True, False, {})
    assert run.meta.recipe["steps"] == [2, 4]
    assert run.history["step"].tolist() == [1, 2]
    assert run.before
    assert condition(model) == before
    assert train(model, token_rows(), **QUICK).history["step"].tolist() == [1, 2, 3, 4]


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show progress bars even if TQDM_DISABLE is set, which tqdm reads when it is imported."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(tqdm.std.tqdm, "__init__", vars(tqdm.std.tqdm)["__init__"].func)


@pytest.mark.usefixtures("bars")
def test_interrupt_closes_every_bar(capfd: pytest.CaptureFixture[str]) -> None:
    class InEvaluation(TrainerCallback):
        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="1 of 4 steps"):
        train(adapted_model(), held_out(), callbacks=[InEvaluation()], **(QUICK | {"progress": True}))
    assert "1/4" in capfd.readouterr().err
    assert not list(tqdm.auto.tqdm._instances)


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
    with pytest.warns(UserWarning, match=r"callback .*2 of 4 steps"):
        run = train(adapted_model(), token_rows(), callbacks=StopAfter(2), **QUICK)
    assert run.interrupted
    assert run.history["step"].tolist() == [1, 2]
    assert run.after["train_loss"] != run.before["train_loss"]


def break_loss(model: PeftModel) -> None:
    head = model.get_base_model().lm_head
    head.register_forward_hook(lambda module, args, output: output * torch.nan)


def break_gradient(model: PeftModel) -> None:
    b = next(p for name, p in model.named_parameters() if "lora_B" in name)
    b.register_hook(lambda gradient: gradient + torch.inf)


@pytest.mark.parametrize(("action", "what"), [(break_loss, "loss became nan"), (break_gradient, "gradient norm")])
def test_weights_never_see_what_is_not_finite(action: Any, what: str) -> None:
    model = adapted_model()
    with pytest.warns(UserWarning, match=f"the {what}.* at step 3"):
        run = train(model, token_rows(), callbacks=[At(3, action)], **QUICK)
    with pytest.warns(UserWarning, match="stopped"):
        sound = train(adapted_model(), token_rows(), callbacks=StopAfter(2), **QUICK)
    assert (run.diverged, run.interrupted, run.after) == (True, False, {})
    assert all(torch.equal(tensor, sound.adapter[name]) for name, tensor in run.adapter.items())
    assert run.history.equals(sound.history)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_error_in_a_callback_leaves_the_model_as_it_was() -> None:
    def fail(model: Any) -> None:
        raise RuntimeError("from the callback")

    model = adapted_model()
    before = condition(model)
    with pytest.raises(RuntimeError, match="from the callback"):
        train(model, token_rows(), callbacks=[At(2, fail)], gradient_checkpointing=True, **QUICK)
    assert condition(model) == before


def test_warns_of_a_b_that_stays_zero() -> None:
    model = adapted_model()
    b = next(p for name, p in model.named_parameters() if "lora_B" in name)
    b.register_hook(torch.zeros_like)
    with pytest.warns(UserWarning, match=r"B is still zero .*model\.layers\.0\.self_attn\.q_proj"):
        train(model, token_rows(), **QUICK)
    with pytest.warns(UserWarning, match="and 1 more"):
        train(adapted_model(), token_rows(), max_steps=1, **QUICK)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_gradient_checkpointing_trains_the_same(family: str) -> None:
    rows = token_rows(classes=2) if family == "bert" else token_rows()
    plain, model = (adapted_model(family), adapted_model(family))
    state = condition(model)
    first = train(plain, rows, **QUICK)
    second = train(model, rows, gradient_checkpointing=True, **QUICK)
    assert first.history["loss"].tolist() == pytest.approx(second.history["loss"].tolist(), rel=1e-5)
    assert condition(model) == state


def test_bf16_passes_through_and_is_taken_off_again() -> None:
    model, ids = adapted_model(), torch.tensor([[3, 4, 5, 6]])
    run = train(model, token_rows(), bf16=True, use_cpu=True, **QUICK)
    assert "forward" not in vars(model)
    with torch.no_grad():
        assert model(ids).logits.dtype == torch.float32
    exact = train(adapted_model(), token_rows(), **QUICK)
    losses = run.history["loss"].to_numpy(), exact.history["loss"].to_numpy()
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert (losses[0] != losses[1]).any()


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
    halves = [task.collate([task.validation[i] for i in part]) for part in (range(4), range(4, 8))]
    with torch.no_grad():
        expected = sum(model(**half).loss.item() for half in halves) / 2
    assert run.history["eval_loss"].iloc[-1] == pytest.approx(expected, rel=1e-5)
    epochs = train(adapted_model(), task, epochs=2, eval_strategy="epoch", **QUICK)
    assert epochs.history["eval_loss"].notna().tolist() == [False, False, False, True] * 2


@pytest.mark.usefixtures("bars")
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


def test_training_multiplies_the_output_embedding_for_labeled_positions_alone():
    model, rows = adapted_model(), token_rows()
    rows = rows.map(lambda row: {"labels": [-100] * (len(row["labels"]) - 1) + row["labels"][-1:]})
    columns = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: columns.append((args[0].shape[1], model.training)))
    train(model, rows, max_steps=3, evaluation_limit=0, **QUICK | {"batch_size": 1})
    assert [count for count, training in columns if training] == [2, 2, 2]  # one label, and the last column


def test_a_notebook_without_gradients_trains_all_the_same() -> None:
    usual = train(adapted_model(), token_rows(8), **QUICK).history["loss"]
    for off in (torch.no_grad(), torch.inference_mode()):
        model = adapted_model()
        with off:
            run = train(model, token_rows(8), **QUICK)
        assert run.history["loss"].equals(usual)


def b_of(model: Any, adapter: str) -> list[torch.Tensor]:
    return [p.detach().clone() for name, p in model.named_parameters() if f"lora_B.{adapter}." in name]


class Evaluations(TrainerCallback):
    """B of the active adapter at each evaluation, by its loss."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, list[torch.Tensor]]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.seen.append((metrics["eval_loss"], b_of(kwargs["model"], kwargs["model"].active_adapter)))


BEST: dict[str, Any] = QUICK | {"lr_scheduler_type": "constant", "warmup_steps": 0, "load_best_model_at_end": True}


@pytest.mark.parametrize("keep", [True, False], ids=["beside another", "alone"])
def test_the_best_is_loaded_into_the_adapter_that_was_trained(keep: bool, tmp_path: Path) -> None:
    model, evaluations = two_adapters(keep), Evaluations()
    others = b_of(model, "default")
    train(model, held_out(), callbacks=evaluations, epochs=2, output_dir=tmp_path, **BEST | {"learning_rate": 0.5})
    best = min(evaluations.seen, key=lambda each: each[0])[1]
    assert len(evaluations.seen) > 1
    assert all(map(torch.equal, b_of(model, "second"), best))
    assert all(map(torch.equal, b_of(model, "default"), others))
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_A" in name and "default" in name)


def test_the_best_step_that_is_named_is_the_one_that_was_saved(tmp_path: Path) -> None:
    """Evaluated at each step and saved at every third, the best of all was mostly not kept."""
    options = BEST | {"eval_steps": 1, "save_steps": 3, "max_steps": 9, "output_dir": tmp_path}
    options |= {"greater_is_better": True, "learning_rate": 0.5}  # the first step is then the best of all
    with pytest.warns(UserWarning, match="step 3, the best"):
        run = train(adapted_model(), held_out(), callbacks=StopAfter(5), **options)
    saved = load_file(tmp_path / "checkpoint-3" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, run.adapter[name]) for name, tensor in saved.items())
