"""A task: rows of text become tokens, and answers become scores.

In the order of the data: load (`load_task`), presets and reasoning_gym (named tasks), sources (files, hubs, tables),
splits, chat (roles and templates), tokenization, task (the result), evaluation (generate and classify), metrics,
code_execution (run a model's programs); reasoning_gym and code_execution each have a worker process.
"""
