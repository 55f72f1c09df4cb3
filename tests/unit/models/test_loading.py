"""Models are loaded from where their name points, as what they are, and bad names are refused in words."""

import logging
import shutil
from logging.handlers import BufferingHandler
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import (
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging as transformers_logging

import tlora
from tests.helpers.models import tiny_batch, tiny_model, tiny_tokenizer
from tlora.models import loading
from tlora.models.loading import load_model, load_tokenizer, stream_model
from tlora.models.targets import head_modules, target_modules
from tlora.models.weights import weight


def save(folder, family, *, tokenizer=None, **config):
    model = tiny_model(family, **config)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return model


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "llama", "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_a_saved_model_comes_back_as_itself(family, tmp_path):
    saved = save(tmp_path, family)
    model, tokenizer = load_model(tmp_path)
    assert type(model) is type(saved)
    assert not model.training
    assert model.dtype == torch.float32
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), saved.state_dict().values(), strict=True))
    assert model.config.name_or_path == model.name_or_path == tokenizer.name_or_path == str(tmp_path)
    assert {p.requires_grad for p in model.parameters()} == {True}


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_a_streamed_model_holds_no_weights_and_reads_them_as_they_are_stored(family, tmp_path):
    modules = dict(save(tmp_path, family).named_modules())
    config = tmp_path / "config.json"  # which may name another type than that of the files
    config.write_text(config.read_text().replace('"float32"', '"float16"'))
    with stream_model(tmp_path) as model:
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        for name in target_modules(model):
            assert weight(model.get_submodule(name), name).equal(weight(modules[name], name))
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_decoder_becomes_a_classifier_where_labels_are_asked_for(family, tmp_path):
    save(tmp_path, family)
    model, _ = load_model(tmp_path, num_labels=3)
    assert type(model).__name__.endswith("ForSequenceClassification")
    assert head_modules(model) == ["score"]
    assert model.config.num_labels == model.score.out_features == 3
    batch = tiny_batch(model)
    assert model(**batch).logits.shape == (3, 3)


def test_a_classifier_learns_of_the_padding_token_and_a_language_model_is_left_alone(tmp_path):
    save(tmp_path, "llama", pad_token_id=None)
    classifier, tokenizer = load_model(tmp_path, num_labels=2)
    assert classifier.config.pad_token_id == tokenizer.pad_token_id == 0
    model, _ = load_model(tmp_path)
    assert model.config.pad_token_id is None
    assert model.generation_config.pad_token_id == 0


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoder_without_a_head_gets_a_seeded_one(family, tmp_path):
    base = tiny_model(family).base_model
    base.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    state = torch.get_rng_state()
    first, again, other = (load_model(tmp_path, num_labels=4, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(state), "the caller's random state is his own"
    heads = [torch.cat([p.flatten() for p in model.classifier.parameters()]) for model in (first, again, other)]
    assert heads[0].equal(heads[1])
    assert not heads[0].equal(heads[2])
    assert first.config.num_labels == 4
    assert all(
        a.equal(b) for a, b in zip(first.base_model.encoder.parameters(), base.encoder.parameters(), strict=True)
    )
    assert head_modules(first) == ["classifier"]


def test_a_checkpoint_with_a_hole_is_refused(tmp_path):
    saved = save(tmp_path, "llama")
    state = saved.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    saved.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"no weights.* 1 modules of LlamaForCausalLM .*layers\.1\.mlp\.up_proj"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_dtype_is_a_name_or_a_type(folder, dtype):
    model, _ = load_model(folder, dtype=dtype, device=torch.device("cpu"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_used_where_there_is_one(folder):
    model, _ = load_model(folder)
    assert (model.device.type, model.dtype) == ("cuda", torch.bfloat16)
    assert load_model(folder, device="cpu")[0].dtype == torch.float32


def test_of_several_processes_each_has_its_own_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading.resolve_device(None, {}) == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert loading.resolve_device(None, {}) == torch.device("cuda:3")


def test_device_map_places_the_model(folder, tmp_path):
    inside = ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")
    places = {"lm_head": "cpu"} | {f"model.{name}": "cpu" for name in inside} | {"model.layers.1": "disk"}
    model, _ = load_model(folder, device_map=places, offload_folder=str(tmp_path / "offload"))
    layer = model.model.layers[1].mlp.up_proj
    assert layer.weight.is_meta
    assert weight(layer).equal(tiny_model("llama").model.layers[1].mlp.up_proj.weight)


@pytest.mark.parametrize(
    ("family", "arguments", "named"),
    [
        ("llama", {"dtype": "fp8"}, "dtype='fp8'"),
        ("llama", {"dtype": torch.int64}, "dtype=torch.int64"),
        ("llama", {"device": "cuda:99"}, "device='cuda:99'"),
        ("llama", {"device": "cpu", "device_map": "auto"}, "device_map"),
        ("t5", {"num_labels": 2}, "num_labels=2"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, family, arguments, named):
    save(tmp_path, family)
    with pytest.raises(ValueError, match=named):
        load_model(tmp_path, **arguments)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (lambda f: (f / "config.json").write_text('{"model_type": "nonsense"}'), ValueError, "config .*nonsense"),
        (lambda f: (f / "tokenizer.json").unlink(), ValueError, "tokenizer"),
        (lambda f: cut(f / "model.safetensors"), ValueError, "model of"),
        (lambda f: [save(f, "qwen2"), *map(Path.unlink, f.glob("tokenizer*"))], ValueError, "has no tokenizer files"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "config.json"),
        (lambda f: [(f / "config.json").unlink(), (f / "adapter_config.json").touch()], FileNotFoundError, "adapter"),
        (lambda f: [(f / "config.json").unlink(), (f / "a.gguf").write_bytes(b"PK")], ValueError, r"a\.gguf"),
    ],
)
def test_a_folder_without_a_whole_model_is_refused(change, error, named, folder):
    change(folder)
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    with pytest.raises(error, match=named):
        load_model(folder)
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_a_missing_padding_token_is_the_end_token(tmp_path):
    tiny_tokenizer(pad_token=None, eos_token="</s>").save_pretrained(tmp_path)
    tiny_model("llama").save_pretrained(tmp_path)
    for tokenizer in (load_tokenizer(tmp_path), load_model(tmp_path)[1]):
        assert tokenizer.pad_token == "</s>"
    assert len(tokenizer) == 64, "no token is added"


def test_loading_is_silent_and_leaves_verbosity_as_it_was(tmp_path, capfd):
    tiny_model("bert").base_model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    capfd.readouterr()
    handler = BufferingHandler(capacity=1000)
    transformers_logging.add_handler(handler)
    transformers_logging.set_verbosity_info()
    try:
        load_model(tmp_path)
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity_warning()
        transformers_logging.remove_handler(handler)
    assert handler.buffer == []
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


@pytest.fixture
def hub(monkeypatch):
    """A function that has the hub raise an error; returns the names that the hub was asked for."""
    asked = []

    def answer(error):
        def model_info(self, name, **kwargs):
            asked.append(name)
            raise error

        loading._locate_on_hub.cache_clear()
        monkeypatch.setattr(loading.HfApi, "model_info", model_info)
        return asked

    return answer


@pytest.mark.parametrize(
    ("name", "options", "error", "named"),
    [
        ("nobody/nothing", {}, RepositoryNotFoundError.__new__(RepositoryNotFoundError), "nobody/nothing"),
        ("a/b", {"revision": "typo"}, RevisionNotFoundError.__new__(RevisionNotFoundError), "revision 'typo'"),
        ("a/b", {"local_files_only": True}, AssertionError("asked"), "local cache"),
        ("./nowhere/at all", {}, AssertionError("asked"), "form of a hub id"),
        ("SmolLM2-135M", {}, HTTPError("no route to host"), "did you mean 'smollm2-135m'"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(hub, tmp_path, monkeypatch, name, options, error, named):
    monkeypatch.chdir(tmp_path)
    asked = hub(error)
    with pytest.raises((ValueError, FileNotFoundError), match=named):
        load_model(name, cache_dir=tmp_path, **options)
    assert len(asked) == (0 if isinstance(error, AssertionError) else 1), "asked once, and not for every file"


def test_the_hub_is_asked_once_for_config_tokenizer_and_model(hub, monkeypatch, folder):
    asked = hub(None)
    monkeypatch.setattr(loading.HfApi, "model_info", lambda self, name, **_: asked.append(name))
    load = loading._load
    monkeypatch.setattr(
        loading, "_load", lambda auto, _, name, **kw: load(auto, loading.Location(str(folder)), name, **kw)
    )
    loading.load_config("somebody/tiny"), load_tokenizer("somebody/tiny"), load_model("somebody/tiny")
    assert asked == ["somebody/tiny"]


def test_a_packaged_model_that_is_not_installed_names_the_step(monkeypatch):
    monkeypatch.setitem(loading.PACKAGED, "minilm", ("no_such_package_here", "model"))
    with pytest.raises(ModuleNotFoundError, match="make models"):
        load_model("minilm")


def cached_repository(cache):
    """A model in the layout of the hub's cache."""
    repository = cache / "models--somebody--tiny"
    save(repository / "snapshots" / "abc123", "llama")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")


def test_a_cached_model_loads_without_the_hub(hub, tmp_path):
    no_hub = hub(HTTPError("no route to host"))
    cached_repository(tmp_path)
    location = loading.resolve("somebody/tiny", {"cache_dir": tmp_path, "trust_remote_code": False})
    assert location.path.rstrip("/") == str(tmp_path / "models--somebody--tiny" / "snapshots" / "abc123")
    assert location.where == {"trust_remote_code": False}, "nothing that would ask the hub"
    no_hub.clear()
    model, tokenizer = load_model("somebody/tiny", cache_dir=tmp_path)
    assert len(target_modules(model)) == 14
    assert model.config.name_or_path == tokenizer.name_or_path == "somebody/tiny"
    assert no_hub == ["somebody/tiny"]
    load_model("somebody/tiny", cache_dir=tmp_path, local_files_only=True)
    assert no_hub == ["somebody/tiny"], "not asked when only local files are wanted"


def test_a_folder_with_one_gguf_is_that_file(tmp_path):
    (tmp_path / "only.gguf").write_bytes(b"GGUF")
    location = loading.resolve(tmp_path, {})
    assert (location.path, location.where) == (str(tmp_path), {"gguf_file": "only.gguf"})
    assert loading.resolve(tmp_path / "only.gguf", {"revision": "x"}).where == {
        "revision": "x",
        "gguf_file": "only.gguf",
    }
    shutil.copy(tmp_path / "only.gguf", tmp_path / "config.json")
    assert loading.resolve(tmp_path, {}).where == {}, "a saved model comes before a GGUF beside it"


def test_a_packaged_file_is_unpacked_once(tmp_path, folder, monkeypatch):
    """What stands in for transformers reads the file."""
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    monkeypatch.setattr(loading, "PACKAGED", {"packed": ("tests", file)})
    monkeypatch.setattr(loading, "HF_HOME", str(tmp_path / "cache"))
    read = []

    def load(auto, location, name, *, load=loading._load, **kwargs):
        if "gguf_file" in location.where:
            read.append(auto.__name__)
            location = loading.Location(str(folder))
        return load(auto, location, name, **kwargs)

    monkeypatch.setattr(loading, "_load", load)
    first, tokenizer = load_model("packed")
    assert read == ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"]
    second, _ = load_model("packed", dtype="bfloat16")
    assert loading.load_config("packed").model_type == "llama"
    assert load_tokenizer("packed").get_vocab() == tokenizer.get_vocab()
    assert len(read) == 3  # nothing more
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one.bfloat16(), other)
    assert first.name_or_path == second.name_or_path == "packed"
    assert loading.external_name("packed") == (str(file), True)
    file.write_bytes(b"GGUF" + bytes(21))  # another version of the package
    load_model("packed")
    assert len(read) == 6


@pytest.mark.parametrize(
    ("before", "labels", "now"),
    [
        ("multi_label_classification", 3, "single_label_classification"),
        ("regression", None, "single_label_classification"),
        ("single_label_classification", 1, "regression"),
    ],
)
def test_a_base_is_trained_with_the_loss_of_its_labels_whatever_it_was_trained_with(folder, before, labels, now):
    """Three classes and as many samples were fitted as numbers, without a word."""
    save(folder, "bert", num_labels=2, problem_type=before)
    model, _ = load_model(folder, num_labels=labels)
    assert model.config.problem_type == now
    batch = tiny_batch(model)
    batch["labels"] = torch.tensor([0.5, 0.1, 1.0]) if labels == 1 else torch.tensor([0, 1, 0])
    out = model(**batch)
    square, cross = torch.nn.functional.mse_loss, torch.nn.functional.cross_entropy
    expected = square(out.logits[:, 0], batch["labels"]) if labels == 1 else cross(out.logits, batch["labels"])
    torch.testing.assert_close(out.loss, expected)
    model.config.problem_type = before
    with pytest.raises(ValueError, match=rf"problem_type is '{before}', .*problem_type = '{now}', as tlora.load_model"):
        tlora.calibrate(model, [batch], progress=False)
