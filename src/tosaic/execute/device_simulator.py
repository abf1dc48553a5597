"""The simulator on another device than the processor: its values are tensors there, its kernels those of `tensors`.

An operator that has no kernel there (8-bit floats, sums kept in f16, Fourier transforms, control flow) runs on the processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tosaic.errors import ExecuteError
from tosaic.execute import tensors_mac  # noqa: F401  it fills TENSOR_HANDLERS
from tosaic.execute.handlers import Kernel, as_torch
from tosaic.execute.simulator import Simulator, kernel
from tosaic.execute.tensors import TENSOR_HANDLERS, TYPES
from tosaic.tosa.graph import Graph, Node, Value
from tosaic.tosa.types import DType

_FOREIGN = (DType.BF16, DType.FP8E4M3, DType.FP8E5M2)  # types that numpy itself lacks: their bits go over
_BITS = {1: torch.int8, 2: torch.int16}


def device(name: str) -> torch.device:
    """A device that torch has here.

    Raises:
        ExecuteError: there is none of this name.
    """
    try:
        found = torch.device(name)
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise ExecuteError(f"the simulator does not run on the device '{name}'", remedy="known are cpu, cuda, and cuda:N")
    if found.type == "cuda" and not torch.cuda.is_available():
        reason = "is not built for CUDA" if torch.version.cuda is None else "finds no CUDA device"
        raise ExecuteError(f"torch {torch.__version__} {reason}, so the device '{name}' is not there", remedy="run on the cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ExecuteError(f"there are {torch.cuda.device_count()} CUDA devices, so the device '{name}' is not there")
    return found


def simulator(graph: Graph, name: str = "cpu") -> Simulator:
    """A graph made ready to run on a device ("cpu", "cuda", "cuda:N").

    Raises:
        ExecuteError: the device is not there.
    """
    return Simulator(graph) if name == "cpu" else DeviceSimulator(graph, device(name))


class DeviceSimulator(Simulator):
    """See `Simulator`; the kernels are torch's own, each as exact as those of the processor."""

    def __init__(self, graph: Graph, device: torch.device) -> None:
        self._device = device
        super().__init__(graph)

    def _kernel(self, node: Node) -> Kernel:
        short = {value.dtype for value in (*node.inputs, *node.outputs)} & {DType.FP8E4M3, DType.FP8E5M2}
        handler = None if short else TENSOR_HANDLERS.get(type(node.op))
        own = handler(node) if handler is not None else None
        return own if own is not None else self._elsewhere(node)

    def _elsewhere(self, node: Node) -> Kernel:
        """The kernel of the processor, with operands that come from there, and results that go."""
        on_arrays = kernel(node)

        def moved(*operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
            made = on_arrays(*map(self._given, node.inputs, operands))
            results = made if isinstance(made, tuple) else (made,)
            return tuple(self._taken(value, np.asarray(array)) for value, array in zip(node.outputs, results, strict=True))

        return moved

    def _taken(self, value: Value, array: np.ndarray) -> torch.Tensor:
        if value.dtype in _FOREIGN:
            bits = as_torch(np.ascontiguousarray(array).reshape(array.shape).view(f"i{array.itemsize}"))
            return bits.to(self._device).view(TYPES[value.dtype])
        return as_torch(array).to(self._device)

    def _type(self, value: Value) -> torch.dtype:
        return TYPES[value.dtype]

    def _made(self, result: Any) -> Any:
        return result

    def _given(self, value: Value, result: torch.Tensor) -> np.ndarray:
        if value.dtype in _FOREIGN:
            return result.contiguous().view(_BITS[value.dtype.numpy.itemsize]).cpu().numpy().view(value.dtype.numpy)
        return result.cpu().numpy()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _free(self) -> int:
        return torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else super()._free()
