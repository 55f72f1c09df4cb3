"""The public names, in the order of the pipeline: `lazy_loader` loads them from here, editors and mypy read them."""

__version__: str

import viz as viz

from .models.loading import load_model as load_model
from .models.targets import target_modules as target_modules
from .models.targets import Target as Target
from .resources.estimate import estimate as estimate
from .tasks.load import load_task as load_task
from .tasks.load_texts import load_texts as load_texts
from .tasks.load import task_names as task_names
from .tasks.task import Task as Task
from .calibration.calibrate import calibrate as calibrate
from .calibration.calibration import Calibration as Calibration
from .calibration.expert_use import expert_use as expert_use
from .calibration.covariance import Covariance as Covariance
from .allocation.stability import ranking_stability as ranking_stability
from .subspaces.task_subspaces import task_subspaces as task_subspaces
from .subspaces.subspaces import Subspaces as Subspaces
from .subspaces.alignment import align as align
from .subspaces.gradient_capture import gradient_capture as gradient_capture
from .allocation.allocate import allocate as allocate
from .allocation.allocation import Allocation as Allocation
from .allocation.stability import allocation_stability as allocation_stability
from .allocation.stability import rank_intervals as rank_intervals
from .adapters.config import lora_config as lora_config
from .adapters.attach import attach as attach
from .adapters.attach import detach as detach
from .adapters.freeze import freeze_a as freeze_a
from .adapters.freeze import FreezeA as FreezeA
from .adapters.initial import save_initial as save_initial
from .training.train import train as train
from .training.run import TrainingRun as TrainingRun
from .training.callbacks import ModuleRecorder as ModuleRecorder
from .adapters.load_adapter import load_adapter as load_adapter
from .adapters.adapter import LoraAdapter as LoraAdapter
from .adapters.update import LoraUpdate as LoraUpdate
from .adapters.attach import merge as merge
from .adapters.extract import extract as extract
from .adapters.compress import compress as compress
from .adapters.combine import combine as combine
from .serving.export import export as export
from .serving.inspect import inspect as inspect
from .serving.survival import survival as survival
from .explanation.direction_activations import direction_activations as direction_activations
from .explanation.attribute import attribute as attribute
from .explanation.compare_answers import compare_answers as compare_answers
from .explanation.side_effects import side_effects as side_effects
from .explanation.measure_scales import measure_scales as measure_scales
from .explanation.interference import interference as interference
from .recipes import Recipe as Recipe
from .recipes import Plan as Plan
from .recipes import prepare as prepare
from .comparison.race import race as race
from .result_kinds import load_result as load_result
