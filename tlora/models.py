"""Load a base model with its tokenizer, and find what of it can be adapted."""

from tlora.targets import Target, head_modules, target_modules

__all__ = ["Target", "head_modules", "target_modules"]
