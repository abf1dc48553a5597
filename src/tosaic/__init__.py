"""Tosaic: PyTorch models to quantized `.vgf` files, and proof of what they compute.

quantized = tosaic.quantize(model, example_inputs, calibration, scheme="8a8w")
artifact = tosaic.compile(quantized, spec="TOSA-1.0+INT")
artifact.save("model.vgf")
outputs = artifact.run(inputs, on="simulator")
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from tosaic.errors import TosaicError

if TYPE_CHECKING:
    from tosaic.artifact import Artifact, load
    from tosaic.compiler import compile, prepare_qat, quantize
    from tosaic.quantization.ptq import Quantized
    from tosaic.quantization.qat import QatSession

__version__ = "0.1.0"
__all__ = ["Artifact", "QatSession", "Quantized", "TosaicError", "compile", "load", "prepare_qat", "quantize"]

# at import, torchao reports CUDA libraries that a CPU build does not have
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# torch takes seconds to import; the command line must not wait for it before it prints its help
_HOME = {
    "Artifact": "tosaic.artifact",
    "QatSession": "tosaic.quantization.qat",
    "Quantized": "tosaic.quantization.ptq",
    "compile": "tosaic.compiler",
    "load": "tosaic.artifact",
    "prepare_qat": "tosaic.compiler",
    "quantize": "tosaic.compiler",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tosaic' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
