"""Many samples of a graph: on all threads, and on each of them several at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tosaic.errors import ExecuteError
from tosaic.execute import budget, threads
from tosaic.execute.batch import batched, fitting
from tosaic.execute.device_simulator import simulator
from tosaic.execute.simulator import full_precision
from tosaic.processes import free_memory
from tosaic.tosa.graph import Graph

Arrays = list[np.ndarray]


class Together:
    """The simulator of many samples of a graph at once.

    A graph of integers runs on each thread with a share of the samples: threads that share out each operator instead wait for one
    another at every one of them. Floats are computed by torch, on its own threads.

    Attributes:
        size: how many samples `run` takes at most.
    """

    def __init__(self, graph: Graph, count: int, batch: int | None = None, device: str = "cpu") -> None:
        """
        Args:
            count: samples that there are.
            batch: samples to run at once; None: on each thread what `fitting` says, or one where an operator takes no more.

        Raises:
            ExecuteError: an operator cannot take `batch` samples at once, or they take more memory than there is.
        """
        floats = any(value.dtype.is_float for node in graph.nodes for value in (*node.inputs, *node.outputs))
        shares = 1 if floats or device != "cpu" else threads.count()
        turns = -(-count // (shares * fitting(graph)))  # of equal size
        size = min(count, batch or -(-count // turns))
        self._shares = min(shares, size)
        self._each, many = -(-size // self._shares), graph
        if self._each > 1:
            try:
                many = batched(graph, self._each)
            except ExecuteError:
                if batch:
                    raise
                self._each = 1
        self.size = self._each * self._shares
        if self._shares > 1:
            budget.check(many, lambda: free_memory() // self._shares)
        self._simulator = simulator(many, device)
        self._count = count

    def serves(self, count: int) -> bool:
        """Whether one that is made for so many samples would not run more of them at once."""
        return count <= self._count or self.size < self._count

    def run(self, samples: Sequence[Arrays], stored: Callable[[Arrays], Arrays], real: Callable[[Arrays], Arrays]) -> list[Arrays]:
        """The outputs of at most `size` samples, from the inputs of each.

        Args:
            stored, real: what is done to the inputs and the outputs of a sample, on its thread.
        """
        each, made = self._each, [list[Arrays]() for _ in range(0, len(samples), self._each)]

        def share(begin: int, end: int) -> None:
            for i in range(begin, end):
                made[i] = [*map(real, self._some([*map(stored, samples[i * each : (i + 1) * each])]))]

        with full_precision():  # of the process: the first thread that is done must not end it for the others
            threads.in_parallel(share, len(made), min(len(made), threads.count()))
        return [outputs for some in made for outputs in some]

    def _some(self, samples: Sequence[Arrays]) -> list[Arrays]:
        if self._each == 1:
            return [self._simulator.run(samples[0])]
        full = [*samples, *[samples[-1]] * (self._each - len(samples))]  # where fewer are left, the last one fills up
        outputs = self._simulator.run([np.stack(arrays) for arrays in zip(*full, strict=True)])
        return [[output[i] for output in outputs] for i in range(len(samples))]
