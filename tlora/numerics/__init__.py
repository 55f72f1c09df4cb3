"""Computations on tensors and arrays, without models or results.

linalg (leading subspaces, Gram matrices), sketching (second moments, complete or sketched), statistics (bootstrap
intervals), apportionment (integers with an exact sum), quantization (rounding to the formats of engines).
"""
