"""Panel "Attribution": what each token of an answer gained, by module, and what leaving modules out costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from tlora.explanation.attribution import CHANGES, Attribution
from tlora.utils.progress import report_progress
from tlora.utils.text import capitalized, count_text
from viz.widgets.panels.answers import answer_values, switch_key
from viz.widgets.panels.live_panel import LivePanel
from viz.widgets.panels.parts import Column, Part, bar, intervals, number, table, text, texts, whole

PAGE_SAMPLES = 16
"""Most answers in a page without a kernel."""
COLUMNS: list[Column] = [
    ("module", "module", str),
    ("rank", "rank", whole),
    ("used_rank", "rank used", whole),
    ("contribution", "contributed, nats", number),
    ("interval", "95 % interval", str),
    ("cost", "cost of leaving it out", number),
    ("log_odds", "contributed, log-odds", number),
    ("cost_log_odds", "cost, log-odds", number),
]


class AttributionPanel(LivePanel):
    """Answers by token and module, with parts of the adapter switched off; if a kernel answers, any of them."""

    name, title = "attribution", "Attribution"
    stage = "answers"
    about = (
        "What each module of the trained adapter added to the tokens of an answer. Contributions add up to what the "
        "tokens gained. What leaving a module out costs is another number: a probability near 1 can hardly fall, and "
        "other modules may make up for it. In a test with known answers, contributions put the right module first for "
        "16 of 16 learned skills. Click a module, a row or a column of the map to switch it off."
    )
    needs = ("attribution",)
    answers = ("switched", *LivePanel.answers)

    def parts(self) -> list[Part]:
        """The map of the answers, a sentence, and tables."""
        attribution: Attribution = self.result
        targets, live = attribution.targets.values(), self.is_live
        rows, columns = list(dict.fromkeys(t.projection for t in targets)), sorted({t.layer for t in targets})
        part = {
            "kind": "attribution",
            "names": attribution.names,
            "rows": rows,
            "columns": columns,
            "row": [rows.index(target.projection) for target in targets],
            "column": [columns.index(target.layer) for target in targets],
            "ranks": list(attribution.ranks.values()),
            "samples": answer_values(attribution, attribution.samples if live else attribution.samples[:PAGE_SAMPLES]),
            "live": live,
        }
        largest = largest_modules(attribution, "The modules that contributed most, mean over answers")
        words = f"{capitalized(attribution.sentence)} {changed_tokens(attribution)}"
        return [part, text(words), largest, *_answers(attribution)]

    def requests(self) -> Mapping[str, Callable[..., None]]:
        """Switch modules off or cut them and write the answer again, besides those of all panels of answers."""
        return {"switch": self._switch, "regenerate": self._regenerate, **super().requests()} if self.is_live else {}

    def _switch(self, sample: int, ranks: Sequence[tuple[int, int]]) -> None:
        """Score an answer with some modules switched off or cut; ``ranks`` are pairs of a module and what is left."""
        self.show(switched=self.context.live.switch(sample, dict(ranks)))

    def _regenerate(self, sample: int, ranks: Sequence[tuple[int, int]]) -> None:
        """Write the answer again with these modules switched off or cut."""
        part = {"sample": sample, "key": switch_key(dict(ranks))}

        def report(words: str, done: int, total: int | None) -> None:
            self.show(switched=part | {"bar": bar(words, done, total)})

        with report_progress(report):
            answer = self.context.live.regenerate(sample, dict(ranks))
        self.show(switched=part | {"answer": answer})


def largest_modules(attribution: Attribution, caption: str) -> Part:
    """A table of the modules that contributed most."""
    top = attribution.largest()
    top = top.assign(interval=intervals(top, "low", "high", number))
    return table(top, caption, COLUMNS, folded=True)


def changed_tokens(attribution: Attribution) -> str:
    """How many first choices are the base's, among its first three, or beyond."""
    counts = attribution.tokens()["change"].value_counts()
    same, near, beyond = (int(counts.get(change, 0)) for change in CHANGES)
    return (
        f"Of {count_text(same + near + beyond, 'answer token')}, the adapted model's first choice is the base's at "
        f"{same:,}, its second or third at {near:,}, and further down at {beyond:,}."
    )


def _answers(attribution: Attribution) -> list[dict[str, Any]]:
    """A table of the greedy answers of base and adapter, if there are any."""
    frame = attribution.answers()
    if not frame["adapter"].any():
        return []
    columns = {"prompt": "request", "answer": "explained", "base": "base answers", "adapter": "adapter answers"}
    matches = [name for name in ("base_match", "adapter_match") if name in frame]
    rows = [[*map(str, row[list(columns)]), *_matches(row[matches])] for _, row in frame.iterrows()]
    head = [*columns.values(), *(["base right", "adapter right"] if matches else [])]
    return [texts("Greedy answers of base and adapter", head, rows, (0, 1, 2, 3), folded=True)]


def _matches(row: pd.Series) -> list[str]:
    return ["yes" if match == 1 else "no" for match in row]
