"""The command line.

main (the commands), pipeline, evaluate, explain, serving, estimate, race (what they do), options,
checks (refusals without torch), loading, command_line (a command as text), output, errors.
"""
