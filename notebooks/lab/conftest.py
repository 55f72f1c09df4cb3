"""The blanks of the exercises fail on purpose, so that a run of all notebooks leaves them out."""

collect_ignore = ["exercises.ipynb"]
