"""A function in a process of its own, called over pipes: what crashes or hangs there is an error here, and the next call restarts it."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from tosaic.errors import ExecuteError
from tosaic.processes import Limits, out_of_memory


class Worker:
    """A process that runs `python -m module`, which calls `serve`.

    Args:
        module: its dotted name.
        what: how messages call it.
        environment: variables that are set in the process.
        limits: for each call.
    """

    def __init__(self, module: str, what: str, environment: Mapping[str, str] | None = None, limits: Limits | None = None) -> None:
        self.module, self.what, self.environment, self.limits = module, what, environment or {}, limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: BinaryIO | None = None

    def call(self, *arguments: object) -> Any:
        """The function's answer to `arguments` (both are pickled).

        Raises:
            ExecuteError: the function raised, or the process ended, hung, or ran out of memory; the message has what it wrote to
                stderr meanwhile.
        """
        process = self._started()
        assert process.stdin and process.stdout and self._stderr
        before = self._stderr.seek(0, os.SEEK_END)
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(self.limits.seconds, stop)
        clock.daemon = True
        clock.start()
        try:
            pickle.dump(arguments, process.stdin)
            process.stdin.flush()
            ok, answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            process.kill()  # it may live on after an answer that is none
            complaint, code = self._complaint(before), process.wait()
            what, remedy = self.limits.late() if late.is_set() else self.limits.ending(code, complaint)
            self.close()
            raise ExecuteError(f"{self.what} {what}{complaint}", remedy=remedy) from None
        except BaseException:
            self.close()  # interrupted between question and answer: the pipe is out of step
            raise
        finally:
            clock.cancel()
        if not ok:
            what, remedy = answer
            if out_of_memory(what):
                what, remedy = self.limits.out_of_memory()
            raise ExecuteError(f"{self.what}: {what}{self._complaint(before)}", remedy=remedy)
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
            command = [sys.executable, "-m", self.module]
            environment = {**os.environ, **self.environment}
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=environment)
            self.limits.hold(self._process.pid)
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
