"""The panels of the workbench: each file computes, by pure functions on results, what one panel shows.

data, spectrum, alignment, sensitivity, allocation, modules and map (the ranks), training, rank_use, attribution,
effects, reads, reproduce; parts and picture (what panels are made of), view (what the browser draws).
"""
