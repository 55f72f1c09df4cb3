"""Pictures of a comparison: what is drawn is what the tables say."""

import numpy as np
import pytest

from benchmarks.lab.comparison import Comparison
from benchmarks.lab.plot import plot_differences, plot_forgetting, plot_rate_curves, plot_rate_ranges
from benchmarks.tests.helpers import comparison, record


def two_models() -> Comparison:
    """Two methods at two ranks on two models."""
    records = []
    for model in ("minilm", "qwen"):
        for rank in (4, 8):
            for method, score in (("lora", 0.5), ("full", 0.6)):
                about = {"rank": rank, "model": f"models/{model}"}
                records += [record(method, rate, 0, "validation", [score], **about) for rate in (1e-3, 2e-3)]
                for seed in range(2):
                    outcomes = (np.random.default_rng(seed).random(50) < score).astype(float)
                    records.append(record(method, 1e-3, seed, "test", outcomes, **about))
    return Comparison.from_records(records)


def test_differences_are_in_half_widths_of_their_intervals():
    runs = two_models()
    rows = runs.summary().dropna(subset=["difference_low"])
    expected = 2 * rows["difference"] / (rows["difference_high"] - rows["difference_low"])
    figure = plot_differences(runs)
    (ax,) = figure.axes
    assert sorted(float(x) for points in ax.collections for x in points.get_offsets()[:, 0]) == pytest.approx(
        sorted(expected)
    )
    assert {label.get_text() for label in ax.get_yticklabels()} == {"full"}  # which has no rank
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pairs, minilm", "pairs, qwen"]


def test_a_range_of_rates_is_hollow_if_it_reaches_the_end_of_the_search():
    scores = {5e-4: 0.5, 1e-3: 0.799, 2e-3: 0.8, 4e-3: 0.799}
    records = [record("lora", rate, 0, "validation", [score]) for rate, score in scores.items()]
    (ax,) = plot_rate_ranges(Comparison.from_records(records)).axes
    (points,) = ax.collections
    assert points.get_offsets()[0, 0] == pytest.approx(4)
    assert tuple(points.get_facecolor()[0]) == (1, 1, 1, 1)


def test_rate_curves_are_means_over_seeds():
    records = [
        record(method, rate, seed, "validation", [1 - loss - seed])
        for method, losses in {"lora": (3.0, 2.0), "mine": (4.0, 5.0)}.items()
        for rate, loss in zip((1e-3, 2e-3), losses, strict=True)
        for seed in (0, 1)
    ]
    figure = plot_rate_curves(Comparison.from_records(records).runs, names={"mine": "My method", "lora": "LoRA"})
    (ax,) = figure.axes
    assert [line.get_label() for line in ax.lines] == ["My method", "LoRA"]
    assert [list(line.get_ydata()) for line in ax.lines] == [[4.5, 5.5], [3.5, 2.5]]
    assert ax.lines[0].get_xdata() == pytest.approx(np.array([1e-3, 2e-3]), rel=0.02)


def test_forgetting_has_a_point_for_each_rate_on_the_test_split():
    records = [record("lora", 1e-3, 9, "validation", [0.1])]
    for rate, losses, forgetting in ((1e-3, (4.0, 4.2), (0.2, 0.4)), (2e-3, (3.0, 3.4), (1.0, 2.0))):
        for seed in range(2):
            more = {"metrics": {"loss": losses[seed]}, "forgetting": forgetting[seed]}
            records.append(record("lora", rate, seed, "test", [0.1]) | more)
    figure = plot_forgetting(Comparison.from_records(records))
    (ax,) = figure.axes
    assert ax.lines[0].get_xydata() == pytest.approx(np.array([[0.3, 4.1], [1.5, 3.2]]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lora"]


def test_there_must_be_something_to_draw():
    with pytest.raises(ValueError, match="forgetting="):
        plot_forgetting(comparison())
    with pytest.raises(ValueError, match="baseline"):
        plot_differences(Comparison.from_records([record("lora", 1e-3, 0, "test", [1.0])]))
