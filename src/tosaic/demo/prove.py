"""Run a file on every executor and compare what they store, value by value."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from tosaic.artifact import Artifact, dequantize, quantize
from tosaic.execute.compare import difference
from tosaic.executors import EXECUTORS, description, missing
from tosaic.report.facts import Check


def prove(
    artifact: Artifact, pictures: Mapping[str, np.ndarray], progress: Callable[[int], None]
) -> tuple[dict[str, np.ndarray], tuple[Check, ...]]:
    """Run pictures through an artifact with one input and one output.

    Args:
        pictures: name -> real values in the model's own layout.
        progress: called with the number of runs that are done.

    Returns:
        The simulator's outputs as real values, and one check for each executor.
    """
    [port_in], [port_out] = artifact.passport.inputs, artifact.passport.outputs
    stored = {name: quantize(real, port_in, artifact.graph.inputs[0].dtype) for name, real in pictures.items()}
    expected: dict[str, np.ndarray] = {}
    checks, done = [], 0
    for executor in EXECUTORS:
        if (reason := missing(executor)) is not None:
            checks.append(Check(executor, None, 0, reason, 0.0))
            continue
        begin, values, wrong = time.perf_counter(), 0, []
        for name, array in stored.items():
            [found] = artifact.run([array], on=executor, float_io=False)
            compared = difference(expected.setdefault(name, found), found)
            values += compared.size
            if not compared.agrees:
                wrong.append(f"{name}: {compared}")
            done += 1
            progress(done)
        detail = "; ".join(wrong) or description(executor)
        checks.append(Check(executor, not wrong, values, detail, time.perf_counter() - begin))
    return {name: dequantize(value, port_out) for name, value in expected.items()}, tuple(checks)
