"""The simulator: runs a graph by the TOSA 1.0 specification, bit for bit in integers, at the speed of torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.lib.array_utils import byte_bounds

from tosaic.errors import ExecuteError, InputError
from tosaic.execute import budget, ops_control, ops_conv, ops_elementwise, ops_fft, ops_layout, ops_matmul, ops_pool, threads  # noqa: F401  they fill HANDLERS
from tosaic.execute.handlers import HANDLERS, Kernel
from tosaic.processes import free_memory
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Node, Value

LARGE = 1 << 22  # elements of integers
_HELD = 31 << 20  # bytes; glibc raises its threshold (M_MMAP_THRESHOLD) up to 32 MiB

Watch = Callable[[Value, np.ndarray], None]
Timer = Callable[[tuple[Node, ...], float], None]


@dataclass
class _Prepared:
    """Nodes that one kernel computes, and which of their values it takes and gives."""

    nodes: tuple[Node, ...]
    kernel: Kernel
    operands: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass
class _Step:
    """One call of a kernel: the slots of its operands and results, the slots that no later step reads, and whose threads it takes."""

    prepared: _Prepared
    operands: tuple[int, ...]
    results: tuple[tuple[int, Value, tuple[int, ...], Any], ...]  # with shape and type of the array
    dead: tuple[int, ...]
    of_torch: bool


class Simulator:
    """A graph made ready to run; whatever depends on constants alone is computed here, once.

    Raises:
        ExecuteError: the graph has an operator that the simulator does not know, or takes more memory than there is.
    """

    def __init__(self, graph: Graph) -> None:
        budget.check(graph, self._free)
        _keep_memory()
        self.graph = graph
        held = {value: value.data for value in graph.constants() if value.data is not None}
        self._constants = {value: self._taken(value, data) for value, data in held.items()}
        self._memory = _memory([*held.values()])
        values = dict.fromkeys((*graph.inputs, *graph.constants(), *(v for n in graph.nodes for v in n.outputs)))
        self._slots = {value: i for i, value in enumerate(values)}
        kernels = [_Prepared((node,), self._kernel(node), node.inputs, node.outputs) for node in graph.nodes]
        self._each = self._steps(kernels)
        self._fused = self._steps(_fuse(graph, kernels))

    # What a simulator on another device does otherwise

    def _kernel(self, node: Node) -> Kernel:
        """What computes a node."""
        return kernel(node)

    def _taken(self, value: Value, array: np.ndarray) -> Any:
        """An array as kernels take it."""
        return array

    def _type(self, value: Value) -> Any:
        """The type of a value's array."""
        return value.dtype.numpy

    def _made(self, result: Any) -> Any:
        """What a kernel made, as others take it."""
        return np.asarray(result)

    def _given(self, value: Value, result: Any) -> np.ndarray:
        """The array of what is kept."""
        return result

    def _wait(self) -> None:
        """Until all kernels are done."""

    def _free(self) -> int:
        """Bytes of memory that there are."""
        return free_memory()

    def _steps(self, kernels: list[_Prepared]) -> list[_Step]:
        """The steps that run these kernels, with the places where values die."""
        kept = {*self.graph.outputs, *self.graph.constants()}
        last = {value: i for i, prepared in enumerate(kernels) for value in prepared.operands}
        steps = []
        for i, prepared in enumerate(kernels):
            over = {v for v in (*prepared.operands, *prepared.outputs) if last.get(v, i) == i} - kept
            taken, dead = (tuple(self._slots[v] for v in values) for values in (prepared.operands, over))
            given = tuple((self._slots[v], v, v.shape, self._type(v)) for v in prepared.outputs)
            steps.append(_Step(prepared, taken, given, dead, _is_of_torch((*prepared.operands, *prepared.outputs))))
        return steps

    def run(self, inputs: Sequence[np.ndarray], *, watch: Watch | None = None, timer: Timer | None = None) -> list[np.ndarray]:
        """Run the graph.

        Args:
            inputs: one array for each graph input, with the type `value.dtype.numpy` and the shape of the value.
            watch: called with each result of each node and its array, in order; the array must not be written to.
            timer: called with the seconds that the nodes given took; nodes that are computed as one come together.

        Returns:
            One array for each graph output; none shares memory with the inputs or with constants.

        Raises:
            InputError: an input is missing, or has another type or shape.
            ExecuteError: data made an operator impossible (an index outside of its tensor).
        """
        arrays: list[Any] = [None] * len(self._slots)
        for value, array in zip(self.graph.inputs, self._checked(inputs), strict=True):
            arrays[self._slots[value]] = self._taken(value, array)
        for value, kept in self._constants.items():
            arrays[self._slots[value]] = kept
        with full_precision(), torch.inference_mode(), np.errstate(all="ignore"), threads.ours():
            for step in self._fused if watch is None else self._each:
                start = time.perf_counter() if timer is not None else 0.0
                made = self._computed(step, [arrays[i] for i in step.operands])
                if timer is not None:
                    self._wait()
                    timer(step.prepared.nodes, time.perf_counter() - start)
                for (slot, value, shape, dtype), array in zip(step.results, made, strict=True):
                    arrays[slot] = result = self._made(array)
                    if result.shape != shape or result.dtype != dtype:
                        names = ", ".join(node.op.NAME for node in step.prepared.nodes)
                        raise ExecuteError(f"{names}: the simulator made {result.dtype}{list(result.shape)} of {value!r}")
                    if watch is not None:
                        watch(value, self._given(value, result))
                del made, array, result
                for i in step.dead:
                    arrays[i] = None
        held = np.concatenate([self._memory, _memory([np.asarray(x) for x in inputs])])
        return [_own(self._given(v, arrays[self._slots[v]]), held) for v in self.graph.outputs]

    def _computed(self, step: _Step, operands: list[Any]) -> tuple[Any, ...]:
        if step.of_torch:
            with threads.of_torch():
                made = step.prepared.kernel(*operands)
        else:
            made = step.prepared.kernel(*operands)
        return made if isinstance(made, tuple) else (made,)

    def _checked(self, inputs: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        expected = self.graph.inputs
        if len(inputs) != len(expected):
            names = ", ".join(repr(v) for v in expected)
            raise InputError(f"{self.graph.name} takes {len(expected)} inputs ({names}), found {len(inputs)}")
        for value, array in zip(expected, inputs, strict=True):
            array = np.asarray(array)
            if array.dtype != value.dtype.numpy or array.shape != value.shape:
                found = f"{array.dtype}{list(array.shape)}"
                raise InputError(f"input %{value.name}: expected {value.dtype.numpy}{list(value.shape)}, found {found}")
            yield array


def evaluate(graph: Graph, inputs: Sequence[np.ndarray], *, watch: Watch | None = None) -> list[np.ndarray]:
    """Run `graph` once; `Simulator` is for many runs. See `Simulator.run`."""
    return Simulator(graph).run(inputs, watch=watch)


def kernel(node: Node) -> Kernel:
    """What computes a node on arrays."""
    if type(node.op) not in HANDLERS:
        raise ExecuteError(f"the simulator has no {node.op.NAME}")
    return HANDLERS[type(node.op)](node)


def _is_of_torch(values: Sequence[Value]) -> bool:
    """Whether the threads of torch pay: for floats, of which it computes everything, and for elements by the million."""
    return any(value.dtype.is_float for value in values) or max((value.type.size for value in values), default=0) >= LARGE


def _fuse(graph: Graph, kernels: list[_Prepared]) -> list[_Prepared]:
    """Join each convolution of integers with the RESCALEs that alone read it, and these with their CLAMPs: its sums are never stored."""
    users = graph.users()

    def readers(value: Value, cls: type[ops.Op]) -> list[Node]:
        """All that reads a value, if it is of this class."""
        found = users.get(value, [])
        return found if value not in graph.outputs and all(type(node.op) is cls for node in found) else []

    fused: list[_Prepared] = []
    done: set[Node] = set()
    for prepared in kernels:
        if prepared.nodes[0] in done:
            continue
        if isinstance(prepared.kernel, ops_conv.Convolution) and (rescales := readers(prepared.outputs[0], ops.Rescale)):
            clamps = [[] if r.op.output_unsigned else readers(r.output, ops.Clamp)[:2] for r in rescales]
            ends = [(r, c[0] if len(c) == 1 else None) for r, c in zip(rescales, clamps, strict=True)]
            nodes = [node for end in ends for node in end if node is not None]
            outputs = tuple((clamp or rescale).output for rescale, clamp in ends)
            done.update(nodes)
            prepared = _Prepared((*prepared.nodes, *nodes), prepared.kernel.rescaled(ends), prepared.operands, outputs)
        fused.append(prepared)
    return fused


@cache
def _keep_memory() -> None:
    """Let the allocator keep what runs give back: the next one needs as much, and pages that the system takes and gives cost more
    than what is computed in them. Once it was given a large block back, glibc serves such sizes from its heap."""
    np.empty(_HELD, np.int8)


def _memory(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Where arrays begin and end in memory, int64 [n,2]."""
    return np.array([byte_bounds(array) for array in arrays], np.int64).reshape(-1, 2)


def _own(array: np.ndarray, held: np.ndarray) -> np.ndarray:
    """An array that lies in none of these places."""
    low, high = byte_bounds(array)
    if bool(((low < held[:, 1]) & (held[:, 0] < high)).any()):
        return array.copy()
    return np.ascontiguousarray(array).reshape(array.shape)


@contextmanager
def full_precision() -> Iterator[None]:
    """f32 products of f32 graphs in f32, also where the process lets torch round them to bf16 (8-bit integers fit that)."""
    precision = torch.get_float32_matmul_precision()
    if precision == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
