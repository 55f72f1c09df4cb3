"""Panel "Side effects": what an adapter changed on other text, token by token, and how much of the adapter to keep."""

from __future__ import annotations

from tlora.explanation.measure_scales import LEFT_OUT, PART, SCALE, TASK, Rescaling
from tlora.explanation.side_effects import SideEffects
from viz import style
from viz.widgets.panels.attribution import largest_modules
from viz.widgets.panels.panel import Panel
from viz.widgets.panels.parts import Column, Part, intervals, shorten, shorten_all, table, text, whole

STRIPS = (
    "The texts with the adapter at scale 1, the worst first. Tokens in red became more likely, those in blue less. "
    "A loss that rose is a text that the model writes less well."
)
CURVE = "How much of the adapter can be kept if other text may lose only so much: every point is measured."
TEXTS = 64
"""Most texts that are shown, the worst of all."""
TOKENS = 10
"""Most tokens in the tables of those that lost and rose."""


def loss(value: float) -> str:
    """Nats with three digits: ``"4.213"``."""
    return f"{value:.3f}".replace("-", style.MINUS)


def change(value: float) -> str:
    """A difference of losses with its sign: ``"+0.121"``."""
    return f"{value:+.3f}".replace("-", style.MINUS)


SETS: list[Column] = [
    ("set", "set", str), ("samples", "texts", whole), ("tokens", "tokens", whole),
    ("base_loss", "loss of the base, nats per token", loss), ("adapter_loss", "with the adapter", loss),
    ("loss_change", "change", change), ("interval", "95 % interval over texts", str),
]  # fmt: skip
CHANGED: list[Column] = [
    ("set", "set", str), ("before", "text before", str), ("token", "token", str),
    ("rise", "change, nats", change), ("base", "log-probability in the base", loss),
    ("adapter", "with the adapter", loss),
]  # fmt: skip


class EffectsPanel(Panel):
    """The slider over the adapter's scale, which holds no text, above the texts, the worst first."""

    name, title = "effects", "Side effects"
    stage = "answers"
    about = "What the adapter changed on text that it was not meant for."
    needs = ("effects", "rescaling")

    def parts(self) -> list[Part]:
        """Those of each result that is known."""
        rescaling = self.results.rescaling
        effects = self.results.effects if self.context.has("effects") else None
        finding = [] if effects is None else [text(f"{effects.headline}.")]
        curve = [] if rescaling is None else [text(CURVE), _curve(rescaling)]
        return finding + curve + ([] if effects is None else _texts(effects))


def _texts(effects: SideEffects) -> list[Part]:
    sets = effects.sets()
    sets = sets.assign(interval=intervals(sets, "low", "high", change))
    samples = [
        {
            "set": one.set,
            "tokens": one.tokens,
            "positions": one.positions,
            "base": shorten_all(one.base),
            "rise": shorten_all(one.rise),
        }
        for one in effects.samples[:TEXTS]
    ]
    strips = {"kind": "effects", "sets": list(sets["set"]), "samples": samples, "of": len(effects.samples)}
    tokens = {"lost": effects.lost(TOKENS), "gained": effects.rose(TOKENS)}
    found = effects.attribution
    why = [] if found is None else [largest_modules(found, "The modules that contributed most where tokens lost most")]
    return [
        text(STRIPS),
        strips,
        table(sets, "Loss of each set of texts", SETS),
        *(table(frame, f"Tokens that {what} most", CHANGED, folded=True) for what, frame in tokens.items()),
        *why,
    ]


def _curve(rescaling: Rescaling) -> Part:
    frame = rescaling.to_frame()
    frame = frame.assign(interval=intervals(frame, "low", "high", change))
    by_point = dict(iter(frame.groupby("point", sort=False)))
    gone = {p.label: {name for name, factor in p.factors.items() if not factor} for p in rescaling.points}
    parts = [point.label for point in rescaling.points if point.kind == PART]
    points = [
        {
            "label": point.label,
            "kind": point.kind,
            "scale": point.scale,
            "task": shorten(rescaling.loss(point, TASK), 7),
            "lost": shorten(rescaling.lost(point), 7),
            "without": [
                label.removeprefix("without ")
                for label in parts
                if point.kind == LEFT_OUT and gone[label] <= gone[point.label]
            ],
            "rows": [
                [row.set, loss(row.loss), change(row.change), row.interval]
                for row in by_point[point.label].itertuples()
            ],
        }
        for point in rescaling.points
    ]
    start = next(n for n, point in enumerate(rescaling.points) if point.kind == SCALE and point.scale == 1)
    return {"kind": "rescaling", "points": points, "start": start, "limit": rescaling.limit}
