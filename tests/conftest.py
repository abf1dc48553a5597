"""Shared fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from tosaic.emit.flatbuffer import serialize
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
