"""Adapters by their names on the hub, out of a cache as huggingface_hub lays it out: no network."""

from pathlib import Path

import pytest

import tlora
from tests.helpers.adapted import adapted_model
from tests.helpers.commands import done
from tests.helpers.models import tiny_model
from tlora.adapters import hub

COMMITS = {"main": "a" * 40, "v2": "b" * 40}
RANKS = {"main": 4, "v2": 2}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A repository ``somebody/adapter`` with two revisions."""
    place = tmp_path / "hub" / "models--somebody--adapter"
    for revision, commit in COMMITS.items():
        model = adapted_model(r=RANKS[revision], rank_pattern={}, init_lora_weights=False)
        model.save_pretrained(place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return place


@pytest.mark.parametrize(("name", "revision"), [("somebody/adapter", "main"), ("somebody/adapter@v2", "v2")])
def test_a_name_on_the_hub_is_read_as_its_folder(cache, name, revision):
    assert hub.adapter_folder(name) == cache / "snapshots" / COMMITS[revision]
    assert set(tlora.inspect(name).ranks.values()) == {RANKS[revision]}
    assert set(tlora.compress(name, rank=1).original_ranks.values()) == {RANKS[revision]}
    assert tlora.load_adapter(name, tiny_model("llama")).peft_config["default"].r == RANKS[revision]


def test_commands_take_a_name_on_the_hub(cache, workplace):
    done("export somebody/adapter --model llama --output served")
    done("evaluate somebody/adapter pairs.jsonl --model llama")
    assert tlora.inspect("served").ranks == tlora.inspect("somebody/adapter").ranks


def test_only_the_adapters_own_files_are_asked_for(monkeypatch, tmp_path):
    call = {}
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, **options: call.update(options, repo=repo) or tmp_path)
    monkeypatch.chdir(tmp_path)
    assert hub.adapter_folder("somebody/adapter@refs/pr/1") == tmp_path
    patterns = ["adapter_config.json", "adapter_model.safetensors", "tlora/*"]
    assert call == {"repo": "somebody/adapter", "revision": "refs/pr/1", "allow_patterns": patterns}


def test_a_folder_comes_first(cache, tmp_path):
    (tmp_path / "somebody" / "adapter").mkdir(parents=True)
    assert hub.adapter_folder("somebody/adapter") == Path("somebody/adapter")
    for path in ("adapter", "./somebody/adapter", tmp_path / "nowhere", "a/b/c"):
        assert hub.adapter_folder(path) == Path(path)


@pytest.mark.parametrize("name", ["somebody/other", "somebody/adapter@v3"])
def test_what_the_hub_does_not_have_is_said(cache, name):
    for read in (tlora.inspect, tlora.load_adapter, lambda name: tlora.compress(name, rank=1)):
        with pytest.raises(FileNotFoundError, match=f"no adapter in {name}"):
            read(name)
