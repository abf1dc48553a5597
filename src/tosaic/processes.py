"""Limits on the programs of others that run beside this one: how long they may take, and how much memory; and what there is of it.

Both can be set from outside: `TOSAIC_TIME_LIMIT` in seconds, `TOSAIC_MEMORY_LIMIT` in GiB.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

from tosaic.errors import InputError

GIB = 1 << 30
SECONDS = 3600.0  # the reference model takes minutes for a large network
_OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory", "Unable to allocate")


def _from_environment(name: str, otherwise: float) -> float:
    text = os.environ.get(name)
    try:
        number = float(text) if text else otherwise
    except ValueError:
        number = -1.0
    if not number > 0:
        raise InputError(f"${name} is '{text}', expected a number above 0")
    return number


def _installed() -> float:
    """Memory of this machine in GiB."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    except (AttributeError, ValueError, OSError):  # Windows
        return 1024.0


def free_memory() -> int:
    """Bytes that this process can have: `TOSAIC_MEMORY_LIMIT` (GiB) where it is set, else what the machine, or the container, has free."""
    found = [int(_from_environment("TOSAIC_MEMORY_LIMIT", _installed()) * GIB)]
    if not os.environ.get("TOSAIC_MEMORY_LIMIT"):
        for path, start in (("/proc/meminfo", "MemAvailable:"), ("/sys/fs/cgroup/memory.max", "")):
            try:
                lines = Path(path).read_text().splitlines()
                found += [int(line.removeprefix(start).split()[0]) * (1024 if start else 1) for line in lines if line.startswith(start)]
            except (OSError, ValueError, IndexError):  # no Linux, or no limit ("max")
                continue
    return min(found)


def out_of_memory(complaint: str) -> bool:
    """Whether a program says that it could not allocate memory."""
    return any(word in complaint for word in _OUT_OF_MEMORY)


@dataclass(frozen=True)
class Limits:
    """What a process may take.

    Attributes:
        seconds: for one answer.
        gigabytes: of address space (GiB); by default the memory of the machine. Only Linux can hold a process to it.
    """

    seconds: float = field(default_factory=lambda: _from_environment("TOSAIC_TIME_LIMIT", SECONDS))
    gigabytes: float = field(default_factory=lambda: _from_environment("TOSAIC_MEMORY_LIMIT", _installed()))

    def hold(self, pid: int) -> None:
        """Limit the memory of a process from now on."""
        try:
            import resource

            size = int(self.gigabytes * GIB)
            resource.prlimit(pid, resource.RLIMIT_AS, (size, size))
        except (ImportError, AttributeError, OSError, ValueError, OverflowError):  # not on Linux, already over, or a lower limit holds
            return

    def ending(self, code: int, complaint: str) -> tuple[str, str | None]:
        """What the end of a process means, from its exit code and what it wrote, and what to do about it."""
        if out_of_memory(complaint):
            return self.out_of_memory()
        if code == -getattr(signal, "SIGKILL", 9):
            return "was killed, as the system does when memory runs out", None
        if code < 0:
            return f"was stopped by {signal.Signals(-code).name}", None
        return f"failed with exit code {code}", None

    def out_of_memory(self) -> tuple[str, str | None]:
        """The same, of a process that wanted more memory."""
        return f"ran out of memory ({self.gigabytes:.3g} GiB allowed)", "set TOSAIC_MEMORY_LIMIT (GiB) if there is more"

    def late(self) -> tuple[str, str | None]:
        """The same, of a process that did not answer in time."""
        return f"did not finish within {self.seconds:g} s", "set TOSAIC_TIME_LIMIT (seconds) to wait longer"
