"""Widgets: every decision of the method, to be changed and seen in a notebook.

spectrum, alignment, allocation (an explorer each), training (the monitor), base (state and controls), canvas (pictures
that are drawn quickly).
"""
