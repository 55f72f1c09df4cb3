"""Numbers, labels and looks that all pictures share."""

import pytest

from viz import style


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.01234, "0.0123"), (1.234, "1.2"), (12.34, "12.3"), (999.4, "999"), (999.7, "1,000"), (1234, "1,230"),
        (1.2e7, "1.2e+07"), (0, "0"), (2e-6, "2e-06"), (float("nan"), "\u2013"),
    ],
)  # fmt: skip
def test_number(value, words):
    assert style.number(value) == words


@pytest.mark.parametrize(
    ("share", "words"), [(0.985, "99 %"), (0.0312, "3.1 %"), (0.4249, "42 %"), (0.0999, "10 %"), (0, "0 %")]
)
def test_percent(share, words):
    assert style.percent(share) == words


def test_settings_are_restored_after_an_error():
    @style.styled
    def broken():
        assert style.plt.rcParams["legend.frameon"] is False
        raise KeyError

    before = style.plt.rcParams.copy()
    with pytest.raises(KeyError):
        broken()
    assert style.plt.rcParams.copy() == before
