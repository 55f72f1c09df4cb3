"""The public names, in the order of the pipeline: `lazy_loader` loads them from here, editors and mypy read them."""

from .plots.spectrum import plot_spectrum as plot_spectrum
from .plots.sensitivity import plot_sensitivity as plot_sensitivity
from .plots.alignment import plot_alignment as plot_alignment
from .plots.allocation import plot_allocation as plot_allocation
from .plots.training import plot_training as plot_training
from .plots.compression import plot_compression as plot_compression
from .plots.race import plot_race as plot_race
from .widgets.spectrum import SpectrumExplorer as SpectrumExplorer
from .widgets.alignment import AlignmentExplorer as AlignmentExplorer
from .widgets.workbench import Workbench as Workbench
from .widgets.workbench import explore as explore
from .widgets.training import TrainingMonitor as TrainingMonitor
from .reports.report import report as report
from .reports.model_card import card as card
