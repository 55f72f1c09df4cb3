"""The command line.

main (the commands, in groups), pipeline (run, init, calibrate, allocate, train), evaluate, explain, answers (of explain
--data), measure_scales, inspect, compress, combine, extract, export, estimate, race (what the others do), options (of
all commands), checks (refusals without torch), loading (bases, tasks and adapters), unfinished (what a run keeps until
its adapter is whole), trained (what it leaves then), threads (set before torch is loaded), command_line (a command as
text), terminal (color, and lines in place of bars), output, errors.
"""
