"""Record statistics of each module while the Trainer runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import TrainerCallback

from tlora.adapters.lora_layers import adapter_layers, lora_parameters, lora_updates, weight_norm
from tlora.adapters.update import LoraUpdate
from tlora.training.checkpoints import warn_if_not_written
from tlora.utils.validation import require_positive_int

MODULE_COLUMNS = {
    "step": "optimizer step after which the statistics were taken, from 1",
    "module": "full module name",
    "update_norm": "||s B A||_F / ||W||_F",
    "effective_rank": "participation ratio of the squared singular values of B, 0 if B is zero",
    "gradient_norm": "||dL/dB||_F after clipping; NaN if B is frozen",
}
_STATISTICS = list(MODULE_COLUMNS)[2:]
_FILE = "module_history.json"


def module_statistics(
    b: Float[Tensor, "*experts d_out r"], a_gram: Float[Tensor, "*experts r r"], scale: float
) -> Float[Tensor, " 2"]:
    """Return the norm of ``scale * B A`` and the effective rank of ``B`` from ``A A^T``; both 0 for a zero ``B``.

    They are ``scale sqrt(<B^T B, A A^T>)`` and ``(sum sigma^2)^2 / sum sigma^4`` over the singular values of ``B``. Of
    several experts they are those of the block-diagonal matrix of all, the rank divided by the number of experts.
    """
    b = b.float()
    gram = b.mT @ b
    norm = (gram * a_gram).sum().clamp_min(0).sqrt() * scale
    # Divide by the trace first: fourth powers of a small B underflow in float32.
    share = gram / gram.diagonal(dim1=-2, dim2=-1).sum().clamp_min(torch.finfo(gram.dtype).tiny)
    squares = share.square().sum() * b.shape[:-2].numel()
    return torch.stack([norm, torch.where(squares > 0, 1 / squares, squares)])


class ModuleRecorder(TrainerCallback):
    """Record the statistics of every LoRA module every few steps.

    `tlora.train` adds one unless there is one among its ``callbacks``: pass ``ModuleRecorder(every=1)`` for every step,
    or a subclass that draws `latest` after ``super().on_step_end(...)``.

    Parameters
    ----------
    every : int
        Steps between two records; the first and the last step are always recorded.

    Attributes
    ----------
    names : list of str
        Full module names, in model order.
    steps : list of int
        The recorded steps.
    values : list of (M, 3) float32 tensor
        One tensor a record, on the CPU: the statistics of ``MODULE_COLUMNS``, rows in the order of ``names``.

    Notes
    -----
    A record takes a few small kernels a module and one transfer to the CPU: for the 210 modules of SmolLM2-135M at rank
    8, 0.6 % of the time of a step of 4 x 100 tokens on two CPU cores. The Gram matrix of a frozen ``A`` and the norm of
    ``W`` are computed once, when training begins.

    Examples
    --------
    >>> recorder = tlora.ModuleRecorder(every=1)
    >>> run = tlora.train(adapted, task, max_steps=2, callbacks=[recorder], progress=False)
    >>> recorder.latest[["module", "update_norm", "effective_rank"]].shape
    (14, 3)
    """

    def __init__(self, every: int = 10) -> None:
        self.every = require_positive_int(every, "every")
        self.names: list[str] = []
        self.steps: list[int] = []
        self.values: list[Tensor] = []
        self._updates: dict[str, LoraUpdate] = {}
        self._weight_norms: dict[str, float] = {}
        self._trained: list[Tensor] = []
        self._grams: dict[str, Tensor] = {}
        self._gradient_norms: Tensor | None = None

    @property
    def latest(self) -> pd.DataFrame:
        """The last record as a table, one row per module; see ``MODULE_COLUMNS``."""
        return _frame(self.names, self.steps[-1:], self.values[-1:])

    def to_frame(self) -> pd.DataFrame:
        """Return all records, one row per step and module; see ``MODULE_COLUMNS``."""
        return _frame(self.names, self.steps, self.values)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the modules, and read the records of the checkpoint that training resumes from."""
        self._updates, layers = lora_updates(kwargs["model"]), adapter_layers(kwargs["model"])
        self._trained = [b for _, b in lora_parameters(kwargs["model"]).values()]
        self.names, self.steps, self.values = list(self._updates), [], []
        self._weight_norms = {name: weight_norm(layers[name]) for name in self._updates}
        self._grams = {name: _gram(update.a) for name, update in self._updates.items() if not update.a.requires_grad}
        file = Path(args.resume_from_checkpoint or "", _FILE)
        records = json.loads(file.read_bytes()) if args.resume_from_checkpoint and file.is_file() else {}
        if records.get("names") == self.names:
            self.steps, self.values = records["steps"], [torch.tensor(v) for v in records["values"]]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the gradient norms of a step that will be recorded: gradients are gone when it ends."""
        step = state.global_step + 1
        if self._updates and (step in (1, state.max_steps) or step % self.every == 0):
            self._gradient_norms = _stack([_gradient_norm(b) for b in self._trained])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the step if it is due."""
        if self._gradient_norms is not None:
            self.steps.append(state.global_step)
            self.values.append(torch.column_stack([self._statistics(), self._gradient_norms]).cpu())
            self._gradient_norms = None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the records into the checkpoint, for a run that resumes from it."""
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            records = {"names": self.names, "steps": self.steps, "values": [v.tolist() for v in self.values]}
            with warn_if_not_written(folder):
                (folder / _FILE).write_text(json.dumps(records))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Release the model."""
        self._updates, self._grams, self._trained, self._gradient_norms = {}, {}, [], None

    @torch.no_grad()
    def _statistics(self) -> Tensor:
        rows = []
        for name, update in self._updates.items():
            gram = self._grams[name] if name in self._grams else _gram(update.a)
            norm = self._weight_norms[name] or math.nan  # relative to a zero weight, no norm is defined
            rows.append(module_statistics(update.b, gram, update.scaling / norm))
        return _stack(rows)


def _frame(names: list[str], steps: list[int], values: list[Tensor]) -> pd.DataFrame:
    index = {"step": [s for s in steps for _ in names], "module": names * len(steps)}
    table = torch.cat(values) if values else torch.empty(0, len(_STATISTICS))
    columns = {name: table[:, i].double().numpy() for i, name in enumerate(_STATISTICS)}
    return pd.DataFrame(index | columns).astype({"step": "int64", "module": "object"})


@torch.no_grad()
def _gram(a: Tensor) -> Tensor:
    return a.float() @ a.float().mT


def _gradient_norm(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        return torch.full((), torch.nan, device=parameter.device)
    return torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)


def _stack(values: list[Tensor]) -> Tensor:
    """Stack tensors on the device of the first: a base may use several devices."""
    return torch.stack([value.to(values[0].device) for value in values])
