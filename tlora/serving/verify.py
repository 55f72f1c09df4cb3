"""Verify an export: read its files again, and compare its logits with those of the trained adapter."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from tlora.adapters.lora_layers import lora_updates, removal, require_one_lora
from tlora.adapters.update import LoraUpdate
from tlora.models.forward import evaluation_mode
from tlora.models.loading import load_model
from tlora.serving.export import gguf_file
from tlora.serving.llama_cpp import read_gguf
from tlora.utils.file_names import ADAPTER_CONFIG, MODEL_CONFIG
from tlora.utils.logs import without_noise
from tlora.utils.reproducibility import temporary_seed

_EXPORTED = "exported"
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "A train leaves at 9:40 and arrives at 11:05. How many minutes does the journey take?",
    "Dear Sir or Madam,\n\nI am writing to",
)


def export_difference(
    model: PeftModel, path: str | os.PathLike[str], batches: Iterable[Mapping[str, Tensor]]
) -> tuple[float, float]:
    """Return the largest difference between the logits of a trained adapter and those of an export of it.

    The second number is the largest change of a logit that the adapter makes to the base, for comparison; changes of
    the base itself (PiSSA, trained biases) are not included. Both are absolute, at real tokens. The model is left as
    it was.

    PEFT's format is read by PEFT, and merged weights by transformers. A GGUF adapter is put back into the order of
    transformers, which tests what was written and how it was rounded, not what llama.cpp computes.
    """
    batches = [{key: value.to(model.device) for key, value in batch.items()} for batch in batches]
    require_one_lora(model, "export")
    trained = [_logits(model, batch) for batch in batches]
    remove = removal(model, _EXPORTED)
    try:
        with model.disable_adapter():  # which makes A and B trainable
            base = [_logits(model, batch) for batch in batches]
        with _load_export(model, Path(path)) as exported:
            written = [_logits(exported, batch) for batch in batches]
    finally:
        remove()
    return _largest_difference(written, trained), _largest_difference(base, trained)


def _largest_difference(these: list[Tensor], those: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(these, those, strict=True))


def _logits(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return logits at real tokens, (tokens, vocabulary), or (samples, classes) of a classifier; float32 on the CPU."""
    inputs = dict(batch)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = batch["input_ids"]
    with evaluation_mode(model):
        logits = model(**inputs).logits
    real = batch["attention_mask"].bool() if logits.ndim == 3 else slice(None)
    return logits[real].float().cpu()


@contextlib.contextmanager
def _load_export(model: PeftModel, path: Path) -> Iterator[Any]:
    """Yield a model that computes what the export holds."""
    if (path / ADAPTER_CONFIG).is_file():
        with _second_adapter(model, path):
            yield model
    elif (path / MODEL_CONFIG).is_file():
        whole, _ = load_model(path, device=model.device, dtype=model.dtype)
        yield whole
    elif gguf_file(path).is_file():
        with _other_updates(model, read_gguf(gguf_file(path), lora_updates(model), model.get_base_model().config)):
            yield model
    else:
        raise FileNotFoundError(f"{path} holds no export: neither {ADAPTER_CONFIG}, {MODEL_CONFIG} nor a GGUF file")


@contextlib.contextmanager
def _second_adapter(model: PeftModel, folder: Path) -> Iterator[None]:
    """Add the exported adapter as a second, active one; restore the modes of modules afterwards."""
    with evaluation_mode(model):
        with temporary_seed(), without_noise():
            model.load_adapter(str(folder), _EXPORTED)
        model.set_adapter(_EXPORTED)
        yield


@contextlib.contextmanager
def _other_updates(model: PeftModel, updates: Mapping[str, LoraUpdate]) -> Iterator[None]:
    """Put other A and B into the layers of the adapter, which keep their scaling."""
    layers = lora_updates(model)
    data = {name: (layer.a.data, layer.b.data) for name, layer in layers.items()}
    try:
        for name, update in updates.items():
            layer = layers[name]
            layer.a.data, layer.b.data = update.a.to(layer.a), (update.fold().b / layer.scaling).to(layer.b)
        yield
    finally:
        for name, layer in layers.items():
            layer.a.data, layer.b.data = data[name]
