"""Panel "Reads": the tokens at both ends of each direction of the selected module, and samples as colored strips."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tlora.explanation.direction_activations_result import CONTROL, PARTS, DirectionActivations, ReadTokens
from tlora.models.experts import parameter_name
from tlora.utils.defaults import KINDS
from tlora.utils.text import count_text
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Part, percent, shorten_all, text

NEED = (
    "Need is the norm of the loss's gradient at the module's output. Weighted by it all kinds look more alike, random "
    "ones too, since the need of a token is the same for every direction."
)
PAGE_BYTES = 1_500_000
"""Most values in a page without a kernel; in the page they take a third more."""
PAGE_DIRECTIONS = 4
"""Directions of each kind in such a page."""
END = 3
"""Most tokens at each end of a first direction that the card of a module names."""


class ReadsPanel(Panel):
    """Directions of the selected module, whose values follow when the browser asks for them."""

    name, title = "reads", "Reads"
    stage = "directions"
    about = (
        "Which tokens the directions of the selected module respond to. z is how far a token's input lies from the "
        "mean along a direction, in standard deviations; the sign is arbitrary, so both ends are shown. Random "
        "directions have ends too: trust what stands out from theirs. A direction that reads the template can still be "
        "one that training needs, and an answer need not depend on the words that are read: to find out, leave a word "
        "out of the request."
    )
    needs = ("activations",)
    needs_map = True
    answers = ("reading",)

    @property
    def _is_small(self) -> bool:
        """Whether it has to fit into a page."""
        return self.context.show is None

    def parts(self) -> list[Part]:
        """A finding, what need is, and the directions without their values."""
        activations, names = self.result, self.context.names
        samples, directions = extent(activations, self._is_small)
        frame = activations.to_frame()
        experts = [read_experts(activations, name)[: 1 if self._is_small else None] for name in names]

        def by_module(column: str) -> list[list[float | None]]:
            """Means over directions, by module and kind."""
            means = frame.pivot_table(column, "module", "kind", dropna=False).reindex(names)[activations.kinds]
            return [shorten_all(row, 2) for row in means.to_numpy()]

        part = {
            "kind": "reads",
            "kinds": activations.kinds,
            "meanings": [_meaning(kind) for kind in activations.kinds],
            "directions": directions,
            "parts": list(PARTS),
            "sides": {side: _tokens(tokens, samples) for side, tokens in activations.tokens.items()},
            "side": [
                activations.sides.get(f"{name}[{found[0][0]}]" if found else name)
                for name, found in zip(names, experts, strict=True)
            ],
            "experts": experts,
            "constant": by_module("constant"),
            "agreement": by_module("agreement"),
            "sinks": [names.index(name) for name in activations.sinks() if name in names],
            "need": bool(activations.need),
            "words": [first_words(activations, name) for name in names],
            "samples": min(samples, activations.meta.samples or samples),
            "of": activations.meta.samples,
        }
        words = [finding(activations), *([NEED] if activations.need else [])]
        return [*map(text, words), part]

    def requests(self) -> Mapping[str, Callable[..., None]]:
        """Show the values of a module."""
        return {"read": self._read}

    def page_state(self, answers: Mapping[str, Any]) -> dict[str, Any]:
        """The values of all modules, of a parameter those of the expert that reads most tokens."""
        found, names = self.result, self.context.names
        experts = [read_experts(found, name)[:1] for name in names]
        return {
            "readings": [
                reading(found, names, k, small=True, expert=first[0][0] if first else None)
                for k, first in enumerate(experts)
            ]
        }

    def _read(self, module: int, expert: int | None = None) -> None:
        self.show(reading=reading(self.result, self.context.names, module, expert=expert))


def finding(activations: DirectionActivations) -> str:
    """How much each kind puts on constant tokens, and in how many modules that is more than random directions do."""
    table = activations.constant_share().set_index("kind")
    parts = []
    for kind, row in table.drop(CONTROL).iterrows():
        interval = f"{percent(row.low)} to {percent(row.high)}"
        above = f"more than random directions in {int(row.above_random):,} of {count_text(int(row.modules), 'module')}"
        parts.append(f"{kind} {percent(row.constant)} ({interval}), {above}")
    control = table.loc[CONTROL]
    return (
        "Share of z\u00b2 on constant tokens, which are the same in all samples (chat template, system prompt): "
        f"{'; '.join(parts)}; random {percent(control.constant)}. They are {percent(control.tokens)} of the tokens."
    )


def first_words(activations: DirectionActivations, name: str) -> list[str]:
    """The tokens at both ends of the first direction of a module, the furthest first; none if it reads no tokens."""
    if name not in activations.z:
        return []
    ends = activations.top(name, 1, k=END).sort_values("value", key=abs, ascending=False)
    return list(dict.fromkeys(ends["token"]))


def read_experts(activations: DirectionActivations, parameter: str) -> list[list[int]]:
    """The experts of a parameter, with the tokens that each reads, the one with the most first."""
    found = []
    for name, places in activations.routed.items():
        if parameter_name(name) == parameter:
            found.append([int(name.removeprefix(f"{parameter}[").rstrip("]")), len(places)])
    return sorted(found, key=lambda one: -one[1])


def extent(activations: DirectionActivations, small: bool) -> tuple[int, int]:
    """Number of samples and directions to show: all, or as many as fit into a page."""
    directions = max(z.shape[1] for z in activations.z.values())
    samples = max(int(tokens.samples[-1]) + 1 for tokens in activations.tokens.values())
    if small:
        directions = min(directions, PAGE_DIRECTIONS)
        rows = len(set(map(parameter_name, activations.z))) * (len(activations.kinds) * directions + 1)
        tokens = max(len(tokens.texts) for tokens in activations.tokens.values())
        samples = max(1, min(samples, int(samples * PAGE_BYTES / (rows * tokens))))
    return samples, directions


def reading(
    activations: DirectionActivations, names: Sequence[str], k: int, small: bool = False, expert: int | None = None
) -> dict[str, Any]:
    """The values of module ``k``: a byte each, by kind and direction, then the need of each token.

    Of an expert they are those of the tokens that it reads, with the places of these.
    """
    name = names[k] if expert is None else f"{names[k]}[{expert}]"
    about: dict[str, Any] = {"module": k} | ({} if expert is None else {"expert": expert})
    if name not in activations.z:
        return about
    samples, directions = extent(activations, small)
    seen = activations.tokens[activations.sides[name]].samples < samples
    kept = seen if expert is None else seen[activations.routed[name]]
    if expert is not None:
        about |= {"routed": activations.routed[name][kept].tolist()} | _shares(activations, name)
    z = activations.z[name][:, :directions, kept].float()
    rows = z.flatten(0, 1)
    if activations.need:
        rows = torch.cat([rows, activations.need[name][kept].float()[None]])
    scale = rows.abs().amax(1).clamp(min=1e-6) / 127
    levels = (rows / scale[:, None]).round().to(torch.int8)
    return about | {
        "directions": z.shape[1],
        "scales": shorten_all(scale, 5),
        "values": b64encode(levels.numpy().tobytes()).decode(),
    }


def _shares(activations: DirectionActivations, name: str) -> dict[str, list[float | None]]:
    """Means over the directions of a module, by kind."""
    frame = activations.to_frame().query("module == @name").groupby("kind")[["constant", "agreement"]].mean()
    return {column: shorten_all(frame[column].reindex(activations.kinds), 2) for column in frame}


def _tokens(tokens: ReadTokens, samples: int) -> dict[str, Any]:
    """Distinct texts, and for each token its text, id, part and sample."""
    seen = tokens.samples < samples
    here = [text for text, is_seen in zip(tokens.texts, seen.tolist(), strict=True) if is_seen]
    distinct = list(dict.fromkeys(here))
    index = {text: n for n, text in enumerate(distinct)}
    return {
        "texts": distinct,
        "text": [index[text] for text in here],
        "part": "".join(map(str, tokens.parts[seen].tolist())),
        "sample": tokens.samples[seen].tolist(),
    }


def _meaning(kind: str) -> str:
    """What the directions of a kind are, if its label is that of a kind."""
    if kind == CONTROL:
        return "the control"
    return next((facts.meaning for known, facts in KINDS.items() if known == kind), "")
