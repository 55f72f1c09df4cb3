"""Find an adapter: in a folder, or on the Hugging Face hub under ``owner/name``."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from tlora.adapters.files import INITIAL
from tlora.utils.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILES = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, f"{INITIAL.parent}/*"]


def adapter_folder(adapter: str | os.PathLike[str]) -> Path:
    """Return the folder of an adapter; for ``owner/name`` or ``owner/name@revision`` on the hub, that in the cache.

    An existing folder of that name is preferred. Only the adapter's files are downloaded, none of them pickled.
    """
    name = _HUB_ID.fullmatch(os.fspath(adapter))
    if name is None or Path(adapter).exists():
        return Path(adapter)
    try:
        return Path(snapshot_download(name["repo"], revision=name["revision"], allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        why = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"no adapter in {adapter}: there is no such folder, and the hub has none of that name ({why}); check the "
            "name and the revision, or the network"
        ) from error
