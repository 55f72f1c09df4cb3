"""Shared helpers; skip these when learning the method.

defaults (what Python and the command line take alike), validation (checks of values), text (sizes, counts, tables),
file_names, files (atomic writes), packages (versions, extras), reproducibility (seeds, exact float32 products), devices
(values on the host), peak_memory (of a block of code), distributed (process groups), progress (bars), logs (what
libraries say), front_end (who watches a cell).
"""
