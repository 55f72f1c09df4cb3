"""Rows of text to make tasks of."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset

WORDS = ["What", "relation", "is", "Jacob", "to", "Barbara", "film", "joy", "bore", "single", "word", "mother"]


def sentences(count, seed, most=9):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, most))) for _ in range(count)]


def pairs(count=12, seed=0):
    return Dataset.from_dict(
        {
            "prompt": [f"{i} {s}:" for i, s in enumerate(sentences(count, seed))],
            "completion": sentences(count, seed + 1, 4),
        }
    )


def labeled(count=12):
    texts = [f"{i} {s}" for i, s in enumerate(sentences(count, 3))]
    return Dataset.from_dict({"text": texts, "label": [("bad", "fine", "good")[i % 3] for i in range(count)]})


def single_losses(model, rows, seq2seq=False):
    """Summed loss and number of labels of each row, alone and unpadded, by the model's own loss."""
    found = []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss.item()
        count = int((labels if seq2seq else labels[:, 1:]).ne(-100).sum())
        found.append((loss * count, count))
    return found
