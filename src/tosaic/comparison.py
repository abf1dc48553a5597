"""Two artifacts on the same inputs: their outputs, and where both have values of the same name, value by value."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tosaic.artifact import Artifact, dequantize
from tosaic.errors import InputError
from tosaic.execute.compare import Difference, decibels, difference, merged
from tosaic.tosa.graph import Value
from tosaic.verification import random_inputs


@dataclass
class Pair:
    """The same value in both.

    Attributes:
        location: in the user's model.
        types: element types in the first and the second.
        stored: how the second's stored values differ; None where types or scales do.
        signal, noise: power of the real values and of their difference; None where no scale is known.
    """

    name: str
    location: str
    types: tuple[str, str]
    stored: Difference | None = None
    signal: float | None = None
    noise: float | None = None

    @property
    def equal(self) -> bool:
        return self.stored is not None and self.stored.agrees

    @property
    def sqnr(self) -> float | None:
        """Of the second's real values, in dB, with the first's as the signal."""
        return None if self.signal is None or self.noise is None else decibels(self.signal, self.noise)


@dataclass(frozen=True)
class Comparison:
    """The result of `compare_artifacts`.

    Attributes:
        outputs: of the artifacts.
        values: between their operators, those of the same name and shape, in the first's order.
    """

    outputs: list[Pair]
    values: list[Pair]
    samples: int

    @property
    def equal(self) -> bool:
        return all(pair.equal for pair in self.outputs)

    @property
    def first(self) -> Pair | None:
        """The first value whose stored numbers differ, where both store it in the same way."""
        return next((pair for pair in (*self.values, *self.outputs) if pair.stored is not None and not pair.stored.agrees), None)


def compare_artifacts(
    one: Artifact, other: Artifact, inputs: Any = None, *, tolerance: float | None = None, progress: Callable[[int], None] | None = None
) -> Comparison:
    """Run two artifacts on the simulator and compare all that they have in common.

    Args:
        inputs: as for `Artifact.run`; without them random ones. Stored inputs are those of `one`.
        tolerance: of floats in ULP, see `execute.compare.difference`.
        progress: called with the number of samples that are done.

    Raises:
        InputError: the artifacts take other inputs or have other outputs.
    """
    for kind in ("inputs", "outputs"):
        shapes = [[p.model_shape for p in getattr(a.passport, kind)] for a in (one, other)]
        if shapes[0] != shapes[1]:
            raise InputError(f"the artifacts have other {kind}: {shapes[0]} and {shapes[1]}", remedy="compare two forms of one model")
    theirs = {v.name: v for v in other.graph.values()}
    nodes = {v.name: n for n in one.graph.nodes for v in n.outputs}
    outputs = {a.name: b.name for a, b in zip(one.graph.outputs, other.graph.outputs, strict=True)}
    names = {v.name: v.name for v in one.graph.values() if v.name in nodes and v.name in theirs and v.name not in outputs} | outputs
    types = {v.name: v.dtype.value for v in one.graph.values()}
    pairs = {
        name: Pair(name, one.location(nodes[name]) if name in nodes else "", (types[name], theirs[twin].dtype.value))
        for name, twin in names.items()
        if twin in theirs and name in types
    }
    count = 0
    for first, second in _samples(one, other, inputs):
        have = _values(one, first, set(pairs))
        found = _values(other, second, {names[name] for name in pairs})
        for name, pair in pairs.items():
            _compare(pair, one, other, have[name], found[names[name]], names[name], tolerance)
        count += 1
        if progress is not None:
            progress(count)
    between = [pair for name, pair in pairs.items() if name not in outputs and (pair.stored is not None or pair.signal is not None)]
    return Comparison([pairs[name] for name in outputs if name in pairs], between, count)


def _samples(one: Artifact, other: Artifact, inputs: Any) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Stored inputs of both, for each sample."""
    given = one.split(one.arrays(random_inputs(one) if inputs is None else inputs))
    for sample in given:
        [first] = list(one.samples(sample))
        second = []
        for real, stored, a, b in zip(sample, first, one.passport.inputs, other.passport.inputs, strict=True):
            alike = (a.dtype, a.scale, a.zero_point, a.layout) == (b.dtype, b.scale, b.zero_point, b.layout)
            second.append(stored if alike else real if real.dtype.kind == "f" else dequantize(stored, a))
        yield first, next(iter(other.samples(second)))


def _values(artifact: Artifact, stored: list[np.ndarray], wanted: set[str]) -> dict[str, np.ndarray]:
    found = {v.name: x for v, x in zip(artifact.graph.inputs, stored, strict=True) if v.name in wanted}

    def watch(value: Value, array: np.ndarray) -> None:
        if value.name in wanted:
            found[value.name] = array

    artifact.executor("simulator")(stored, watch=watch)
    found |= {v.name: v.data for v in artifact.graph.outputs if v.data is not None and v.name in wanted}
    return found


def _compare(pair: Pair, one: Artifact, other: Artifact, a: np.ndarray, b: np.ndarray, twin: str, tolerance: float | None) -> None:
    first, second = one.passport.values.get(pair.name), other.passport.values.get(twin)
    alike = (first is None or second is None or first == second) and a.dtype == b.dtype and a.shape == b.shape
    if alike:
        compared = difference(a, b, tolerance)
        pair.stored = compared if pair.stored is None else merged(pair.stored, compared)
    real = [r.real(x) if r is not None else x if x.dtype.kind == "f" else None for r, x in ((first, a), (second, b))]
    if real[0] is None or real[1] is None or real[0].shape != real[1].shape or (first is not None and first.scale is None):
        return
    x, y = (r.astype(np.float64) for r in real if r is not None)
    good = np.isfinite(x) & np.isfinite(y)
    pair.signal = (pair.signal or 0.0) + float(np.square(x[good]).sum())
    pair.noise = (pair.noise or 0.0) + float(np.square(x[good] - y[good]).sum())
