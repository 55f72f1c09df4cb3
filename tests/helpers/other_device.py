"""A device for machines without a GPU: tensors that say they are on ``standin:0``, while the CPU computes their values.

On it, as on a card, an operation that mixes devices fails, and what is copied back to the host is counted: each such
copy makes the host wait for the card's queue. `OtherDevice` counts the bytes that live on the device, too.

What it does not show: the speed and the rounding of a card; kernels that a card does not have; what ``torch.compile``,
streams, pinned memory, random numbers that a card draws itself, quantised layers and several cards do. An error
inside a hook of the backward pass ends the process: torch asks the device's guard, which is in Python, in between.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

try:
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
except ImportError:  # before torch 2.9 a device cannot be registered in Python
    _DummyBackendModule, _setup_privateuseone_for_python_backend = object, None

NAME = "standin"
ROOT = f"{Path(__file__).parents[2]}/"

WAITS = {
    "aten::_linalg_eigh",  # on a card these look whether they have converged
    "aten::_linalg_svd",
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::linalg_lstsq",
    "aten::masked_select",
    "aten::nonzero",
}
"""Operations whose results, or their sizes, the host has to know."""

_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index")
_COPIES = ("aten::copy_", "aten::_to_copy", "aten::_copy_from")


class _Module(_DummyBackendModule):
    """``torch.standin``: the device is available only while an `OtherDevice` is entered."""

    entered = 0

    def is_available(self) -> bool:
        return self.entered > 0

    def device_count(self) -> int:
        return int(self.is_available())

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


_module = _Module()
if _setup_privateuseone_for_python_backend is not None:
    # For good, and before the first backward pass of the process, which starts a thread for each known device.
    _setup_privateuseone_for_python_backend(NAME, backend_module=_module)


class _Memory:
    """Bytes that live on the device, and the most that did."""

    def __init__(self) -> None:
        self.live = self.largest = 0
        self._blocks: weakref.WeakValueDictionary[int, _Block] = weakref.WeakValueDictionary()

    def block(self, raw: Tensor) -> _Block:
        """That of a tensor: views have one together."""
        storage = raw.untyped_storage()
        found = self._blocks.get(storage.data_ptr())
        if found is None:
            found = self._blocks[storage.data_ptr()] = _Block(self, storage.nbytes())
        return found


class _Block:
    """Memory for as long as a tensor of the device holds it."""

    def __init__(self, memory: _Memory, size: int) -> None:
        self.memory, self.size = memory, size
        memory.live += size
        memory.largest = max(memory.largest, memory.live)

    def __del__(self) -> None:
        self.memory.live -= self.size


_memory = _Memory()


class OnDevice(Tensor):
    """A tensor of the device; ``raw`` has its values, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> OnDevice:
        strides = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        tensor = Tensor._make_wrapper_subclass(cls, raw.size(), device=torch.device(NAME, 0), **strides)
        tensor._hold(raw)
        return tensor

    def _hold(self, raw: Tensor) -> None:
        self.raw, self._block = raw, _memory.block(raw)

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        """``parameter.data = ...``, which changes what a tensor holds without any operation."""
        Tensor.data.__set__(self, value)
        self._hold(value.raw)

    # What torch refuses a tensor of a class of its own:

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.raw.untyped_storage()

    def __repr__(self, **options: Any) -> str:
        return f"{NAME}:{self.raw!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Watched(NamedTuple):
    """What was returned, copies to the host by lines of ``tlora`` and of libraries, and the most bytes that lived."""

    result: Any
    ours: Counter[str]
    others: Counter[str]
    largest: int


class OtherDevice(TorchDispatchMode):
    """While it is entered, there is the device ``standin:0``; entering gives it.

    Attributes
    ----------
    copies : Counter
        Copies to the host so far, by place: ``tlora/...:line`` for ours, ``library:line`` for others'.
    """

    now: OtherDevice | None = None

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device(NAME, 0)
        self.copies: Counter[str] = Counter()

    def __enter__(self) -> OtherDevice:
        super().__enter__()
        _module.entered += 1
        OtherDevice.now = self
        # a parameter that is moved stays the same object, as on a card: tied ones stay tied
        torch.__future__.set_swap_module_params_on_conversion(True)
        return self

    def __exit__(self, *error: Any) -> None:
        torch.__future__.set_swap_module_params_on_conversion(False)
        OtherDevice.now = None
        _module.entered -= 1
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def watch(self, act: Callable[[], Any]) -> Watched:
        """Do something, and say what it cost."""
        gc.collect()
        before, _memory.largest = self.copies.copy(), _memory.live
        result = act()
        copies = self.copies - before
        ours = Counter({place: n for place, n in copies.items() if place.startswith("tlora/")})
        return Watched(result, ours, copies - ours, _memory.largest)

    @property
    def live(self) -> int:
        """Bytes on the device now."""
        return _memory.live


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name = func.name().split(".")[0]
    tensors: list[Tensor] = []
    _mapped((*args, *kwargs.values()), tensors.append)
    there = any(isinstance(x, OnDevice) for x in tensors)
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    if there:
        _refuse_mixed(name, tensors, args)
        to_host = target == "cpu" or (name == "aten::copy_" and not isinstance(args[0], OnDevice))
        if (to_host or name in WAITS) and OtherDevice.now is not None:
            OtherDevice.now.copies[_place()] += 1
    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    out = func(*_mapped(args, _raw), **{key: _mapped(value, _raw) for key, value in kwargs.items()})
    if name == "aten::copy_":
        return args[0]
    if target == "cpu" or not (there or target):
        return out
    if args and isinstance(args[0], OnDevice) and out is args[0].raw:  # changed in place
        return args[0]
    return _mapped(out, lambda x: x if isinstance(x, OnDevice) else OnDevice(x))


def _mapped(values: Any, act: Callable[[Tensor], Any]) -> Any:
    """What ``act`` makes of each tensor among what an operation takes or gives."""
    if isinstance(values, Tensor):
        return act(values)
    if isinstance(values, list | tuple):
        return type(values)([_mapped(value, act) for value in values])
    return values


def _raw(x: Tensor) -> Tensor:
    return x.raw if isinstance(x, OnDevice) else x


def _refuse_mixed(name: str, tensors: list[Tensor], args: Any) -> None:
    """As a card does: it takes single numbers of the CPU, and an index that is there."""
    if name in _COPIES or (name in _INDEXING and isinstance(args[0], OnDevice)):
        return
    for x in tensors:
        if not isinstance(x, OnDevice) and x.ndim:
            raise RuntimeError(
                f"{name} was given tensors on {NAME}:0 and on {x.device}: all must be on the same device"
            )


def _place() -> str:
    """The line, outside of torch, that asked for a copy."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith("/") and "/torch/" not in file and file != __file__:
            return f"{file.split('/site-packages/')[-1].removeprefix(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


_library = torch.library.Library("aten", "IMPL")  # what is asked for below the dispatch of modes


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return OnDevice(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return OnDevice(torch.empty(size, dtype=dtype, device="cpu"))


def _copy_from(source, target, non_blocking=False):
    _raw(target).copy_(_raw(source))
    return target


if _setup_privateuseone_for_python_backend is not None:
    _library.impl("empty_strided", _empty_strided, "PrivateUse1")
    _library.impl("empty.memory_format", _empty, "PrivateUse1")
    _library.impl("_copy_from", _copy_from, "PrivateUse1")


@contextlib.contextmanager
def trainer_on(device: torch.device) -> Iterator[None]:
    """Have the Trainer take this device, which it chooses once in a process."""
    with pytest.MonkeyPatch.context() as patch:
        if device.type == NAME:
            patch.setenv("ACCELERATE_TORCH_DEVICE", str(device))
        AcceleratorState._reset_state(reset_partial_state=True)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtherDevice]:
    """The stand-in for a card, with its counts."""
    if _setup_privateuseone_for_python_backend is None:
        pytest.skip(f"torch {torch.__version__} cannot register a device in Python: 2.9 or later can")
    # There is no cache to empty, and torch ends in an assertion of its allocators. accelerate asks from 1.16 on.
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    with OtherDevice() as device:
        yield device


@pytest.fixture(
    params=[
        NAME,
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: run on a machine with a GPU"),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """A device that is not the CPU: the stand-in always, a GPU where there is one."""
    if request.param == NAME:
        return request.getfixturevalue("other").device
    return torch.device("cuda")
