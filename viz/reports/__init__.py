"""Pages to hand on: a report of a run as one HTML file, and the model card of its adapter.

report, model_card (the two pages), contents (what a folder holds), components (what a page is made of), calibration,
allocation, training, reproduce (one section each), rendering (templates and pictures), formatting (numbers as text).
"""
