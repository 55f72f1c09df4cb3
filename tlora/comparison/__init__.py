"""Which adapter is better on a task.

race (`race`: adapters on one base, one after another), arms (what can race), race_result, interval (of paired
differences).
"""
