"""Training runs: what training did, and the adapter that it trained (stage 5 of TLoRA)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd
from safetensors.torch import load as load_tensors
from torch import Tensor

from tlora.adapters import rank_use
from tlora.adapters.files import (
    RUN,
    TRAINING,
    check_files,
    earlier_files,
    refuse_other_writer,
    split_updates,
    write_adapter,
)
from tlora.results import Meta, Result, read_result, write_result
from tlora.training.callbacks import MODULE_COLUMNS
from tlora.utils.defaults import ENERGY
from tlora.utils.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tlora.utils.files import digest, replace_files
from tlora.utils.validation import check_arguments


@dataclass(frozen=True, repr=False, eq=False)
class TrainingRun(Result):
    """A training run: losses, statistics of each module over time, metrics before and after, and the adapter.

    Attributes
    ----------
    history : pandas.DataFrame
        One row a logged step; see ``columns``.
    module_history : pandas.DataFrame
        One row a recorded step and module; see ``module_columns``.
    before, after : dict of float
        Metrics of the task before and after training, on the split `evaluated_on`; empty if not evaluated, ``after``
        also if training was interrupted or diverged.
    ranks : dict of int
        Rank of each LoRA module by full module name, in model order.
    scalings : dict of float
        ``s`` of each LoRA module.
    frozen_a : bool
        Whether every ``A`` was frozen; `tlora.load_adapter` freezes it again.
    trainable_parameters : int
        Number of parameters that were trained.
    seconds : float
        Time spent in training, including evaluations in between, without the metrics before and after; of a training
        that resumed, also the time until its checkpoint.
    peak_bytes : int or None
        The most memory that was held while training, the model included: on a GPU what PyTorch allocated there, else
        what was resident of the process. None if the system does not report it.
    interrupted : bool
        Whether training was stopped before its last step, by the user or by a callback.
    diverged : bool
        Whether training was stopped by a loss or a gradient that is not finite; the adapter is that of the step before.
    meta : Meta
        Model, task, number of training samples; the arguments, and under ``"attach"`` those of `attach`, if known.
    adapter : dict of Tensor
        The adapter's tensors on the CPU, including a trained classification head, under the names that PEFT saves them
        by.
    adapter_config : dict
        Contents of ``adapter_config.json``.
    fingerprints : dict of (16,) float32 tensor
        A random projection of the base weight of each LoRA module that can be read, by which `tlora.load_adapter`
        recognizes another base.

    Examples
    --------
    >>> run
    TrainingRun(2 steps in ... s, loss ... trained parameters)
    >>> run.to_frame()[["step", "learning_rate"]].shape
    (2, 2)
    >>> run.rank_use()[["module", "rank", "used_rank"]].shape
    (14, 3)
    >>> tlora.TrainingRun.load(run.save("trained")).steps
    2
    """

    history: pd.DataFrame
    module_history: pd.DataFrame
    before: dict[str, float]
    after: dict[str, float]
    ranks: dict[str, int]
    scalings: dict[str, float]
    frozen_a: bool
    trainable_parameters: int
    seconds: float
    interrupted: bool
    diverged: bool
    meta: Meta
    adapter: dict[str, Tensor] = field(default_factory=dict)
    adapter_config: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, Tensor] = field(default_factory=dict)
    peak_bytes: int | None = None

    columns: ClassVar[dict[str, str]] = {
        "step": "optimizer steps done, from 1",
        "epoch": "passes over the training samples done",
        "loss": "mean training loss of the steps since the last row that has one, nats per labeled token",
        "learning_rate": "learning rate of the step",
        "grad_norm": "norm of the whole gradient before clipping",
        "eval_loss": "validation loss, mean over batches, nats per labeled token; NaN if not evaluated",
    }
    module_columns: ClassVar[dict[str, str]] = MODULE_COLUMNS
    rank_columns: ClassVar[dict[str, str]] = rank_use.RANK_COLUMNS

    @property
    def steps(self) -> int:
        """Number of optimizer steps: the last one that was logged or recorded."""
        return int(max((table["step"].max() for table in (self.history, self.module_history) if len(table)), default=0))

    @property
    def evaluated_on(self) -> str:
        """Split of ``before`` and ``after``: ``"test"``, ``"validation"``, or ``"train"`` for bare rows; else empty."""
        return str(self.meta.recipe.get("evaluated_on", ""))

    def to_frame(self) -> pd.DataFrame:
        """Return the history, one row per logged step; see ``columns``."""
        return self.history.copy()

    def singular_values(self) -> dict[str, Tensor]:
        """Return the singular values of the update ``s B A`` of each module, largest first, (r,) float32.

        Those of experts are (E, r).
        """
        updates, _, _ = split_updates(self.adapter, self.adapter_config, "the run")
        return {name: replace(updates[name], scaling=s).singular_values() for name, s in self.scalings.items()}

    def rank_use(self, energy: float = ENERGY) -> pd.DataFrame:
        """Compare the rank of each module with the directions that its update uses; see ``rank_columns``.

        These hold the share ``energy`` of its squared Frobenius norm, in (0, 1]. An update that is zero uses none.
        """
        return rank_use.rank_use(self.singular_values(), energy)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a folder that PEFT reads as an adapter, with the record of the run inside.

        Parameters
        ----------
        path : path-like
            Folder to write: ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT writes them,
            and ``tlora/run.safetensors``. An earlier run in it is replaced, other files stay.

        Returns
        -------
        pathlib.Path
            The folder.

        Raises
        ------
        FileExistsError
            If ``path`` is a file, or holds a model, or an adapter that no training of tlora wrote. The run is as it
            was: save it in another folder.
        """
        check_arguments(TrainingRun.save, locals())
        refuse_other_writer(path, TRAINING)
        with replace_files(path, last=ADAPTER_CONFIG, first=RUN.name, earlier=earlier_files(path)) as folder:
            write_adapter(folder, self.adapter, self.adapter_config)
            # The adapter stays where PEFT expects it; the run records which one it is.
            files = {name: digest(folder / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
            write_result(folder / RUN, replace(self, adapter={}, adapter_config={}), files=files)
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a run that `save` wrote.

        Parameters
        ----------
        path : path-like
            The adapter's folder.

        Returns
        -------
        TrainingRun

        Raises
        ------
        FileNotFoundError
            If the folder holds no run, or its adapter is missing.
        ValueError
            If the run is damaged or of a newer format, or the adapter is not the one that it trained.
        """
        check_arguments(TrainingRun.load, locals())
        folder = Path(path)
        check_files(folder)
        run = read_result(folder / RUN, {cls.__name__: cls})
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        return replace(run, adapter=load_tensors((folder / ADAPTER_WEIGHTS).read_bytes()), adapter_config=config)

    def _summary(self) -> str:
        losses = self.history["loss"].dropna()
        change = f", loss {losses.iloc[0]:.4g} -> {losses.iloc[-1]:.4g}" if len(losses) else ""
        start = "" if self.meta.recipe.get("b_began_at_zero", True) else ", from a B that was not zero"
        ending = ", diverged" if self.diverged else ", interrupted" if self.interrupted else ""
        return (
            f"{self.steps} steps in {self.seconds:.4g} s{change}, {len(self.ranks)} modules, "
            f"{self.trainable_parameters:,} trained parameters{start}{ending}"
        )


def history_frame(log: list[dict[str, float]]) -> pd.DataFrame:
    """Return the history of a run from the Trainer's log, merging the entries of a step into one row."""
    rows: dict[int, dict[str, float]] = {}
    for entry in log:
        if entry.keys() & {"loss", "eval_loss"}:
            rows.setdefault(int(entry["step"]), {}).update(entry)
    frame = pd.DataFrame([rows[step] for step in sorted(rows)], columns=list(TrainingRun.columns))
    return frame.astype(dict.fromkeys(TrainingRun.columns, "float64") | {"step": "int64"})
