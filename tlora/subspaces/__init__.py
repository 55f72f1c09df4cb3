"""Stage 3: the directions of A, and how good they are.

task_subspaces (`task_subspaces`), subspaces (its result), alignment (principal angles between two subspaces) and
gradient_capture (the share of the gradient of other samples within a subspace).
"""
