"""Executors that lie, at the boundary of the process that they run in: `python -m lying_executors LIE.json`.

The process stands for both: what it is called with is what the reference model's process is called with (a `.tosa` file's bytes) or
what Vulkan's is (the name of a `.vgf` file). It answers with what the simulator computes, with the lie that the file tells at the
time: {"operator": "ADD", "by": 3} (the first element of each ADD is off by 3), {"operator": "ADD", "refuses": true}, or {}.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tosaic.emit.read import read_tosa, read_vgf
from tosaic.execute.handlers import HANDLERS, Kernel
from tosaic.execute.simulator import Simulator
from tosaic.execute.worker import serve
from tosaic.tosa import ops
from tosaic.tosa.container import DTYPES
from tosaic.tosa.graph import Graph

HONEST = dict(HANDLERS)


def lie(operator: str, by: int = 1, refuses: bool = False) -> None:
    honest = HONEST[ops.BY_NAME[operator]]

    def handler(node: Any) -> Kernel:
        if refuses:
            raise ValueError(f"no {operator} here")
        kernel = honest(node)

        def lying(*operands: np.ndarray) -> np.ndarray:
            result = np.array(kernel(*operands))
            if node.output.dtype.is_float:
                result.flat[0] *= 1 + by / 1000
            else:
                room = result.flat[0] <= node.output.dtype.max - by
                result.flat[0] += by if room else -by
            return result

        return lying

    HANDLERS[ops.BY_NAME[operator]] = handler


def run(graph: Graph, inputs: list[np.ndarray]) -> list[bytes]:
    return [x.tobytes() for x in Simulator(graph).run(inputs)]


def reference(tosa: bytes, inputs: list[np.ndarray]) -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "part.tosa")
        path.write_bytes(tosa)
        graph = read_tosa(path)
    return run(graph, [x.view(v.dtype.numpy) for x, v in zip(inputs, graph.inputs, strict=True)])


def vulkan(key: tuple[Any, ...], inputs: list[Any], outputs: list[Any], raw: list[bytes]) -> list[bytes]:
    arrays = [np.frombuffer(data, DTYPES[format_].numpy).reshape(shape) for data, (_, _, format_, shape) in zip(raw, inputs, strict=True)]
    return run(read_vgf(key[0]), arrays)


def start() -> Callable[..., list[bytes]]:
    def answer(*arguments: Any) -> list[bytes]:
        HANDLERS.update(HONEST)
        if told := json.loads(Path(os.environ["TOSAIC_LIE"]).read_text()):
            lie(**told)
        return vulkan(*arguments) if len(arguments) == 4 else reference(*arguments)

    return answer


if __name__ == "__main__":
    serve(start)
