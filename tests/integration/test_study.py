"""The study's own arithmetic, on numbers that are easy to follow."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.quality import study

RATES = (1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("losses", "loss", "expected"),
    [
        ((5.0, 4.0, 3.0), 4.5, 0.3),  # half of the way from 0.1 to 0.5
        ((5.0, 4.0, 3.0), 4.0, 0.5),
        ((5.0, 4.0, 4.8), 4.5, 0.3),  # comes apart at the highest rate: not read from there
        ((5.0, 4.0, 3.0), 5.1, np.nan),  # has learnt more at its lowest rate
        ((5.0, 4.0, 3.0), 2.9, np.nan),  # never learns as much
        ((3.5, 4.0, 3.0), 3.5, 1.75),
    ],
)
def test_forgetting_at_a_loss_is_read_between_two_rates(losses, loss, expected):
    forgotten = dict(zip(RATES, (0.1, 0.5, 3.0), strict=True))
    found = study.forgotten_at(dict(zip(RATES, losses, strict=True)), forgotten, loss)
    assert found == pytest.approx(expected, nan_ok=True)


def test_holm_adjusts_the_smallest_most():
    """The example of any textbook: 0.01, 0.04 and 0.03 become 0.03, 0.06 and 0.06."""
    found = study.holm_adjusted(pd.Series({"a": 0.01, "b": 0.04, "c": 0.03}))
    assert found.to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_a_margin_is_what_may_be_lost():
    """Student's t of mean over standard error, 0.05 / (0.01 / sqrt(4)) = 10 with three degrees of freedom."""
    behind = pd.Series([-0.05, -0.05, -0.05, -0.05]) + np.array([0.01, -0.01, 0.01, -0.01]) * np.sqrt(3 / 4)
    assert study.p_value(behind) > 0.99
    assert study.p_value(behind, 0.05) == pytest.approx(0.5)
    assert study.p_value(behind, 0.1) == pytest.approx(0.00106, rel=0.01)
