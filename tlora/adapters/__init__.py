"""The adapter on a model and on disk.

config (an allocation as a PEFT config), attach (put an allocation on a model, take it off, merge it), freeze (train B
alone), lora_layers (what PEFT made of it), files (an adapter's folder), hub (where it lies), initial (save it
untrained), load (put it on a model again), compress (cut its ranks), compression (the result).
"""
