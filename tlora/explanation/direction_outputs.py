"""Project the outputs of directions onto the vocabulary, and measure how far the model agrees."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from tlora.calibration.batches import prepare_batch
from tlora.explanation.token_texts import token_texts
from tlora.models.forward import evaluation_mode, input_device
from tlora.models.module_result import PLACE_COLUMNS, ModuleResult, module_frame
from tlora.models.targets import Target, output_embeddings, shape
from tlora.models.weights import model_name, weight
from tlora.results import Meta
from tlora.subspaces.subspaces import Subspaces, check_subspaces, subspaces_by_label
from tlora.utils.validation import require_positive_int


@dataclass(frozen=True, repr=False, eq=False)
class DirectionOutputs(ModuleResult):
    """Outputs of directions to the residual stream: ``W a``, through the final norm and the unembedding (a lens).

    A lens skips all layers between the module and the end, so it is weak in early ones. ``correlation`` says how weak:
    the rank correlation, over the vocabulary, of its logits with the change of the model's own when the vector is added
    to the stream.

    Attributes
    ----------
    targets : dict of Target
        The modules that write to the stream (``o_proj``, ``down_proj`` and the like), by full name in model order.
    kinds : list of str
        Labels of the subspaces.
    promoted : dict of (K, R, k) int64 tensor
        By module, kind and direction: the tokens of the highest logits, highest first.
    suppressed : dict of (K, R, k) int64 tensor
        Those of the lowest, lowest first. The sign of a direction is arbitrary: the two may be exchanged.
    texts : dict of str
        Texts of these tokens by their ids, written as text.
    correlation : dict of (K,) float64 tensor
        Of the first direction of each kind, by module; empty if it was not measured.
    meta : Meta
        Model.

    References
    ----------
    The logit lens: nostalgebraist, "interpreting GPT: the logit lens", 2020. On its weakness in early layers: Belrose
    et al., arXiv 2303.08112.

    Examples
    --------
    >>> outputs = tlora.direction_outputs(model, subspaces, tokenizer=tokenizer, batch=task.calibration(4)[0])
    >>> outputs
    DirectionOutputs(4 modules; rank correlation with the model: layer 0 ..., layer 1 ...)
    >>> outputs.to_frame()["promoted"][0]
    ' w... w...'
    """

    kinds: list[str]
    promoted: dict[str, Int[Tensor, "kinds directions k"]]
    suppressed: dict[str, Int[Tensor, "kinds directions k"]]
    texts: dict[str, str]
    correlation: dict[str, Float[Tensor, " kinds"]]
    meta: Meta

    columns: ClassVar[dict[str, str]] = PLACE_COLUMNS | {
        "kind": "label of the subspace",
        "direction": "number of the direction, from 1 on",
        "promoted": "texts of the tokens of the highest logits, one after the other",
        "suppressed": "texts of the tokens of the lowest logits",
        "correlation": "rank correlation of the lens with the model, of the kind's first direction; NaN if unknown",
    }

    def to_frame(self) -> pd.DataFrame:
        """One row for each module, kind and direction; see ``columns``."""
        rows = [
            (
                name,
                kind,
                direction + 1,
                self._text(self.promoted[name][k, direction]),
                self._text(self.suppressed[name][k, direction]),
                float(self.correlation[name][k]) if self.correlation else np.nan,
            )
            for name in self.names
            for k, kind in enumerate(self.kinds)
            for direction in range(self.promoted[name].shape[1])
        ]
        columns = ["module", "kind", "direction", "promoted", "suppressed", "correlation"]
        return module_frame(self.targets.values()).merge(pd.DataFrame(rows, columns=columns), on="module")

    def by_layer(self) -> pd.DataFrame:
        """Mean ``correlation`` of each ``layer`` and ``kind`` over its modules."""
        frame = self.to_frame().query("direction == 1")
        return frame.groupby(["layer", "kind"], sort=False)["correlation"].mean().reset_index()

    def _text(self, tokens: Tensor) -> str:
        return "".join(self.texts[str(int(token))] for token in tokens)

    def _summary(self) -> str:
        count = f"{len(self.targets)} modules"
        if not self.correlation:
            return f"{count}; weak in early layers, pass batch= to measure how much"
        layers = self.by_layer().groupby("layer")["correlation"].mean()
        ends = " ".join(f"layer {layer} {layers[layer]:.2f}," for layer in (layers.index[0], layers.index[-1]))
        return f"{count}; rank correlation with the model: {ends[:-1]}"


WRITERS = re.compile(r"(^|\.)((o|out|c|down)_proj|o|wo|w2|fc2|fc_out|dense|dense_4h_to_h)$")
"""Projections that write to the residual stream, if they are as wide as it."""
STEP = 0.1
"""Length of a vector that is added to the stream, in mean lengths of the module's own output."""


def direction_outputs(
    model: Any,
    subspaces: Subspaces | Mapping[str, Subspaces],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    ranks: int = 8,
    k: int = 5,
    batch: Mapping[str, Any] | None = None,
) -> DirectionOutputs:
    """Find the tokens that the outputs of directions promote and suppress.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The base model, which writes text with a decoder alone. It is observed, not changed.
    subspaces : Subspaces or mapping of str to Subspaces
        One kind, or several by label; all of the same modules of this model.
    tokenizer : transformers.PreTrainedTokenizerBase, optional
        For the texts of the tokens; without it they are token ids.
    ranks : int
        Directions of each module, at most as many as its subspace has.
    k : int
        Tokens at each end.
    batch : dict, optional
        As for `calibrate`. With it the lens is compared with the model: one pass for each module and kind.

    Returns
    -------
    DirectionOutputs

    Raises
    ------
    ValueError
        If the subspaces are of other modules or of another model, or have no module that writes to the stream of a
        decoder.

    Examples
    --------
    >>> outputs = tlora.direction_outputs(model, subspaces, tokenizer=tokenizer, ranks=2, k=3)
    >>> outputs.to_frame()[["projection", "direction"]].head(2).to_numpy().tolist()
    [['o_proj', 1], ['o_proj', 2]]
    """
    kinds = subspaces_by_label(subspaces)
    modules = check_subspaces(model, kinds)
    rank, count = require_positive_int(ranks, "ranks"), require_positive_int(k, "k")
    targets = _writers(model, modules)
    vectors = {name: _outputs(model, name, kinds, rank) for name in targets}
    with evaluation_mode(model):
        logits = {name: _unembed(model, each) for name, each in vectors.items()}
        measured = {} if batch is None else _correlations(model, batch, vectors, logits)
    promoted = {name: each.topk(count).indices.cpu() for name, each in logits.items()}
    suppressed = {name: (-each).topk(count).indices.cpu() for name, each in logits.items()}
    found = sorted({int(i) for part in (promoted, suppressed) for each in part.values() for i in each.flatten()})
    return DirectionOutputs(
        targets=targets,
        kinds=list(kinds),
        promoted=promoted,
        suppressed=suppressed,
        texts={str(token): text for token, text in zip(found, token_texts(tokenizer, found), strict=True)},
        correlation=measured,
        meta=Meta(model=model_name(model), recipe={"ranks": rank, "k": count}),
    )


def _writers(model: Any, modules: Mapping[str, Target]) -> dict[str, Target]:
    """The modules that write to the residual stream of a decoder."""
    head = None if model.config.is_encoder_decoder else output_embeddings(model)
    width = None if head is None else shape(head)[1]
    targets = {
        name: target for name, target in modules.items() if target.d_out == width and WRITERS.search(target.projection)
    }
    if not targets:
        raise ValueError(
            f"the subspaces of this {type(model).__name__} have no module that writes to the residual stream of a "
            "decoder (o_proj, down_proj): pass those of a causal language model"
        )
    return targets


def _outputs(
    model: Any, name: str, kinds: Mapping[str, Subspaces], rank: int
) -> Float[Tensor, "kinds directions d_out"]:
    """``W a`` of the first rows of each kind."""
    rank = min(rank, *(len(each.bases[name]) for each in kinds.values()))
    w = weight(model.get_submodule(name), name).float()
    rows = torch.stack([each.basis(name, rank) for each in kinds.values()])
    return rows.to(w.device) @ w.T


def _unembed(model: Any, vectors: Float[Tensor, "kinds directions d"]) -> Float[Tensor, "kinds directions vocabulary"]:
    """Logits of vectors in the residual stream, through the final norm, without those of its bias."""
    norm, head = _final_norm(model), output_embeddings(model)
    assert head is not None
    stacked = torch.cat([vectors.flatten(0, 1), torch.zeros_like(vectors[0, :1])]).to(model.dtype)
    logits = head(norm(stacked)).float()
    return (logits[:-1] - logits[-1]).unflatten(0, vectors.shape[:2])


def _final_norm(model: Any) -> nn.Module:
    norms = [each for each in model.get_decoder().children() if "norm" in type(each).__name__.lower()]
    return norms[-1] if norms else nn.Identity()


def _correlations(
    model: Any, raw: Mapping[str, Any], vectors: Mapping[str, Tensor], logits: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Rank correlation of the logits of first directions with the change of the model's when they are added."""
    batch = prepare_batch(raw, model, "the batch")
    device = input_device(model.get_input_embeddings())
    inputs = {key: value.to(device) for key, value in batch.inputs.items() if key != "labels"}

    def run() -> Tensor:
        mean: Tensor = model(**inputs).logits[batch.real.to(device)].float().mean(0)
        return mean

    lengths: dict[str, Tensor] = {}

    def measure(name: str, output: Tensor) -> None:
        lengths[name] = torch.cat(batch.counted_rows([output], "all")).norm(dim=1).mean()

    with _changed_outputs(model, {name: partial(measure, name) for name in vectors}):
        before = run()
    found = {}
    for name, each in vectors.items():
        values = []
        for k in range(len(each)):
            added = (STEP * lengths[name] / each[k, 0].norm() * each[k, 0]).to(model.dtype)
            with _changed_outputs(model, {name: lambda x, v=added: x + v}):
                values.append(_rank_correlation(run() - before, logits[name][k, 0]))
        found[name] = torch.tensor(values, dtype=torch.float64)
    return found


@contextmanager
def _changed_outputs(model: Any, changes: Mapping[str, Any]) -> Iterator[None]:
    """Inside, the output of each module is what its function makes of it, or the same if that is None."""
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda module, args, output, change=change: change(output))
        for name, change in changes.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    ranks = torch.stack([each.cpu().argsort().argsort().double() for each in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])
