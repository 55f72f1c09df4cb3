"""Adapters: from an allocation to PEFT, to a folder, and back (stage 5 of TLoRA).

attach (put an allocation on a model, take it off, merge it), config (the PEFT config of an allocation), freeze (train B
alone), lora_layers (the LoRA layers of a model), update (``s B A`` of a module, and its algebra), adapter (all updates,
and what comes with them: read, save), peft_config (keys of PEFT's config), files (an adapter's folder), hub (names on
the Hugging Face hub), initial (save an adapter before training), load_adapter (put a saved one on a model), rank_use
(how much of its rank an update uses), extract and extraction (the adapter in a full fine-tune), compress and
compression (cut ranks), combine (put several together).
"""
