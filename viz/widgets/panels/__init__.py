"""The panels of the workbench: a file is one class, by pure functions on results, and ``registry.py`` lists them.

data, spectra, alignment, capture, reads, sensitivity, experts, allocation, training, rank_use, answer_table,
attribution, effects, reproduce; panel (what each of them is), parts (what they are made of); answers, live_panel
and live_attribution of the panels of answers.
"""
