"""An adapter's two files are checked before anything is made of them: what a config asks for would be allocated."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import tlora
from tests.helpers.adapted import adapted_model
from tests.helpers.models import tiny_model
from tests.helpers.updates import trained

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved by PEFT, with another rank where the pattern says."""
    folder = tmp_path_factory.mktemp("adapter") / "whole"
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2})
    get_peft_model(tiny_model("llama"), config).save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / CONFIG).read_bytes())
    (folder / CONFIG).write_text(json.dumps(config | values))


def refused(folder: Path, words: str) -> None:
    model = tiny_model("llama")
    for read in (tlora.inspect, lambda path: tlora.load_adapter(path, model)):
        with pytest.raises(ValueError, match=words):
            read(folder)
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("r", 10**9, r"q_proj has rank 4 in .* and 1e\+09 by the config"),
        ("r", 3, "has rank 4 in .* and 3 by the config"),
        ("rank_pattern", {}, "v_proj has rank 2 in .* and 4 by the config"),
        *(("r", rank, CONFIG) for rank in (0, True, "4")),
        *(("lora_alpha", alpha, CONFIG) for alpha in (-8, float("nan"), "8")),
        *(("rank_pattern", pattern, CONFIG) for pattern in ([2], {"v_proj": 2.5}, {"(v_proj": 2})),
        *(("modules_to_save", saved, CONFIG) for saved in ("lm_head", {"": None}, ["lm_head", ""])),
        ("alpha_pattern", {"v_proj": "2"}, CONFIG),
        ("target_modules", "(q_proj", CONFIG),
        ("peft_type", ["LORA"], "of type"),
    ],
)
def test_a_config_that_no_lora_has_is_refused(folder: Path, name: str, value: Any, words: str) -> None:
    change(folder, **{name: value})
    refused(folder, words)


def test_a_default_rank_beyond_all_sizes_is_refused(folder: Path) -> None:
    """Every saved module has its rank by a pattern; the default would be allocated for whatever else is named."""
    change(folder, r=10**9, rank_pattern={"v_proj": 2, "q_proj": 4}, target_modules=["q_proj", "v_proj", "k_proj"])
    refused(folder, r"r=1000000000 in .*adapter_config\.json, and no module has that rank")


def test_a_tensor_that_is_not_finite_is_refused_by_name(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER)
    name = next(key for key in tensors if "layers.1.self_attn.v_proj.lora_B" in key)
    tensors[name][3, 1] = torch.nan
    save_file(tensors, folder / ADAPTER)
    refused(folder, r"layers\.1\.self_attn\.v_proj\.lora_B\.weight in .* is not finite, or not floating-point")


def test_a_tensor_of_integers_is_refused_and_half_precision_is_not(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER)
    name = next(key for key in tensors if "lora_A" in key)
    save_file({key: t.bfloat16() for key, t in tensors.items()}, folder / ADAPTER)
    assert tlora.inspect(folder).ranks
    save_file(tensors | {name: tensors[name].int()}, folder / ADAPTER)
    refused(folder, r"lora_A\.weight in .* is not finite, or not floating-point \(torch\.int32\)")


WRITERS: dict[str, Callable[[Path], Any]] = {
    "save_initial": lambda folder: tlora.save_initial(adapted_model(), folder),
    "compress": lambda folder: tlora.compress(trained()[0], rank=1).save_adapter(folder),
    "training": lambda folder: trained()[1].save(folder),
    "export": lambda folder: tlora.export(trained()[0], folder),
    "another program": lambda folder: trained()[0].save_pretrained(folder, save_embedding_layers=False),
}


@pytest.mark.parametrize("there", WRITERS)
def test_an_adapter_is_replaced_only_by_the_function_that_wrote_it(there: str, tmp_path: Path) -> None:
    WRITERS[there](tmp_path)
    (tmp_path / "README.md").write_text("mine")
    before = stamps(tmp_path)
    successor = "training" if there == "save_initial" else there  # an untrained start is there to be trained
    for writer in WRITERS.keys() - {there, successor, "another program"}:
        with pytest.raises(FileExistsError, match=r"adapter_model\.safetensors|export\.json"):
            WRITERS[writer](tmp_path)
    assert stamps(tmp_path) == before
    if there != "another program":
        for writer in dict.fromkeys((there, successor)):
            WRITERS[writer](tmp_path)
            assert tlora.load_adapter(tmp_path, tiny_model("llama")) is not None
        assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "another program"])
def test_no_adapter_is_written_into_the_folder_of_a_model(writer: str, tmp_path: Path) -> None:
    """transformers would load the adapter with that model from then on."""
    tiny_model("llama").save_pretrained(tmp_path)
    before = stamps(tmp_path)
    with pytest.raises(FileExistsError, match=re.escape(str(tmp_path))):
        WRITERS[writer](tmp_path)
    assert stamps(tmp_path) == before


def stamps(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Content and time of every file in a folder."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("lost", ["lora_A", "lora_B"])
@pytest.mark.parametrize(
    "read",
    [
        tlora.inspect,
        tlora.LoraAdapter.read,
        lambda path: tlora.compress(path, rank=1),
        lambda path: tlora.combine({path: 1.0}),
        lambda path: tlora.interference(path, path),
        lambda path: tlora.load_adapter(path, tiny_model("llama")),
    ],
    ids=["inspect", "read", "compress", "combine", "interference", "load_adapter"],
)
def test_half_of_an_update_is_refused_by_the_name_of_its_module(folder: Path, lost: str, read: Any) -> None:
    tensors = load_file(folder / ADAPTER)
    name = next(key for key in tensors if f"layers.1.self_attn.v_proj.{lost}" in key)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, folder / ADAPTER)
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.v_proj"):
        read(folder)
