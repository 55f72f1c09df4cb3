"""Which adapter is better on a task.

race (`race`: adapters in turns on one base), race_result, sequential (the error of each look), interval (intervals for
paired differences). methods, lr_search and summary serve the race alone; the comparison of methods is in
``benchmarks/lab``.
"""
