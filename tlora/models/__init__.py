"""A base model: load it, find its linear layers, call it, observe it.

loading (from a folder, a hub or a package), record (what is known of a live model), targets (the linear modules that an
adapter may adapt), experts (routed experts as linear layers), module_result (the base of results about them), sharding
(over processes, by FSDP2), offloading (to the CPU or the disk), weights (dense matrices of any layer, their
fingerprints), stored_weights (those of a saved model, one by one), forward (logits and per-sample losses), hooks and
observe_experts (record what modules and experts read).
"""
