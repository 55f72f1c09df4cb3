"""The panels of the workbench: each file computes, by pure functions on results, what one panel shows."""
