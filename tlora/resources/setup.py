"""How much data is run through a model, and how it is stored and trained: the arguments of an estimate."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tlora.allocation.footprint import AS_BASE, TRAINED_PARTS
from tlora.calibration.calibration import Options
from tlora.models.loading import floating_dtype
from tlora.utils.validation import require_choice, require_positive_int

OPTIMIZER_STATES = {
    "adamw_torch": (2, 0),
    "adamw_bnb_8bit": (0, 2),
    "paged_adamw_32bit": (0, 0),
    "paged_adamw_8bit": (0, 0),
    "sgd": (0, 0),
}
"""What optimizers keep on the GPU for a parameter: numbers of its own type, and bytes; paged states are on the host."""

QUANTIZED_BYTES = {4: 0.5 + 4 / 64, 8: 1.0}
"""Bytes of a weight of a bitsandbytes base, by its bits: at 4 bits, every 64 weights share a float32 scale."""


@dataclass(frozen=True)
class Setup:
    """How much data is run through a model, and how it is stored and trained: arguments of `estimate`."""

    samples: int
    length: int
    batch_size: int
    labels: int
    dtype: str
    bits: int | None
    gradient_checkpointing: bool
    optim: str
    gpus: int
    rank: int
    sketch_size: int
    fisher: bool

    def __post_init__(self) -> None:
        for name in ("samples", "length", "batch_size", "labels", "rank"):
            object.__setattr__(self, name, require_positive_int(getattr(self, name), name))
        floating_dtype(self.dtype)
        if self.bits is not None and self.bits not in QUANTIZED_BYTES:
            raise ValueError(f"bits={self.bits!r}: use 4 or 8, or leave it out")
        require_choice(self.optim, "optim", list(OPTIMIZER_STATES))
        require_positive_int(self.gpus, "gpus", 0)
        Options(covariance="sketch", sketch_size=self.sketch_size)

    @property
    def precision(self) -> torch.dtype:
        """Type of the weights."""
        return floating_dtype(self.dtype)

    @property
    def width(self) -> int:
        """Directions to compute: few modules get more than four times the nominal rank."""
        return 4 * self.rank

    @property
    def adapters(self) -> tuple[str, ...]:
        """Kinds of training with an adapter; one of the base's type differs if that is not float32."""
        return (*TRAINED_PARTS, AS_BASE) if self.precision != torch.float32 else TRAINED_PARTS

    def adapter_dtype(self, kind: str) -> torch.dtype:
        """Type of the adapter in a kind of training."""
        return self.precision if kind == AS_BASE else torch.float32

    def is_sketched(self, d: int) -> bool:
        """Whether a sketch is smaller than a covariance of this size."""
        return Options(sketch_size=self.sketch_size).is_wide(d)

    def state_bytes(self, itemsize: int) -> int:
        """Return the bytes of optimizer state for a parameter of this size."""
        numbers, fixed = OPTIMIZER_STATES[self.optim]
        return numbers * itemsize + fixed
