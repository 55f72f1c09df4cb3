"""Arguments that users bring: any iterable of modules, workers, another metric, a model that names no padding."""

import pickle
from typing import Any

import peft
import pytest
import transformers
from datasets import Dataset

import tlora
from tests.adapted import adapted_model, token_rows
from tests.helpers import tiny_batch, tiny_config, tiny_model, tiny_tokenizer


def answers() -> Dataset:
    return Dataset.from_list([{"prompt": f"w{5 + n} w9", "completion": f"w{5 + n}"} for n in range(24)])


@pytest.mark.parametrize("metric", ["exact_match", "final_answer", "loss"])
def test_a_task_goes_to_other_processes(metric: str) -> None:
    """As training with workers does where processes are spawned."""
    task = tlora.load_task(answers(), tiny_tokenizer(), metric=metric)
    again = pickle.loads(pickle.dumps(task))
    assert again.train.to_dict() == task.train.to_dict()
    if task.score is not None:
        rows = list(task.test)
        assert again.score(rows, ["w5"] * len(rows)) == task.score(rows, ["w5"] * len(rows))


def test_a_task_of_puzzles_goes_to_other_processes() -> None:
    task = tlora.load_task("chain_sum", tiny_tokenizer(), train=4, validation=0, test=2)
    rows = list(task.test)
    right = [row["answer"] for row in rows]
    assert pickle.loads(pickle.dumps(task)).score(rows, right) == task.score(rows, right)
    assert task.score(rows, right)["exact_match"] == [1.0, 1.0]


@pytest.mark.parametrize("form", [list, set, tuple, iter, dict.fromkeys, lambda names: dict.fromkeys(names).keys()])
def test_target_modules_come_in_any_iterable(form: Any) -> None:
    names, model = ["v_proj", "q_proj"], tiny_model("llama")
    found = tlora.calibrate(model, [tiny_batch("llama")], target_modules=form(names), progress=False)
    assert {name.rpartition(".")[2] for name in found.names} == set(names)
    assert sorted(found.meta.recipe["target_modules"]) == sorted(names)
    plan = tlora.plan(tiny_config("llama"), target_modules=form(names), length=8)
    assert list(plan.shapes) == found.names


def test_what_target_modules_finds_can_be_passed_on() -> None:
    model = tiny_model("llama")
    targets = tlora.target_modules(model, "attention")
    assert tlora.calibrate(model, [tiny_batch("llama")], target_modules=targets, progress=False).names == list(targets)


def test_the_best_checkpoint_by_another_metric_is_refused_before_training(tmp_path: Any) -> None:
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "output_dir": tmp_path}
    task = tlora.load_task(answers(), tiny_tokenizer())
    with pytest.raises(ValueError, match="metric_for_best_model='exact_match': during training the loss alone"):
        tlora.train(adapted_model(), task, metric_for_best_model=task.metric, progress=False, **best)
    assert tlora.train(adapted_model(), task, metric_for_best_model="eval_loss", progress=False, **best).steps


@pytest.mark.parametrize("combination", ["linear", "ties"])
def test_a_mixture_of_unlike_ranks_that_nothing_reads_again_is_not_trained(combination: str) -> None:
    model = adapted_model()
    model.add_adapter("other", model.peft_config["default"])
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both", combination_type=combination, density=0.5)
    model.set_adapter("both")
    with pytest.raises(ValueError, match=r"has rank 3 and .* config says 4 .*add_weighted_adapter"):
        tlora.train(model, token_rows(8), progress=False)


def test_adapters_that_repeat_layers_are_left_to_peft(tmp_path: Any) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[[0, 2], [1, 2]], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model("llama"), config)
    with pytest.raises(ValueError, match=r"layer_replication=.* adds layers that the base has not, which PEFT alone"):
        tlora.train(model, token_rows(8), progress=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="layer_replication="):
        tlora.load(tmp_path, tiny_model("llama"))


def test_a_model_is_inspected_once_it_is_saved() -> None:
    with pytest.raises(TypeError, match=r"inspect reads the folder of .* got a PeftModel.*: save it first"):
        tlora.inspect(adapted_model())


def test_no_more_directions_are_advised_than_a_matrix_has() -> None:
    model = tiny_model("llama")
    found = tlora.calibrate(model, [tiny_batch("llama")], progress=False)
    name = next(name for name in found.names if name.endswith("k_proj"))  # 16 x 32
    for most, advice in ((8, "max_rank="), (32, "use 1 to 16$")):
        with pytest.raises(ValueError, match=advice):
            tlora.task_subspaces(model, found, max_rank=most, progress=False).basis(name, 32)


def test_dropping_the_only_batch_is_refused() -> None:
    some = {"dataloader_drop_last": True, "warmup_steps": 0, "progress": False}
    with pytest.raises(ValueError, match=r"leaves nothing of 16 training samples in batches of 17: .*batch_size of 16"):
        tlora.train(adapted_model(), token_rows(16), batch_size=17, **some)
    assert tlora.train(adapted_model(), token_rows(16), batch_size=16, **some).steps == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_classifier_that_names_no_padding_is_told_how(family: str) -> None:
    config = tiny_config(family, num_labels=2, pad_token_id=None)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    batch = tiny_batch("bert", (5, 3, 6))
    with pytest.raises(ValueError, match=r"ForSequenceClassification finds .* set model.config.pad_token_id ="):
        tlora.calibrate(model, [batch], progress=False)
    model.config.pad_token_id = 0
    assert tlora.calibrate(model, [batch], progress=False).meta.samples == 3


def test_an_encoder_needs_no_padding_token() -> None:
    model = tiny_model("bert")
    model.config.pad_token_id = None
    assert tlora.calibrate(model, [tiny_batch("bert", (5, 3, 6))], progress=False).meta.samples == 3


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_detached_models_have_their_own_trainable_parameters(family: str) -> None:
    model = tiny_model(family)
    frozen = next(iter(dict(model.named_parameters())))
    model.get_parameter(frozen).requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    plan = tlora.allocate(tlora.calibrate(model, [tiny_batch(model)], progress=False).sensitivity, rank=4)
    for _ in range(2):
        tlora.detach(tlora.attach(model, None, plan))
        assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert set(vars(model)) == set(vars(tiny_model(family)))


def test_a_part_of_the_batches_knows_where_it_is_from() -> None:
    task = tlora.load_task(answers(), tiny_tokenizer(), seed=7)
    batches = task.calibration(8, batch_size=2)
    half = batches[:2]
    assert half == [batches[0], batches[1]]
    found = tlora.calibrate(tiny_model("llama"), half, progress=False)
    assert (found.meta.task, found.meta.seed, found.meta.samples) == (task.name, 7, 4)
