"""Task-aware low-rank adaptation, made inspectable.

TLoRA decides a LoRA adapter before training, from a few samples of the task; here each of its decisions is an object
that one can inspect, question and edit. The public names stand in ``__init__.pyi``, in the order of the pipeline.
"""

import logging

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# PEFT imports bitsandbytes where that is installed, and its import says on every CPU that optional kernels are missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels-community" not in str(record.msg))
