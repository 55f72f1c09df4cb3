"""Direction activations: the tokens of the samples at which the directions of each module are high and low."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tlora.models.module_result import PLACE_COLUMNS, ModuleResult, module_frame
from tlora.numerics.statistics import bootstrap_means, interval
from tlora.results import Meta

PARTS = ("constant", "prompt", "labels")
"""Parts of a sample: what is the same in all samples, the rest of what has no label, and the rest of what has one."""
CONTROL = "random"
"""Label of the random directions that are computed along with the others."""
LISTED = 5
"""Distinct tokens at each end by which two halves of the samples are compared."""
CONTEXT = 6
"""Tokens of context on either side."""
RESAMPLES, CONFIDENCE = 500, 0.95
"""Of the bootstrap intervals over samples."""

End = Literal["+", "-", "both"]


@dataclass(frozen=True, eq=False)
class ReadTokens:
    """The tokens that modules read: of all samples, one after the other.

    Attributes
    ----------
    ids : (T,) int64 tensor
        Token ids.
    texts : list of str
        Their texts, with the spaces before words.
    parts : (T,) int64 tensor
        The part of each, an index into ``PARTS``.
    samples : (T,) int64 tensor
        The sample of each, from 0 on.
    """

    ids: Int[Tensor, " tokens"]
    texts: list[str]
    parts: Int[Tensor, " tokens"]
    samples: Int[Tensor, " tokens"]

    def at(self, places: Int[Tensor, " n"]) -> ReadTokens:
        """The tokens at these places, each of which is still the first of its sample, or the same token, as here."""
        index = places.numpy()
        chosen = ReadTokens(self.ids[places], [self.texts[n] for n in index], self.parts[places], self.samples[places])
        facts = {"is_first": self.is_first[index], "groups": np.unique(self.groups[index], return_inverse=True)[1]}
        vars(chosen).update(facts)
        return chosen

    def of_sample(self, sample: int) -> slice:
        """The tokens of a sample."""
        start, end = np.searchsorted(self.samples.numpy(), [sample, sample + 1]).tolist()
        return slice(start, end)

    @cached_property
    def is_first(self) -> np.ndarray:
        """Whether each token is the first of its sample, (T,) bool."""
        return np.diff(self.samples.numpy(), prepend=-1) > 0

    @cached_property
    def groups(self) -> np.ndarray:
        """Number of the distinct token that each is, (T,) int64.

        Tokens are distinct by id and part, those of the constant part also by the token before them.
        """
        ids, parts = self.ids.numpy(), self.parts.numpy()
        before = np.where(self.is_first | (parts != PARTS.index("constant")), -1, np.roll(ids, 1))
        return np.unique(np.stack([parts, ids, before]), axis=1, return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True, repr=False, eq=False)
class DirectionActivations(ModuleResult):
    """Activations of the directions of each module: ``z = (a x - mean) / sd`` of every token's input ``x``.

    Mean and standard deviation are those of all tokens looked at, so 1 is a usual deviation from the mean. The sign of
    a direction is arbitrary: both ends describe it. Random directions have ends too; compare with kind ``"random"``
    before you read a meaning into a list of tokens. A saved result holds the text of its samples.

    Attributes
    ----------
    targets : dict of Target
        What each module is, by full module name in model order.
    kinds : list of str
        Labels of the subspaces; the last one, ``"random"``, is the control.
    z : dict of (K, R, T) float16 tensor
        By module: kind, direction, token that it reads.
    deviations : dict of (K, R) float32 tensor
        By module: the standard deviation of ``a x`` over the tokens, by kind and direction.
    tokens : dict of ReadTokens
        The tokens of ``"input_ids"``, and of the ``"decoder"`` of an encoder-decoder model.
    sides : dict of str
        Which of them each module reads.
    need : dict of (T,) float16 tensor
        By module: norm of the loss's gradient at the module's output at each token, over its mean; empty if it was not
        measured.
    has_first : bool
        Whether the first token of each sample was looked at.
    meta : Meta
        Model, task and number of samples; seed of the random directions and of the resampling.
    routed : dict of (T,) int64 tensor
        By expert: the tokens of its side that were routed to it, which alone it reads. Other modules read all.

    Notes
    -----
    A module that runs several times in a pass, as in ALBERT, reads a token several times: the value of largest
    magnitude is kept.

    References
    ----------
    On what random directions show: Heap et al., arXiv 2501.17727.

    Examples
    --------
    >>> activations = tlora.direction_activations(model, subspaces, task.calibration(8), tokenizer=tokenizer,
    ...                                           progress=False)
    >>> activations
    DirectionActivations(14 modules, up to 8 directions, 8 samples; constant tokens, ... %, hold wc ... %, random ... %)
    >>> activations.top("model.layers.0.mlp.down_proj", 1, k=2)["token"].tolist()
    [' w...', ' w...', ...]
    """

    kinds: list[str]
    z: dict[str, Float[Tensor, "kinds directions _tokens"]]
    deviations: dict[str, Float[Tensor, "kinds directions"]]
    tokens: dict[str, ReadTokens]
    sides: dict[str, str]
    need: dict[str, Float[Tensor, " _tokens"]]
    has_first: bool
    meta: Meta
    routed: dict[str, Int[Tensor, " _tokens"]] = field(default_factory=dict)

    columns: ClassVar[dict[str, str]] = PLACE_COLUMNS | {
        "kind": "label of the subspace",
        "direction": "number of the direction, from 1 on",
        "deviation": "standard deviation of the inputs along the direction",
        "constant": "share of the z^2 of all tokens on those that are the same in all samples",
        "prompt": "share on the other tokens without a label",
        "labels": "share on the other tokens with a label",
        "first": "share on the first token of each sample",
        "agreement": "share of the top tokens that two halves of the samples have in common; mean of both ends",
    }

    @cached_property
    def _frame(self) -> pd.DataFrame:
        energies = self._energies[False]
        with np.errstate(invalid="ignore"):
            shares = energies.sum(0) / energies.sum((0, 2))[:, None]
        return self._rows.assign(
            deviation=np.concatenate([each.flatten().numpy() for each in self.deviations.values()]),
            **dict(zip(PARTS, shares.T, strict=True)),
            first=np.concatenate([_share_at(self._tokens(n).is_first, z) for n, z in self.z.items()]),
            agreement=np.concatenate([_agreement(self._tokens(n), z) for n, z in self.z.items()]),
        )

    @cached_property
    def _rows(self) -> pd.DataFrame:
        """The first columns of a table with one row for each module, kind and direction."""
        numbers = [
            (name, kind, direction + 1)
            for name, z in self.z.items()
            for kind in self.kinds
            for direction in range(z.shape[1])
        ]
        keys = pd.DataFrame(numbers, columns=["module", "kind", "direction"])
        return module_frame(self.targets.values()).merge(keys, on="module")

    def to_frame(self) -> pd.DataFrame:
        """One row for each module, kind and direction; see ``columns``."""
        return self._frame.copy()

    def top(
        self, module: str, direction: int, k: int = LISTED, sign: End = "both", *, kind: str | None = None,
        need: bool = False,
    ) -> pd.DataFrame:  # fmt: skip
        """The tokens at which a direction is highest and lowest, each distinct token once.

        Parameters
        ----------
        module : str
            Full module name.
        direction : int
            Its number, from 1 on.
        k : int
            Most distinct tokens at each end. Tokens of the constant part are distinct by the token before them, too.
        sign : {"both", "+", "-"}
            Which end.
        kind : str, optional
            Label of the subspace; by default the first.
        need : bool
            Weigh by the norm of the gradient at the module's output: what is read and needed.

        Returns
        -------
        pandas.DataFrame
            One row for each distinct token beyond half of the end's peak and a fifth of the other one's, the furthest
            first: ``end``; ``token``; ``value`` of its furthest occurrence; ``count`` of its occurrences that far, of
            ``occurrences`` in all; ``part``; the text ``before`` and ``after``; ``sample`` and ``position``.
        """
        tokens, whole = self._tokens(module), self.tokens[self.sides[module]]
        values, places = self._values(module, direction, kind, need), self._places(module)
        ends = [end for end in ("+", "-") if sign in (end, "both")]
        rows = [row for end in ends for row in _end(tokens, values, end, k, whole, places)]
        columns = ["end", "token", "value", "count", "occurrences", "part", "before", "after", "sample", "position"]
        return pd.DataFrame(rows, columns=columns)

    def strip(self, sample: int, module: str, direction: int, *, kind: str | None = None) -> pd.DataFrame:
        """The values of a direction along a sample, for `viz.plot_tokens`.

        Parameters
        ----------
        sample : int
            Its number, from 0 on.
        module : str
            Full module name.
        direction : int
            Its number, from 1 on.
        kind : str, optional
            Label of the subspace; by default the first.

        Returns
        -------
        pandas.DataFrame
            One row for each token: ``token``, ``z``, ``part``, and ``need`` if it was measured; NaN for tokens that
            were not routed to an expert.
        """
        self._tokens(module)
        tokens = self.tokens[self.sides[module]]
        if not 0 <= sample < (count := int(tokens.samples[-1]) + 1):
            raise ValueError(f"there is no sample {sample}: choose 0 to {count - 1}")
        here = tokens.of_sample(sample)
        values = {"z": self._spread(module, self._values(module, direction, kind, need=False))[here]}
        if self.need:
            values["need"] = self._spread(module, self.need[module].float().numpy())[here]
        parts = [PARTS[part] for part in tokens.parts[here]]
        return pd.DataFrame({"token": tokens.texts[here], "z": values.pop("z"), "part": parts, **values})

    def constant_share(
        self, by: Literal["module", "layer", "projection"] | None = None, *, need: bool = False
    ) -> pd.DataFrame:
        """How much of ``z^2`` is on the tokens that are the same in all samples: template and system prompt.

        Parameters
        ----------
        by : {"module", "layer", "projection"}, optional
            Group the modules; all are one group by default.
        need : bool
            Weigh ``z`` by the norm of the gradient at the module's output. Kinds then differ less: the weight decides.

        Returns
        -------
        pandas.DataFrame
            One row for each group and kind: means over modules and directions of the shares ``constant`` (with the 95 %
            bootstrap interval over samples, ``low`` and ``high``), ``prompt`` and ``labels``; ``tokens``, the share of
            the tokens that are constant; and in how many of the ``modules`` the share is ``above_random``, that of the
            control.
        """
        self._check_need(need)
        energies = self._energies[need]
        group = ["kind"] if by is None else [by, "kind"]
        with np.errstate(invalid="ignore"):
            shares = energies.sum(0) / energies.sum((0, 2))[:, None]
        rows = self._rows.assign(**dict(zip(PARTS, shares.T, strict=True)))
        rows["tokens"] = rows["module"].map({name: float(self._is_constant(name).mean()) for name in self.names})
        means = rows.groupby(group, sort=False)[[*PARTS, "tokens"]].mean()
        means["low"], means["high"] = self._interval(energies, rows.groupby(group, sort=False).ngroup().to_numpy())
        modules = rows.groupby([*dict.fromkeys([*group, "module"])], sort=False)["constant"].mean().reset_index()
        control = modules[modules["kind"] == CONTROL].set_index("module")["constant"]
        modules["above_random"] = (modules["constant"] > modules["module"].map(control)).astype(int)
        modules["modules"] = 1
        counts = modules.groupby(group, sort=False)[["above_random", "modules"]].sum()
        order = [*group, "constant", "low", "high", "prompt", "labels", "tokens", "above_random", "modules"]
        return means.join(counts).reset_index()[order]

    def sinks(self) -> list[str]:
        """The modules in which first tokens hold over half of the ``z^2`` of random directions: attention sinks.

        ``direction_activations(..., first_token=False)`` leaves the first tokens out.
        """
        first = self._frame[self._frame["kind"] == CONTROL].groupby("module", sort=False)["first"].mean()
        return list(first.index[first > 0.5]) if self.has_first else []

    @property
    def headline(self) -> str:
        """The finding: how much each kind reads of what is the same in all samples."""
        table = self.constant_share()
        shares = ", ".join(f"{row.kind} {row.constant:.0%}" for row in table.itertuples())
        return f"constant tokens, {table['tokens'].iloc[0]:.0%}, hold {shares}".replace("%", " %")

    def _summary(self) -> str:
        rank = max(z.shape[1] for z in self.z.values())
        sinks = self.sinks()
        said = f"; first tokens dominate {len(sinks)} modules" if sinks else ""
        return (
            f"{len(self.targets)} modules, up to {rank} directions, {self.meta.samples} samples; {self.headline}{said}"
        )

    def _tokens(self, module: str) -> ReadTokens:
        if module not in self.sides:
            raise KeyError(f"no module {module!r}: there are {len(self.names)}, e.g. {self.names[0]!r}")
        return self._read[module]

    @cached_property
    def _read(self) -> dict[str, ReadTokens]:
        """The tokens that each module reads."""
        sides = {name: self.tokens[side] for name, side in self.sides.items()}
        return {name: side.at(self.routed[name]) if name in self.routed else side for name, side in sides.items()}

    def _places(self, module: str) -> np.ndarray:
        """The places of the tokens that a module reads among those of its side."""
        if module in self.routed:
            return self.routed[module].numpy()
        return np.arange(len(self.tokens[self.sides[module]].ids))

    def _spread(self, module: str, values: np.ndarray) -> np.ndarray:
        """Values of the tokens that a module reads as values of all tokens of its side, (..., T); NaN for others."""
        all_values = np.full((*values.shape[:-1], len(self.tokens[self.sides[module]].ids)), np.nan, values.dtype)
        all_values[..., self._places(module)] = values
        return all_values

    def _is_constant(self, module: str) -> np.ndarray:
        return self._tokens(module).parts.numpy() == PARTS.index("constant")

    def _values(self, module: str, direction: int, kind: str | None, need: bool) -> np.ndarray:
        """Values of one direction, (T,) float32."""
        kind = self.kinds[0] if kind is None else kind
        if kind not in self.kinds:
            raise ValueError(f"there is no kind {kind!r}: choose from {', '.join(self.kinds)}")
        z = self.z[module]
        if not 1 <= direction <= z.shape[1]:
            raise ValueError(f"{module} has no direction {direction}: choose 1 to {z.shape[1]}")
        return self._weighted(module, need)[self.kinds.index(kind), direction - 1].numpy()

    def _weighted(self, module: str, need: bool) -> Tensor:
        """``z`` of a module, times its need if asked for."""
        self._check_need(need)
        z = self.z[module].float()
        return z * self.need[module].float() if need else z

    def _check_need(self, need: bool) -> None:
        if need and not self.need:
            raise ValueError("the need of each token was not measured: pass need=True to direction_activations")

    @cached_property
    def _energies(self) -> dict[bool, Float[np.ndarray, "samples rows parts"]]:
        """Sum of squares of each sample by part, for each row of the table, without and with need."""
        return {
            need: np.concatenate([self._energies_of(n, need) for n in self.names], 1)
            for need in (False, True)
            if self.need or not need
        }

    def _energies_of(self, module: str, need: bool) -> Float[np.ndarray, "samples rows parts"]:
        samples = max(int(tokens.samples[-1]) + 1 for tokens in self.tokens.values())
        return _energies(self._tokens(module), self._weighted(module, need), samples)

    def _interval(self, energies: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ends of the interval of each group's mean share on the constant part; rows without energy do not count."""
        known = energies.sum((0, 2)) > 0
        seed = self.meta.seed or 0
        # one seed for both, so that a resample draws a sample's part and its whole together
        part, whole = (bootstrap_means(x[:, known], RESAMPLES, seed) for x in (energies[..., 0], energies.sum(2)))
        member = groups[known][:, None] == np.arange(groups.max() + 1)
        with np.errstate(invalid="ignore"):
            shares = part / whole  # NaN if a resample has none of the samples with a token of an expert
            counts = np.isfinite(shares).astype(float) @ member
            return interval(np.nan_to_num(shares) @ member / counts, CONFIDENCE)


def _energies(tokens: ReadTokens, values: Tensor, samples: int) -> Float[np.ndarray, "samples rows parts"]:
    squares = values.flatten(0, 1).double().square()
    index = tokens.samples * len(PARTS) + tokens.parts
    sums = squares.new_zeros(len(squares), samples * len(PARTS)).index_add_(1, index, squares)
    return sums.unflatten(1, (samples, len(PARTS))).transpose(0, 1).numpy()


def _share_at(mask: np.ndarray, z: Tensor) -> np.ndarray:
    """Share of the squares of each row on these tokens."""
    squares = z.flatten(0, 1).double().square().numpy()
    with np.errstate(invalid="ignore"):
        return squares[:, mask].sum(1) / squares.sum(1)


def _agreement(tokens: ReadTokens, z: Tensor) -> np.ndarray:
    """Share of the top tokens of each row that the samples of even and of odd number have in common, over both ends."""
    rows = z.flatten(0, 1).float()
    groups = torch.from_numpy(tokens.groups)
    k = min(LISTED, int(groups.max()) + 1)
    shared = torch.zeros(len(rows))
    for values in (rows, -rows):
        halves = []
        for half in (0, 1):
            mask = tokens.samples % 2 == half
            best = torch.full((len(rows), int(groups.max()) + 1), -torch.inf)
            best.scatter_reduce_(1, groups[mask].expand(len(rows), -1), values[:, mask], "amax")
            top = best.topk(k)  # fewer if this half has fewer distinct tokens
            halves.append(torch.zeros_like(best).scatter_(1, top.indices, top.values.isfinite().float()))
        shared += (halves[0] * halves[1]).sum(1) / k
    return (shared / 2).double().numpy()


def _end(
    tokens: ReadTokens, values: np.ndarray, end: str, k: int, whole: ReadTokens, places: np.ndarray
) -> list[tuple[object, ...]]:
    """Rows of `DirectionActivations.top` at one end; ``places`` are those of the tokens among the ``whole``."""
    far = values if end == "+" else -values
    hits = np.flatnonzero(far >= max(far.max() / 2, np.abs(values).max() / 5, np.finfo(np.float32).tiny))
    order = hits[np.argsort(-far[hits], kind="stable")]
    groups, first, counts = np.unique(tokens.groups[order], return_index=True, return_counts=True)
    rows: list[tuple[object, ...]] = []
    for n in np.argsort(first)[:k]:
        at = int(order[first[n]])
        sample = int(tokens.samples[at])
        here, place = whole.of_sample(sample), int(places[at])
        before = "".join(whole.texts[max(here.start, place - CONTEXT) : place])
        after = "".join(whole.texts[place + 1 : min(here.stop, place + 1 + CONTEXT)])
        total = int((tokens.groups == groups[n]).sum())
        part = PARTS[int(tokens.parts[at])]
        rows.append(
            (end, tokens.texts[at], float(values[at]), int(counts[n]), total, part, before, after, sample,
             place - here.start)
        )  # fmt: skip
    return rows
