"""What the picture of an estimate shows equals its table."""

import numpy as np
import pytest

import tlora
import viz
from tests.helpers.models import tiny_config
from tlora.allocation.footprint import TRAININGS


@pytest.mark.parametrize(("dtype", "bars"), [("float32", 4), ("bfloat16", 6)])
def test_bars_are_the_peaks_of_the_ways_as_asked(dtype, bars):
    estimate = tlora.estimate(tiny_config("llama"), 2, length=16, batch_size=2, dtype=dtype, memory=1e6)
    ax = viz.plot_memory(estimate)
    peaks = {}
    names = [label.get_text() for label in ax.get_yticklabels()]
    for name, *parts in zip(names, *ax.containers, strict=True):
        peaks[name] = sum(part.get_width() for part in parts)
    expected = {
        TRAININGS[row.training] + (", checkpointing" if row.gradient_checkpointing else ""): row.gigabytes
        for row in estimate.what_fits.itertuples()
        if (row.batch_size, row.gpus, row.bits >= 16) == (2, 1, True)
    }
    assert len(peaks) == bars
    assert peaks == pytest.approx(expected)
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), 1e-3)
