"""A task: rows of text become tokens, and answers become scores.

In the order of the data: load (`load_task`), presets and reasoning_gym (named tasks), sources (files, hubs, tables),
splits, chat (roles and templates), tokenization, task (the result), evaluation (generate and classify), metrics.
reasoning_gym has a process of its own, reasoning_gym_worker; load_texts loads texts that an adapter was not trained on,
requests those that may have no reference answer.
"""
