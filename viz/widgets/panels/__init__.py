"""The panels of the workbench: a file is one class, by pure functions on results, and ``registry.py`` lists them.

panel (what each of them is), parts (what they are made of), answers and live_attribution (of attribution).
"""
