"""Threads of the simulator: plain ones that sleep when they have nothing to do, and torch's, which do not.

After each loop the threads of OpenMP wait for the next one by running in a circle, and hold the cores that others need: on
a busy machine that takes many times longer than one thread alone. While a graph runs, torch therefore has one thread, and large
operators are shared out here, but for what only torch can share out (`of_torch`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from itertools import pairwise

import torch

_SHARE = 250.0  # microseconds of work that pay another thread: it takes 10 to wake up, and some 100 on a virtual machine


class _State(threading.local):
    count: int | None = None  # how many threads the caller may use; None: as many as torch
    of_several: bool = False


_state = _State()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="tosaic-kernel", initializer=_alone)


if hasattr(os, "register_at_fork"):  # a forked process inherits the pool, but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _alone() -> None:
    """Of a thread of the pool: it has no others. Torch counts for each thread of its own."""
    _state.count, _state.of_several = 1, True
    torch.set_num_threads(1)


def count() -> int:
    """How many threads the caller may use."""
    return _state.count or torch.get_num_threads()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """In here torch computes on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def ours() -> Iterator[None]:
    """In here torch has one thread, and `count` is what torch had before."""
    outer, _state.count = _state.count, count()
    try:
        with torch_threads(1):
            yield
    finally:
        _state.count = outer


def of_torch() -> AbstractContextManager[None]:
    """In here torch has as many threads as `count` says."""
    return torch_threads(count())


def of_several() -> bool:
    """Whether the caller is one of several threads that share something out, and wait for one another for Python's lock."""
    return _state.of_several


def parts(size: int, microseconds: float) -> int:
    """Into how many parts it pays to divide what takes one thread so long; `size`: how many there can be."""
    return max(1, min(count(), size, int(microseconds / _SHARE)))


def in_parallel(function: Callable[[int, int], None], size: int, parts: int) -> None:
    """Call `function(begin, end)` for as many parts of 0..size, on as many threads; what it calls has one thread."""
    if parts <= 1:
        function(0, size)
        return
    borders = [size * i // parts for i in range(parts + 1)]
    with ours():
        others = [_pool().submit(_inferring, function, begin, end) for begin, end in pairwise(borders[1:])]
        outer = _state.count, _state.of_several
        _state.count, _state.of_several = 1, True
        try:
            function(0, borders[1])
        finally:
            _state.count, _state.of_several = outer
            wait(others)  # nothing may still be written to when the caller goes on
    for other in others:
        other.result()


def _inferring(function: Callable[[int, int], None], begin: int, end: int) -> None:
    with torch.inference_mode():  # one of each thread, too
        function(begin, end)
