"""Task-aware low-rank adaptation, made inspectable.

TLoRA decides a LoRA adapter before training, from a few samples of the task; here each of its decisions is an object
that one can look at, doubt and change. The public names below stand in the order of the walk.
"""

import logging

# PEFT imports bitsandbytes where that is installed, and its import says on every CPU that optional kernels are missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels-community" not in str(record.msg))

from tlora.models.loading import load_model
from tlora.models.targets import Target, target_modules
from tlora.estimate import ResourcePlan, plan
from tlora.tasks.task import Task
from tlora.tasks.load import load_task
from tlora.calibration.calibrate import calibrate
from tlora.calibration.calibration import Calibration
from tlora.calibration.covariance import Covariance
from tlora.calibration.sensitivity import Sensitivity
from tlora.calibration.spectrum import Spectrum
from tlora.allocation.stability import PlanStability, RankingStability, plan_stability, ranking_stability
from tlora.subspaces.subspaces import Subspaces, task_subspaces
from tlora.subspaces.alignment import Alignment, LayerAlignment, align, align_layers
from tlora.subspaces.captured_energy import CapturedEnergy, captured_energy
from tlora.subspaces.gradient_capture import GradientCapture, gradient_capture
from tlora.allocation.allocation import Allocation, allocate
from tlora.adapters.attach import attach, detach, merge
from tlora.adapters.load import load
from tlora.training.train import train
from tlora.serving.export import export
from tlora.serving.inspect import Inspection, inspect
from tlora.training.run import TrainingRun
from tlora.recipes import Recipe
from tlora.comparison.compare import compare
from tlora.comparison.comparison import Comparison

__all__ = [
    "load_model",
    "target_modules",
    "Target",
    "plan",
    "ResourcePlan",
    "load_task",
    "Task",
    "calibrate",
    "Calibration",
    "Covariance",
    "Spectrum",
    "Sensitivity",
    "RankingStability",
    "ranking_stability",
    "task_subspaces",
    "Subspaces",
    "align",
    "align_layers",
    "Alignment",
    "LayerAlignment",
    "captured_energy",
    "CapturedEnergy",
    "gradient_capture",
    "GradientCapture",
    "allocate",
    "Allocation",
    "PlanStability",
    "plan_stability",
    "attach",
    "detach",
    "train",
    "TrainingRun",
    "load",
    "merge",
    "export",
    "inspect",
    "Inspection",
    "Recipe",
    "compare",
    "Comparison",
]
