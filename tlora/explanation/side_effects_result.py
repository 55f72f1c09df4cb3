"""What an adapter changed on text that it was not meant for: each token's log-probability before and after."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from tlora.explanation.attribution import CONFIDENCE, Attribution
from tlora.numerics.statistics import ratio_interval
from tlora.results import Meta, Result

BEFORE = 40
"""Characters of the text before a token."""


@dataclass(frozen=True, repr=False, eq=False)
class MeasuredText:
    """One text of `SideEffects`.

    Attributes
    ----------
    set : str
        Name of its set.
    number : int
        Its place in the set, from 0.
    tokens : list of str
        The text of each token.
    positions : list of int
        Places of the K measured tokens among ``tokens``.
    base, adapter : (K,) float64 tensor
        Their log-probabilities in the base and in the adapted model, nats.
    """

    set: str
    number: int
    tokens: list[str]
    positions: list[int]
    base: Float[Tensor, " tokens"]
    adapter: Float[Tensor, " tokens"]

    @property
    def rise(self) -> Float[Tensor, " tokens"]:
        """What the adapter added to each token's log-probability, nats."""
        return self.adapter - self.base

    def before(self, position: int) -> str:
        """The end of the text before a token."""
        return "".join(self.tokens[max(0, position - BEFORE) : position])[-BEFORE:]


@dataclass(frozen=True, repr=False, eq=False)
class SideEffects(Result):
    """What an adapter changed on other text, token by token; from `tlora.side_effects`.

    Attributes
    ----------
    samples : list of MeasuredText
        All texts, the one whose tokens lost most on average first.
    attribution : Attribution or None
        The tokens that lost most, taken apart by module; None if this was not asked for or no token lost.
    meta : Meta
        The base model and the number of texts.

    Examples
    --------
    >>> texts = tlora.load_texts(tokenizer, mine=["w4 w5 w6 w7", "w8 w9"])
    >>> effects = tlora.side_effects(adapted, texts, explain=2, progress=False)
    >>> effects.to_frame()[["set", "sample", "tokens", "loss_change"]].shape
    (2, 4)
    >>> effects.sets()[["set", "samples", "tokens"]].to_numpy().tolist()
    [['mine', 2, 4]]
    >>> effects.lost(3).columns.tolist()
    ['set', 'sample', 'position', 'before', 'token', 'base', 'adapter', 'rise']
    """

    samples: list[MeasuredText]
    attribution: Attribution | None
    meta: Meta

    columns: ClassVar[dict[str, str]] = {
        "set": "name of the set",
        "sample": "number of the text in its set, from 0",
        "tokens": "number of measured tokens",
        "base_loss": "mean loss of the base model, nats per token",
        "adapter_loss": "mean loss of the adapted model",
        "loss_change": "their difference, above 0 if the adapter made the text less likely",
        "lost_most": "the token that lost most",
        "text": "beginning of the text",
    }
    set_columns: ClassVar[dict[str, str]] = {
        "set": "name of the set",
        "samples": "number of texts",
        "tokens": "number of measured tokens",
        "base_loss": "loss of the base model, mean over all tokens, nats",
        "adapter_loss": "loss of the adapted model",
        "loss_change": "their difference, above 0 if the adapter made the texts less likely",
        "low": "lower end of its 95 % interval over texts, NaN for one text",
        "high": "upper end",
    }
    token_columns: ClassVar[dict[str, str]] = {
        "set": "name of the set",
        "sample": "number of the text in its set, from 0",
        "position": "place among the text's tokens",
        "before": "end of the text before the token",
        "token": "text of the token",
        "base": "log-probability in the base model, nats",
        "adapter": "log-probability in the adapted model",
        "rise": "their difference, below 0 for a token that lost",
    }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per text, the worst first; see ``columns``."""
        rows = []
        for one in self.samples:
            worst = one.positions[int(one.rise.argmin())]
            losses = _losses([one])
            about = {"lost_most": one.tokens[worst], "text": "".join(one.tokens)[:60]}
            rows.append({"set": one.set, "sample": one.number} | losses | about)
        return pd.DataFrame(rows)[list(self.columns)]

    def sets(self) -> pd.DataFrame:
        """Return one row per set, in the order in which they were given; see ``set_columns``."""
        rows = []
        for name in self.meta.recipe["sets"]:
            samples = [one for one in self.samples if one.set == name]
            lost = np.array([-float(one.rise.sum()) for one in samples])
            low, high = ratio_interval(lost, np.array([len(one.positions) for one in samples]), CONFIDENCE)
            rows.append({"set": name, "samples": len(samples)} | _losses(samples) | {"low": low, "high": high})
        return pd.DataFrame(rows)[list(self.set_columns)]

    def tokens(self) -> pd.DataFrame:
        """Return one row per measured token, text by text; see ``token_columns``."""
        frames = []
        for one in self.samples:
            columns = {
                "set": one.set,
                "sample": one.number,
                "position": one.positions,
                "before": [one.before(place) for place in one.positions],
                "token": [one.tokens[place] for place in one.positions],
                "base": one.base.numpy(),
                "adapter": one.adapter.numpy(),
                "rise": one.rise.numpy(),
            }
            frames.append(pd.DataFrame(columns))
        return pd.concat(frames, ignore_index=True)

    def lost(self, count: int = 10) -> pd.DataFrame:
        """Return the ``count`` tokens that lost most, the first one most; see ``token_columns``."""
        tokens = self.tokens()
        return tokens[tokens["rise"] < 0].nsmallest(count, "rise").reset_index(drop=True)

    def rose(self, count: int = 10) -> pd.DataFrame:
        """Return the ``count`` tokens that rose most, the first one most; see ``token_columns``."""
        tokens = self.tokens()
        return tokens[tokens["rise"] > 0].nlargest(count, "rise").reset_index(drop=True)

    @property
    def headline(self) -> str:
        """The finding: the set whose loss rose most, with its interval."""
        worst = self.sets().nlargest(1, "loss_change").iloc[0]
        ends = "" if math.isnan(worst["low"]) else f" ({worst['low']:+.3f} to {worst['high']:+.3f})"
        return f"The loss of {worst['set']} changed by {worst['loss_change']:+.3f} nats per token{ends}"

    def _summary(self) -> str:
        changes = ", ".join(f"{row.set} {row.loss_change:+.3f}" for row in self.sets().itertuples())
        return f"{len(self.samples)} texts, change of the loss in nats per token: {changes}"


def _losses(samples: list[MeasuredText]) -> dict[str, float]:
    """Losses of all tokens of some texts."""
    tokens = sum(len(one.positions) for one in samples)
    base, adapter = (-sum(float(getattr(one, part).sum()) for one in samples) / tokens for part in ("base", "adapter"))
    change = -sum(float(one.rise.sum()) for one in samples) / tokens
    return {"tokens": tokens, "base_loss": base, "adapter_loss": adapter, "loss_change": change}
