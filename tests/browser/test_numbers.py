"""Nothing on the page is invented: every number that it shows is one of the results that it was written from.

The page is written from the results of docs/gallery/data. A number counts as the result's if it agrees with it to the
last digit that is shown. What is no result is in `NO_RESULT`, with the reason; after each view no other number is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

import tlora
import viz
from tests.helpers.jupyterlab import opened_file

pytestmark = [pytest.mark.browser, pytest.mark.rest]

DATA = Path(__file__).parents[2] / "docs" / "gallery" / "data"
FILES = {"effects": "side_effects"}
PARTS = ("capture", "run", "estimate", "spectrum", "activations", "attribution", "rescaling", "effects")
RANK = 8
EVALUATED = 100
"""Samples on which the run was evaluated, as docs/gallery/measure.py says."""
NO_RESULT = {
    "text.tick": "ticks of an axis",
    ".ramp": "the middle of a scale of colors",
    ".about": "an explanation; its numbers are those of a study, which its page has",
    "thead": "the heads of tables: levels of intervals and of shares",
    ".token, .ctx": "the text of samples",
    "[data-panel=reads] .times": "how often a token is at an end: readings.test.js compares them",
    "option": "the numbers of what can be chosen",
}
LEFT = """(selectors) => {
    const walk = document.createTreeWalker(document.querySelector(".tlora"), NodeFilter.SHOW_TEXT), left = [];
    while (walk.nextNode()) {
        const {textContent, parentElement} = walk.currentNode;
        if (!/[0-9]/.test(textContent) || !parentElement.checkVisibility()) continue;
        if (!parentElement.closest(["[data-known]", ...selectors].join())) left.push(textContent);
    }
    return left;
}"""
TEXTS = "(found) => found.map((one) => { one.dataset.known = ''; return one.innerText ?? one.firstChild?.data ?? ''; })"
CELLS = """(found) => found.map((one) => {
    one.dataset.known = "";
    return [Number(one.dataset.k), one.querySelector("text")?.textContent ?? ""];
})"""
TABLES = """(found) => found.map((table) => {
    const caption = table.querySelector("caption") ?? table.closest("details").querySelector("summary");
    caption.dataset.known = table.tBodies[0].dataset.known = "";
    return [caption.textContent, [...table.tBodies[0].rows].map((row) => [...row.cells].map((c) => c.textContent))];
})"""
NUMBER = re.compile(r"[+\u2212-]?(?:\d[\d,]*)?\.?\d+(?:e[+-]\d+)?")


def load(name: str) -> Any:
    return tlora.load_result(DATA / FILES.get(name, name))


def numbers(text: str) -> list[str]:
    """The numbers in a text, less those in the names of the model and of a type; a minus after a digit is a dash."""
    return NUMBER.findall(re.sub(r"smollm2-135m|float32|(?<=\d)-(?=\d)", " ", text))


def agrees(shown: str, value: float) -> bool:
    """Whether a number is the value to its last digit; it may have been rounded twice."""
    text = shown.replace(",", "").replace("\u2212", "-")
    digits = text.partition("e")[0].partition(".")[2]
    unit = 10.0 ** (int(text.partition("e")[2] or 0) - len(digits))
    return abs(float(text) - value) <= 0.56 * unit


def same(text: str, *values: float) -> None:
    """The numbers of a text are these values, in their order."""
    shown = numbers(text)
    assert len(shown) == len(values), (text, values)
    assert all(map(agrees, shown, values)), (text, values)


class Page:
    """The page in a browser, and what of it is known to be right."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def open(self, stage: str, panel: str) -> None:
        """Open a view and a panel, with everything that is folded there."""
        self.page.locator(f"[data-stage={stage}]").click()
        closed = self.page.locator(f"[data-panel={panel}]:not([open]) > summary")
        if closed.count():
            closed.click()
        self.page.evaluate("document.querySelectorAll('.tlora details:not(.panel)').forEach((one) => one.open = true)")

    def texts(self, selector: str) -> list[str]:
        """The texts of what a selector finds, which is then known."""
        found: list[str] = self.page.locator(selector).evaluate_all(TEXTS)
        assert found, selector
        return found

    def says(self, selector: str, *values: float) -> None:
        """The only text of a selector has these numbers."""
        (text,) = self.texts(selector)
        same(text, *values)

    def tables(self, selector: str) -> dict[str, list[list[str]]]:
        """The tables in a part of the page, by caption."""
        found = dict(self.page.locator(f"{selector} table").evaluate_all(TABLES))
        for caption, rows in found.items():
            if caption.startswith("All "):
                same(caption, len(rows))
        return found

    def nothing_left(self) -> None:
        """Every number that is visible is known, or is no result."""
        assert self.page.evaluate(LEFT, list(NO_RESULT)) == []


def check_table(rows: list[list[str]], expected: Sequence[Sequence[Any]]) -> None:
    """Each cell is a text, a number, or several; a dash stands for NaN, and "" is not compared."""
    assert len(rows) == len(expected)
    for row, values in zip(rows, expected, strict=True):
        for cell, value in zip(row, values, strict=True):
            if isinstance(value, str):
                assert value in ("", cell), (row, value)
            elif isinstance(value, list | tuple):
                same(cell.replace(" to ", " "), *value)
            elif np.isnan(value):
                assert cell == "\u2013", (row, values)
            else:
                same(cell, value)


@pytest.fixture(scope="module")
def scores() -> Any:
    return load("sensitivity")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return {name: load(name) for name in PARTS}


@pytest.fixture(scope="module")
def allocation(scores: Any) -> Any:
    return tlora.allocate(scores, rank=RANK)


@pytest.fixture(scope="module")
def page(chromium: str, scores: Any, results: dict[str, Any], tmp_path_factory: Any) -> Iterator[Page]:
    """The page of all results; any error of its script fails."""
    file = viz.Workbench(scores, **results).page(tmp_path_factory.mktemp("page") / "page.html", texts=True)
    with opened_file(chromium, file, "light") as page:
        page.set_viewport_size({"width": 1440, "height": 900})
        yield Page(page)


@pytest.fixture(autouse=True)
def _frame(page: Page, scores: Any, results: dict[str, Any], allocation: Any) -> None:
    """What stands in every view: the title, and the numbers of the stages."""
    page.texts("h1")
    spectrum, run = results["spectrum"].to_frame(), results["run"]
    ranks = list(allocation.ranks.values())
    expected = [
        ([16], [len_samples(run)]),
        ([spectrum["effective_rank"].median()], [spectrum["dimension"].median()]),
        ([captured(results)[RANK]], [RANK]),
        ([min(ranks), max(ranks)], [RANK]),
        ([run.after["loss"]], [run.before["loss"]]),
        ([EVALUATED * run.after["exact_match"], EVALUATED], [EVALUATED * run.before["exact_match"]]),
    ]
    assert [text.split()[0] for text in page.texts(".rail span")] == list("123456")
    for number, note, (large, small) in zip(page.texts(".rail b"), page.texts(".rail small"), expected, strict=True):
        same(number, *large)
        same(note, *small)
    assert scores.per_sample.shape[0] == 16


def len_samples(run: Any) -> int:
    return int(run.meta.samples)


def captured(results: dict[str, Any]) -> dict[int, float]:
    """Percent of the squared gradient that the first kind captures, by rank."""
    capture = results["capture"]
    shares = capture.captured[:, :, 0].double().sum((0, 1)) / capture.total.double().sum()
    return dict(zip(capture.ranks, (100 * shares).tolist(), strict=True))


def check_map(page: Page, tab: str, values: Sequence[float], top: float | None = None) -> None:
    """The cells of a tab, which may be empty, and the ends of its scale."""
    if page.page.locator(f"[data-tab={tab}]").is_visible():
        page.page.locator(f"[data-tab={tab}]").click()
    cells = page.page.locator(".map .cell").evaluate_all(CELLS)
    assert len(cells) == len(values)
    for k, text in cells:
        assert text == "" or agrees(text, values[k]), (tab, k, text, values[k])
    ends = [text for text in page.texts(".map .legend > span:not(.ramp)") if numbers(text)]
    assert agrees(numbers(ends[-1])[0], max(map(abs, values)) if top is None else top), (tab, ends)


def check_card(page: Page, scores: Any, results: dict[str, Any], allocation: Any) -> None:
    """The module beside the map, which has the largest rank, and what the budget pays for."""
    frame, names = scores.to_frame(), scores.names
    k = int(np.argmax([allocation.ranks[name] for name in names]))
    name, rank = names[k], allocation.ranks[names[k]]
    share, interval = 100 * frame["share"][k], scores.intervals()
    ends = [100 * interval[end][k] / frame["score"].sum() for end in ("low", "high")]
    row = frame.loc[k]
    assert page.texts(".side h2") == [f"layer {row.layer} {row.projection}"]
    assert page.texts(".side .name") == [name]
    page.says(".ranked b", rank)
    page.says(".ranked > span:not(.group)", RANK)
    page.says(".side .said p", frame["score"][k] / frame["score"].mean(), rank, RANK, allocation.limits.high[k])
    budget = 100 * rank / (RANK * len(names))
    curve = at_rank(results, k, rank)
    for text, value in zip(page.texts(".share b"), (share, budget, curve), strict=True):
        same(text, value)
    first, second = page.texts(".share small")
    same(first.replace(" to ", " "), 95, *ends, 100 * frame["share"].max(), 100 * frame["share"].mean())
    spent = 100 / (RANK * len(names))
    same(second, spent * max(allocation.ranks.values()), spent * sum(allocation.ranks.values()) / len(names))
    update, used = updates(results, names), results["run"].rank_use().set_index("module")["used_rank"]
    rise = results["attribution"].to_frame().set_index("module")["contribution"] / results["attribution"].rise
    facts = {
        "Scaling": allocation.scalings[name],
        "effective rank": results["spectrum"].effective_rank[name],
        "relative to the weight": 100 * update[k],
        "directions for 99": used[name],
        "of what the answers gained": 100 * rise[name],
    }
    for text in page.texts(".side details > div > div:not(.scroll):not(.key)"):
        for words, value in facts.items():
            if words in text and numbers(text):
                assert agrees(numbers(text)[0], value), (text, value)
    eigen = results["spectrum"].eigenvalues[results["spectrum"].inputs[name]].double().numpy()
    shares = np.cumsum(eigen) / results["spectrum"].traces[results["spectrum"].inputs[name]]
    ((_, rows),) = page.tables(".side").items()
    same(page.texts(".side thead th.count")[0], rank)
    needed = [int((shares < level).sum()) + 1 for level in (0.9, 0.95, 0.99)]
    check_table(rows, [["", 100 * shares[rank - 1], *needed]])
    check_costs(page, scores, results, allocation)


def check_costs(page: Page, scores: Any, results: dict[str, Any], allocation: Any) -> None:
    """What the allocation costs, and plain LoRA of the nominal rank."""
    outs, ins = np.array(list(scores.shapes.values())).T
    ranks, estimate = np.array(list(allocation.ranks.values())), results["estimate"]
    b, a, lora = (ranks * outs).sum(), (ranks * ins).sum(), RANK * (outs + ins).sum()
    grown = 4 * (a + b - lora) + 12 * (b - RANK * outs.sum())
    peak = (estimate.bytes["training B"] + grown) / 1e9
    rows = [
        ["", b, b, 100, lora],
        ["", 4e-6 * (a + b), 4e-6 * (a + b), 100, 4e-6 * lora],
        ["", 8e-6 * b, 8e-6 * b, 100, 8e-6 * lora],
    ]
    (table,) = page.tables(".bar details.fold").values()
    same(page.texts(".bar details.fold thead th")[-1], RANK)
    check_table(table[:3], rows)
    in_gb = [float(numbers(cell)[0]) / (1 if "GB" in cell else 1000) for cell in (table[3][1], table[3][4])]
    assert in_gb == pytest.approx([peak, estimate.bytes["training A and B"] / 1e9], rel=0.006)
    same(page.texts(".bar details.fold .copied code")[0], RANK)
    assert [numbers(text)[0] for text in page.texts(".bar output")] == [str(RANK), "1"]


def at_rank(results: dict[str, Any], k: int, rank: int) -> float:
    """Percent of the gradient of a module that its rank captures, linear between the ranks that were measured."""
    capture = results["capture"]
    shares = capture.captured[:, k, 0].double().sum(0) / capture.total[:, k].double().sum()
    return float(np.interp(rank, [0, *capture.ranks], [0, *(100 * shares).tolist()]))


def updates(results: dict[str, Any], names: Sequence[str]) -> list[float]:
    last = results["run"].module_history.groupby("module")["update_norm"].last()
    return [float(last[name]) for name in names]


def check_layers(page: Page, part: str, scores: Any) -> None:
    shown = [text for text in page.texts(f"{part} svg text.label") if text.isdigit()]
    assert list(map(int, shown)) == sorted(set(scores.layers.values()))


def test_data(page: Page, scores: Any, results: dict[str, Any]) -> None:
    page.open("data", "data")
    trained = len_samples(results["run"])
    page.says(".finding", 16, trained)
    (rows,) = page.tables("[data-panel=data]").values()
    check_table(rows, [["", "smollm2-135m"], ["", "smart_home"], ["", [16]], ["", "all but padding"], ["", [trained]]])
    page.nothing_left()
    page.open("data", "reproduce")
    recipe = results["run"].meta.recipe
    options = [recipe[name] for name in ("learning_rate", "epochs", "batch_size", "max_steps", "logging_steps")]
    made, loaded = page.texts("[data-panel=reproduce] pre")
    same(made, 16, *options, recipe["evaluation_limit"], results["run"].meta.seed)
    assert numbers(loaded) == []
    tables = page.tables("[data-panel=reproduce]")
    metas = {"sensitivity": scores.meta} | {name: one.meta for name, one in results.items()}
    for name, seed, samples in tables["Where the results come from"]:
        shown = [str(value) if value is not None else "" for value in (metas[name].seed, metas[name].samples)]
        if name != "estimate":
            assert [seed, samples] == shown
        else:
            assert samples == str(metas[name].recipe["samples"])
    for name, versions in tables["Versions"]:
        assert set(versions.split(", ")) == {meta.versions[name] for meta in metas.values()}
    page.nothing_left()


def test_spectra(page: Page, scores: Any, results: dict[str, Any], allocation: Any) -> None:
    page.open("spectra", "spectra")
    frame = results["spectrum"].to_frame()
    page.says("div.finding", frame["effective_rank"].median(), frame["dimension"].median())
    check_map(page, "effective", frame["effective_rank"].tolist())
    check_layers(page, ".map", scores)
    check_card(page, scores, results, allocation)
    squares = [float((results["spectrum"].eigenvalues[name].double() ** 2).sum()) for name in frame["input"]]
    ratios = frame["trace"] ** 2 / squares
    assert frame["effective_rank"].tolist() == pytest.approx(ratios.tolist(), rel=0.01)  # its definition
    columns = ["dimension", "effective_rank", "rank_90", "rank_99", "top_share"]
    medians = frame.groupby("projection", sort=False)[columns].median()
    by_projection, every = page.tables("[data-panel=spectra]").values()
    for rows, expected in ((by_projection, medians), (every, frame.set_index("module")[columns])):
        values = [[name, *row[:-1], 100 * row[-1]] for name, *row in expected.itertuples()]
        check_table(rows, values)
    page.nothing_left()


def test_directions(page: Page, scores: Any, results: dict[str, Any], allocation: Any) -> None:
    page.open("directions", "capture")
    overall = results["capture"].overall()
    by_chance = overall.query("kind == 'wc' and rank == @RANK")["random"].item()
    page.says("div.finding", RANK, captured(results)[RANK], 100 * by_chance)
    check_map(page, "captured", [at_rank(results, k, rank) for k, rank in enumerate(allocation.ranks.values())])
    check_layers(page, ".map", scores)
    check_card(page, scores, results, allocation)
    ((caption, rows),) = page.tables("[data-panel=capture]").items()
    same(caption, results["capture"].meta.samples)
    expected = [
        [row.kind, row.rank, 100 * row.captured, [100 * row.low, 100 * row.high], 100 * row.random, 100 * row.best]
        for row in overall.itertuples()
    ]
    check_table(rows, expected)
    assert [row[2] for row in expected[:6]] == pytest.approx(list(captured(results).values()))
    page.nothing_left()


def test_reads(page: Page, scores: Any, results: dict[str, Any], allocation: Any) -> None:
    page.open("directions", "reads")
    for selector in (".finding", ".bar", ".map", ".side"):
        page.texts(selector)  # compared in the test above
    activations = results["activations"]
    fisher, random = activations.constant_share().itertuples()
    ends = [100 * fisher.low, 100 * fisher.high]
    shares = [100 * fisher.constant, *ends, fisher.above_random, fisher.modules, 100 * random.constant]
    text, *_ = page.texts("[data-panel=reads] .part.text")
    same(re.sub(r"z\u00b2", "z", text).replace(" to ", " "), *shares, 100 * fisher.tokens)
    frame = activations.to_frame()
    name = max(scores.names, key=lambda one: allocation.ranks[one])
    own = {kind: part for kind, part in frame[frame["module"] == name].groupby("kind")}
    held = {kind: 100 * part["constant"].mean() for kind, part in own.items()}
    agreed = {kind: 100 * part["agreement"].mean() for kind, part in own.items()}
    values = [held["fisher"], held["random"], agreed["fisher"], agreed["random"], activations.meta.samples]
    page.says("[data-panel=reads] .strips > p", *values)
    assert page.texts("[data-panel=reads] h3") == page.texts(".side h2")
    assert page.texts("[data-panel=reads] tbody tr > th") == [str(n + 1) for n in range(len(own["fisher"]))]
    shown = [text for text in page.texts("[data-panel=reads] .times") if "constant" in text]
    both = [100 * part.iloc[n]["constant"] for n in range(len(own["fisher"])) for part in own.values()]
    assert shown
    for text in shown:
        assert any(agrees(numbers(text)[0], value) for value in both), text
    page.nothing_left()


def test_allocation(page: Page, scores: Any, results: dict[str, Any], allocation: Any) -> None:
    page.open("allocation", "allocation")
    frame, ranks = scores.to_frame(), np.array(list(allocation.ranks.values()))
    layer = frame["layer"][int(ranks.argmax())]
    outs, ins = np.array(list(scores.shapes.values())).T
    trained = 100 * (ranks * outs).sum() / (RANK * (outs + ins).sum())
    budget = [ranks.sum(), RANK * len(ranks)]
    page.says("div.finding", ranks.min(), ranks.max(), RANK, layer, *budget, trained, RANK)
    rise = results["attribution"].to_frame()["contribution"] / results["attribution"].rise
    tabs: dict[str, Sequence[float]] = {
        "sensitivity": (100 * frame["share"]).tolist(),
        "scaling": [allocation.scalings[name] for name in scores.names],
        "update": [100 * value for value in updates(results, scores.names)],
        "used": results["run"].rank_use()["used_rank"].tolist(),
        "contribution": (100 * rise).tolist(),
        "rank": ranks.tolist(),
    }
    assert list(results["run"].ranks) == scores.names == results["attribution"].to_frame()["module"].tolist()
    for tab, values in tabs.items():
        check_map(page, tab, values)
    check_layers(page, ".map", scores)
    labels = page.page.locator(".map .cell").evaluate_all(
        "(found) => found.map((one) => [Number(one.dataset.k), one.getAttribute('aria-label')])"
    )
    for k, label in labels:
        assert f"rank {ranks[k]}," in label
    check_card(page, scores, results, allocation)
    own = frame.assign(rank=ranks, scaling=tabs["scaling"], outs=[out for out, _ in scores.shapes.values()])
    own["parameters"] = own["rank"] * own["outs"]
    parts = own.groupby("projection", sort=False)
    expected = [
        [
            *(name, len(of), of["rank"].sum(), RANK * len(of), *of["rank"].agg(["min", "mean", "max"])),
            *(of["scaling"].mean(), of["parameters"].sum()),
        ]
        for name, of in parts
    ]
    tables = page.tables("[data-panel=allocation]")
    check_table(tables["Ranks by projection"], expected)
    check_table(tables["Decisions"], [["", [len(ranks)]]])
    page.nothing_left()


def test_sensitivity(page: Page, scores: Any) -> None:
    page.open("allocation", "sensitivity")
    for selector in (".finding", ".bar", ".map", ".side"):
        page.texts(selector)  # compared in the test above
    means = scores.per_sample.double().mean(0).numpy()
    frame, ends = scores.to_frame(), scores.intervals()
    assert frame["score"].tolist() == pytest.approx(means.tolist())
    ordered, count = np.sort(means), len(means)
    gini = ((2 * np.arange(1, count + 1) - count - 1) * ordered).sum() / (count * ordered.sum())
    tenth = round(count / 10)
    held = 100 * ordered[-tenth:].sum() / ordered.sum()
    page.says("[data-panel=sensitivity] .part.text", 100 * tenth / count, tenth, held, gini, 0, 16)
    share = 100 * means / means.sum()
    rows = [[means[k], [ends["low"][k], ends["high"][k]], share[k]] for k in range(count)]
    tables = list(page.tables("[data-panel=sensitivity]").items())
    (top, best), (_, projections), (fewer, stable), (every, listed) = tables
    order = np.argsort(-means, kind="stable")[:15]
    same(top, 15, count)
    check_table(best, [[f"layer {frame['layer'][k]} {frame['projection'][k]}", *rows[k]] for k in order])
    parts = frame.groupby("projection", sort=False)
    total = means.sum()
    check_table(
        projections, [[name, len(of), of["score"].mean(), 100 * of["score"].sum() / total] for name, of in parts]
    )
    same(fewer, 16)
    stability = tlora.ranking_stability(scores)
    check_table(
        stable,
        [
            [row.samples, row.kendall, [row.kendall_low, row.kendall_high], 100 * row.overlap]
            for row in stability.itertuples()
        ],
    )
    same(every, count)
    check_table(listed, [[name, *row] for name, row in zip(scores.names, rows, strict=True)])
    page.nothing_left()


def test_training(page: Page, results: dict[str, Any]) -> None:
    run = results["run"]
    page.open("training", "training")
    page.says("div.finding", run.before["loss"], run.after["loss"], run.steps)
    tables = page.tables("[data-panel=training]")
    before, after = run.before, run.after
    match = [one["exact_match"] for one in (before, after)]
    metrics = [["", before[name], after[name], after[name] - before[name]] for name in ("loss", "perplexity")]
    tests = [binomtest(round(EVALUATED * one), EVALUATED) for one in match]
    wilson = [
        [100 * one, *(100 * np.array(t.proportion_ci(method="wilson")))] for one, t in zip(match, tests, strict=True)
    ]
    ((caption, rows),) = ((key, value) for key, value in tables.items() if key.startswith("Before and after"))
    same(caption, EVALUATED, 95)
    check_table(rows, [*metrics, ["", *wilson, 100 * (match[1] - match[0])]])
    recipe = run.meta.recipe
    facts = [run.steps, divmod(round(run.seconds), 60), run.peak_bytes / 1e9, run.trainable_parameters]
    facts += ["frozen", *(recipe[name] for name in ("learning_rate", "epochs", "batch_size", "max_steps"))]
    check_table(tables["Circumstances"], [["", fact] for fact in facts])
    columns = ["step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"]
    check_table(tables["History"], run.to_frame()[columns].to_numpy().tolist())
    page.nothing_left()
    page.open("training", "rank-use")
    use = run.rank_use()
    used, total, full = use["used_rank"].sum(), use["rank"].sum(), (use["used_rank"] == use["rank"]).sum()
    page.says("[data-panel=rank-use] .part.text", used, total, 100 * used / total, full, len(use))
    by_projection, every = page.tables("[data-panel=rank-use]").values()
    use = use.assign(projection=[name.rpartition(".")[2] for name in use["module"]])
    check_table(
        by_projection,
        [
            [
                *(name, len(of), *of[["rank", "used_rank"]].sum(), 100 * of["used_rank"].sum() / of["rank"].sum()),
                *of[["effective_rank", "update_norm"]].mean(),
            ]
            for name, of in use.groupby("projection", sort=False)
        ],
    )
    check_table(
        every,
        [
            [row.module, row.rank, row.used_rank, 100 * row.used_rank / row.rank, row.effective_rank, row.update_norm]
            for row in use.itertuples()
        ],
    )
    page.nothing_left()


def check_largest(rows: list[list[str]], found: Any) -> None:
    top = found.to_frame().sort_values("contribution", key=lambda values: -values.abs(), kind="stable").head(len(rows))
    names = ["module", "rank", "used_rank", "contribution", "low", "high", "cost", "log_odds", "cost_log_odds"]
    check_table(rows, [[*row[:4], list(row[4:6]), *row[6:]] for row in top[names].itertuples(index=False, name=None)])


def test_attribution(page: Page, scores: Any, results: dict[str, Any]) -> None:
    page.open("answers", "attribution")
    run, found = results["run"], results["attribution"]
    match = [EVALUATED * one["exact_match"] for one in (run.after, run.before)]
    page.says("div.finding:not(p)", match[0], EVALUATED, match[1])
    sample = found.samples[0]
    rise = (sample.adapter - sample.base).double().numpy()
    for name, values in {"gained": rise[0], "base": sample.base[0].exp(), "adapter": sample.adapter[0].exp()}.items():
        shown = page.texts(f".answer .card:not(.names) .{name}")
        for text, value in zip(shown, values.tolist(), strict=True):
            if text.startswith("<"):
                assert value < 1e-5
            else:
                same(text, value if name == "gained" else 100 * value)
    contributed = sample.by_module.double().sum(1).numpy()
    cells = page.page.locator(".attribution .cell").evaluate_all(CELLS)
    assert len(cells) == len(found.names)
    for k, text in cells:
        assert text == "" or agrees(text, contributed[0, k]), (k, text)
    check_layers(page, ".attribution", scores)
    ends = [numbers(text)[0] for text in page.texts(".attribution .legend .legend > span:not(.ramp)")]
    assert agrees(ends[-1], np.abs(contributed[0]).max())
    frame = found.to_frame()
    k = int(np.abs(contributed[0]).argmax())
    cost = (sample.adapter - sample.switched[found.names[k]]).double().sum(1).numpy()
    gained = rise.sum(1)
    sentence = [frame["layer"][k], contributed[0, k], gained[0], cost[0], contributed[1, k], gained[1], cost[1]]
    page.says(".attribution p.finding", *sentence)
    first = frame.loc[frame["contribution"].abs().idxmax()]
    means = np.mean([(one.adapter - one.base).double().sum(1).numpy() for one in found.samples], axis=0)
    changes = found.tokens()["change"].value_counts()
    counts = [changes.sum(), *(changes.get(name, 0) for name in ("same", "near", "beyond"))]
    summary = [first["layer"], first["contribution"], means[0], len(found.samples), first["cost"]]
    summary += [first["log_odds"], means[1], first["cost_log_odds"], *counts]
    text, *_ = page.texts("[data-panel=attribution] .part.text")
    same(text, *summary)
    largest, answers = page.tables("[data-panel=attribution]").values()
    check_largest(largest, found)
    columns = ["prompt", "answer", "base", "adapter"]
    matches = found.answers()[["base_match", "adapter_match"]].replace({0.0: "no", 1.0: "yes"})
    assert answers == pd.concat([found.answers()[columns], matches], axis=1).to_numpy().tolist()
    page.texts(".written")
    page.nothing_left()


def test_side_effects(page: Page, results: dict[str, Any]) -> None:
    page.open("answers", "effects")
    page.texts(".finding")
    effects, rescaling = results["effects"], results["rescaling"]
    sets = effects.sets()
    worst = sets.loc[sets["loss_change"].idxmax()]
    headline, _, strips = page.texts("[data-panel=effects] > div > .parts > .part.text")
    same(headline.replace(" to ", " "), worst["loss_change"], worst["low"], worst["high"])
    same(strips, 1)
    points = rescaling.to_frame().pivot_table(index="point", columns="set", values=["loss", "change"], sort=False)
    others = [name for name in rescaling.to_frame()["set"].unique() if name != "task"]
    lost = points["change"][others].max(axis=1)
    best = points["loss"]["task"][lost <= rescaling.limit].idxmin()
    scale = float(best.split()[-1])
    task = points["loss"]["task"]
    page.says(".rescaling p.finding", 1, task["scale 1"], lost["scale 1"], scale, task[best])
    ((caption, rows),) = page.tables(".rescaling").items()
    same(caption, 1)
    whole = rescaling.to_frame().query("point == 'scale 1'")
    check_table(rows, [[row.set, row.loss, row.change, [row.low, row.high]] for row in whole.itertuples()])
    number = [point.label for point in rescaling.points].index("scale 1")
    page.says(".rescaling .copied code", number, 1)
    page.says(".rescaling output", 1)
    changes = [row.loss_change for row in effects.to_frame().itertuples()]
    shown = page.texts(".effects .sample .set")
    for text, value in zip(shown, changes, strict=False):
        same(text, value)
    assert changes == sorted(changes, reverse=True)
    (end,) = [text for text in page.texts(".effects .legend > span:not(.ramp)") if "beyond" in text]
    rises = torch.cat([one.rise for one in effects.samples]).numpy()
    most, beyond = numbers(end)
    assert agrees(beyond, 100 * (np.abs(rises) > float(most)).mean()), end
    assert [numbers(text) for text in page.texts(".effects .key")] == [["6", "52", "46"]]
    assert (len(shown), len(effects.samples)) == (6, 52)
    tables = page.tables("[data-panel=effects] > div > .parts > .part:not(.rescaling)")
    of_sets, lost_most, rose_most, largest = tables.values()
    check_table(
        of_sets,
        [
            [row.set, row.samples, row.tokens, row.base_loss, row.adapter_loss, row.loss_change, [row.low, row.high]]
            for row in sets.itertuples()
        ],
    )
    for rows, frame in ((lost_most, effects.lost(10)), (rose_most, effects.rose(10))):
        check_table(rows, [[row.set, "", "", row.rise, row.base, row.adapter] for row in frame.itertuples()])
    check_largest(largest, effects.attribution)
    page.nothing_left()
