"""What both sides of the benchmark share, so that they do the same job and are measured alike.

Imports only the standard library at the top: importing it must not hide a part of anybody's import time.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CALIBRATION = range(0, 10)  # images that the quantizers see
HELD_OUT = range(10, 20)  # images on which the artifacts are scored
SPECS = {"8a8w": "TOSA-1.0+INT", "16a8w": "TOSA-1.0+INT+int16"}


def specification(scheme: str, scope: str) -> str:
    """The smallest that holds a scheme; what the scope linear leaves alone is float."""
    return SPECS[scheme] if scope == "full" else SPECS[scheme].replace("INT", "INT+FP", 1)


class Stopwatch:
    """Wall-clock seconds per named stage of one process in the order in which the stages ran, and their processor seconds together."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}  # most resident memory so far, MB, at the end of each stage
        self.processors: dict[str, float] = {}  # processor seconds of each stage

    @property
    def processor(self) -> float:
        """Processor seconds of all stages."""
        return sum(self.processors.values())

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start, processor = time.perf_counter(), processor_seconds()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.peaks[name] = peak_memory_mb()
        self.processors[name] = processor_seconds() - processor


def processor_seconds() -> float:
    """Of this process and of its children that have ended: a busy machine disturbs it less than the wall clock."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_memory_mb() -> float:
    """The most resident memory this process has had so far, in MB (2**20 bytes).

    The figure survives fork and exec, so a process that is measured must be started by one that is smaller: `bench.py` is.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def sqnr_db(reference: Tensor, output: Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB, energies summed over all elements: 10 log10(sum r^2 / sum (r - o)^2)."""
    import torch

    noise = (reference - output).double().square().sum()
    return float(10 * torch.log10(reference.double().square().sum() / noise))


def score(reference: Tensor, output: Tensor, labels: list[int]) -> dict[str, Any]:
    """Accuracy of logits [N,classes] against the float model's on the same images."""
    import torch

    return {
        "sqnr_db": sqnr_db(reference, output),
        "same_top1": int((reference.argmax(1) == output.argmax(1)).sum()),
        "top1": int((output.argmax(1) == torch.tensor(labels)).sum()),
        "images": len(labels),
    }


def claim_stdout() -> IO[str]:
    """Keep stdout for the result and send everything else that prints there, C++ included, to stderr."""
    result = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return result


def write_result(stream: IO[str], result: dict[str, Any]) -> None:
    """One JSON line."""
    stream.write(json.dumps(result) + "\n")
    stream.flush()
