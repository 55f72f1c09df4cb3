"""The command line.

main (the commands and their errors), pipeline, estimate, evaluate, serving, compare (the commands), options, steps
(what commands share), command_line (a command as text), output.
"""
