"""Task-aware low-rank adaptation, made inspectable.

TLoRA decides a LoRA adapter before training, from a few samples of the task; here each of its decisions is an object
that one can inspect, question and edit. The public names stand in ``__init__.pyi``, in the order of the pipeline.
"""

import importlib
import logging
from typing import Any

import lazy_loader

__version__ = "0.1.0"
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """A public name, loaded when it is first used; ``tlora.viz`` is the package `viz`."""
    return importlib.import_module("viz") if name == "viz" else _public(name)


# PEFT imports bitsandbytes where that is installed, and its import says on every CPU that optional kernels are missing,
# with the hub offline also that nobody checked who published them.
for _logger, _said in (
    ("bitsandbytes.backends.cpu.ops", "kernels-community"),
    ("kernels._internals.hf_hub", "kernels-community/quantization-bitsandbytes"),
):
    logging.getLogger(_logger).addFilter(lambda record, said=_said: said not in str(record.msg))
