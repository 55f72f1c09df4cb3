"""Training: what it does to the adapter and leaves of the model, what it records, how it ends."""

import copy
import gc
import math
import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tqdm.auto import tqdm
from transformers import TrainerCallback

import tlora
from tests.helpers.adapted import adapted_model, condition, token_rows
from tests.helpers.models import tiny_batch, tiny_model, tiny_tokenizer
from tests.helpers.trainings import StopAfter, state_of, two_adapters
from tlora.adapters.attach import attach_options
from tlora.training.callbacks import ModuleRecorder
from tlora.training.dataset import Rows
from tlora.training.train import NOT_ATTACHED, as_task, train


@pytest.fixture(scope="module")
def parts() -> Any:
    """A model with its subspaces and an allocation."""
    model = tiny_model("llama")
    calibration = tlora.calibrate(model, [tiny_batch("llama")], progress=False)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    return model, subspaces, tlora.allocate(calibration.sensitivity, rank=3, max_rank=8)


@pytest.mark.parametrize("freeze_a", [True, False])
@pytest.mark.parametrize("rows", ["orthonormal", "variance", "default", "random"])
def test_a_run_records_how_a_began(parts: Any, rows: str, freeze_a: bool) -> None:
    model, subspaces, allocation = parts
    kind, start = (None, None) if rows == "random" else ("wc", subspaces)
    options = {} if rows in ("default", "random") else {"rows": rows}
    adapted = tlora.attach(model, start, allocation, replace=True, freeze_a=freeze_a, seed=3, **options)
    used = {"default": "variance", "random": None}.get(rows, rows)
    expected = {"kind": kind, "rows": used, "freeze_a": freeze_a, "seed": 3}
    for number in range(2):
        run = tlora.train(adapted, token_rows(), learning_rate=1e-2, max_steps=2, progress=False)
        assert run.meta.recipe["attach"] == expected
        assert run.meta.recipe["b_began_at_zero"] == (number == 0)
        assert ("from a B that was not zero" in repr(run)) == (number == 1)


def test_how_an_adapter_began_that_was_not_attached_is_unknown(parts: Any) -> None:
    model, subspaces, allocation = parts
    first = tlora.attach(model, subspaces, allocation, replace=True)
    assert attach_options(copy.deepcopy(first)) is None
    second = tlora.attach(model, None, allocation, replace=True)
    assert attach_options(first) == attach_options(second), "the first model has the second adapter"
    assert attach_options(first) == {"kind": None, "rows": None, "freeze_a": True, "seed": 0}
    by_peft = get_peft_model(second.unload(), LoraConfig(target_modules=["q_proj"]))
    assert attach_options(by_peft) is None
    run = tlora.train(by_peft, token_rows(), max_steps=2, progress=False)
    assert run.meta.recipe["attach"] == NOT_ATTACHED
    tlora.detach(by_peft)


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


class Endings(TrainerCallback):
    seen = 0

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen += 1


def interrupt(model: Any) -> None:
    raise KeyboardInterrupt


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


def test_interrupt_returns_the_run_so_far() -> None:
    model = adapted_model()
    model.get_base_model().model.layers[0].train()  # an unusual state, to be found again
    state = condition(model)
    endings = Endings()
    with pytest.warns(UserWarning, match="interrupted after 2 of 4 steps"):
        run = train(model, held_out(), callbacks=[At(3, interrupt), endings], **QUICK)
    assert endings.seen == 1
    assert run.interrupted
    assert not run.diverged
    assert run.history["step"].tolist() == [1, 2]
    assert run.before
    assert run.after == {}
    assert condition(model) == state
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
    state = condition(model)
    options = QUICK | {"gradient_checkpointing": True}
    with pytest.raises(RuntimeError, match="from the callback"):
        train(model, token_rows(), callbacks=[At(2, fail)], **options)
    assert condition(model) == state


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
    state = condition(model)
    first = train(plain, rows, **QUICK)
    second = train(model, rows, gradient_checkpointing=True, **QUICK)
    assert first.history["loss"].tolist() == pytest.approx(second.history["loss"].tolist(), rel=1e-5)
    assert condition(model) == state


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


def test_a_task_of_ones_own_needs_no_test_samples() -> None:
    class Mine:
        name, train, validation = "mine", token_rows(), None
        collate = staticmethod(Rows(token_rows(), 0).collate)

    assert train(adapted_model(), Mine(), **QUICK | {"evaluation_limit": 0}).evaluated_on == ""


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


def test_training_multiplies_the_output_embedding_for_labelled_positions_alone():
    model, rows = adapted_model(), token_rows()
    rows = rows.map(lambda row: {"labels": [-100] * (len(row["labels"]) - 1) + row["labels"][-1:]})
    columns = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: columns.append((args[0].shape[1], model.training)))
    train(model, rows, learning_rate=1e-2, batch_size=1, max_steps=3, progress=False, evaluation_limit=0)
    assert [count for count, training in columns if training] == [2, 2, 2]  # one label, and the last column


QUIET: dict[str, Any] = {"batch_size": 4, "progress": False, "evaluation_limit": 0}


def pairs() -> tlora.Task:
    rows = [{"prompt": f"w{4 + i % 7} w{11 + i % 11} w{22 + i}", "completion": f"w{4 + i % 7}"} for i in range(36)]
    splits = {"train": rows[:20], "validation": rows[20:28], "test": rows[28:]}
    return tlora.load_task({name: Dataset.from_list(part) for name, part in splits.items()}, tiny_tokenizer())


def test_the_best_step_that_is_named_is_the_one_that_was_saved(tmp_path: Path) -> None:
    """Evaluated at each step and saved at every fourth, the best of all was mostly not kept."""
    options = {"eval_steps": 1, "save_steps": 4, "load_best_model_at_end": True}
    with pytest.warns(UserWarning, match="the run holds that of step 4, the best"):
        run = tlora.train(
            adapted_model(), pairs(), output_dir=tmp_path, max_steps=12, learning_rate=0.01, callbacks=StopAfter(7),
            **QUIET | options | {"evaluation_limit": 6},
        )  # fmt: skip
    saved = load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, run.adapter[name]) for name, tensor in saved.items())
    losses = run.history.set_index("step")["eval_loss"]
    assert losses.idxmin() > 4


def test_a_best_step_whose_rate_was_zero_is_said_to_have_learned_nothing_only_where_it_was_stopped_there(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    options = {"eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True, "greater_is_better": True}
    tlora.train(
        adapted_model(), pairs(), output_dir=tmp_path, max_steps=9, learning_rate=0.05,
        callbacks=transformers.EarlyStoppingCallback(1), **QUIET | options | {"evaluation_limit": 6},
    )  # fmt: skip
    said = [str(warning.message) for warning in recwarn]
    assert any("the run holds that of step 1, the best" in text for text in said)
    assert not any("B is still zero" in text for text in said)


def test_labels_of_a_decoder_can_be_smoothed() -> None:
    """By the definition: the mean over all labels of the loss, and of the mean log-probability of all tokens."""
    model = peft.get_peft_model(
        tiny_model("t5", dropout_rate=0.0), peft.LoraConfig(r=4, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    ).eval()
    rows = Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [9, 10, 11]}, {"input_ids": [5, 6], "labels": [4]}])
    batch = as_task(rows, model).collate(list(rows))
    with torch.no_grad():
        logits = model(**batch).logits.log_softmax(-1)
    real = batch["labels"] != -100
    right = logits.gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0]
    expected = -(0.9 * right[real].mean() + 0.1 * logits.mean(-1)[real].mean()).item()
    run = tlora.train(model, rows, max_steps=1, warmup_steps=0, label_smoothing_factor=0.1, logging_steps=1, **QUIET)
    assert run.history["loss"].iloc[0] == pytest.approx(expected, rel=1e-4)


THREE_STEPS: dict[str, Any] = {"max_steps": 3, "batch_size": 4, "progress": False}


def test_a_notebook_without_gradients_trains_all_the_same() -> None:
    usual = tlora.train(adapted_model(), token_rows(8), **THREE_STEPS).history["loss"]
    for off in (torch.no_grad(), torch.inference_mode()):
        model = adapted_model()
        with off:
            run = tlora.train(model, token_rows(8), **THREE_STEPS)
        assert run.history["loss"].equals(usual)


class Held:
    """A task with validation samples."""

    name, train, validation, test = "held", token_rows(16), token_rows(8, seed=3), token_rows(0)
    collate = staticmethod(Rows(token_rows(), 0).collate)
    evaluate = staticmethod(lambda model, split, limit, progress: {})


def b_of(model: Any, adapter: str) -> list[torch.Tensor]:
    return [p.detach().clone() for name, p in model.named_parameters() if f"lora_B.{adapter}." in name]


class Evaluations(TrainerCallback):
    """B of the active adapter at each evaluation, by its loss."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, list[torch.Tensor]]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.seen.append((metrics["eval_loss"], b_of(kwargs["model"], kwargs["model"].active_adapter)))


@pytest.mark.parametrize("keep", [True, False], ids=["beside another", "alone"])
def test_the_best_is_loaded_into_the_adapter_that_was_trained(keep: bool, tmp_path: Path) -> None:
    model, evaluations = two_adapters(keep), Evaluations()
    others = b_of(model, "default")
    options = {"learning_rate": 0.5, "lr_scheduler_type": "constant", "warmup_steps": 0, "epochs": 2}
    options |= QUIET | {"output_dir": tmp_path, "load_best_model_at_end": True, "evaluation_limit": 8}
    tlora.train(model, Held(), callbacks=evaluations, **options)
    best = min(evaluations.seen, key=lambda each: each[0])[1]
    assert len(evaluations.seen) > 1
    assert all(map(torch.equal, b_of(model, "second"), best))
    assert all(map(torch.equal, b_of(model, "default"), others))
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_A" in name and "default" in name)


def test_a_start_that_rewrites_the_base_is_read_again_on_the_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights="pissa")
    model = get_peft_model(tiny_model("llama"), config)
    tlora.train(model, token_rows(8), **QUIET).save(tmp_path / "a")
    ids = torch.tensor([[3, 9, 12]])
    again = tlora.load(tmp_path / "a", tiny_model("llama"))
    assert torch.allclose(again.eval()(ids).logits, model.eval()(ids).logits, atol=1e-5)
