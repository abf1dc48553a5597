"""Artifacts one behind the other as one: a model that is compiled in parts, because it is too large to be held at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tosaic.artifact import Artifact, operator_counts, versions
from tosaic.emit.passport import Passport, PortRecord, ValueRecord
from tosaic.errors import GraphError
from tosaic.execute.simulator import evaluate
from tosaic.lower.operand import multiplier_shift
from tosaic.optimize.pipeline import optimize
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, verify
from tosaic.tosa.link import Part, link
from tosaic.tosa.ranges import verify_ranges
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType

_BITS = 29  # of int32 values that leave a part, as of those that enter one


@dataclass(frozen=True)
class Piece:
    """One artifact of several.

    Attributes:
        prefix: of the names of its values and modules.
        inputs, outputs: names of the whole for names of its own ports; what is not named here keeps its own.
    """

    artifact: Artifact
    prefix: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


def assemble(name: str, pieces: Sequence[Piece], outputs: Sequence[str], spec: str, **record: Any) -> Artifact:
    """One artifact that runs `pieces` in order, optimized as a whole.

    A value that one piece gives at another scale than the next takes it goes through a RESCALE.

    Args:
        outputs: names of the whole that are its outputs, in order. An input that no earlier piece gives becomes one of the whole.
        record: further fields of the passport.

    Raises:
        GraphError: names or types do not agree, or an output is given by no piece.
        SpecError: `spec` cannot hold an operator.
    """
    parts, ports, ledger = list[Part](), dict[str, PortRecord](), []
    for piece in pieces:
        passport, graph = piece.artifact.passport, piece.artifact.graph
        inputs = dict(piece.inputs)
        for port in passport.inputs:
            outer = inputs.get(port.name, port.name)
            given = ports.setdefault(outer, port.model_copy(update={"name": outer}))
            if (given.dtype, given.scale, given.zero_point) != (port.dtype, port.scale, port.zero_point):
                inputs[port.name] = f"{piece.prefix}{port.name}"
                between = _requantized(given, port)
                name_of = {between.outputs[0].name: inputs[port.name]}
                parts.append(Part(between, f"{piece.prefix}{port.name}.", {"x": outer}, name_of))
        parts.append(Part(graph, piece.prefix, inputs, piece.outputs))
        for port in passport.outputs:
            outer = piece.outputs.get(port.name, port.name)
            ports[outer] = port.model_copy(update={"name": outer})
        ledger += [row.model_copy(update={"name": piece.prefix + row.name}) for row in passport.ledger]
    whole = optimize(link(name, parts, outputs), evaluate)
    verify(whole, Spec.parse(spec))
    verify_ranges(whole)
    passport = Passport(
        name=name,
        spec=spec,
        inputs=[ports[v.name] for v in whole.inputs],
        outputs=[ports[v.name] for v in whole.outputs],
        versions=versions(),
        operators=operator_counts(whole),
        ledger=ledger,
        values={v.name: ValueRecord(**vars(v.meaning)) for v in whole.values() if v.meaning is not None},
        **record,
    )
    return Artifact(whole, passport)


def _requantized(given: PortRecord, wanted: PortRecord) -> Graph:
    """x, as one piece gives it -> y, as another takes it."""
    if given.scale is None or wanted.scale is None or given.shape != wanted.shape:
        raise GraphError(f"{given.name} is {given.dtype}{given.shape}, and is taken as {wanted.dtype}{wanted.shape}")
    builder = Builder()
    with builder.at("y"):
        value = builder.input("x", DType(given.dtype), given.shape)
        multiplier, shift = multiplier_shift(given.scale / wanted.scale)
        if value.dtype is DType.INT32:  # what RESCALE takes, |value| < 2^(shift-1); its result saturates there, or nearly so
            limit = 2 ** min(_BITS, shift - 1) - 1
            low, high = (builder.const(np.full([1] * len(given.shape), edge), DType.INT32) for edge in (-limit, limit))
            value = builder.emit(ops.Minimum(), builder.emit(ops.Maximum(), value, low), high)
        rescale = ops.Rescale(DType(wanted.dtype), (multiplier,), (shift,), given.zero_point or 0, wanted.zero_point or 0)
        result = builder.emit(rescale, value)
    return builder.finish([result])
