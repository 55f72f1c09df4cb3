"""Stage 5: train B and keep what it was trained with.

train (`train`), arguments, checks (before the first step), phases (rates of A, B and the head, and when A freezes),
dataset, trainer, callbacks, checkpoints, run (the result).
"""
