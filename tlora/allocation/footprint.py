"""What an adapter costs: parameters, bytes on disk, bytes of optimiser state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

BYTES = 4
"""Bytes of one float32 number; adapters are trained and saved in float32."""

KINDS = ("B", "A and B")
"""What is trained of an adapter: as TLoRA, as LoRA."""

ADAMW_STATES = 2
"""Moving averages that AdamW keeps of every trainable parameter."""


@dataclass(frozen=True)
class Footprint:
    """Size of an adapter.

    Attributes
    ----------
    parameters : int
        Entries of all ``A`` and ``B``.
    trainable_parameters : int
        Those of them that are trained.
    """

    parameters: int
    trainable_parameters: int

    @property
    def adapter_bytes(self) -> int:
        """Bytes of ``A`` and ``B`` in float32, as in memory and in the saved file (its header aside)."""
        return BYTES * self.parameters

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of AdamW's two float32 states of every trainable parameter."""
        return BYTES * ADAMW_STATES * self.trainable_parameters


def footprint(shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int], *, freeze_a: bool) -> Footprint:
    """Size of an adapter with the given ranks.

    Parameters
    ----------
    shapes : mapping of (int, int)
        ``(d_out, d_in)`` by module.
    ranks : mapping of int
        Rank by module; the keys decide which modules have an adapter.
    freeze_a : bool
        True where only ``B`` (d_out, r) is trained, False where ``A`` (r, d_in) is trained too.
    """
    b = sum(rank * shapes[name][0] for name, rank in ranks.items())
    a = sum(rank * shapes[name][1] for name, rank in ranks.items())
    return Footprint(a + b, b if freeze_a else a + b)


def uniform_footprints(shapes: Mapping[str, tuple[int, int]], rank: int) -> dict[str, Footprint]:
    """Size of an adapter of one rank, or the most that a smaller matrix has, by what is trained of it (`KINDS`)."""
    ranks = {name: min(rank, *shape) for name, shape in shapes.items()}
    return {kind: footprint(shapes, ranks, freeze_a=kind == "B") for kind in KINDS}


def size_text(count: float) -> str:
    """Bytes in the unit that suits them, three digits."""
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def ranks_text(ranks: Iterable[int]) -> str:
    """How ranks are said: "rank 8", or "ranks 2 to 21"."""
    low, high = min(ranks := list(ranks)), max(ranks)
    return f"ranks {low} to {high}" if low < high else f"rank {low}"
