"""The picture of a comparison: what is drawn where, for few and for many methods."""

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks.lab.comparison import Comparison
from benchmarks.lab.methods import METHODS
from benchmarks.lab.plot import _size, plot_comparison
from benchmarks.tests.helpers import comparison, record
from tests.helpers.pictured import texts

GRID = (5e-4, 1e-3, 2e-3, 4e-3)


def many(methods, tasks=("rotten_tomatoes",), ranks=(8,)) -> Comparison:
    """Each method a little worse than the one before, with its best rate elsewhere; the highest rate failed."""
    records = []
    for task in tasks:
        for rank in ranks:
            for n, method in enumerate(methods):
                about = {"task": task, "rank": rank, "model": "models/minilm"}
                top = 0.8 - 0.01 * n + 0.01 * np.log2(rank / 8)
                values = {rate: top - 0.1 * abs(np.log2(rate / GRID[n % 3])) for rate in GRID[:-1]}
                size = {"trainable_parameters": 1000 * rank * (1 + n % 3)}
                found = [record(method, r, 0, "validation", [v], **about) | size for r, v in values.items()]
                found.append(record(method, GRID[-1], 0, "validation", None, **about))
                for seed in range(2):
                    right = (np.random.default_rng(seed).random(200) < top).astype(float)
                    found.append(record(method, max(values, key=values.get), seed, "test", right, **about) | size)
                records += found
    return Comparison.from_records(records)


def everything_inside_and_apart(figure, labelled: bool = True) -> None:
    figure.canvas.draw()
    width, height = figure.bbox.size
    for ax in figure.axes:
        box = ax.get_tightbbox()
        assert (box.x0 >= 0, box.y0 >= 0, box.x1 <= width, box.y1 <= height) == (True,) * 4
        for axis in (ax.xaxis, ax.yaxis):
            labels = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
            assert labels or not labelled
            assert not any(a.overlaps(b) for a, b in pairwise(labels))
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    (written,) = figure.texts
    if written.get_text():
        boxes.append(written.get_window_extent())
        assert (boxes[-1].x0 >= 0, boxes[-1].x1 <= width, boxes[-1].y0 >= 0) == (True,) * 3
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[n + 1 :])


@pytest.mark.parametrize(
    ("count", "tasks", "ranks"),
    [
        (1, ("pairs",), (8,)), (2, ("pairs",), (8,)), (6, ("rotten_tomatoes", "family_relationships"), (8,)),
        (5, ("pairs",), (4, 16)),
        pytest.param(16, ("rotten_tomatoes", "family_relationships"), (4, 8, 16), marks=pytest.mark.slow),
        (14, ("family_relationships_of_large_families",), (4, 16)),
    ],
)  # fmt: skip
def test_everything_has_its_place(count, tasks, ranks):
    names = [*METHODS][:count]
    figure = plot_comparison(many(names, tasks, ranks))
    assert len(figure.axes) == 3 * len(tasks)
    assert figure.get_figwidth() <= 9
    assert figure.number in plt.get_fignums()
    everything_inside_and_apart(figure)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == count * len(ranks)
    assert {label.split(",")[0] for label in labels} == set(names)


def dashed(ax) -> list[float]:
    """Where the baseline is drawn, line by line."""
    (line,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    ends = line.get_xdata().reshape(-1, 3)  # two ends and a gap
    assert np.array_equal(ends[:, 0], ends[:, 1], equal_nan=True)
    assert line.get_ydata().reshape(-1, 3)[:, :2].tolist() == [[n - 0.5, n + 0.5] for n in range(len(ends))]
    return ends[:, 0].tolist()


def note(figure) -> str:
    """What is written below all panels."""
    (text,) = figure.texts
    return text.get_text().replace("\n", " ")


def points(ax, marker: str) -> list[tuple[float, float]]:
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in ax.lines
        if line.get_marker() == marker and len(line.get_xdata()) == 1 and line.get_markersize() == 7
    ]


def test_what_is_drawn_is_what_the_tables_say():
    found = many(["lora", "tlora", "pissa"])
    left, middle, right = plot_comparison(found).axes
    summary = found.summary().set_index("method")
    assert [label.get_text() for label in left.get_yticklabels()] == ["lora", "tlora", "pissa"]
    for place, (method, marker) in enumerate((("lora", "o"), ("tlora", "s"), ("pissa", "D"))):
        row = summary.loc[method]
        assert points(left, marker) == [(row["value"], place)]
        assert points(right, marker) == [(row["trainable_parameters"], row["value"])]
        ((chosen, value),) = points(middle, marker)
        runs = found.runs[(found.runs["method"] == method) & (found.runs["split"] == "validation")]
        assert chosen == row["learning_rate"]
        assert value == runs["loss"].min()
        curve = next(line for line in middle.lines if line.get_label() == method)
        assert np.array_equal(curve.get_xdata(), GRID[:-1])
        assert np.array_equal(curve.get_ydata(), runs["loss"][:-1])
    spans = {tuple(line.get_xdata()): line.get_linewidth() for line in left.lines if len(line.get_xdata()) == 2}
    tlora, lora = summary.loc["tlora"], summary.loc["lora"]
    assert spans[(tlora["low"], tlora["high"])] == 1
    ends = (lora["value"] + tlora["difference_low"], lora["value"] + tlora["difference_high"])
    assert any(np.allclose(span, ends) and width > 3 for span, width in spans.items())
    assert dashed(left) == pytest.approx([lora["value"]] * 3)
    crosses = [line for line in middle.lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[GRID[-1]]] * 3


def test_a_curve_is_thick_where_it_is_within_one_percent_of_its_best():
    values = dict(zip(GRID, (0.70, 0.799, 0.80, 0.60, 0.7995), strict=False))  # losses are what is left to 1
    records = [record("lora", rate, 0, "validation", [value] * 50) for rate, value in values.items()]
    records += [record("lora", GRID[2], seed, "test", [0.8] * 50) for seed in range(3)]
    middle = plot_comparison(Comparison.from_records(records)).axes[1]
    (thick,) = [line for line in middle.lines if line.get_linewidth() == 5]
    assert thick.get_xdata().tolist() == [GRID[1], GRID[2]]
    np.testing.assert_allclose(thick.get_ydata(), [0.201, 0.20])


def test_a_curve_is_the_mean_of_the_whole_searches():
    """What one seed alone ran is in no mean, and a rate that broke in one of two is crossed out."""
    curves = {0: (0.70, 0.80, 0.60, 0.75), 1: (0.60, 0.78, 0.62, None), 2: (0.9,)}
    records = [
        record("lora", rate, seed, "validation", None if value is None else [value] * 1000)
        for seed, values in curves.items()
        for rate, value in zip(GRID, values, strict=False)
    ]
    records += [record("lora", GRID[1], seed, "test", [0.8] * 50) for seed in range(3)]
    middle = plot_comparison(Comparison.from_records(records)).axes[1]
    curve = next(line for line in middle.lines if line.get_label() == "lora")
    assert curve.get_xdata().tolist() == list(GRID[:3])
    np.testing.assert_allclose(curve.get_ydata(), [0.35, 0.21, 0.39])
    (cross,) = [line for line in middle.lines if line.get_marker() == "x"]
    assert cross.get_xdata().tolist() == [GRID[3]]


def test_runs_without_a_search_have_values_and_no_curve():
    found = Comparison.from_records([record("lora", GRID[2], seed, "test", [0.8] * 50) for seed in range(3)])
    middle = plot_comparison(found).axes[1]
    assert not any(len(line.get_xdata()) for line in middle.lines)


def test_curves_of_different_ranks_are_told_apart():
    figure = plot_comparison(
        Comparison.from_records([*of_rank(4, "lora"), *of_rank(8, "lora", "tlora"), *of_rank(16, "lora")])
    )
    curves = {line.get_label(): line.get_linestyle() for line in figure.axes[1].lines}
    looks = {label: curves[label] for label in ("lora, 4", "lora, 8", "tlora, 8", "lora, 16")}
    assert looks == {"lora, 4": "--", "lora, 8": "-", "tlora, 8": "-", "lora, 16": ":"}
    assert note(figure) == (
        "left: dashed is lora of equal rank  ·  middle: rank 4 dashed, 8 solid, 16 dotted  ·  "
        "right: lines join the ranks of a method"
    )
    assert note(plot_comparison(many(("lora", "tlora")))) == ""


def of_rank(rank: int, *methods: str) -> list:
    """Runs of which none failed."""
    found = []
    for method in methods:
        found += [record(method, rate, 0, "validation", [0.5 + rate], rank=rank) for rate in GRID]
        found += [record(method, GRID[-1], seed, "test", [0.7] * 20, rank=rank) for seed in range(3)]
    return found


def test_rows_are_apart_where_nothing_failed():
    """Crosses that are not there take no room."""
    everything_inside_and_apart(plot_comparison(Comparison.from_records(of_rank(8, "a", "b")), baseline="a"))


def test_one_rank_of_the_baseline_is_the_line_that_all_are_held_against():
    found = many(("lora", "tlora"), ranks=(4, 8))
    figure = plot_comparison(found, baseline_rank=8)
    left = figure.axes[0]
    value = found.summary().set_index(["method", "rank"]).loc[("lora", 8), "value"]
    assert dashed(left) == pytest.approx([value] * 4)
    assert left.get_title(loc="left").replace("\n", " ").endswith("of 3")
    assert note(figure).startswith("left: dashed is lora of rank 8  ·  middle: ")


@pytest.mark.parametrize(("ranks", "baseline_rank", "reference"), [(4, 8, 8), ([4], "same", 4), (8, "nearest", 4)])
def test_the_line_is_at_the_rank_that_differences_are_from_though_it_is_not_drawn(ranks, baseline_rank, reference):
    sizes = {("lora", 4): 800, ("lora", 8): 1600, ("tlora", 4): 400, ("tlora", 8): 800}
    found = many(("lora", "tlora"), ranks=(4, 8))
    for (method, rank), size in sizes.items():
        rows = (found.runs["method"] == method) & (found.runs["rank"] == rank)
        found.runs.loc[rows, "trainable_parameters"] = size
    figure = plot_comparison(found, ranks=ranks, baseline_rank=baseline_rank)
    left = figure.axes[0]
    assert note(figure) == {8: "left: dashed is lora of rank 8", "same": ""}.get(
        baseline_rank, "left: dashed is lora of about as many parameters"
    )
    values = found.summary(baseline_rank=baseline_rank).set_index(["method", "rank"])
    line = [label.get_text() for label in left.get_yticklabels()].index("tlora")
    assert dashed(left)[line] == pytest.approx(values.loc[("lora", reference), "value"])


def test_what_differs_does_so_in_the_picture_though_the_baseline_has_more_runs():
    """Two runs that only the baseline has move its value, not what the difference is from."""
    values = {"lora": (0.8, 0.8, 0.8, 0.6, 0.6), "tlora": (0.79, 0.79, 0.79)}
    records = [
        record(method, GRID[0], seed, "test", [value] * 50)
        for method, each in values.items()
        for seed, value in enumerate(each)
    ]
    records += [record(method, GRID[0], 0, "validation", [0.5]) for method in values]
    figure = plot_comparison(Comparison.from_records(records))
    left = figure.axes[0]
    assert note(figure) == "left: dashed is lora, in the runs that both have"
    assert dashed(left) == pytest.approx([0.8, 0.72], abs=1e-3)  # of tlora, which is first, and of lora itself
    (thick,) = [line for line in left.lines if line.get_linewidth() == 3.5]
    assert max(thick.get_xdata()) < 0.8


def test_what_has_not_been_tested_has_not_failed():
    records = [record("lora", rate, 0, "validation", [rate]) for rate in GRID[:-1]]
    records.append(record("lora", GRID[-1], 0, "validation", None))
    left = plot_comparison(Comparison.from_records(records)).axes[0]
    assert "not tested yet" in texts(left)
    assert left.get_title(loc="left") == "Nothing has been tested yet"


def test_six_ranks_have_six_line_styles():
    records = [
        record(method, rate, 0, split, [rate], rank=rank)
        for method in ("lora", "tlora")
        for rank in (1, 2, 4, 8, 16, 32)
        for split, rates in (("validation", GRID[:3]), ("test", GRID[1:2]))
        for rate in rates
    ]
    middle = plot_comparison(Comparison.from_records(records)).axes[1]
    drawn = [line._unscaled_dash_pattern for line in middle.lines if line.get_linewidth() == 1.2]
    assert len({str(pattern) for pattern in drawn}) == 6


def test_headline_counts_what_is_ahead_beyond_the_interval():
    base = np.tile([1.0, 0.0], 50)
    better, worse = np.ones(100), np.zeros(100)
    records = []
    for method, values in (("lora", base), ("up", better), ("down", worse), ("same", base)):
        records += [record(method, rate, 0, "validation", [rate * 100]) for rate in GRID]
        records += [record(method, GRID[-1], seed, "test", values) for seed in range(3)]
    ax = plot_comparison(Comparison.from_records(records)).axes[0]
    assert ax.get_title(loc="left").replace("\n", " ") == "1 above lora (dashed), 1 below, of 3"
    assert "tiny  ·  pairs" in texts(ax)[-1]
    ax = plot_comparison(Comparison.from_records(records), baseline="up").axes[0]
    assert ax.get_title(loc="left").replace("\n", " ") == "0 above up (dashed), 3 below, of 3"


def test_one_run_draws_no_interval_and_is_not_counted_as_beyond_it():
    better, base = np.ones(100), np.tile([1.0, 0.0], 50)
    records = [record(method, GRID[0], 0, "validation", [0.5]) for method in ("lora", "one", "three")]
    for method, values, seeds in (("lora", base, 3), ("one", better, 1), ("three", better, 3)):
        records += [record(method, GRID[0], seed, "test", np.roll(values, seed)) for seed in range(seeds)]
    for chosen, title, drawn in (
        (records, "1 above lora (dashed), 0 below, of 1", [1, 1, 3.5]),
        ([r for r in records if r["key"]["seed"] == 0], "Best: one", []),
    ):
        left = plot_comparison(Comparison.from_records(chosen)).axes[0]
        assert left.get_title(loc="left").replace("\n", " ") == title
        assert sorted(line.get_linewidth() for line in left.lines if len(line.get_xdata()) == 2) == drawn
        assert np.nanmin(dashed(left)) == 0.5


def test_what_failed_everywhere_is_said():
    records = [record("lora", rate, 0, "validation", None) for rate in GRID]
    figure = plot_comparison(Comparison.from_records(records))
    assert "failed" in texts(figure.axes[0])
    assert figure.axes[0].get_title(loc="left") == "No method could be trained"
    everything_inside_and_apart(figure, labelled=False)


def test_tasks_and_ranks_can_be_chosen():
    found = many(["lora", "tlora"], ("pairs", "imdb"), (4, 8))
    figure = plot_comparison(found, tasks="imdb", ranks=4)
    assert len(figure.axes) == 3
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["lora", "tlora"]
    assert "imdb" in texts(figure.axes[0])[-1]
    assert len(plot_comparison(found, ranks=[4, 8]).axes) == 6
    with pytest.raises(ValueError, match=r"with task \['sst2'\]: choose from pairs, imdb"):
        plot_comparison(found, tasks="sst2")
    with pytest.raises(ValueError, match=r"with rank \[99\]: choose from 4, 8"):
        plot_comparison(found, ranks=[4, 99])
    assert len(plot_comparison(found, ranks=np.int64(8)).axes) == 6


def test_of_long_names_both_ends_stay():
    long = ["a_method_of_ones_own_" * 5 + end for end in ("_a", "_b")]
    figure = plot_comparison(many([*long, "another" + long[0], "$\\frac$", "lora"]))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len({*labels}) == 5
    assert sum("…" in label for label in labels) == 3
    assert "$\\frac$" in labels  # a name is no formula
    everything_inside_and_apart(figure)


def test_sizes_are_rounded_before_their_unit_is_chosen():
    assert [_size(value) for value in (999, 999.7, 99_960, 999_700, 2.5e6)] == ["999", "1k", "100k", "1M", "2.5M"]


def test_the_loss_can_be_drawn_in_place_of_the_metric():
    left, _, right = plot_comparison(comparison(), metric="loss").axes
    assert left.get_xlabel() == f"{right.get_ylabel()}, test" == "negative loss, nats, test"


def test_settings_and_other_figures_are_left_alone():
    plt.figure()
    before, numbers = plt.rcParams.copy(), plt.get_fignums()
    plot_comparison(comparison())
    with pytest.raises(TypeError, match=r"expected a Comparison, got a str: pass the result of tlora\.compare"):
        plot_comparison("comparison.jsonl")
    assert plt.rcParams.copy() == before
    assert plt.get_fignums()[:-1] == numbers


def test_one_panel_shows_each_difference_in_half_widths_of_its_interval():
    found = many(("lora", "tlora"), tasks=("pairs", "imdb"))
    rows = found.summary().dropna(subset=["difference_low"])
    expected = 2 * rows["difference"] / (rows["difference_high"] - rows["difference_low"])
    (ax,) = plot_comparison(found, view="differences").axes
    drawn = [float(points.get_offsets()[0, 0]) for points in ax.collections]
    assert drawn == pytest.approx(list(expected))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["tlora"]


def test_one_panel_tells_models_apart():
    records = [
        record(method, rate, 0, split, values, model=f"models/{model}")
        for model in ("minilm", "qwen")
        for method in ("lora", "tlora")
        for rate, split, values in ((1e-3, "validation", [0.5]), (1e-3, "test", [0.0, 1.0, 1.0]))
    ]
    figure = plot_comparison(Comparison.from_records(records), view="rates")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pairs, minilm", "pairs, qwen"]


def test_full_fine_tuning_has_no_rank():
    figure = plot_comparison(many(("lora", "full"), ranks=(4, 8)))
    assert {label.get_text() for label in figure.axes[0].get_yticklabels()} == {"lora, 4", "lora, 8", "full"}


def test_one_panel_shows_by_which_factor_rates_may_differ():
    """Hollow where the flat range goes up to the end of the search."""
    values = {5e-4: 0.5, 1e-3: 0.799, 2e-3: 0.8, 4e-3: 0.799}
    records = [record("lora", rate, 0, "validation", [value]) for rate, value in values.items()]
    (ax,) = plot_comparison(Comparison.from_records(records), view="rates").axes
    (points,) = ax.collections
    assert points.get_offsets()[0, 0] == pytest.approx(4)
    assert tuple(points.get_facecolor()[0]) == (1, 1, 1, 1)
    with pytest.raises(ValueError, match="view must be 'tasks' or 'differences' or 'rates' or 'forgetting'"):
        plot_comparison(Comparison.from_records(records), view="sizes")


def test_what_was_learned_stands_beside_what_was_forgotten():
    """A point for each rate on the test split, in the middle of its seeds; of the search nothing."""
    records = [record("lora", 1e-3, 9, "validation", [0.1])]
    for rate, losses, forgotten in ((1e-3, (4.0, 4.2), (0.2, 0.4)), (2e-3, (3.0, 3.4), (1.0, 2.0))):
        for seed in range(2):
            more = {"metrics": {"loss": losses[seed]}, "forgetting": forgotten[seed]}
            records.append(record("lora", rate, seed, "test", [0.1]) | more)
    figure = plot_comparison(Comparison.from_records(records), view="forgetting")
    (ax,) = figure.axes
    assert ax.lines[0].get_xydata() == pytest.approx(np.array([[0.3, 4.1], [1.5, 3.2]]))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("forgotten of other texts, nats", "test loss, nats")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lora"]
    with pytest.raises(ValueError, match=r"no run on the test split has measured other texts; name some with compare"):
        plot_comparison(comparison(), view="forgetting")
