"""Private names of other libraries that we use, and what silently stops without each: one table."""

import ast
import contextlib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from peft.utils.other import get_pattern_key

from tlora.adapters.peft_config import module_ranks

ROOT = Path(__file__).parents[2]
OURS = ("tlora", "viz")
SOURCES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text())
    for package in OURS
    for path in sorted((ROOT / package).rglob("*.py"))
}
PUBLIC = {"_fields", "_replace", "_repr_mimebundle_"}
"""Documented: by Python, of named tuples, and by IPython, of what it displays."""


class Private(NamedTuple):
    """A name of another library, with the module or class that has or uses it, and our file that relies on it."""

    name: str
    library: str
    file: str
    otherwise: str
    """What happens if the library no longer knows the name."""


TRAINER = "tlora/training/trainer.py"
WEIGHTS = "tlora/models/weights.py"
OBSERVED_EXPERTS = "tlora/models/observe_experts.py"
SIMULATION = "tlora/resources/simulation.py"
RESTORED = "a trained model keeps what the Trainer set on its modules"
COUNTED = "tlora.estimate cannot count memory and operations"
PRIVATE = [
    Private("_wrap_model", "transformers.trainer", TRAINER, "training over a sharded base is refused by accelerate"),
    Private("_load_best_model", "transformers.trainer", TRAINER, "load_best_model_at_end loads only 'default'"),
    Private("_save_checkpoint", "transformers.trainer", TRAINER, "a full disk ends a run; half a checkpoint resumes"),
    Private("_forward_hooks", "torch.nn.Module()", TRAINER, RESTORED),
    Private("_original_forward", "accelerate.utils.other", TRAINER, RESTORED),
    Private("_gradient_checkpointing_func", "transformers.modeling_utils", TRAINER, RESTORED),
    Private("_require_grads_hook", "transformers.modeling_utils", TRAINER, RESTORED),
    Private("_require_grads_hooks", "transformers.modeling_utils", TRAINER, RESTORED),
    Private("_ddp_params_and_buffers_to_ignore", "torch.nn.parallel.distributed", TRAINER, RESTORED),
    Private(
        "_set_params_and_buffers_to_ignore_for_model",
        "torch.nn.parallel.DistributedDataParallel",
        TRAINER,
        "training over a sharded base is refused by DDP",
    ),
    Private("_pytree", "torch.utils", TRAINER, "a head in float32 cannot read bfloat16"),
    Private("_n_gpu", "transformers.training_args", "tlora/training/arguments.py", "N GPUs train on N times the batch"),
    Private(
        "frozen_peft_weight_names",
        "peft.tuners.tuners_utils",
        "tlora/adapters/freeze.py",
        "set_adapter() and disable_adapter() make A trainable",
    ),
    Private(
        "get_pattern_key",
        "peft.tuners.lora.model",
        "tlora/adapters/peft_config.py",
        "ranks and scalings read from a config may be those of other modules",
    ),
    Private(
        "_embed",
        "peft.tuners.lora.layer",
        "tlora/explanation/gated_adapter.py",
        "an adapter of embeddings is never switched off, so attribution gives it nothing",
    ),
    Private("Int8Params", "bitsandbytes.nn.modules", WEIGHTS, "8-bit weights lose their scales"),
    Private("SCB", "bitsandbytes.nn.modules", WEIGHTS, "8-bit weights lose their scales"),
    Private("MatmulLtState", "bitsandbytes.nn.modules", WEIGHTS, "a copy of an 8-bit model holds its weights twice"),
    Private("_make_subclass", "torch.Tensor", WEIGHTS, "a copy of a quantized model cannot share its weights"),
    Private("packing_format_for_cpu", "bitsandbytes.nn.modules", WEIGHTS, "layers that pass no gradient pass as fine"),
    Private("support_avx512bf16_for_cpu", "bitsandbytes.nn.modules", WEIGHTS, "using a 4-bit layer ends its gradient"),
    Private("_hf_hook", "accelerate.hooks", "tlora/models/forward.py", "batches go where offloaded weights rest"),
    Private("_hf_hook", "accelerate.hooks", "tlora/models/offloading.py", "adapters of offloaded layers have no data"),
    Private("hf_device_map", "accelerate.big_modeling", "tlora/models/offloading.py", "PEFT moves offloaded models"),
    Private("hf_device_map", "accelerate.big_modeling", "tlora/training/arguments.py", "offloaded models are refused"),
    Private("_orig_mod", "torch._dynamo.eval_frame", "tlora/models/targets.py", "a compiled model gets wrong names"),
    Private("_pytree", "torch.utils", "tlora/models/hooks.py", "shared inputs of checkpointed blocks count twice"),
    Private("_version", "torch.Tensor", "tlora/models/hooks.py", "an input changed in place gives a wrong sensitivity"),
    Private(
        "_is_expert_parallel", "transformers.integrations.moe", "tlora/models/experts.py", "a part passes as whole"
    ),
    Private("_apply_gate", "transformers.integrations.moe", OBSERVED_EXPERTS, "experts with a gate cannot be observed"),
    Private(
        "_experts_implementation",
        "transformers.configuration_utils",
        OBSERVED_EXPERTS,
        "experts run unobserved, and their statistics stay empty",
    ),
    Private("_modules", "torch.nn.Module()", SIMULATION, "tlora.estimate runs every block, or counts some twice"),
    Private("_cdata", "torch.UntypedStorage", SIMULATION, COUNTED),
    Private("_disable_current_modes", "torch.utils._python_dispatch", SIMULATION, COUNTED),
    Private("_fused_sdp_choice", "torch", SIMULATION, COUNTED),
    Private("_grouped_mm", "torch.ops.aten", SIMULATION, "experts in float32 cannot be counted"),
    Private("_local_scalar_dense", "torch.ops.aten", SIMULATION, COUNTED),
    Private("_overloadpacket", "torch._ops", SIMULATION, COUNTED),
    Private("_python_dispatch", "torch.utils", SIMULATION, COUNTED),
    Private("_pytree", "torch.utils", SIMULATION, COUNTED),
    Private("_scaled_dot_product_flash_attention_for_cpu", "torch.ops.aten", SIMULATION, COUNTED),
    Private("_schema", "torch._ops", SIMULATION, COUNTED),
    Private("_unsafe_view", "torch.ops.aten", SIMULATION, COUNTED),
    Private(
        "_reply_subshell_for",
        "ipykernel.kernelbase",
        "viz/widgets/base.py",
        "the controls of a widget do not answer while a cell runs",
    ),
]


@pytest.mark.parametrize("row", PRIVATE, ids=lambda row: f"{row.file}-{row.name}")
def test_the_library_still_knows_the_name(row):
    """A module has it, or its source uses it other than by defining it: an override that nobody calls never runs."""
    library = pkgutil.resolve_name(row.library.removesuffix("()"))
    library = library() if row.library.endswith("()") else library
    is_known = hasattr(library, row.name) or re.search(rf"(?<!def )\b{row.name}\b", source(library))
    assert is_known, f"{row.library} no longer knows {row.name}, which {row.file} uses; without it {row.otherwise}"


def source(library: object) -> str:
    if not isinstance(library, ModuleType):
        return ""
    with contextlib.suppress(OSError):  # not written in Python
        return inspect.getsource(library)
    return ""


def test_every_private_name_is_in_the_table():
    used = {*foreign_names(), *overrides()}
    listed = {(row.file, row.name) for row in PRIVATE}
    assert not used - listed, f"use a public name of the library, or add a row to the table: {used - listed}"
    unused = [row for row in PRIVATE if row.name not in (ROOT / row.file).read_text()]
    assert not unused, f"no longer used, remove their rows: {unused}"


def is_private(name: object) -> bool:
    return isinstance(name, str) and len(name) > 1 and name.startswith("_") and not name.startswith("__")


def foreign_names() -> Iterator[tuple[str, str]]:
    """Private names that a file imports, reads, sets or passes, and that none of our files defines."""
    defined = {name for tree in SOURCES.values() for node in ast.walk(tree) for name in definitions(node)} | PUBLIC
    for file, tree in SOURCES.items():
        for node in ast.walk(tree):
            yield from ((file, name) for name in uses(node) if is_private(name) and name not in defined)


def definitions(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            yield node.name
        case ast.Name(ctx=ast.Store()):
            yield node.id
        case ast.arg():
            yield node.arg
        case ast.Attribute(value=ast.Name(id="self" | "cls"), ctx=ast.Store()):
            yield node.attr


def uses(node: ast.AST) -> Iterator[object]:
    match node:
        case ast.Attribute():
            yield node.attr
        case ast.Import():
            yield from (part for alias in node.names for part in alias.name.split("."))
        case ast.ImportFrom(module=str(module)) if module.split(".")[0] not in OURS:
            yield from (*module.split("."), *(alias.name for alias in node.names))
        case ast.keyword():
            yield node.arg
        case ast.Dict():
            yield from (key.value for key in node.keys if isinstance(key, ast.Constant))
        case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr" | "delattr"), args=[_, ast.Constant(), *_]):
            yield node.args[1].value  # type: ignore[attr-defined]


def overrides() -> Iterator[tuple[str, str]]:
    """Private methods of our classes that replace one of another library's class."""
    for file in SOURCES:
        if file.endswith("__main__.py"):
            continue
        module = importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__:
                foreign = [base for base in kind.__mro__ if not base.__module__.startswith(OURS)]
                for name in vars(kind).keys() - PUBLIC:
                    member = vars(kind)[name]
                    if is_private(name) and inspect.isfunction(member) and any(name in vars(base) for base in foreign):
                        yield file, name


PATTERNS = [
    {"^model\\.a\\.q$": 2, "q": 4},
    {"q": 4, "a.q": 2},
    {".*b\\.q": 3, "layers.1.q": 5},
    {"a|b": 6},
    {"model": 9},
    {},
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_ranks_of_patterns_are_those_that_peft_reads(pattern):
    """`tlora.adapters.peft_config` has PEFT's rule of its own, to read a config without importing PEFT."""
    names = ["model.a.q", "model.b.q", "q", "model.aq", "layers.1.q", "layers.11.q", "model.a", "model"]
    assert module_ranks({"r": 8, "rank_pattern": pattern}, names) == {
        name: pattern.get(get_pattern_key(pattern.keys(), name), 8) for name in names
    }
