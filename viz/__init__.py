"""Pictures, widgets and pages of the results of `tlora`.

Each ``plot_x(result, *, ax=None)`` draws on ``ax``, or on a new figure, and returns the axes. None of them shows or
closes a figure, or changes matplotlib's settings. `Workbench` is a widget of everything known about an allocation,
`TrainingMonitor` one of a training. `report` and `card` make pages of an adapter's folder,
`scenes` a page that explains LoRA.
"""

from typing import Any

import lazy_loader

from tlora.utils.packages import require

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in ("matplotlib", "seaborn", "ipywidgets", "anywidget", "IPython"):
            require(module, "viz")
    return _load(name)
