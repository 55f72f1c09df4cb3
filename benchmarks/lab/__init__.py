"""The laboratory: methods of adaptation trained against each other."""
