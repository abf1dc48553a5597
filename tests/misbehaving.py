"""A worker that does what it is told, whatever that is; `test_processes` tells it."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable

import numpy as np

from tosaic.execute.worker import serve


def misbehave(what: str) -> object:
    match what:
        case "hang":
            time.sleep(600)
        case "spin":
            while True:
                pass
        case "abort":
            print("terminate called", file=sys.stderr, flush=True)
            os.abort()
        case "crash":
            ctypes.string_at(0)
        case "leave":
            os._exit(3)
        case "fill memory":
            return len(np.ones(1 << 36, np.int8))
        case "fill memory and abort":
            print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
            os.abort()
        case "raise":
            raise ValueError("it raised")
    return f"done: {what}"


def _start() -> Callable[[str], object]:
    return misbehave


if __name__ == "__main__":
    serve(_start)
