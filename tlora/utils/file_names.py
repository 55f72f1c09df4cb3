"""Names of the files of results, adapters and exports, in a file that needs no torch."""

import os
from pathlib import Path

RESULT_SUFFIX = ".safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
MODEL_CONFIG = "config.json"
EXPORT_RECORD = "export.json"
"""Says of which format an exported folder is, and which files are part of it."""

GGUF_ADAPTER = "adapter.gguf"
UNFINISHED = Path("tlora", "unfinished")
"""What a run keeps in its output folder until its adapter is whole."""


def result_file(path: str | os.PathLike[str]) -> Path:
    """Return the file of a result: ``path``, with ``.safetensors`` added to a name that does not end in it."""
    file = Path(path)
    if file.name in ("", ".."):
        raise ValueError(f"path={str(path)!r} names no file: end it with a name, such as calibration.safetensors")
    return file if file.suffix == RESULT_SUFFIX else file.with_name(file.name + RESULT_SUFFIX)
