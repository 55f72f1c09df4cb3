"""What PEFT's comparison board lists for a frozen `A`, and what freezing saves in its setting by `tlora.estimate`.

    python -m benchmarks.quality.board            # compute the tables, and print them
    python -m benchmarks.quality.board --table    # the same, and write them to the page

No weight is loaded. The board's own numbers are copied from its results in PEFT's repository.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from transformers import LlamaConfig

import tlora
from benchmarks.quality.pages import markdown, publish

PAGE = Path("docs/results/board.md")
LLAMA = LlamaConfig(
    vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
    num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, max_position_embeddings=131072,
)  # fmt: skip
"""The shapes of Llama-3.2-3B."""
RANK, BATCH_SIZE = 32, 4
LONGEST = 768
"""Tokens at which the board cuts a sample."""
STEPS, TOKENS, QUESTIONS = 5000, 4_198_051, 1319
"""Optimizer steps of a run of the board, tokens it trains on, and test questions."""
MEAN = round(TOKENS / (STEPS * BATCH_SIZE))
"""Tokens of a mean sample."""


@dataclass(frozen=True)
class Entry:
    """One result of the board: the highest reserved memory, in bytes, and the share of right answers."""

    peak: int
    accuracy: float


JANUARY, JULY = "January 2026", "July 2026"
BOARD = {
    "LoRA": {JANUARY: Entry(22286434304, 0.49052312357846856), JULY: Entry(22292725760, 0.4783927217589083)},
    "LoRA-FA": {JANUARY: Entry(20206059520, 0.42532221379833207), JULY: Entry(22240296960, 0.4040940106141016)},
    "MiSS": {JANUARY: Entry(20275265536, 0.5072024260803639), JULY: Entry(20271071232, 0.48673237300985595)},
}
"""Results of PEFT's ``method_comparison/MetaMathQA/results``, at its commits a99942694 and 51c2ff666."""
ESTIMATED = {"LoRA": "training A and B", "LoRA-FA": "training B"}
"""The stage of `tlora.estimate` that a method of the board is."""
TARGETS = {
    "q, v": ("q_proj", "v_proj"),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "all linear layers": None,
}


@dataclass(frozen=True)
class Case:
    """A setting of a training step of four samples."""

    targets: str
    length: int = LONGEST
    dtype: str = "bfloat16"
    checkpointing: bool = False


CASES = (
    *(Case(targets, length) for length in (MEAN, LONGEST) for targets in TARGETS),
    *(Case(targets, dtype="float32") for targets in TARGETS if targets != "attention"),
    *(Case(targets, checkpointing=True) for targets in TARGETS if targets != "attention"),
)


@cache
def peaks(case: Case) -> dict[str, int]:
    """Return the peak of each stage of a case, in bytes."""
    estimate = tlora.estimate(
        LLAMA, RANK, length=case.length, batch_size=BATCH_SIZE, dtype=case.dtype,
        gradient_checkpointing=case.checkpointing, target_modules=TARGETS[case.targets],
    )  # fmt: skip
    return estimate.bytes


def board_table() -> str:
    """The board's entries, and the estimate of a step with its longest samples."""
    estimated = peaks(Case("q, v"))
    lines = []
    for method, entries in BOARD.items():
        accuracies = [f"{entry.accuracy:.3f}" for entry in entries.values()]
        gigabytes = [f"{entry.peak / 1e9:.2f}" for entry in entries.values()]
        stage = ESTIMATED.get(method)
        lines.append([method, *accuracies, *gigabytes, f"{estimated[stage] / 1e9:.2f}" if stage else ""])
    heads = [f"{what}, {when}" for what in ("accuracy", "GB") for when in (JANUARY, JULY)]
    return markdown(["method", *heads, "GB, estimated"], lines)


def saving_table() -> str:
    """What LoRA takes and what freezing saves, by case, in GB."""
    lines = []
    for case in CASES:
        by_stage = {stage: size / 1e9 for stage, size in peaks(case).items()}
        lora, frozen = by_stage["training A and B"], by_stage["training B"]
        as_base = by_stage.get("training A and B, adapter as base")
        sizes = [f"{lora:.2f}", "" if as_base is None else f"{as_base:.2f}", f"{frozen:.2f}", f"{lora - frozen:.2f}"]
        setting = [case.targets, f"{BATCH_SIZE} x {case.length}", case.dtype, "yes" if case.checkpointing else "no"]
        lines.append([*setting, *sizes])
    heads = ["targets", "tokens", "base", "checkpointing", "LoRA", "LoRA, adapter in bfloat16", "`A` frozen", "saved"]
    return markdown(heads, lines)


TABLES = {"entries": board_table, "savings": saving_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write the tables to the page")
    options = parser.parse_args()
    publish(PAGE if options.table else None, "board", TABLES)


if __name__ == "__main__":
    main()
