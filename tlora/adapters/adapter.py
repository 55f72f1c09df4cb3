"""An adapter: the update of each module, and everything that comes with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftModel
from torch import Tensor

from tlora.adapters.files import (
    BASE,
    EMBEDDING,
    FROZEN_A,
    WRITER,
    earlier_files,
    factor_tensors,
    read_tensors,
    read_training_record,
    refuse_other_writer,
    split_updates,
    validate_adapter,
    write_adapter,
)
from tlora.adapters.hub import adapter_folder
from tlora.adapters.lora_layers import (
    adapter_config,
    adapter_tensors,
    is_a_frozen,
    require_one_lora,
    warn_resized_vocabulary,
)
from tlora.adapters.peft_config import pattern_config, refuse_more_than_lora, rewrites_base
from tlora.adapters.update import ExpertMoments, LoraUpdate, Moment
from tlora.calibration.calibration import Calibration
from tlora.models.experts import expert_names
from tlora.models.targets import join_experts
from tlora.models.weights import SIMILARITY_THRESHOLD, base_fingerprints, fingerprint_similarity
from tlora.utils.file_names import ADAPTER_CONFIG
from tlora.utils.files import replace_files
from tlora.utils.text import ranks_text
from tlora.utils.validation import check_arguments

UNNAMED = "an unnamed model"


@dataclass(frozen=True, repr=False, eq=False)
class LoraAdapter:
    """A LoRA adapter, whoever trained it: the update of each module, and everything that comes with them.

    Attributes
    ----------
    updates : dict of LoraUpdate
        The update of each linear module, by full name, and of each parameter with experts.
    config : dict
        ``adapter_config.json``, with the ranks and scalings of the updates.
    embeddings : dict of LoraUpdate
        The update of each embedding, transposed: (dimension, vocabulary).
    others : dict of Tensor
        Tensors that are neither ``A`` nor ``B``, under the names that PEFT saves them by: a head, or trained biases.
    fingerprints : dict of (16,) float32 tensor
        Of the base weights, if known; `tlora.load_adapter` recognizes another base by them.
    frozen_a : bool
        Whether ``A`` was frozen, so that `tlora.load_adapter` freezes it again.

    Notes
    -----
    ``weight * adapter`` scales all its updates. Other tensors stay, so ``-1 * adapter`` does not undo a head or biases
    that were trained with the adapter. An operation on adapters reads one, computes new
    updates, and saves what `with_updates` returns.

    Examples
    --------
    >>> adapter = tlora.LoraAdapter.read("adapter")
    >>> adapter
    LoraAdapter(14 modules of ...)
    >>> (-1 * adapter).save("negative").name
    'negative'
    >>> cut = {name: update.cut(2) for name, update in adapter.updates.items()}
    >>> set(adapter.with_updates(cut).ranks.values())
    {2}
    """

    updates: dict[str, LoraUpdate]
    config: dict[str, Any]
    embeddings: dict[str, LoraUpdate] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)
    fingerprints: dict[str, Tensor] = field(default_factory=dict)
    frozen_a: bool = False

    @classmethod
    def read(cls, adapter: str | os.PathLike[str] | PeftModel, reader: str = "LoraAdapter.read") -> LoraAdapter:
        """Read an adapter, and refuse one that computes something else than ``W + s B A``.

        Parameters
        ----------
        adapter : path-like, str or peft.PeftModel
            Its folder; its name on the hub, ``owner/name`` or ``owner/name@revision``; or a model with one active
            adapter, which is only read.
        reader : str
            Name of the function that reads it, for errors.

        Returns
        -------
        LoraAdapter

        Raises
        ------
        FileNotFoundError
            If there is no adapter.
        ValueError
            If the adapter is damaged, merged, has no linear module, or computes something else (DoRA, PiSSA that was
            not converted to LoRA, ...).
        """
        check_arguments(LoraAdapter.read, locals())
        if isinstance(adapter, PeftModel):
            require_one_lora(adapter, reader, experts=True)
            warn_resized_vocabulary(adapter)
            config, place, prints = adapter_config(adapter), "the model's adapter", base_fingerprints(adapter)
            tensors = {key: tensor.detach().cpu() for key, tensor in adapter_tensors(adapter).items()}
            frozen_a = is_a_frozen(adapter)
        else:
            folder = adapter_folder(adapter)
            config, _ = validate_adapter(folder, reader)
            record = read_training_record(folder)
            place, prints, frozen_a = str(folder), record.fingerprints or {}, record.frozen_a
            tensors = read_tensors(folder)
        convert = "model.save_pretrained(folder, path_initial_model_for_weight_conversion=...)"
        refuse_more_than_lora(
            config,
            f"convert it to LoRA by {convert} and use that"
            if rewrites_base(config)
            else "serve it as it is, or train LoRA",
        )
        whole = adapter_of(config, tensors, prints, place)
        if not whole.updates:
            raise ValueError(
                f"{place} holds no lora_A of a linear layer, but {len(tensors)} other tensors: name another adapter"
            )
        return replace(whole, frozen_a=frozen_a)

    @property
    def base(self) -> str:
        """Name of the base model."""
        return self.config.get("base_model_name_or_path") or UNNAMED

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each linear module."""
        return {name: update.rank for name, update in self.updates.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """``(d_out, d_in)`` of each linear module; of the experts of a parameter their sums."""
        return {name: (u.experts * u.shape[0], u.experts * u.shape[1]) for name, u in self.updates.items()}

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters with experts that it changes."""
        return [name for name, update in self.updates.items() if update.has_experts]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors, under the names that PEFT saves them by."""
        embeddings = factor_tensors(self.embeddings.values(), EMBEDDING)
        return factor_tensors(self.updates.values()) | embeddings | self.others

    def with_updates(
        self, updates: Mapping[str, LoraUpdate], embeddings: Mapping[str, LoraUpdate] | None = None
    ) -> LoraAdapter:
        """Return the adapter with other updates, and their ranks and scalings in its config, as patterns by module.

        Parameters
        ----------
        updates : mapping of str to LoraUpdate
            The update of each linear module, by full name.
        embeddings : mapping of str to LoraUpdate, optional
            That of each embedding; by default they stay.

        Returns
        -------
        LoraAdapter
        """
        check_arguments(LoraAdapter.with_updates, locals())
        kept = self.embeddings if embeddings is None else dict(embeddings)
        every = {**updates, **kept}
        if not every:
            raise ValueError("updates is empty: keep one of the adapter's at least")
        ranks, scalings = {n: u.rank for n, u in every.items()}, {n: u.scaling for n, u in every.items()}
        parameters = [name for name, update in every.items() if update.has_experts]
        config = pattern_config(self.config, ranks, scalings, parameters)
        return replace(self, updates=dict(updates), embeddings=kept, config=config)

    def __mul__(self, factor: float) -> LoraAdapter:
        updates, embeddings = (
            {name: factor * update for name, update in several.items()} for several in (self.updates, self.embeddings)
        )
        return self.with_updates(updates, embeddings)

    __rmul__ = __mul__

    def save(self, folder: str | os.PathLike[str], writer: str = "LoraAdapter.save") -> Path:
        """Write the adapter as PEFT writes one; PEFT and `tlora.load_adapter` read it, `tlora.export` serves it.

        Parameters
        ----------
        folder : path-like
            Folder to write: ``adapter_config.json`` and ``adapter_model.safetensors``, and the fingerprints of the base
            if known. Other files stay.
        writer : str
            Name of the function that writes it, for the record in the folder: it replaces only adapters of its own.

        Returns
        -------
        pathlib.Path
            The folder.

        Raises
        ------
        FileExistsError
            If the folder holds a model, or an adapter of another writer.
        """
        check_arguments(LoraAdapter.save, locals())
        refuse_other_writer(folder, writer)
        prints = {name: values.tolist() for name, values in self.fingerprints.items()}
        record = {WRITER: writer} | ({BASE: prints} if prints else {}) | ({FROZEN_A: True} if self.frozen_a else {})
        with replace_files(folder, last=ADAPTER_CONFIG, earlier=earlier_files(folder)) as fresh:
            write_adapter(fresh, self.tensors, self.config, record)
        return Path(folder)

    def __repr__(self) -> str:
        ranks = [update.rank for update in (self.updates | self.embeddings).values()]
        return f"LoraAdapter({len(ranks)} modules of {self.base}, {ranks_text(ranks)})"


def adapter_of(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    fingerprints: Mapping[str, Tensor],
    place: str = "the adapter",
) -> LoraAdapter:
    """Return an adapter from its config, and its tensors by the names that PEFT saves them by; ``place`` for errors."""
    updates, embeddings, others = split_updates(tensors, config, place)
    return LoraAdapter(updates, dict(config), embeddings, others, dict(fingerprints))


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

    @property
    def lora(self) -> LoraAdapter:
        """The new adapter."""
        return adapter_of(self.config, self.adapter, self.fingerprints)

    def save_adapter(self, folder: str | os.PathLike[str]) -> Path:
        """Write the new adapter and return its folder, as `LoraAdapter.save`; only adapters of its own are replaced."""
        return self.lora.save(folder, self._writer)


def input_moments(calibration: Calibration, adapters: Iterable[LoraAdapter], what: str) -> Callable[[str], Moment]:
    """Return a function from a module to the second moment of its inputs, which keeps the last two: neighbors share it.

    Those of experts are of the rows that are routed to each, all divided by the same number of tokens.

    Refuse a calibration of another model than the base of the adapters, as far as shapes and fingerprints tell.
    """
    for adapter in adapters:
        check_calibration(calibration, adapter.shapes, adapter.fingerprints, what)
    second_moment = lru_cache(maxsize=2)(lambda name: calibration.covariance[name].second_moment())
    joined = join_experts(calibration.targets.values())

    def moment(name: str) -> Moment:
        if name in calibration.targets:
            return second_moment(calibration.shared[name])
        return ExpertMoments(
            [calibration.covariance[e].second_moment() for e in expert_names(name, joined[name].experts)]
        )

    return moment


def check_calibration(
    calibration: Calibration, shapes: Mapping[str, tuple[int, int]], fingerprints: Mapping[str, Tensor], what: str
) -> None:
    """Refuse a calibration that lacks a module, or is of another model, as far as shapes and fingerprints tell."""
    joined = join_experts(calibration.targets.values())
    for name, here in shapes.items():
        if name not in joined:
            raise ValueError(
                f"{what} has no {name}, which the adapter changes: calibrate its base with target_modules=[...] that "
                "include it"
            )
        target = joined[name]
        if here != (there := (target.experts * target.d_out, target.experts * target.d_in)):
            raise ValueError(f"{what} is of another model: {name} is {there} there, in the adapter it is {here}")
        if name in fingerprints:
            first = name if name in calibration.targets else expert_names(name, 1)[0]
            similarity = fingerprint_similarity(fingerprints[name], calibration.fingerprints[first])
            if not similarity > SIMILARITY_THRESHOLD:
                raise ValueError(
                    f"{what} is of another model than the adapter's base: {name} has another weight there (similarity "
                    f"{similarity:.2f} of 1); calibrate the base that it was trained on"
                )


def difference_of_bases(first: LoraAdapter, second: LoraAdapter) -> str:
    """Say in a clause why two adapters are not of one base; empty if they do not differ.

    Weights are compared by their fingerprints, if both adapters recorded them, and otherwise names.
    """
    shared = {name: (shape, second.shapes[name]) for name, shape in first.shapes.items() if name in second.shapes}
    for name, (here, there) in shared.items():
        if here != there:
            return f"{name} is {here} in the one and {there} in the other"
    known = [name for name in shared if name in first.fingerprints and name in second.fingerprints]
    for name in known:
        if not fingerprint_similarity(first.fingerprints[name], second.fingerprints[name]) > SIMILARITY_THRESHOLD:
            return f"{name} had another weight when the other was trained"
    if not known and len({first.base, second.base, UNNAMED}) == 3:
        return f"the one names {first.base}, the other {second.base}"
    return ""
