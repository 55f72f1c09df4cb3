"""Stage 3: the directions of A, and how good they are.

subspaces (`task_subspaces` and its result), alignment (principal angles between two), captured_energy (of W C) and
gradient_capture (of the gradient on other samples).
"""
