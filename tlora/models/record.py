"""One record per live model of facts that the model itself does not hold; it is gone with the model."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass
class ModelRecord:
    """Facts about a base model, without its adapters.

    Attributes
    ----------
    newly_initialized : tuple of str or None
        Modules that `tlora.load_model` initialized at random, since the checkpoint had no weights for them; None for a
        model that was loaded otherwise, or copied.
    before_merging : list of dict of Tensor
        Fingerprints of the weights before each adapter that `tlora.merge` folded into them.
    trainable_before : set of str
        Parameters that were trainable before the model got an adapter.
    attached : tuple or None
        A weak reference to the ``A`` of the adapter that `tlora.attach` put on the model, and how it did.
    fingerprints : dict of Tensor or None
        Of weights that were read since `fixed_weights` began; None outside of it.
    """

    newly_initialized: tuple[str, ...] | None = None
    before_merging: list[dict[str, Tensor]] = field(default_factory=list)
    trainable_before: set[str] = field(default_factory=set)
    attached: tuple[weakref.ref[nn.Module], dict[str, Any]] | None = None
    fingerprints: dict[str, Tensor] | None = None


_RECORDS: weakref.WeakKeyDictionary[nn.Module, ModelRecord] = weakref.WeakKeyDictionary()


def record_of(base: nn.Module) -> ModelRecord:
    """Return the record of a base model, empty if nothing is known of it yet."""
    return _RECORDS.setdefault(base, ModelRecord())


@contextlib.contextmanager
def fixed_weights(base: nn.Module) -> Iterator[None]:
    """Fingerprint each weight once inside the block, for all steps of a run: nothing there changes a weight."""
    record = record_of(base)
    record.fingerprints = {}
    try:
        yield
    finally:
        record.fingerprints = None
