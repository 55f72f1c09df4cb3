"""Tensors and arrays only: no model, no result.

linalg (leading subspaces, Gram matrices), sketching (second moments, whole or sketched), statistics (bootstrap
intervals), apportionment (integers with an exact sum).
"""
