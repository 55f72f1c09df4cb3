"""What older formats of results had otherwise: each step brings a ``result.json`` from one version to the next."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

FORMAT_VERSION = 4
"""Raised whenever files are written that an earlier version would not read, or would read wrongly."""

Head = dict[str, Any]

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A part of a module's name that is a number."""


class NotReadable(ValueError):
    """What an older format lacks cannot be made up."""


def _from_1(head: Head) -> Head:
    """A run knew the digest of its adapter alone, not of the adapter's config."""
    if head["result"] != "TrainingRun":
        return head
    values = dict(head["values"])
    values["files"] = {"adapter_model.safetensors": values.pop("adapter")}
    return head | {"values": values}


def _from_2(head: Head) -> Head:
    """A calibration held means, where it holds sums now and knows the samples that are in them."""
    if head["result"] == "Calibration" and "traces" not in head["values"]:  # the sums came before the number
        raise NotReadable(
            "a calibration of an earlier layout, which does not say of which samples its covariances are the mean: "
            "remove it and calibrate again, on the same samples for the same numbers"
        )
    return head


def _from_3(head: Head) -> Head:
    """A plan knew no more than the shapes of the modules that it leaves out; their places are read off their names.

    The first number in a name is the layer; a module of the plan whose name is the same but for this number has the
    same projection.
    """
    if head["result"] != "Allocation":
        return head
    values = dict(head["values"])
    out, known = values.pop("excluded"), values["projections"]
    roles = {_NUMBER.sub("", name, count=1): projection for name, projection in known.items()}
    return head | {
        "values": values
        | {
            "modules": list(values["shapes"]),
            "shapes": values["shapes"] | out,
            "layers": values["layers"] | {name: int((_NUMBER.findall(name) or [-1])[0]) for name in out},
            "projections": known | {name: roles.get(_NUMBER.sub("", name, count=1), "left out") for name in out},
        }
    }


_STEPS: dict[int, Callable[[Head], Head]] = {1: _from_1, 2: _from_2, 3: _from_3}


def migrated(head: Head) -> Head:
    """The content of a ``result.json`` of any version from 1 on, as the present version writes it.

    Raises
    ------
    NotReadable
        If it lacks what cannot be made up.
    ValueError
        If it lacks what its version has.
    """
    for version in range(head["format"], FORMAT_VERSION):
        try:
            head = _STEPS[version](head)
        except NotReadable:
            raise
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"a result of format {version} is damaged ({error!r}): make the result again") from error
    return head | {"format": FORMAT_VERSION}
