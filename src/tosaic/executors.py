"""The three ways to run a graph: the simulator, Arm's TOSA reference model, and Vulkan."""

from __future__ import annotations

import functools
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tosaic.emit.flatbuffer import serialize
from tosaic.emit.vgf import write_vgf
from tosaic.errors import ExecuteError
from tosaic.execute.reference import Reference
from tosaic.tosa.container import FORMATS
from tosaic.tosa.graph import Graph
from tosaic.tosa.types import DType

EXECUTORS = ("simulator", "reference", "vulkan")
TITLES = {"simulator": "the simulator", "reference": "the reference model", "vulkan": "Vulkan"}

Run = Callable[..., list[np.ndarray]]  # takes a sequence of arrays; the simulator also a timer


def prepare(on: str, graph: Graph, vgf: Path | None = None, device: str = "cpu") -> Run:
    """A graph made ready to run many times on one executor; arrays in and out have the graph's own types and shapes.

    Args:
        vgf: the file that holds the graph, for Vulkan; without it one is written.
        device: that the simulator runs on: "cpu", "cuda" or "cuda:N".

    Raises:
        ExecuteError: the executor or the device is not there.
    """
    return _simulator(graph, device) if on == "simulator" else _PREPARE[on](graph, vgf)


def missing(on: str, graph: Graph | None = None) -> str | None:
    """Why an executor cannot run here (or not this graph), and the remedy; None if it can."""
    if on != "vulkan":
        return None
    if graph is not None and (node := next((n for n in graph.nodes if n.op.graphs), None)) is not None:
        return f"graphs of Vulkan have no {node.op.NAME}"
    from tosaic.execute.vulkan import available

    return available()


def shows(on: str, dtype: DType) -> bool:
    """Whether an executor takes and gives tensors of a type, and does not only compute with them."""
    if on == "reference":
        return dtype is not DType.INT48  # its Python binding has no form for it
    if on == "vulkan":
        from tosaic.execute.vulkan import FORMATS as held

        return FORMATS[dtype] in held
    return True


def description(on: str, device: str = "cpu") -> str:
    """What an executor is: its version, its device."""
    if on == "simulator":
        return f"tosaic {importlib.metadata.version('tosaic')}" + ("" if device == "cpu" else f" on {device}")
    if on == "reference":
        return f"Arm's TOSA reference model, tosa-tools {importlib.metadata.version('tosa-tools')}"
    from tosaic.execute.devices import devices

    found = devices()[0]
    layers = "" if found.native else f", Arm's emulation layers {importlib.metadata.version('ai-ml-emulation-layer-for-vulkan')}"
    return f"{found}{layers}"


def _simulator(graph: Graph, device: str) -> Run:
    from tosaic.execute.device_simulator import simulator  # late: torch

    return simulator(graph, device).run


@functools.cache
def _model() -> Reference:
    return Reference()


def _reference(graph: Graph, vgf: Path | None) -> Run:
    tosa = serialize(graph)
    dtypes, shapes = [v.dtype.numpy for v in graph.outputs], [v.shape for v in graph.outputs]
    return lambda inputs: _model().run(tosa, inputs, dtypes, shapes)


def _vulkan(graph: Graph, vgf: Path | None) -> Run:
    from tosaic.execute.vulkan import Vulkan

    if (reason := missing("vulkan")) is not None:
        raise ExecuteError(f"Vulkan cannot run here: {reason}", remedy="tosaic doctor says what is missing")
    folder = tempfile.TemporaryDirectory(prefix="tosaic-")
    path = Path(folder.name) / "model.vgf"
    if vgf is None:
        write_vgf(graph, path)
    else:  # a copy: another artifact may be saved under the same name while this one is in use
        shutil.copyfile(vgf, path)
    device = Vulkan(path)

    def run(inputs: Sequence[np.ndarray], _holds: tempfile.TemporaryDirectory[str] = folder) -> list[np.ndarray]:
        return device.run(inputs)

    return run


_PREPARE: dict[str, Callable[[Graph, Path | None], Run]] = {"reference": _reference, "vulkan": _vulkan}
