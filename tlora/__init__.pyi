"""The public names, in the order of the pipeline: `lazy_loader` loads them from here, editors and mypy read them."""

__version__: str

import viz as viz

from .models.loading import load_model as load_model
from .models.targets import target_modules as target_modules
from .models.targets import Target as Target
from .resources.estimate import estimate as estimate
from .resources.estimate import ResourceEstimate as ResourceEstimate
from .tasks.load import load_task as load_task
from .tasks.load_texts import load_texts as load_texts
from .tasks.load import task_names as task_names
from .tasks.task import Task as Task
from .calibration.calibrate import calibrate as calibrate
from .calibration.calibration import Calibration as Calibration
from .calibration.covariance import Covariance as Covariance
from .calibration.spectrum import Spectrum as Spectrum
from .calibration.sensitivity import Sensitivity as Sensitivity
from .allocation.stability import ranking_stability as ranking_stability
from .subspaces.task_subspaces import task_subspaces as task_subspaces
from .subspaces.subspaces import Subspaces as Subspaces
from .subspaces.alignment import align as align
from .subspaces.alignment import Alignment as Alignment
from .subspaces.gradient_capture import gradient_capture as gradient_capture
from .subspaces.gradient_capture import GradientCapture as GradientCapture
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
from .adapters.compress import compress as compress
from .adapters.compression import Compression as Compression
from .adapters.combine import combine as combine
from .adapters.combine import Combination as Combination
from .serving.export import export as export
from .serving.inspect import inspect as inspect
from .serving.inspection import Inspection as Inspection
from .explanation.direction_activations import direction_activations as direction_activations
from .explanation.direction_activations_result import DirectionActivations as DirectionActivations
from .explanation.attribute import attribute as attribute
from .explanation.attribution import Attribution as Attribution
from .explanation.side_effects import side_effects as side_effects
from .explanation.side_effects import SideEffects as SideEffects
from .explanation.measure_scales import measure_scales as measure_scales
from .explanation.measure_scales import Rescaling as Rescaling
from .explanation.interference import interference as interference
from .explanation.interference import Interference as Interference
from .recipes import Recipe as Recipe
from .recipes import Plan as Plan
from .recipes import prepare as prepare
from .comparison.race import race as race
from .comparison.race_result import Race as Race
