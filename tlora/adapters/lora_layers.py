"""What PEFT wraps a model in, and how it comes off again."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import align_module_device
from jaxtyping import Float
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.utils import cached_file

from tlora.models.sharding import full_tensor, is_sharded
from tlora.models.weights import get_base_model
from tlora.utils.files import read_json
from tlora.utils.reproducibility import exact_products

ADAPTER = "default"
EXPERTS = "which PEFT alone reads: use its own functions for this adapter"
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
COLUMNS = {
    "module": "full module name",
    "rank": "rank given to the module",
    "used_rank": "directions that hold the asked share of the update's squared norm",
    "effective_rank": "participation ratio of the squared singular values of s B A",
    "use": "used_rank divided by rank",
    "update_norm": "||s B A||_F",
}


def wrappers(base: nn.Module) -> dict[str, Any]:
    """What PEFT has wrapped layers and modules in, by their names; of wrappers inside each other the outermost."""
    found: dict[str, Any] = {}
    for name, module in base.named_modules():
        inside = found and name.startswith(f"{next(reversed(found))}.")
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not inside:
            found[name] = module
    return found


def unwrap(base: nn.Module, kept: Collection[str] = ()) -> None:
    """Put the base's own layers and modules back in the place of `wrappers`, but for those at some names."""
    for name, module in wrappers(base).items():
        if name in kept:
            continue
        inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
        parent, _, child = name.rpartition(".")
        setattr(base.get_submodule(parent), child, inner)


def taking_off(model: PeftModel, name: str) -> Callable[[], None]:
    """What takes one more adapter off again, with all that it brought, and puts back which are active and trainable.

    Parameters
    ----------
    model : peft.PeftModel
        As it is before that adapter is put on.
    name : str
        Of that adapter; where it never came so far, what there is of it goes.
    """
    base, active = model.get_base_model(), model.active_adapter
    before, put_back = wrappers(base), remember_trainable(model)

    def take_off() -> None:
        model.set_adapter(active)  # first: PEFT warns when it deletes the active one
        if name in model.peft_config:
            model.delete_adapter(name)
        unwrap(base, kept=before)
        put_back()

    return take_off


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Trainable parameters of the modules that are saved whole beside an adapter, such as the head of a classifier."""
    return [p for name, p in model.named_parameters() if p.requires_grad and ".modules_to_save." in name]


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def remember_trainable(model: nn.Module) -> Callable[[], None]:
    """What makes those parameters of a model trainable again, and only those, that are so at this moment."""
    kept = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def put_back() -> None:
        for parameter, required in kept:
            parameter.requires_grad_(required)

    return put_back


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Without the warning that PEFT asks transformers by an old name, about which nobody here can do anything."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def check_name(name: str, parameters: Iterable[str]) -> None:
    """Refuse a name of an adapter by which PEFT could not tell its parameters from those of the model.

    Parameters
    ----------
    name : str
        What the adapter is to be called.
    parameters : iterable of str
        Names of the model's parameters, and of those of a file.

    Raises
    ------
    ValueError
        If it has a dot, or is a part of their names.
    """
    if not name or "." in name:
        raise ValueError(f"name={name!r}: an adapter's name becomes part of module names, choose a word without dots")
    if any(name in key.split(".") for key in parameters):
        raise ValueError(
            f"name={name!r} is also part of the names of the model's parameters, so PEFT could not tell them from the "
            "adapter's: choose another name"
        )


def adapter_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """LoRA layers of a model by the full name of the module that each wraps, in model order."""
    return {name: module for name, module in get_base_model(model).named_modules() if isinstance(module, LoraLayer)}


def refuse_experts(layers: Mapping[str, LoraLayer]) -> None:
    """Refuse layers that hold the factors of many experts in one A and one B, in an order of their own.

    Raises
    ------
    ValueError
        If there is one.
    """
    for name, layer in layers.items():
        if getattr(layer, "num_experts", 1) > 1:
            raise ValueError(f"{name.removesuffix('.base_layer')} has LoRA of experts (target_parameters), {EXPERTS}")


def changes_the_base(config: Mapping[str, Any]) -> bool:
    """Whether the start of A and B that a config asks for rewrites the base's weights."""
    return str(config.get("init_lora_weights", "")).lower().startswith(_CHANGE_THE_BASE)


def part_in_the_base(config: Mapping[str, Any]) -> str:
    """What an adapter leaves in the base itself, whichever is active; empty where it leaves nothing."""
    if changes_the_base(config):
        return f"changed the base's own weights (init_lora_weights={config['init_lora_weights']!r})"
    bias = config.get("bias", "none")
    return "" if bias == "none" else f"trained the base's own biases (bias={bias!r})"


def kind_of_adapter(model: PeftModel) -> str:
    """PEFT's name of the kind of an adapter that is on the model, such as LORA; empty where none is left."""
    there = any(isinstance(module, BaseTunerLayer) for module in model.modules())
    return str(getattr(model.active_peft_config.peft_type, "value", "")) if there else ""


def refuse_unready(model: PeftModel, act: str) -> None:
    """Refuse an adapter that cannot be taken as it stands; ``act`` is the function that would take it.

    Raises
    ------
    ValueError
        If it is merged, or not one adapter is active.
    """
    parts = model.get_base_model().named_modules()
    merged = [name for name, m in parts if isinstance(m, BaseTunerLayer) and m.merged]
    if merged:
        raise ValueError(f"the adapter is merged into {merged[0]}: call model.unmerge_adapter() before {act}()")
    if len(names := model.active_adapters) != 1:
        there = f"{len(names)} adapters are active ({', '.join(names)})" if names else "no adapter is active"
        raise ValueError(f"{there}: model.set_adapter(name) picks one")


def shared_weight(model: PeftModel) -> tuple[str, str] | None:
    """A module of the active adapter whose weight another one has as well, and that one: a merge would change both."""
    modules = dict(model.get_base_model().named_modules(remove_duplicate=False))
    holders: dict[int, dict[int, str]] = defaultdict(dict)  # by parameter: names, by what holds the module that has it
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)][id(modules.get(name.rpartition(".")[0]))] = name.removesuffix(".base_layer")
    for name, layer in adapter_layers(model).items():
        if set(model.active_adapters).isdisjoint(layer.r):
            continue
        for parameter in layer.get_base_layer().parameters(recurse=False):
            if others := [other for holder, other in holders[id(parameter)].items() if holder != id(layer)]:
                return name, others[0]
    return None


def why_not_merged(model: PeftModel) -> str:
    """What stands against folding the active adapter into the base's weights, as a clause; empty where nothing does."""
    if shared := shared_weight(model):
        return f"{shared[0]} shares its weight with {shared[1]}, and merging would change both"
    if is_sharded(model):
        return "the base is sharded over processes"
    layers = adapter_layers(model)
    for layer in layers.values():
        if why := getattr(dict(layer.lora_B.items()).get(model.active_adapter), "why_not_merged", ""):
            return str(why)
    if getattr(model.peft_config[model.active_adapter], "lora_bias", False):
        for name, layer in layers.items():
            if getattr(layer.get_base_layer(), "bias", None) is None:
                return f"{name} has no bias into which the adapter's (lora_bias=True) could be merged"
    return ""


@dataclass(frozen=True)
class LoraModule:
    """The linear LoRA module of one adapter, as PEFT holds it.

    Attributes
    ----------
    layer : peft.tuners.lora.LoraLayer
        The wrapped module.
    a, b : Tensor
        ``A`` (r, d_in) and ``B`` (d_out, r).
    rank : int
        ``r``.
    scaling : float
        ``s``, the factor before ``B A``.
    """

    layer: LoraLayer
    a: Tensor
    b: Tensor
    rank: int
    scaling: float

    def weight_norm(self) -> float:
        """Frobenius norm of the base weight, in float32 whatever it is stored in."""
        base = self.layer.get_base_layer()
        with align_module_device(base):
            weight = full_tensor(dequantize_module_weight(base).detach())
        return torch.linalg.vector_norm(weight, dtype=torch.float32).item()


def lora_modules(model: PeftModel) -> dict[str, LoraModule]:
    """The linear LoRA modules of the active adapter, by full name in the base model, in model order."""
    adapter = model.active_adapter
    found = {}
    for name, layer in adapter_layers(model).items():
        # Embeddings, convolutions and AdaLoRA keep their factors otherwise.
        a = dict(layer.lora_A.items()).get(adapter)
        if isinstance(a, nn.Linear) and isinstance(b := layer.lora_B[adapter], nn.Linear):
            found[name] = LoraModule(layer, a.weight, b.weight, layer.r[adapter], layer.scaling[adapter])
    return found


@exact_products()
def update_singular_values(a: Float[Tensor, "r d_in"], b: Float[Tensor, "d_out r"], scaling: float) -> Tensor:
    """Singular values of ``scaling * b @ a``, largest first, (r,) float32.

    Computed from r x r factors: ``B = Q R`` and ``A^T = Q' R'`` leave the singular values of ``s R R'^T``.
    """
    core = torch.linalg.qr(b.float()).R @ torch.linalg.qr(a.float().T).R.T
    sigma = torch.linalg.svdvals(scaling * core)
    return torch.nn.functional.pad(sigma, (0, len(a) - len(sigma)))


def rank_use(singular_values: Mapping[str, Tensor], energy: float) -> pd.DataFrame:
    """One row a module; see ``COLUMNS``. A module whose update is zero uses nothing.

    Parameters
    ----------
    singular_values : mapping of str to (r,) tensor
        As from `update_singular_values`, by module.
    energy : float
        Share of the update's squared Frobenius norm that the used directions hold, in (0, 1].

    Raises
    ------
    ValueError
        If ``energy`` is not in (0, 1].
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must be a share in (0, 1], got {energy!r}: 0.99 is usual")
    rows = [(name, len(s), *_use(s.double().square(), energy)) for name, s in singular_values.items()]
    frame = pd.DataFrame(rows, columns=["module", "rank", "used_rank", "effective_rank", "update_norm"])
    return frame.assign(use=frame["used_rank"] / frame["rank"])[list(COLUMNS)]


def _use(squares: Tensor, energy: float) -> tuple[int, float, float]:
    """Used directions, participation ratio and norm, from squared singular values."""
    total = squares.sum().item()
    if total == 0:
        return 0, 0.0, 0.0
    shares = squares / total
    # The singular values are float32: a sum may end a hair below the share that it stands for.
    needed = int((shares.cumsum(0) < energy * (1 - 1e-6)).sum()) + 1
    return needed, 1 / shares.square().sum().item(), total**0.5


def say_resized(model: PeftModel) -> None:
    """Warn where the model has other tokens than the base by whose name its adapter is loaded again."""
    config = model.peft_config[model.active_adapter]
    here = getattr(model.config.get_text_config(), "vocab_size", None)
    there = _vocabulary(model.config._name_or_path)
    kept = getattr(config, "modules_to_save", None) or getattr(config, "trainable_token_indices", None)
    if here and there and here != there and not kept:
        warnings.warn(
            f"the model has {here:,} tokens and {model.config._name_or_path} has {there:,}: the adapter holds none of "
            "the others, which are lost with this model; save the resized base and attach to that, name its "
            "embeddings in modules_to_save, or export it merged into the weights",
            stacklevel=4,
        )


def _vocabulary(base: str) -> int | None:
    """Tokens of a base, by its config in a folder or in the cache of the hub."""
    options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        file = cached_file(base, "config.json", **options) if base else None
        config = read_json(Path(file)) if file else {}
        return config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return None


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """Tensors of the active adapter and of what it saves whole, by the names under which PEFT saves them."""
    # Left to itself PEFT asks a hub whether the vocabulary was resized.
    return get_peft_model_state_dict(model, adapter_name=model.active_adapter, save_embedding_layers=False)


def adapter_config(model: PeftModel) -> dict[str, Any]:
    """The config as PEFT saves it; sets are sorted, so that two equal runs save equal bytes."""
    config = model.peft_config[model.active_adapter].to_dict()
    config |= {"inference_mode": True, "base_model_name_or_path": model.config._name_or_path}
    if config["task_type"] is None:
        base = type(model.get_base_model())
        config["auto_mapping"] = {"base_model_class": base.__name__, "parent_library": base.__module__}
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    return json.loads(json.dumps(plain, default=str))
