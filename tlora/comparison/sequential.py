"""Error spent over several looks at a race."""

from __future__ import annotations

LAST = 0.8
"""Part of the error that the last look spends: what is asked is who is better in the end."""


def error_at_looks(looks: int, error: float) -> list[float]:
    """How much of the error each planned look may spend.

    Parameters
    ----------
    looks : int
        Looks that are planned.
    error : float
        Share of races in which an interval may miss the difference, at any look.

    Returns
    -------
    list of float
        They sum to ``error``: four fifths for the last look, the rest evenly for those before.

    Notes
    -----
    By the union bound no more than ``error`` of races have an interval that misses at any look, whatever the looks
    have in common. Boundaries of group-sequential trials (Pocock, O'Brien-Fleming) are narrower and do not hold here:
    they are for data that accumulate, and here the same samples are looked at with adapters that are trained further.
    To spend little before the end is the proposal of Haybittle and Peto.

    References
    ----------
    Haybittle, "Repeated assessment of results in clinical trials of cancer treatment", British Journal of Radiology
    1971; Peto et al., "Design and analysis of randomized clinical trials requiring prolonged observation of each
    patient", British Journal of Cancer 1976.
    """
    if looks == 1:
        return [error]
    return [*[(1 - LAST) * error / (looks - 1)] * (looks - 1), LAST * error]
