"""The panels of the workbench: each file is one class, which ``registry.py`` lists, by pure functions on results.

data, spectra, alignment, capture, reads, sensitivity, allocation, training, rank_use, attribution, effects, reproduce;
panel (what each of them is), parts (what they are made of), answers and live_attribution (of attribution).
"""
