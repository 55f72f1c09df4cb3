"""Rounding of a weight to the formats of engines, and the part of an update that it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

BLOCK = 32
"""Neighboring weights of a row that share a scale in the formats of GGUF."""

NF4_BLOCK = 64
"""Neighboring weights that share a scale in NF4."""

LEVELS = 16
"""Most different values that a block has on a grid of four bits."""

LOST = 0.5
"""Share of an update that survives, below which the update counts as lost."""


@dataclass(frozen=True)
class QuantizationFormat:
    """A format of quantized weights.

    Attributes
    ----------
    bits : int
        Bits of a weight, without those of its block.
    package : str
        The package that computes it, which is also its extra.
    """

    bits: int
    package: Literal["gguf", "bitsandbytes"]

    @property
    def largest_grid_distance(self) -> float:
        """Relative change of a weight by rounding below which the weight was on the grid already.

        Weights between grid points change by four times as much and more; bfloat16 alone changes one by 0.0017.
        """
        return 2.0 ** -(self.bits + 2)


QUANTIZATION_FORMATS = {
    "q8_0": QuantizationFormat(8, "gguf"),
    "q5_0": QuantizationFormat(5, "gguf"),
    "q4_1": QuantizationFormat(4, "gguf"),
    "q4_0": QuantizationFormat(4, "gguf"),
    "nf4": QuantizationFormat(4, "bitsandbytes"),
}
"""By name: those that a Python package can write."""


def fits_blocks(width: int, format: str) -> bool:
    """Whether rows of this width are whole blocks of a format; llama.cpp leaves other weights in 16 bits."""
    return QUANTIZATION_FORMATS[format].package != "gguf" or width % BLOCK == 0


def round_to_format(weight: Float[Tensor, "d_out d_in"], format: str) -> Float[Tensor, "d_out d_in"]:
    """Quantize a weight to a format and return the float32 values that an engine computes with, on the CPU."""
    matrix = weight.detach().to("cpu", torch.float32).contiguous()
    if QUANTIZATION_FORMATS[format].package == "bitsandbytes":
        from bitsandbytes import functional

        # Blocks run over the ends of rows. As rows of one block each: on a CPU bitsandbytes 0.50 dequantizes rows that
        # are not whole blocks with the scales of other blocks.
        blocks = nn.functional.pad(matrix.flatten(), (0, -matrix.numel() % NF4_BLOCK)).view(-1, NF4_BLOCK)
        packed, state = functional.quantize_4bit(blocks, blocksize=NF4_BLOCK, quant_type=format)
        return functional.dequantize_4bit(packed, state).flatten()[: matrix.numel()].view(matrix.shape)
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[format.upper()]
    values = quants.dequantize(quants.quantize(matrix.numpy(), kind), kind)
    return torch.from_numpy(np.array(values, dtype=np.float32))


def surviving_product(
    before: Float[Tensor, "d_out d_in"], after: Float[Tensor, "d_out d_in"], update: Float[Tensor, "d_out d_in"]
) -> tuple[float, float]:
    """Return ``<after - before, U>`` and ``|U|^2``, whose ratio is the share of an update ``U`` that survives."""
    direction = update.double()
    return float(((after.double() - before.double()) * direction).sum()), float(direction.square().sum())


def few_levels_share(weight: Float[Tensor, "d_out d_in"]) -> float:
    """Return the share of blocks with no more values than four bits have, whatever the format that gave them."""
    width = weight.shape[1] // BLOCK * BLOCK
    ordered = weight[:, :width].float().reshape(-1, BLOCK).sort(1).values
    values = 1 + (ordered.diff(dim=1) != 0).sum(1)
    return float((values <= LEVELS).double().mean())
