"""A function in a process of its own, called over pipes: what crashes there is an error here, and the next call restarts it."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from tosaic.errors import ExecuteError


class Worker:
    """A process that runs `python -m module`, which calls `serve`.

    Args:
        module: its dotted name.
        what: how messages call it.
        environment: variables that are set in the process.
    """

    def __init__(self, module: str, what: str, environment: Mapping[str, str] | None = None) -> None:
        self.module, self.what, self.environment = module, what, environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: BinaryIO | None = None

    def call(self, *arguments: object) -> Any:
        """The function's answer to `arguments` (both are pickled).

        Raises:
            ExecuteError: the function raised, or the process ended; the message has what it wrote to stderr meanwhile.
        """
        process = self._started()
        assert process.stdin and process.stdout and self._stderr
        before = self._stderr.seek(0, os.SEEK_END)
        try:
            pickle.dump(arguments, process.stdin)
            process.stdin.flush()
            ok, answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            code = process.wait()
            self.close()
            raise ExecuteError(f"{self.what} stopped (exit code {code}){self._complaint(before)}") from None
        except BaseException:
            self.close()  # interrupted between question and answer: the pipe is out of step
            raise
        if not ok:
            what, remedy = answer
            raise ExecuteError(f"{self.what}: {what}{self._complaint(before)}", remedy=remedy)
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
            command = [sys.executable, "-m", self.module]
            environment = {**os.environ, **self.environment}
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=environment)
        return self._process

    def _complaint(self, start: int, count: int = 6) -> str:
        assert self._stderr
        self._stderr.seek(start)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return "".join(f"\n  {line}" for line in lines[-count:])

    def close(self) -> None:
        """End the process; a later call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe
                with contextlib.suppress(BrokenPipeError):  # unsent bytes of a call that the process did not live to read
                    pipe.close()
            self._process = None


def serve(start: Callable[[], Callable[..., object]]) -> None:
    """Answer calls from stdin on stdout until stdin closes.

    Args:
        start: does the imports and returns the function; when it raises, every call gets that as its answer.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever native code prints goes to stderr
    function: Callable[..., object] | None = None
    while True:
        try:
            arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            function = function or start()
            answer: tuple[bool, object] = (True, function(*arguments))
        except Exception as error:  # of any kind: the process must live to report it
            what = getattr(error, "what", None) or str(error) or type(error).__name__
            answer = (False, (what, getattr(error, "remedy", None)))
        pickle.dump(answer, answers)
        answers.flush()
