"""What a model will take: memory and time of each stage, from its config alone.

setup (arguments of an estimate), simulation (run a model's code on tensors without data), simulated_model (steps of
calibration and training), stages (bytes and operations of each stage), what_fits (ways to train in a given memory),
estimate (`estimate` and its result), matmul_speed (of a device).
"""
