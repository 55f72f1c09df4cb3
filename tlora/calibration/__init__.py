"""Stages 1 and 2: what the task's samples excite in each module, and how sensitive the loss is to it.

In the order of the data: calibrate (`calibrate`), packing (rows that hold several samples), batches,
constant_tokens (what a chat template adds to every sample), forward_backward (one pass over the model), accumulators,
placement (sums on the device or the host), checkpoint (resume an interrupted calibration), calibration (the result),
covariance, sample_means, sensitivity, gradient, spectrum, experts (statistics of experts with few rows), expert_use
(which experts the task uses).
"""
