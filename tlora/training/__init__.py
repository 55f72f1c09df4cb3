"""Stage 5: train B and keep what it was trained with.

train (`train`), arguments, checks (before the first step), dataset, trainer, callbacks, checkpoints, run (the result).
"""
