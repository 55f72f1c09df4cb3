"""Choices and defaults that Python functions and the command line share, in a file that needs no torch."""

from typing import Any, Final, Literal

Tokens = Literal["all", "labels"]
CovarianceForm = Literal["dense", "sketch"]
Kind = Literal["wc", "w", "c", "wc_half", "g", "g_whitened", "random"]
Budget = Literal["ranks", "parameters"]
Scaling = Literal["nominal", "allocated"]
Rows = Literal["orthonormal", "variance", "whitened"]
Format = Literal["peft", "gguf", "merged"]
EngineName = Literal["peft", "vllm", "sglang", "tensorrt-llm", "lorax", "llama.cpp"]
Dtype = Literal["float32", "bfloat16", "float16"]
RecipeName = Literal["tlora-paper", "tlora", "tlora-trained", "tlora-freeze-late", "uniform", "lora"]

RANK = 8
SAMPLES = 32
"""Samples to calibrate on."""

BATCH_SIZE = 8
"""Samples at once: in a calibration, in a training step, and in what `tlora.estimate` counts."""

TOKENS: Tokens = "all"
COVARIANCE: CovarianceForm = "dense"
SKETCH_SIZE = 256
KIND: Kind = "wc"
BUDGET: Budget = "ranks"
SCALING: Scaling = "nominal"
LEARNING_RATE = 1e-3
EPOCHS = 1.0
ENERGY = 0.99
"""Share of an update's squared norm that the directions counted as used hold."""

LENGTH = 512
"""Tokens of a sample, for `tlora.estimate`."""

DTYPE: Dtype = "float32"
OPTIMIZER = "adamw_torch"

DEFAULT_RECIPE: Final = "lora"
"""The recipe of ``tlora run``, by the rule of benchmarks/quality/STUDY.md."""

RECIPES: dict[RecipeName, dict[str, Any]] = {
    "tlora-paper": {"attach": {"rows": "orthonormal"}},
    "tlora": {},  # what the functions do by default
    "tlora-trained": {"attach": {"freeze_a": False}},
    # The steps after A is frozen cost what those of ``tlora`` cost.
    "tlora-freeze-late": {"attach": {"freeze_a": False}, "train": {"freeze_a_after": 0.2}},
    "uniform": {"allocate": {"adapt_ranks": False, "adapt_scales": False}},
    "lora": {
        "task_subspaces": None,
        "allocate": {"adapt_ranks": False, "adapt_scales": False},
        "attach": {"freeze_a": False},
    },
}
"""Arguments of each recipe that differ from the defaults, by function; None for no subspaces: ``A`` is random."""


def default_rows(kind: str | None) -> Rows | None:
    """Return the length of the rows of A that goes with a kind of subspaces; None without subspaces."""
    if kind is None:
        return None
    return "whitened" if kind == "g_whitened" else "variance"
