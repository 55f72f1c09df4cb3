"""Random matrices that sums are sketched with: one for each width, so that sketches of one width can be added."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class SketchingMatrices:
    """Seeded matrices with orthonormal columns, made when first asked for, and held once on each device.

    Parameters
    ----------
    made : mapping of str to Tensor, optional
        Matrices of an earlier run by key, to go on with those.

    Notes
    -----
    What is drawn from a seed may differ between versions of torch. They are therefore kept with what was sketched,
    and results are merged only where theirs are the same.
    """

    def __init__(self, made: Mapping[str, Tensor] | None = None) -> None:
        self.made: dict[str, Tensor] = dict(made or {})
        self._elsewhere: dict[tuple[str, str], Tensor] = {}

    def get(self, d: int, size: int, device: torch.device | str = "cpu") -> Tensor:
        """The matrix (d, size) on a device, float32; ``size`` is at most ``d``."""
        key = f"{d}.{size}"
        if key not in self.made:
            self.made[key] = sketching_matrix(d, size)
        if torch.device(device).type == "cpu":
            return self.made[key]
        return self._elsewhere.setdefault((key, str(device)), self.made[key].to(device))


def sketching_matrix(d: int, size: int, seed: int = 0) -> Tensor:
    """Seeded orthonormal columns (d, size) of a uniformly random subspace, float32 on the CPU."""
    gaussian = torch.randn(d, min(d, size), generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(gaussian).Q.contiguous()
