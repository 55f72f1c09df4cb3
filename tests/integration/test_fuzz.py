"""Damaged files are refused in the package's own words: no crash, no hang, no large allocation, nothing taken silently.

A few hundred with every change, 10,000 where there is time. A case is made again from its number alone.
"""

import json
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import tlora
from tests.helpers.adapted import adapted_model, token_rows
from tests.helpers.fuzzed import damaged, fuzz
from tests.helpers.models import tiny_model
from tests.helpers.results import EXAMPLES, run, same
from tlora.adapters.files import RUN
from tlora.cli.loading import base_name
from tlora.results import Result
from tlora.training.checkpoints import checkpoint_to_resume, is_complete
from tlora.training.run import TrainingRun

pytestmark = pytest.mark.rest
FEW = 1
MANY = 32
LARGEST = 2**30  # bytes of address space that a case may ask for
LONGEST = 120  # seconds that a case may take on a machine that has other things to do
Case = tuple[int, Random]


@contextmanager
def limits() -> Iterator[None]:
    """Nothing in the block may take long, or ask for much memory."""

    def late(*args: object) -> None:
        raise TimeoutError(f"it took more than {LONGEST} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LARGEST, before[1]))
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(read: Callable[[], Any]) -> Any:
    """What is read; None where it is refused in words of ours."""
    try:
        return read()
    except (ValueError, FileNotFoundError) as error:
        check_words(error)
        return None


def check_words(error: BaseException) -> None:
    """It says something, and does not come of an allocation that only the limit has ended."""
    assert str(error)
    chain: BaseException | None = error
    while chain is not None:
        assert not re.search(r"allocat(e|or)\b", str(chain)), error
        chain = chain.__cause__


def cases(name: str, count: int) -> Iterator[Case]:
    for number in range(count):
        yield number, Random(f"{name} {number}")


@pytest.fixture(params=[FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def times(request: pytest.FixtureRequest) -> int:
    """How many times as many cases as with every change."""
    return request.param


@cache
def example(name: str) -> Result:
    return EXAMPLES[name]()


@pytest.mark.parametrize("name", EXAMPLES)
def test_results(name: str, times: int, tmp_path: Path) -> None:
    """They may be taken for what they say they are, if that is anything."""
    saved = example(name).save(tmp_path / "whole")
    file = saved / RUN if saved.is_dir() else saved
    whole = file.read_bytes()
    for _, rng in cases(name, 24 * times):
        file.write_bytes(whole)
        for _ in range(rng.choice((1, 1, 2))):
            fuzz(file, rng)
        with limits():
            refused(lambda: type(example(name)).load(saved))


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if "lora_" in key}


def scalings(model: Any) -> list[float]:
    return [layer.scaling["default"] for layer in tlora.adapters.lora_layers.adapter_layers(model).values()]


def test_adapters_of_ours(times: int, tmp_path: Path) -> None:
    whole = run().save(tmp_path / "whole")
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    model = tlora.load(whole, tiny_model("llama"))
    expected, scaled, seen = parameters(model), scalings(model), tlora.inspect(whole)
    folder = tmp_path / "fuzzed"
    for number, rng in cases("ours", 30 * times):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        fuzz(folder / rng.choice(files), rng)
        with limits():
            inspected = refused(lambda: tlora.inspect(folder))
            loaded = refused(lambda: tlora.load(folder, tiny_model("llama")))
            trained = refused(lambda: TrainingRun.load(folder))
            base = refused(lambda: base_name(folder, None)[0])
        assert inspected is None or same(replace(inspected, meta=seen.meta), seen), number
        assert trained is None or same(trained.adapter, run().adapter), number
        assert base is None or loaded is None or base == seen.meta.model, number
        if loaded is not None:
            assert same(parameters(loaded), expected), number
            assert scalings(loaded) == scaled, number
            tlora.export(loaded, tmp_path / "exported")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """An adapter that PEFT has saved, with ranks and alphas by pattern."""
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"v_proj": 2},
        alpha_pattern={".*layers.0.self_attn.q_proj": 3},
    )
    model = get_peft_model(tiny_model("llama"), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "foreign", save_embedding_layers=False)
    (tmp_path / "foreign" / "README.md").unlink()
    return tmp_path / "foreign"


@pytest.mark.filterwarnings("ignore")  # what PEFT makes of it, told by PEFT
def test_adapters_of_others(times: int, foreign: Path, tmp_path: Path) -> None:
    """Without digests nobody can tell one number from another; what is loaded is what the files say, and finite."""
    files = ["adapter_model.safetensors", "adapter_config.json"]
    folder = tmp_path / "fuzzed"
    for number, rng in cases("others", 50 * times):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(foreign, folder)
        fuzz(folder / rng.choice(files), rng)
        with limits():
            refused(lambda: tlora.inspect(folder))
            loaded = refused(lambda: tlora.load(folder, tiny_model("llama")))
        if loaded is not None:
            file = {k: v.float() for k, v in load_file(folder / files[0]).items()}
            there = {key.replace(".default", ""): value.float() for key, value in parameters(loaded).items()}
            assert same(there, {key: file[key] for key in there}), number
            config = json.loads((folder / files[1]).read_bytes())
            ranks = {layer.r["default"] for layer in tlora.adapters.lora_layers.adapter_layers(loaded).values()}
            assert ranks <= {config["r"], *(config.get("rank_pattern") or {}).values()}, number


def test_checkpoints(times: int, tmp_path: Path) -> None:
    """What is read of one before torch reads the rest."""
    options: dict[str, Any] = {"max_steps": 2, "save_steps": 2, "progress": False, "evaluation_limit": 0}
    tlora.train(adapted_model(), token_rows(8), output_dir=tmp_path, **options)
    whole, folder, model = tmp_path / "checkpoint-2", tmp_path / "fuzzed", adapted_model()
    assert checkpoint_to_resume(whole, None, model) == str(whole)
    for number, rng in cases("checkpoints", 12 * times):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        file = folder / rng.choice(("arguments.json", "adapter_model.safetensors", "adapter_config.json"))
        file.write_bytes(damaged(file.read_bytes(), rng))
        with limits():
            taken = refused(lambda: checkpoint_to_resume(folder, None, model))
        assert taken is None or is_complete(folder), number
