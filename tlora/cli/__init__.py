"""The command line.

main (the commands and their errors), pipeline, estimate, evaluate, serving (the commands), options, steps
(what commands share), command_line (a command as text), output.
"""
