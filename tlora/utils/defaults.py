"""Choices and defaults that Python functions and the command line share, in a file that needs no torch."""

from typing import Final, Literal, NamedTuple, get_args

Tokens = Literal["all", "labels", "task"]
CovarianceForm = Literal["dense", "sketch"]
StatisticsPlacement = Literal["device", "host"]
Kind = Literal["wc", "w", "c", "wc_half", "g", "fisher", "random"]
Budget = Literal["ranks", "parameters"]
Scaling = Literal["nominal", "allocated"]
RanksBy = Literal["score", "captured"]
Rows = Literal["orthonormal", "variance"]
MetricName = Literal["exact_match", "final_answer", "loss"]
"""Metrics that a user can choose for a task; presets have others."""

TEXTS = ("prose", "code", "chat", "template")
"""Packaged sets of texts that adapters are not trained on."""

CombineMethod = Literal["sum", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
Parts = Literal["layers", "projections", "modules"]
Format = Literal["peft", "gguf", "merged"]
EngineName = Literal["peft", "vllm", "sglang", "tensorrt-llm", "lorax", "llama.cpp"]
Dtype = Literal["float32", "bfloat16", "float16"]
RecipeName = Literal["captured", "captured-trained", "captured-freeze-late", "tlora-paper", "lora"]
RECIPE_NAMES = get_args(RecipeName)


class SubspaceKind(NamedTuple):
    """What the rest of the code has to know about a kind of subspace."""

    meaning: str
    """What its directions are, for labels and help texts."""

    method: str = ""
    """The method known for it."""

    reads_covariance: bool = False
    """Whether its matrix holds the covariance of the inputs, so that ``centered`` has an effect."""

    reads_weight: bool = False
    """Whether its matrix holds the weight, so that the model is needed."""

    within_sketch: bool = False
    """Whether a sketched covariance limits its number of directions."""

    needs: Literal["gradient", "fisher", ""] = ""
    """What the calibration has to keep for it: its option of this name."""

    is_gradient: bool = False
    """Whether its squared singular values are the squared gradient along each direction, as ``by="captured"`` reads."""

    def is_sketched(self, covariance: CovarianceForm) -> bool:
        """Whether a calibration with covariances of this form limits its number of directions by a sketch."""
        return self.within_sketch and (covariance == "sketch" or self.needs == "fisher")


KINDS: dict[Kind, SubspaceKind] = {
    "wc": SubspaceKind(
        "right singular vectors of W C, the weight times the covariance of its inputs",
        "TLoRA",
        reads_covariance=True,
        reads_weight=True,
        within_sketch=True,
    ),
    "w": SubspaceKind("right singular vectors of W", "PiSSA", reads_weight=True),
    "c": SubspaceKind("principal directions of the inputs", "EVA", reads_covariance=True, within_sketch=True),
    "wc_half": SubspaceKind("right singular vectors of W C^(1/2)", reads_covariance=True, reads_weight=True),
    "g": SubspaceKind("directions of the mean gradient", "LoRA-GA", needs="gradient", is_gradient=True),
    "fisher": SubspaceKind(
        "input directions with the largest squared gradient", within_sketch=True, needs="fisher", is_gradient=True
    ),
    "random": SubspaceKind("a random space", "LoRA-FA"),
}
"""All kinds, in the order in which tables, legends and help texts list them."""

GRADIENT_KINDS = [kind for kind, facts in KINDS.items() if facts.is_gradient]
"""Kinds whose directions ``by="captured"`` can rank."""

RANK = 8
SAMPLES = 32
"""Samples to calibrate on."""

BATCH_SIZE = 8
"""Samples at once: in a calibration, in a training step, and in what `tlora.estimate` counts."""

TOKENS: Tokens = "all"
COVARIANCE: CovarianceForm = "dense"
SKETCH_SIZE = 256
KIND: Kind = "wc"
ROWS: Rows = "variance"
BUDGET: Budget = "ranks"
SCALING: Scaling = "nominal"
RANKS_BY: RanksBy = "score"
DIRECTIONS = 4
"""Directions of each module from which ranks by captured gradient are chosen, as a multiple of the nominal rank."""

LEARNING_RATE = 1e-3
EPOCHS = 1.0
ENERGY = 0.99
"""Share of an update's squared norm that the directions counted as used hold."""

LENGTH = 512
"""Tokens of a sample, for `tlora.estimate`."""

DTYPE: Dtype = "float32"
OPTIMIZER = "adamw_torch"

DEFAULT_RECIPE: Final = "captured"
"""What ``tlora run``, `tlora.prepare` and the workbench begin with."""
