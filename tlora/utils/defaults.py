"""Sizes that Python functions and the command line share, in a file that needs no torch."""

BATCH_SIZE = 8
"""Samples at once: of a calibration, of a training step, and of what `tlora.estimate` counts."""
