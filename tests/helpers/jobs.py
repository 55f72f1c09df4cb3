"""A tiny task of each kind."""

from __future__ import annotations

from datasets import Dataset

import tlora
from tests.helpers.models import tiny_tokenizer

PAIRS = [{"prompt": f"w{4 + i % 7} w{11 + i % 11} w{22 + i}", "completion": f"w{4 + i % 7}"} for i in range(40)]
LABELS = [{"text": f"w{4 + i % 7} w{11 + i % 11} w{22 + i}", "label": i % 2} for i in range(36)]


def task(family: str = "llama") -> tlora.Task:
    """Twenty samples to train on, and eight of each other split; with labels for an encoder."""
    rows = LABELS if family == "bert" else PAIRS
    splits = {"train": rows[:20], "validation": rows[20:28], "test": rows[28:36]}
    return tlora.load_task({name: Dataset.from_list(part) for name, part in splits.items()}, tiny_tokenizer())
