"""What older formats of results had otherwise: each step brings a ``result.json`` from one version to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT_VERSION = 2
"""Raised whenever files are written that an earlier version would not read, or would read wrongly."""

Head = dict[str, Any]


def _from_1(head: Head) -> Head:
    """A run knew the digest of its adapter alone, not of the adapter's config."""
    if head["result"] != "TrainingRun":
        return head
    values = dict(head["values"])
    values["files"] = {"adapter_model.safetensors": values.pop("adapter")}
    return head | {"values": values}


_STEPS: dict[int, Callable[[Head], Head]] = {1: _from_1}


def migrated(head: Head) -> Head:
    """The content of a ``result.json`` of any version from 1 on, as the present version writes it.

    Raises
    ------
    ValueError
        If it lacks what its version has.
    """
    for version in range(head["format"], FORMAT_VERSION):
        try:
            head = _STEPS[version](head)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"a result of format {version} is damaged ({error!r}): make the result again") from error
    return head | {"format": FORMAT_VERSION}
