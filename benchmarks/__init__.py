"""What was measured and compared, and the programs that do it."""
