"""What the picture of an estimate shows equals its table."""

import numpy as np
import pytest

import tlora
import viz
from tests.helpers.models import tiny_config
from tests.helpers.pictured import texts
from tlora.allocation.footprint import TRAININGS


@pytest.mark.parametrize(("dtype", "bars"), [("float32", 2), ("bfloat16", 3)])
def test_bars_are_the_peaks_of_the_ways_as_asked(dtype, bars):
    estimate = tlora.estimate(tiny_config("llama"), 2, length=16, batch_size=2, dtype=dtype, memory=1e6)
    ax = viz.plot_memory(estimate)
    names = [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()]
    assert len(names) == 2 * bars
    assert names[:bars] == names[bars:]
    sums = [sum(part.get_width() for part in parts) for parts in zip(*ax.containers, strict=True)]
    asked = {
        (row.gradient_checkpointing, TRAININGS[row.training]): row.gigabytes
        for row in estimate.what_fits.itertuples()
        if (row.batch_size, row.gpus, row.bits >= 16) == (2, 1, True)
    }
    drawn = dict(zip([(n >= bars, name) for n, name in enumerate(names)], sums, strict=True))
    assert drawn == pytest.approx(asked)
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), 1e-3)
    assert {"weights", "stored activations", "other", "with gradient checkpointing"} <= set(texts(ax))
    assert {f"{size:.3g}" for size in sums} <= set(texts(ax))
