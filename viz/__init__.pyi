"""The public names, in the order of the pipeline: `lazy_loader` loads them from here, editors and mypy read them."""

from .plots.spectrum import plot_spectrum as plot_spectrum
from .plots.sensitivity import plot_sensitivity as plot_sensitivity
from .plots.expert_use import plot_expert_use as plot_expert_use
from .plots.alignment import plot_alignment as plot_alignment
from .plots.allocation import plot_allocation as plot_allocation
from .plots.training import plot_training as plot_training
from .plots.compression import plot_compression as plot_compression
from .plots.memory import plot_memory as plot_memory
from .plots.race import plot_race as plot_race
from .plots.tokens import plot_reads as plot_reads
from .plots.tokens import plot_tokens as plot_tokens
from .plots.attribution import plot_attribution as plot_attribution
from .plots.interference import plot_interference as plot_interference
from .plots.side_effects import plot_side_effects as plot_side_effects
from .plots.rescaling import plot_rescaling as plot_rescaling
from .widgets.workbench import Workbench as Workbench
from .widgets.explore import explore as explore
from .widgets.monitor import TrainingMonitor as TrainingMonitor
from .widgets.report import report as report
from .widgets.show import show as show
from .widgets.scenes import scenes as scenes
from .card import card as card
