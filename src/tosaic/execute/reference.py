"""Arm's TOSA reference model, the oracle, in a process of its own (some bad graphs abort it)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tosaic.errors import ExecuteError
from tosaic.execute.worker import Worker, serve
from tosaic.processes import Limits


class Reference:
    """A worker process that runs serialized graphs; it is restarted when a graph aborts it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._worker = Worker("tosaic.execute.reference", "the TOSA reference model", limits=limits)

    def run(
        self, tosa: bytes, inputs: Sequence[np.ndarray], dtypes: Sequence[np.dtype], shapes: Sequence[tuple[int, ...]]
    ) -> list[np.ndarray]:
        """Run a `.tosa` file's bytes.

        Args:
            inputs: arrays in the order of the graph's inputs, with the graph's own types.
            dtypes, shapes: of the outputs (the model returns raw bytes).

        Raises:
            ExecuteError: the model is not installed, refused the graph, aborted, or went beyond its limits.
        """
        raw = [np.ascontiguousarray(x) for x in inputs]
        # numpy's buffer protocol has no types but its own
        raw = [x if x.dtype.isbuiltin == 1 else x.view(f"u{x.itemsize}") for x in raw]
        answer = self._worker.call(tosa, raw)
        return [np.frombuffer(raw, dtype).reshape(shape) for raw, dtype, shape in zip(answer, dtypes, shapes, strict=True)]

    def close(self) -> None:
        self._worker.close()


def _start() -> Callable[[bytes, list[np.ndarray]], list[bytes]]:
    try:
        import tosa_reference_model as model
    except ImportError as error:
        raise ExecuteError(f"is not installed ({error})", remedy="pip install tosa-tools") from None

    def run(tosa: bytes, inputs: list[np.ndarray]) -> list[bytes]:
        outputs, status = model.run(tosa, inputs, verbosity="NONE")
        if status != model.GraphStatus.TOSA_VALID:
            raise ExecuteError(f"status {status.name}")
        return [np.asarray(o).tobytes() for o in outputs]

    return run


if __name__ == "__main__":
    serve(_start)
