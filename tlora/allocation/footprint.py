"""What an adapter costs: parameters, bytes on disk, bytes of optimizer state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BYTES = 4
"""Bytes of one float32 number; adapters are trained and saved in float32."""

TRAINED_PARTS = ("B", "A and B")
"""The part of an adapter that is trained: by TLoRA, by LoRA."""

AS_BASE = "A and B, adapter as base"
"""The kind of training that is LoRA with the adapter in the type of the base, not in float32."""

FULL = "all weights"
"""The kind of training that is full fine-tuning."""

TRAININGS = {"A and B": "LoRA", AS_BASE: "LoRA, adapter in the base's dtype", "B": "A frozen", FULL: "all weights"}
"""The kinds of training in words."""

ADAMW_STATES = 2
"""Moving averages that AdamW keeps of every trainable parameter."""


@dataclass(frozen=True)
class Footprint:
    """Size of an adapter: entries of all ``A`` and ``B``, and how many of them are trained."""

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
    """Size of an adapter with these ranks by module; ``shapes`` are ``(d_out, d_in)``.

    With ``freeze_a`` only ``B`` (d_out, r) is trained, otherwise ``A`` (r, d_in) too.
    """
    b = sum(rank * shapes[name][0] for name, rank in ranks.items())
    a = sum(rank * shapes[name][1] for name, rank in ranks.items())
    return Footprint(a + b, b if freeze_a else a + b)


def uniform_footprints(shapes: Mapping[str, tuple[int, int]], rank: int) -> dict[str, Footprint]:
    """Size of an adapter of one rank (less in a smaller matrix), by the part of it that is trained."""
    ranks = {name: min(rank, *shape) for name, shape in shapes.items()}
    return {kind: footprint(shapes, ranks, freeze_a=kind == "B") for kind in TRAINED_PARTS}
