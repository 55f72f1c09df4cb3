"""Check that two versions of the package compute the same numbers to the last bit."""
