"""What every package below shares and the method does not need to be understood.

defaults (sizes), validation (checks of values), files (atomic writes, locks), reproducibility (seeds, exact float32
products), distributed (process groups).
"""
