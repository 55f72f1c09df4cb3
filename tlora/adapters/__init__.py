"""Adapters: from an allocation to PEFT, to a folder, and back (stage 5 of TLoRA).

attach (put an allocation on a model, take it off, merge it), config (the PEFT config of an allocation), freeze (train B
alone), lora_layers (the LoRA layers of a model), updates (what an adapter adds), files (an adapter's folder), hub
(names on the Hugging Face hub), initial (save an adapter before training), load (load an adapter), factored (take an
adapter apart), computed_adapter (what makes a new one from it), compress and compression (cut its ranks), combine and
combination (put several together).
"""
