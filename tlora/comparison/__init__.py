"""Methods against each other on one task.

compare (`compare`), methods (those that PEFT does not have: qalora, talklora, tloraplus), lr_search, run (one training
and its scores), store (runs on disk), summary (differences with intervals), comparison (the result); race (`race`:
adapters in turns on one base), sequential (its intervals), race_result.
"""
