"""An adapter that is read, computed with and saved: against the updates of PEFT, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import tlora
from tests.helpers.foreign import foreign
from tests.helpers.models import tiny_batch, tiny_model
from tlora import LoraAdapter
from tlora.adapters.adapter import adapter_of

FILES = ("adapter_config.json", "adapter_model.safetensors")
FAMILIES = {
    "llama": {
        "r": 5,
        "lora_alpha": 3,
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 8},
    },
    "rsLoRA": {"r": 3, "lora_alpha": 5, "use_rslora": True},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "bert": {"target_modules": ["query"], "task_type": "SEQ_CLS"},
    "gpt2": {"target_modules": ["c_attn"], "fan_in_fan_out": True},
}
CASES = pytest.mark.parametrize("case", FAMILIES)


def base(case: str) -> Any:
    return tiny_model(case if case in ("bert", "gpt2") else "llama")


def adapted(case: str, folder: Path) -> PeftModel:
    return foreign(base(case), folder, **FAMILIES[case])


def updates(model: PeftModel) -> dict[str, torch.Tensor]:
    """The change of each weight, by PEFT, without the rows of a head."""
    layers = {name: layer for name, layer in model.get_base_model().named_modules() if hasattr(layer, "lora_A")}
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}


@CASES
def test_what_is_read_and_saved_has_the_same_bytes(case: str, tmp_path: Path) -> None:
    adapted(case, tmp_path / "one")
    LoraAdapter.read(tmp_path / "one").save(tmp_path / "two")
    before, after = (LoraAdapter.read(tmp_path / name) for name in ("one", "two"))
    assert after.config == before.config
    assert (tmp_path / "two" / FILES[1]).read_bytes() == (tmp_path / "one" / FILES[1]).read_bytes()


@CASES
def test_the_updates_are_those_of_peft_from_a_folder_and_from_the_model(case: str, tmp_path: Path) -> None:
    model = adapted(case, tmp_path)
    expected = updates(model)
    for adapter in (LoraAdapter.read(tmp_path), LoraAdapter.read(model)):
        matrices = {name: update.matrix() for name, update in (adapter.updates | adapter.embeddings).items()}
        assert matrices.keys() == expected.keys()
        for name, matrix in matrices.items():
            is_stored_transposed = name in adapter.embeddings or case == "gpt2"
            torch.testing.assert_close(matrix.T if is_stored_transposed else matrix, expected[name])
        assert bool(adapter.others) == (case == "bert")
        assert {name: update.shape for name, update in adapter.updates.items()} == adapter.shapes


@CASES
@pytest.mark.parametrize("factor", [0.3, -1, 0])
def test_a_factor_scales_what_peft_adds(case: str, factor: float, tmp_path: Path) -> None:
    expected = updates(adapted(case, tmp_path / "one"))
    scaled = factor * LoraAdapter.read(tmp_path / "one")
    folder = scaled.save(tmp_path / "two")
    for model in (PeftModel.from_pretrained(base(case), folder), tlora.load_adapter(folder, base(case))):
        for name, update in updates(model).items():
            torch.testing.assert_close(update, factor * expected[name])
    assert not tlora.inspect(folder).to_frame()["scaling"].le(0).any()
    assert scaled.others.keys() == LoraAdapter.read(folder).others.keys()
    same = LoraAdapter.read(tmp_path / "one") * torch.tensor(factor, dtype=torch.float64)
    assert all(torch.equal(tensor, scaled.tensors[name]) for name, tensor in same.tensors.items())


def test_a_sum_of_updates_is_what_peft_concatenates(tmp_path: Path) -> None:
    for name, config in (("a", FAMILIES["llama"]), ("b", {"r": 2})):
        foreign(tiny_model("llama"), tmp_path / name, **config)
    model = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "a", adapter_name="a")
    model.load_adapter(str(tmp_path / "b"), "b")
    model.add_weighted_adapter(["a", "b"], [1.0, 0.5], "default", "cat")
    first, second = (LoraAdapter.read(tmp_path / name) for name in "ab")
    added = {name: update + 0.5 * second.updates[name] for name, update in first.updates.items()}
    again = tlora.load_adapter(first.with_updates(added).save(tmp_path / "sum"), tiny_model("llama"))
    for name, update in updates(again).items():
        torch.testing.assert_close(update, updates(model)[name])


def test_other_updates_have_their_ranks_in_the_config(tmp_path: Path) -> None:
    adapted("llama", tmp_path / "one")
    whole = LoraAdapter.read(tmp_path / "one")
    others = [*whole.updates][1:]
    cut = whole.with_updates({name: whole.updates[name].cut(2) for name in others})
    model = PeftModel.from_pretrained(tiny_model("llama"), cut.save(tmp_path / "two")).eval()
    assert updates(model).keys() == set(others)
    for name, update in updates(model).items():
        u, s, v = torch.linalg.svd(whole.updates[name].matrix())
        torch.testing.assert_close(update, (u[:, :2] * s[:2]) @ v[:2], atol=1e-5, rtol=1e-4)


def test_the_fingerprints_of_the_base_come_along(tmp_path: Path) -> None:
    known = tlora.calibrate(tiny_model("llama"), [tiny_batch("llama")], progress=False)
    model = tlora.attach(tiny_model("llama"), None, tlora.allocate(known.sensitivity, 2))
    folder = (2 * LoraAdapter.read(tlora.save_initial(model, tmp_path / "start"))).save(tmp_path / "twice")
    with pytest.raises(ValueError, match="another model"):
        tlora.load_adapter(folder, tiny_model("llama", seed=1))


def lora(**config: Any) -> PeftModel:
    return get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"], **config))


REFUSED = {
    "DoRA": (lambda folder: LoraAdapter.read(lora(use_dora=True)), ValueError, "use_dora=True"),
    "OLoRA": (
        lambda folder: LoraAdapter.read(lora(init_lora_weights="olora")),
        ValueError,
        "init_lora_weights='olora'",
    ),
    "no folder": (lambda folder: LoraAdapter.read(folder / "none"), FileNotFoundError, "no adapter in"),
    "None to read": (lambda folder: LoraAdapter.read(None), TypeError, "adapter is None: pass"),
    "None to write": (lambda folder: LoraAdapter.read(lora()).save(None), TypeError, "folder is None: pass"),
    "A alone": (
        lambda folder: adapter_of({}, {"base_model.model.m.lora_A.weight": torch.eye(2)}, {}),
        ValueError,
        "lora_B is missing",
    ),
    "B of an embedding": (
        lambda folder: adapter_of({}, {"base_model.model.m.lora_embedding_A": torch.eye(2)}, {}),
        ValueError,
        "lora_embedding_B is missing",
    ),
    "embeddings alone": (
        lambda folder: LoraAdapter.read(
            get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["embed_tokens"]))
        ),
        ValueError,
        "no lora_A of a linear layer",
    ),
    "another's folder": (
        lambda folder: LoraAdapter.read(foreign(tiny_model("llama"), folder)).save(folder),
        FileExistsError,
        "another program",
    ),
}


@pytest.mark.parametrize(("call", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refusals(call: Any, error: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        call(tmp_path)


def test_a_frozen_a_stays_frozen_in_what_is_computed_from_it(tmp_path: Path) -> None:
    model = foreign(base("llama"), tmp_path / "trained", r=2)
    tlora.freeze_a(model)
    (-1 * LoraAdapter.read(model)).save(tmp_path / "negative")
    (0.5 * LoraAdapter.read(tmp_path / "negative")).save(tmp_path / "half")
    (-1 * LoraAdapter.read(tmp_path / "trained")).save(tmp_path / "other")  # of a trainer that keeps no record
    for name, trained in (("negative", {"lora_B"}), ("half", {"lora_B"}), ("other", {"lora_A", "lora_B"})):
        loaded = tlora.load_adapter(tmp_path / name, base("llama"))
        parts = {key.split(".")[-3] for key, parameter in loaded.named_parameters() if parameter.requires_grad}
        assert parts == trained
