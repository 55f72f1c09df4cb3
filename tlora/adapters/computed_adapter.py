"""A new adapter that was computed from others: what the results that hold one have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from tlora.adapters.files import save_computed


class ComputedAdapter:
    """What a result can do that holds a new adapter in its fields ``config``, ``adapter`` and ``fingerprints``."""

    _writer: ClassVar[str]
    """What makes it, for the record in its folder."""

    shapes: dict[str, tuple[int, int]]
    config: dict[str, Any]
    adapter: dict[str, Tensor]
    fingerprints: dict[str, Tensor]

    @property
    def names(self) -> list[str]:
        """Full names of the modules."""
        return list(self.shapes)

    def save_adapter(self, folder: str | os.PathLike[str]) -> Path:
        """Write the new adapter as PEFT writes one; PEFT and `tlora.load` read it, `tlora.export` serves it.

        Parameters
        ----------
        folder : path-like
            Folder to write: ``adapter_config.json`` and ``adapter_model.safetensors``, and the fingerprints of the base
            if known. Other files stay.

        Returns
        -------
        pathlib.Path
            The folder.

        Raises
        ------
        FileExistsError
            If the folder holds a model, or an adapter that this method did not write.
        """
        return save_computed(folder, self._writer, self.adapter, self.config, self.fingerprints)
