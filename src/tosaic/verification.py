"""The same inputs through every executor that is there: equal, or the first operator whose result differs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tosaic.errors import TosaicError
from tosaic.execute.compare import TOLERANCE, TOLERANCE_OF_HALVES, Difference, difference, merged
from tosaic.executors import EXECUTORS, description, missing, prepare, shows
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Value
from tosaic.tosa.types import DType

if TYPE_CHECKING:
    from tosaic.artifact import Artifact
    from tosaic.execute.pieces import Finding

EQUAL, TOLERATED, DIFFERS, FAILED, MISSING = "equal", "within tolerance", "differs", "failed", "not available"
Progress = Callable[[str, int, int], None]  # what is being done, parts done, parts in all


@dataclass(frozen=True)
class Check:
    """What one executor made of the inputs, compared with what the simulator stores.

    Attributes:
        verdict: EQUAL, TOLERATED, DIFFERS, FAILED or MISSING.
        outputs: by name, all samples together.
        detail: what the executor is, or why it failed or is missing.
        seconds: of all runs, with what the executor does before its first one.
        first: the first operator whose result differs, where the verdict is DIFFERS or FAILED and one could be found.
    """

    executor: str
    verdict: str
    outputs: dict[str, Difference]
    detail: str
    seconds: float
    first: Finding | None = None

    @property
    def agrees(self) -> bool:
        return self.verdict not in (DIFFERS, FAILED)


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        inputs: "given" or "random".
        results: the simulator's stored outputs, a list for each sample.
        tolerance: of floats, in ULP; None for the defaults.
        has_floats: whether it matters.
    """

    inputs: str
    results: list[list[np.ndarray]]
    tolerance: float | None
    has_floats: bool
    checks: tuple[Check, ...]

    @property
    def agrees(self) -> bool:
        """Whether no executor differs or failed; one that is missing says nothing."""
        return all(check.agrees for check in self.checks)

    def record(self) -> dict[str, Any]:
        """What the passport says of it."""
        found: dict[str, Any] = {"input": self.inputs, "samples": len(self.results)}
        if self.has_floats:
            found["tolerance"] = tolerance_text(self.tolerance)
        for check in self.checks:
            if check.executor != "simulator" and check.verdict != MISSING:
                found[check.executor] = check.verdict
                if check.first is not None:
                    found[f"{check.executor}_first"] = f"{check.first.operators} %{check.first.value.name}"
        return found


def tolerance_text(tolerance: float | None) -> str:
    """A tolerance of floats in words."""
    return f"{tolerance:g} ULP" if tolerance is not None else f"{TOLERANCE:g} ULP (float32), {TOLERANCE_OF_HALVES:g} ULP (shorter floats)"


def verify(
    artifact: Artifact,
    inputs: Any = None,
    *,
    on: Sequence[str] = EXECUTORS[1:],
    tolerance: float | None = None,
    each: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Verification:
    """Run an artifact on the simulator and on others, and compare what they store.

    Integers must be equal. Floats may be apart by the tolerance, as executors sum in another order; where a graph has float parts
    and its outputs are further apart, or are integers that floats were rounded to, each operator must be within the tolerance
    when it is given equal inputs.

    Args:
        inputs: as for `Artifact.run`, several samples too; without them random ones.
        on: the executors to compare with.
        tolerance: in ULP, see `execute.compare.difference`.
        each: compare each operator's result too where the outputs agree, which may hide a difference inside.
        device: that the simulator runs on (only where an operator that differs is looked for, it is the processor).
        progress: called with what is being done, and how many parts of how many are done.

    Raises:
        InputError: an input is missing or has another shape or type.
        ExecuteError: the simulator failed.
    """
    progress = progress or (lambda what, done, total: None)
    started = time.perf_counter()
    run = artifact.executor("simulator", device)  # which refuses sizes that no input could have
    kind, given = ("random", random_inputs(artifact)) if inputs is None else ("given", inputs)
    samples = list(artifact.samples(given))
    results: list[list[np.ndarray]] = []
    for i, sample in enumerate(samples):
        progress("running on the simulator", i, len(samples))
        results.append(run(sample))
    checks = [Check("simulator", EQUAL, {}, description("simulator", device), time.perf_counter() - started)]
    checks += [_check(artifact, executor, samples, results, tolerance, each, progress) for executor in on]
    return Verification(kind, results, tolerance, _has_floats(artifact.graph), tuple(checks))


def _check(
    artifact: Artifact,
    executor: str,
    samples: Sequence[Sequence[np.ndarray]],
    results: Sequence[Sequence[np.ndarray]],
    tolerance: float | None,
    each: bool,
    progress: Progress,
) -> Check:
    if (reason := missing(executor, artifact.graph)) is not None:
        return Check(executor, MISSING, {}, reason, 0.0)
    names = [port.name for port in artifact.passport.outputs]
    started = time.perf_counter()
    outputs: list[Difference] = []
    wrong: tuple[int, int] | None = None  # sample and output
    try:
        for i, (sample, expected) in enumerate(zip(samples, results, strict=True)):
            progress(f"running on {executor}", i, len(samples))
            compared = [difference(a, b, tolerance) for a, b in zip(expected, artifact.executor(executor)(sample), strict=True)]
            outputs = compared if not outputs else [merged(a, b) for a, b in zip(outputs, compared, strict=True)]
            if wrong is None:
                wrong = next(((i, j) for j, d in enumerate(compared) if not d.agrees), None)
    except TosaicError as error:
        seconds = time.perf_counter() - started
        return Check(executor, FAILED, {}, error.what, seconds, _first(artifact, executor, samples[i], None, tolerance, progress))
    seconds = time.perf_counter() - started
    by_name = dict(zip(names, outputs, strict=True))
    if wrong is None and each:
        first = _first(artifact, executor, samples[0], None, tolerance, progress)
        if first is not None:
            return Check(executor, DIFFERS, by_name, description(executor), seconds, first)
    if wrong is None:
        verdict = EQUAL if not any(d.count for d in outputs) else TOLERATED
        return Check(executor, verdict, by_name, description(executor), seconds)
    first = _first(artifact, executor, samples[wrong[0]], artifact.graph.outputs[wrong[1]], tolerance, progress)
    if _has_floats(artifact.graph) and (first is None or not first.alone):
        return Check(executor, TOLERATED, by_name, f"{description(executor)}; each operator is within the tolerance", seconds)
    return Check(executor, DIFFERS, by_name, description(executor), seconds, first)


def _first(
    artifact: Artifact, executor: str, sample: Sequence[np.ndarray], output: Value | None, tolerance: float | None, progress: Progress
) -> Finding | None:
    from tosaic.execute.pieces import first_difference, first_prefix  # late: torch

    graph = artifact.graph

    def run(part: Graph, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return prepare(executor, part)(inputs)

    def at(done: int) -> None:
        progress(f"looking for the operator that differs on {executor}", done, len(graph.nodes))

    def shown(value: Value) -> bool:
        return shows(executor, value.dtype)

    finding = first_difference(graph, sample, run, tolerance, shown, at)
    if finding is not None or output is None:
        return finding
    progress(f"looking for the operators that differ together on {executor}", 0, 0)
    return first_prefix(graph, output, sample, run, tolerance, shown)


def _has_floats(graph: Graph) -> bool:
    return any(value.dtype.is_float for part in graph.nested() for value in part.values())


# Random inputs


def random_inputs(artifact: Artifact) -> dict[str, np.ndarray]:
    """The same random stored values each time: the whole range where there is a scale, valid indices where they index."""
    random = np.random.default_rng(0)
    users = artifact.graph.users()
    return {
        port.name: _random(random, value, port.scale is not None, _index_limit(value, users))
        for port, value in zip(artifact.passport.inputs, artifact.graph.inputs, strict=True)
    }


def _random(random: np.random.Generator, value: Value, quantized: bool, indices: int | None) -> np.ndarray:
    dtype = value.dtype
    if dtype.is_float:
        return random.standard_normal(value.shape).astype(dtype.numpy)
    if dtype is DType.BOOL:
        return random.integers(0, 2, value.shape).astype(dtype.numpy)
    if indices is not None:
        low, high = 0, indices - 1
    elif dtype.bits < 32:
        low, high = dtype.min, dtype.max
    elif quantized:
        low, high = -(2**23), 2**23  # 32-bit values have head-room, which data never uses up
    else:
        low, high = 0, 0  # what it counts or selects is not known
    return random.integers(low, high, value.shape, np.int64, endpoint=True).astype(dtype.numpy)


_MOVES = (ops.Reshape, ops.Transpose, ops.Slice, ops.Reverse, ops.Tile, ops.Identity, ops.Concat)


def _index_limit(value: Value, users: dict[Value, list[Any]]) -> int | None:
    """The least size of what a value indexes, through operators that only move it; None if it indexes nothing."""
    limits, queue = [], [value]
    while queue:
        for node in users.get(current := queue.pop(), []):
            if isinstance(node.op, ops.Gather | ops.Scatter) and node.inputs[1] is current:
                limits.append(node.inputs[0].shape[1])
            elif isinstance(node.op, _MOVES):
                queue.extend(node.outputs)
    return min(limits, default=None)
