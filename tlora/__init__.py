"""Task-aware low-rank adaptation, made inspectable."""

from tlora.calibration import Calibration, calibrate
from tlora.subspace import Subspaces, task_subspaces
