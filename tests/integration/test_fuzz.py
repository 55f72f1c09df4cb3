"""Damaged files are refused in the package's own words: no crash, no hang, no large allocation, nothing taken silently.

A few hundred with every change, 10,000 where there is time. A case is made again from its number alone.
"""

import json
import math
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
from tests.helpers.models import tiny_model
from tests.helpers.results import EXAMPLES, run, same
from tlora.adapters.files import RUN
from tlora.cli.loading import base_name
from tlora.results import Result
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
    """They are refused, or what was saved."""
    saved = example(name).save(tmp_path / "whole")
    file = saved / RUN if saved.is_dir() else saved
    whole = file.read_bytes()
    for number, rng in cases(name, 24 * times):
        file.write_bytes(whole)
        for _ in range(rng.choice((1, 1, 2))):
            fuzz(file, rng)
        with limits():
            found = refused(lambda: type(example(name)).load(saved))
        assert found is None or same(found, example(name)), number


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if "lora_" in key}


def scalings(model: Any) -> list[float]:
    return [layer.scaling["default"] for layer in tlora.adapters.lora_layers.adapter_layers(model).values()]


def test_adapters_of_ours(times: int, tmp_path: Path) -> None:
    whole = run().save(tmp_path / "whole")
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    model = tlora.load_adapter(whole, tiny_model("llama"))
    expected, scaled, seen = parameters(model), scalings(model), tlora.inspect(whole)
    folder = tmp_path / "fuzzed"
    for number, rng in cases("ours", 30 * times):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        fuzz(folder / rng.choice(files), rng)
        with limits():
            inspected = refused(lambda: tlora.inspect(folder))
            loaded = refused(lambda: tlora.load_adapter(folder, tiny_model("llama")))
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
            loaded = refused(lambda: tlora.load_adapter(folder, tiny_model("llama")))
        if loaded is not None:
            file = {k: v.float() for k, v in load_file(folder / files[0]).items()}
            there = {key.replace(".default", ""): value.float() for key, value in parameters(loaded).items()}
            assert same(there, {key: file[key] for key in there}), number
            config = json.loads((folder / files[1]).read_bytes())
            ranks = {layer.r["default"] for layer in tlora.adapters.lora_layers.adapter_layers(loaded).values()}
            assert ranks <= {config["r"], *(config.get("rank_pattern") or {}).values()}, number


# In the place of a value: other types, other signs, too much of it, and names that lead elsewhere.
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 3, 0.5, 1e308, -1e-300, math.nan, math.inf, 10**30, 2**31, 2**63, "", "x", "NaN", "\0", "\ud800",
    "../../../etc/passwd", "/etc/passwd", "/dev/zero", "C:\\con", "a/../../b", "(a+)+$", "[", "x" * 5000, [], {}, [[]],
    [None], {"": None}, [[[[[[[[]]]]]]]], [1, "a", None], {"a": {"b": [1, 2]}}, list(range(300)),
)  # fmt: skip


def damaged(blob: bytes, rng: Random) -> bytes:
    """Bytes truncated, flipped, overwritten, cut out, put in, moved or repeated."""
    size = len(blob)
    start = rng.randrange(size + 1)
    end = min(size, start + rng.choice((1, 8, 100, size)))
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: blob[:start],
        lambda: _flipped(blob, rng, 1),
        lambda: _flipped(blob, rng, rng.randint(2, 64)),
        lambda: blob[:start] + rng.randbytes(end - start) + blob[end:],
        lambda: blob[:start] + bytes(end - start) + blob[end:],
        lambda: blob[:start] + blob[end:],
        lambda: blob[:start] + rng.randbytes(rng.choice((1, 9, 300))) + blob[start:],
        lambda: blob[start:] + blob[:start],
        lambda: blob + blob[start:end],
        lambda: rng.randbytes(rng.choice((0, 1, 7, 8, 9, 200))),
    )
    return rng.choice(kinds)()


def _flipped(blob: bytes, rng: Random, bits: int) -> bytes:
    found = bytearray(blob)
    for _ in range(bits if found else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def changed(value: Any, rng: Random) -> Any:
    """A JSON value with one thing in it changed: a leaf or a branch replaced, a key renamed, dropped or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        found, key = dict(value), rng.choice(list(value))
        kind = rng.randrange(8)
        if kind == 0:
            del found[key]
        elif kind == 1:
            found[str(rng.choice(ODD))] = found.pop(key)
        elif kind == 2:
            found[str(rng.choice(ODD))] = rng.choice(ODD)
        else:
            found[key] = changed(value[key], rng)
        return found
    if isinstance(value, list) and value and rng.random() < 0.9:
        places = list(value)
        place = rng.randrange(len(places))
        kind = rng.randrange(6)
        if kind == 0:
            del places[place]
        elif kind == 1:
            places.append(places[place])
        elif kind == 2:
            rng.shuffle(places)
        else:
            places[place] = changed(value[place], rng)
        return places
    return rng.choice(ODD)


def changed_json(blob: bytes, rng: Random) -> bytes:
    """A JSON file with one value changed; now and then nested far too deep."""
    if rng.random() < 0.02:
        return rng.choice((b"[", b'{"a":', b"[[{")) * rng.choice((500, 100_000))
    return json.dumps(changed(json.loads(blob), rng)).encode()


def changed_tensors(blob: bytes, rng: Random) -> bytes:
    """A safetensors file whose header says something else: sizes, shapes, types, names, places."""
    size = int.from_bytes(blob[:8], "little")
    header, data = json.loads(blob[8 : 8 + size]), blob[8 + size :]
    entries = header.items() if isinstance(header, dict) else ()  # it may have been damaged before
    names = [name for name, entry in entries if name != "__metadata__" and isinstance(entry, dict)]
    if not names:
        return blob
    one, other = rng.choice(names), rng.choice(names)
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: header.update({one: header[other], other: header[one]}),
        lambda: header.update({str(rng.choice(ODD)): header.pop(one)}),
        lambda: header.pop(one),
        lambda: header[one].update(shape=rng.choice(([2**62], [2**31, 2**31, 4], [-1], [0], [], [1.5], "x", [2**64]))),
        lambda: header[one].update(shape=header[one]["shape"][::-1]),
        lambda: header[one].update(
            dtype=rng.choice(("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "X", 3, None))
        ),
        lambda: header[one].update(data_offsets=rng.choice(([0, 2**62], [2**62, 0], [0, 0], [-1, 4], [1, 5], "x"))),
        lambda: header.update({f"more.{n}": header[one] for n in range(rng.choice((1, 1000)))}),
    )
    rng.choice(kinds)()
    if "tlora" in header.get("__metadata__", {}) and rng.random() < 0.7:
        header["__metadata__"]["tlora"] = json.dumps(changed(json.loads(header["__metadata__"]["tlora"]), rng))
    text = json.dumps(changed(header, rng) if rng.random() < 0.2 else header).encode()
    length = len(text) if rng.random() < 0.8 else rng.choice((0, 1, 2**20, 10**8, 10**8 + 1, 2**40, 2**63, 2**64 - 1))
    return length.to_bytes(8, "little") + text + data


def odd_numbers(blob: bytes, rng: Random) -> bytes:
    """A safetensors file with NaN, infinity or noise where the numbers are."""
    start = 8 + int.from_bytes(blob[:8], "little")
    place = rng.randrange(start, len(blob)) // 4 * 4
    noise = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff", rng.randbytes(4)))
    return (blob[:place] + noise + blob[place + 4 :])[: len(blob)]


def fuzz(file: Path, rng: Random) -> None:
    """Damage a file, as bytes or as what it is."""
    blob = file.read_bytes()
    kinds = [damaged]
    if file.suffix == ".json":
        kinds += [changed_json, changed_json]
    elif file.suffix == ".safetensors" and blob:
        kinds += [changed_tensors, changed_tensors, odd_numbers]
    try:
        found = rng.choice(kinds)(blob, rng)
    except (ValueError, TypeError, LookupError, RecursionError):  # damaged before, it is not what its name says
        found = damaged(blob, rng)
    file.write_bytes(found)
