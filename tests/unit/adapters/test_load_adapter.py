"""Loading: what is trained again and what stays frozen, heads, several adapters, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import tlora
from tests.helpers.adapted import adapted_model, condition, logits, prepare, step, train_once
from tests.helpers.commands import done
from tests.helpers.foreign import BATCH, PARTS, biased, foreign
from tests.helpers.models import tiny_batch, tiny_config, tiny_model, tiny_tokenizer
from tlora.adapters.lora_layers import adapter_layers
from tlora.models.targets import head_modules

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
QUICK: dict[str, Any] = {"learning_rate": 0.05, "batch_size": 2, "evaluation_limit": 0, "progress": False}
ROWS = Dataset.from_list([{"input_ids": [3 + n, 9, 5 + n, 7], "labels": [-100, 9, 5 + n, 7]} for n in range(8)])
CLASSES = Dataset.from_list([{"input_ids": [3 + n, 9, 5 + n, 7], "labels": n % 2} for n in range(8)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two trained adapters of one base, of different allocations; the checkpoint of a third one's last step."""
    place = tmp_path_factory.mktemp("adapters")
    saved = {}
    for seed, (name, options) in enumerate({"one": {}, "two": {"adapt_ranks": False}}.items()):
        model, subspaces, allocation = prepare(**options)
        adapted = tlora.attach(model, subspaces, allocation)
        step(adapted, tiny_batch("llama", seed=seed))
        saved[name] = train_once(adapted).save(place / name)
    adapted = tlora.attach(*prepare())
    tlora.train(adapted, ROWS, output_dir=place / "steps", save_steps=4, **QUICK)
    return saved | {"checkpoint": place / "steps" / "checkpoint-4"}


def load_both(folders: dict[str, Path], name: str = "two") -> PeftModel:
    return tlora.load_adapter(
        folders["two"], tlora.load_adapter(folders["one"], tiny_model("llama"), name="one"), name=name
    )


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def names_with(model: nn.Module, part: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if part in name}


def edit_config(folder: Path, **values: Any) -> None:
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | values))


def test_training_on_after_a_reload_changes_b_alone(tmp_path: Path) -> None:
    model, subspaces, allocation = prepare()
    tlora.train(tlora.attach(model, subspaces, allocation), ROWS, **QUICK).save(tmp_path)
    loaded = tlora.load_adapter(tmp_path, tiny_model("llama"))
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    run = tlora.train(loaded, ROWS, **QUICK)
    run.save(tmp_path)
    again = tlora.load_adapter(tmp_path, tiny_model("llama")).state_dict()
    changed = {name for name, tensor in again.items() if not tensor.equal(before[name])}
    assert changed == {name for name in before if "lora_B" in name}
    assert run.trainable_parameters == allocation.trainable_parameters


def test_a_is_frozen_as_recorded_or_as_the_caller_says(folders: dict[str, Path], tmp_path: Path) -> None:
    adapted = tlora.attach(*prepare(), freeze_a=False)
    tlora.train(adapted, ROWS, output_dir=tmp_path / "steps", save_steps=4, **QUICK)
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    for folder, freeze_a, part in (
        (folders["one"], None, "lora_B"),
        (folders["one"], False, "lora_"),
        (folders["checkpoint"], None, "lora_B"),
        (folders["checkpoint"], False, "lora_"),
        (tmp_path / "steps" / "checkpoint-4", None, "lora_"),
        (tmp_path / "peft", None, "lora_"),
        (tmp_path / "peft", True, "lora_B"),
    ):
        loaded = tlora.load_adapter(folder, tiny_model("llama"), freeze_a=freeze_a)
        loaded.set_adapter("default")
        assert trainable(loaded) == names_with(loaded, part)


@pytest.mark.parametrize("second", ["two", "lora", "layer"])
def test_each_of_several_computes_what_it_does_alone(second: str, folders: dict[str, Path]) -> None:
    """Also if it is called like a part of the names of parameters."""
    model = load_both(folders, second).eval()
    assert model.active_adapters == [second]
    for name in ("one", second, "one"):
        model.set_adapter(name)
        alone = PeftModel.from_pretrained(tiny_model("llama"), str(folders["one" if name == "one" else "two"]))
        assert torch.equal(logits(model, BATCH), logits(alone, BATCH))
    with model.disable_adapter():
        assert torch.equal(logits(model, BATCH), logits(tiny_model("llama"), BATCH))


def test_a_stays_frozen_in_each_of_several(folders: dict[str, Path]) -> None:
    model = load_both(folders)
    for name in ("two", "one", "two"):
        model.set_adapter(name)
        assert trainable(model) == names_with(model, f"lora_B.{name}")
        with model.disable_adapter():
            pass
        assert trainable(model) == names_with(model, f"lora_B.{name}")


def test_taking_several_off_gives_the_base(folders: dict[str, Path]) -> None:
    reference = tiny_model("llama").state_dict()
    for take_off in (lambda model: model.unload(), lambda model: tlora.detach(model) or model.get_base_model()):
        base = take_off(load_both(folders))
        assert not adapter_layers(base)
        state = base.state_dict()
        assert state.keys() == reference.keys()
        assert all(torch.equal(state[key], reference[key]) for key in reference)


def test_heads_of_several_are_kept_apart(tmp_path: Path) -> None:
    batch, folders = tiny_batch("bert"), {}
    for seed, name in enumerate(("one", "two")):
        adapted = tlora.attach(*prepare("bert"))
        step(adapted, tiny_batch("bert", seed=seed))
        folders[name] = train_once(adapted).save(tmp_path / name)
    model = tlora.load_adapter(
        folders["two"], tlora.load_adapter(folders["one"], tiny_model("bert"), name="one"), name="two"
    ).eval()
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        alone = PeftModel.from_pretrained(tiny_model("bert"), str(folders[name]))
        assert torch.equal(logits(model, batch), logits(alone, batch))


def save_classifier_base(place: Path) -> Path:
    """A masked language model: a classifier loaded from it has a random pooler and head."""
    transformers.BertForMaskedLM(tiny_config("bert")).save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def test_a_fresh_head_and_pooler_are_trained_saved_and_found_again(tmp_path: Path) -> None:
    """The checkpoint has neither, so that each load draws others: only what was saved can make them agree."""
    path = save_classifier_base(tmp_path / "base")

    def base(seed: int) -> Any:
        return tlora.load_model(path, num_labels=2, device="cpu", seed=seed)[0]

    model, batch = base(0), tiny_batch("bert")
    calibration = tlora.calibrate(model, [batch], progress=False)
    assert not any("classifier" in name or "pooler" in name for name in calibration.names)
    subspaces = tlora.task_subspaces(model, calibration, max_rank=8, progress=False)
    adapted = tlora.attach(model, subspaces, tlora.allocate(calibration.sensitivity, rank=2, max_rank=8))
    untrained = logits(adapted, batch)
    run = tlora.train(adapted, CLASSES, **QUICK)
    expected = logits(adapted.eval(), batch)
    folder = run.save(tmp_path / "adapter")
    fresh = {"classifier.bias", "classifier.weight", "bert.pooler.dense.bias", "bert.pooler.dense.weight"}
    assert {key.removeprefix("base_model.model.") for key in run.adapter if "lora" not in key} == fresh
    loaded = tlora.load_adapter(folder, base(1))
    for again in (loaded, tlora.load_adapter(folder), PeftModel.from_pretrained(base(2), str(folder)).eval()):
        torch.testing.assert_close(logits(again, batch), expected, atol=1e-5, rtol=0)
    assert (expected - untrained).abs().max() > 1e-3
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    tlora.train(loaded, CLASSES, **QUICK)
    changed = {name for name, tensor in loaded.state_dict().items() if not tensor.equal(before[name])}
    assert {name for name in changed if "lora_B" not in name} == {
        f"base_model.model.{name.rpartition('.')[0]}.modules_to_save.default.{name.rpartition('.')[2]}"
        for name in fresh
    }


def test_a_pooler_that_nobody_trained_is_refused(tmp_path: Path) -> None:
    """Loaded by transformers itself, and PEFT saves the classifier alone."""
    base = save_classifier_base(tmp_path / "base")
    model = transformers.BertForSequenceClassification.from_pretrained(base, num_labels=2)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2)
    get_peft_model(model, config).save_pretrained(str(tmp_path / "without"))
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense is randomly initialized"):
        tlora.load_adapter(tmp_path / "without")
    nn.init.normal_(model.bert.pooler.dense.bias)
    assert head_modules(model) == ["classifier"], "a trained pooler is the base's own"


def test_a_classifier_is_loaded_with_as_many_classes_as_its_head_has(tmp_path: Path) -> None:
    """By the record of the run, or by the last matrix of the head: another may be smaller."""
    for base in (tiny_model("roberta", num_labels=40), tiny_model("roberta")):
        base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model, _ = tlora.load_model(tmp_path / "base", num_labels=40)
    foreign(model, tmp_path / "adapter", target_modules=["query"], task_type="SEQ_CLS")
    assert tlora.load_adapter(tmp_path / "adapter").config.num_labels == 40
    model, _ = tlora.load_model(tmp_path / "base", num_labels=3, device="cpu")
    calibration = tlora.calibrate(model, [tiny_batch("roberta")], progress=False)
    adapted = tlora.attach(model, None, tlora.allocate(calibration.sensitivity, rank=2, max_rank=8))
    step(adapted, tiny_batch("roberta"))
    train_once(adapted).save(tmp_path / "run")
    assert tlora.load_adapter(tmp_path / "run").config.num_labels == 3


@pytest.mark.parametrize("kind", ["TOKEN_CLS", "FEATURE_EXTRACTION"])
def test_a_base_with_another_head_is_not_taken_for_a_classifier(kind: str, tmp_path: Path) -> None:
    """They were loaded as classifiers of whole texts, and the head that was trained was lost."""
    names = {"TOKEN_CLS": "BertForTokenClassification"}

    def base() -> Any:
        torch.manual_seed(0)
        return getattr(transformers, names.get(kind, "BertModel"))(tiny_config("bert", num_labels=2)).eval()

    base().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = base()
    model.name_or_path = model.config._name_or_path = str(tmp_path / "base")
    trained = foreign(model, tmp_path / "adapter", target_modules=["query"], task_type=kind)
    with pytest.raises(ValueError, match=f"task_type='{kind}'"):
        tlora.load_adapter(tmp_path / "adapter")
    inputs = {key: value for key, value in tiny_batch("bert").items() if key != "labels"}
    with torch.no_grad():
        assert torch.equal(tlora.load_adapter(tmp_path / "adapter", base()).eval()(**inputs)[0], trained(**inputs)[0])


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.usefixtures("workplace")
def test_the_base_that_is_evaluated_beside_an_adapter_is_the_base(part: str, tmp_path: Path) -> None:
    biased().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model, _ = tlora.load_model(tmp_path / "base")
    foreign(model, tmp_path / "adapter", task_type="CAUSAL_LM", **PARTS[part])
    metrics = json.loads(done("evaluate adapter pairs.jsonl --base --json --quiet").stdout)["metrics"]
    task = tlora.load_task("pairs.jsonl", tiny_tokenizer(), progress=False)
    alone = task.evaluate(tlora.load_model(tmp_path / "base")[0], progress=False)
    assert metrics["base"]["loss"] == pytest.approx(alone["loss"], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_not_merged_into_the_same_base_twice(folders: dict[str, Path], dtype: torch.dtype) -> None:
    batch = tiny_batch("llama")
    merged = tlora.merge(tlora.load_adapter(folders["one"], tiny_model("llama").to(dtype)))
    once = logits(merged, batch)
    with pytest.raises(ValueError, match="before an adapter was merged into it"):
        tlora.load_adapter(folders["one"], merged)
    assert torch.equal(logits(merged, batch), once)
    with pytest.raises(ValueError, match="before an adapter was merged into it"):
        tlora.attach(merged, *prepare()[1:])


def test_what_was_made_for_the_merged_model_goes_on_it(folders: dict[str, Path], tmp_path: Path) -> None:
    merged = tlora.merge(tlora.load_adapter(folders["one"], tiny_model("llama")))
    calibration = tlora.calibrate(merged, [tiny_batch("llama")], progress=False)
    second = tlora.attach(merged, None, tlora.allocate(calibration.sensitivity, rank=2, max_rank=8))
    tlora.train(second, ROWS, **QUICK).save(tmp_path)
    expected = logits(second, tiny_batch("llama"))
    again = tlora.load_adapter(tmp_path, tlora.merge(tlora.load_adapter(folders["one"], tiny_model("llama"))))
    assert torch.allclose(logits(again, tiny_batch("llama")), expected, atol=1e-5)


def test_the_base_is_the_one_that_the_adapter_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model="):
        tlora.load_adapter(tmp_path)
    edit_config(tmp_path, base_model_name_or_path="./elsewhere/llama")
    with pytest.raises(ValueError, match=r"elsewhere/llama") as error:
        tlora.load_adapter(tmp_path)
    assert any("model=" in note for note in error.value.__notes__)
    edit_config(tmp_path, base_model_name_or_path="somebody/base", revision="step3000")
    call = {}

    def load_model(name: str, **arguments: Any) -> tuple[Any, None]:
        call.update(arguments, name=name)
        return tiny_model("llama"), None

    monkeypatch.setattr("tlora.adapters.load_adapter.load_model", load_model)
    monkeypatch.setattr("tlora.adapters.load_adapter.resolve", lambda name, where: None)
    tlora.load_adapter(tmp_path)
    assert (call["name"], call["revision"]) == ("somebody/base", "step3000")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 5}, r"model\.layers\.0\.self_attn\.q_proj"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1"),
        ({"num_key_value_heads": 4, "seed": 0}, "k_proj"),
        ("gpt2", r"model\.layers\.0\.self_attn\.q_proj"),
    ],
)
def test_an_adapter_is_not_loaded_onto_another_base(folders: dict[str, Path], change: Any, words: str) -> None:
    model = tiny_model(change) if isinstance(change, str) else tiny_model("llama", **change)
    before = condition(model)
    for name in ("one", "checkpoint"):
        with pytest.raises(ValueError, match=f"another model.*{words}"):
            tlora.load_adapter(folders[name], model)
    assert condition(model) == before


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_an_adapter_with_a_hole_is_refused(family: str, tmp_path: Path) -> None:
    model, subspaces, allocation = prepare(family)
    adapted = tlora.attach(model, subspaces, allocation)
    step(adapted, tiny_batch(family))
    folder = train_once(adapted).save(tmp_path / "adapter")
    shutil.rmtree(folder / "tlora")  # as anybody's, without a record of what belongs to it
    tensors = load_file(folder / WEIGHTS)
    module = next(iter(tensors)).split(".lora_")[0]
    for part in (".lora_A", ".lora_B", f"{module}.lora_", *(["classifier.weight"] if family == "bert" else [])):
        hole = [key for key in tensors if part in key][: 2 if part.startswith(module) else 1]
        save_file({key: tensor for key, tensor in tensors.items() if key not in hole}, folder / WEIGHTS)
        model = tiny_model(family)
        before = condition(model)
        with pytest.raises(ValueError, match="copy it again"):
            tlora.load_adapter(folder, model)
        assert condition(model) == before


@pytest.mark.parametrize("lost", ["v_proj.lora_B", "layers.0.self_attn.v_proj"])
def test_a_second_adapter_with_a_hole_is_refused(lost: str, tmp_path: Path) -> None:
    """PEFT warns for the first adapter of a model alone: in others, missing parts stay random."""
    foreign(tiny_model("llama"), tmp_path / "one", target_modules=["q_proj"])
    foreign(tiny_model("llama"), tmp_path / "two")
    file = tmp_path / "two" / WEIGHTS
    save_file({key: tensor for key, tensor in load_file(file).items() if lost not in key}, file)
    model = tlora.load_adapter(tmp_path / "one", tiny_model("llama"), name="one")
    before, expected = condition(model), logits(model, BATCH)
    with pytest.raises(ValueError, match="is incomplete"):
        tlora.load_adapter(tmp_path / "two", model, name="two")
    assert condition(model) == before
    assert torch.equal(logits(model, BATCH), expected)


def of_task(base: Any, folder: Path, **config: Any) -> None:
    get_peft_model(base, LoraConfig(**({"target_modules": ["q_proj"]} | config))).save_pretrained(
        folder, save_embedding_layers=False
    )


def llama_classifier() -> Any:
    return transformers.LlamaForSequenceClassification(tiny_config("llama"))


# An adapter of PEFT, the base it is loaded onto, and what the message names.
MISFITS: dict[str, tuple[Callable[[Path], Any], Callable[[], Any], str]] = {
    "size": (lambda p: of_task(tiny_model("llama"), p), lambda: tiny_model("llama", hidden_size=64), "Llama"),
    "classifies": (
        lambda p: of_task(llama_classifier(), p, task_type="SEQ_CLS"), lambda: tiny_model("llama"), "score",
    ),
    "head": (
        lambda p: of_task(
            transformers.BertForQuestionAnswering(tiny_config("bert")), p, target_modules=["query"],
            modules_to_save=["qa_outputs"],
        ),
        lambda: transformers.BertForMaskedLM(tiny_config("bert")), "qa_outputs",
    ),
    "classes": (
        lambda p: of_task(tiny_model("bert"), p, target_modules=["query"], task_type="SEQ_CLS"),
        lambda: tiny_model("bert", num_labels=3), "classifier",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("save", "base", "words"), MISFITS.values(), ids=MISFITS)
def test_an_adapter_that_does_not_fit_is_refused(save: Any, base: Any, words: str, tmp_path: Path) -> None:
    save(tmp_path)
    model = base()
    before = condition(model)
    with pytest.raises(ValueError, match=words):
        tlora.load_adapter(tmp_path, model)
    assert condition(model) == before


def cut(file: str, size: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:size])


def write(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / CONFIG).write_text(text)


DAMAGE: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "header": (cut(WEIGHTS, 100), ValueError, WEIGHTS),
    "tensors": (cut(WEIGHTS, 9000), ValueError, WEIGHTS),
    "config": (cut(CONFIG, 40), ValueError, CONFIG),
    "ia3": (write('{"peft_type": "IA3"}'), ValueError, "IA3"),
    "half": (lambda folder: (folder / WEIGHTS).unlink(), FileNotFoundError, WEIGHTS),
    "nothing": (shutil.rmtree, FileNotFoundError, "no adapter"),
}


@pytest.mark.parametrize(("damage", "error", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_adapter_is_refused(
    damage: Any, error: type, words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folders["one"], tmp_path / "copy")
    shutil.rmtree(copy / "tlora")
    damage(copy)
    model = tiny_model("llama")
    before = condition(model)
    with pytest.raises(error, match=words):
        tlora.load_adapter(copy, model)
    assert condition(model) == before


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_an_adapter_that_its_run_did_not_train_is_refused_until_the_record_goes(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(folders["one"], tmp_path / "copy")
    blob = bytearray((copy / name).read_bytes())
    place = blob.index(b'"lora_dropout": 0.0') + 18 if name.endswith("json") else len(blob) - 2
    blob[place] ^= 1
    (copy / name).write_bytes(blob)
    for read in (tlora.inspect, lambda path: tlora.load_adapter(path, tiny_model("llama")), tlora.TrainingRun.load):
        with pytest.raises(ValueError, match=f"{name} is not what this run trained"):
            read(copy)
    shutil.rmtree(copy / "tlora")
    assert tlora.inspect(copy).ranks
    assert adapter_layers(tlora.load_adapter(copy, tiny_model("llama")))


def test_models_that_cannot_take_the_adapter_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tlora.load_adapter(folders["one"], tiny_model("llama"))
    merged = tlora.load_adapter(folders["one"], tiny_model("llama"))
    merged.merge_adapter()
    for part, options in PARTS.items():
        foreign(biased(), tmp_path / part, **options)
    for folder, carrier, error, words in (
        (folders["two"], model.get_base_model(), ValueError, "already has an adapter"),
        (folders["two"], model, ValueError, "already has an adapter called 'default'"),
        (folders["two"], "llama", TypeError, "model is a str"),
        (folders["two"], (model, None), TypeError, "model is a tuple"),
    ):
        with pytest.raises(error, match=words):
            tlora.load_adapter(folder, carrier)
    for folder, carrier, words in (
        (folders["two"], merged, "unmerge_adapter"),
        (tmp_path / "weights", model, "pissa"),
        (tmp_path / "bias", model, "biases of the base"),
        (folders["two"], tlora.load_adapter(tmp_path / "bias", biased()), "biases of the base"),
    ):
        with pytest.raises(ValueError, match=words):
            tlora.load_adapter(folder, carrier, name="two")


@pytest.mark.parametrize("first", [True, False])
def test_an_interrupt_while_loading_leaves_the_model_as_it_was(
    first: bool, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama") if first else tlora.load_adapter(folders["one"], tiny_model("llama"), name="one")
    before, expected = condition(model), logits(model, BATCH)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tlora.adapters.load_adapter.freeze", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tlora.load_adapter(folders["two"], model, name="two")
    assert condition(model) == before
    assert torch.equal(logits(model, BATCH), expected)
    tlora.load_adapter(folders["two"], model, name="two")  # and the cell can be run again
