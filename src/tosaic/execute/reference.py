"""Arm's TOSA reference model, the oracle, in a process of its own (some bad graphs abort it)."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from tosaic.errors import ExecuteError


class Reference:
    """A worker process that runs serialized graphs; it is restarted when a graph aborts it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self, tosa: bytes, inputs: Sequence[np.ndarray], dtypes: Sequence[np.dtype], shapes: Sequence[tuple[int, ...]]
    ) -> list[np.ndarray]:
        """Run a `.tosa` file's bytes.

        Args:
            inputs: arrays in the order of the graph's inputs, with the graph's own types.
            dtypes, shapes: of the outputs (the model returns raw bytes).

        Raises:
            ExecuteError: the model is not installed, refused the graph, or aborted.
        """
        if self._process is None or self._process.poll() is not None:
            self._stderr = tempfile.TemporaryFile()
            command = [sys.executable, "-m", "tosaic.execute.reference"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr)
        assert self._process.stdin and self._process.stdout
        try:
            pickle.dump((tosa, [np.ascontiguousarray(x) for x in inputs]), self._process.stdin)
            self._process.stdin.flush()
            ok, answer = pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            self._process.wait()
            raise ExecuteError(f"the TOSA reference model stopped: {self._complaint()}") from None
        if not ok:
            raise ExecuteError(f"the TOSA reference model: {answer}\n{self._complaint()}".rstrip())
        return [np.frombuffer(raw, dtype).reshape(shape) for raw, dtype, shape in zip(answer, dtypes, shapes, strict=True)]

    def _complaint(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-6:])

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _serve() -> None:
    """Read (file, inputs) from stdin, answer on stdout, until stdin closes."""
    import os

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the model prints goes to stderr
    try:
        import tosa_reference_model as model
    except ImportError as error:
        pickle.load(sys.stdin.buffer)
        pickle.dump((False, f"is not installed ({error}); pip install tosa-tools"), answers)
        answers.flush()
        return
    while True:
        try:
            tosa, inputs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            outputs, status = model.run(tosa, inputs, verbosity="NONE")
            done = status == model.GraphStatus.TOSA_VALID
            answer = [np.asarray(o).tobytes() for o in outputs] if done else f"status {status.name}"
            pickle.dump((done, answer), answers)
        except (ValueError, RuntimeError) as error:
            pickle.dump((False, str(error)), answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
