"""How files state each operator: which attributes and operands, in which order; both ways between that and our operators.

Both forms agree: the TOSA flatbuffer has the attributes in a table and the operands in a list, the SPIR-V instruction set
`TOSA.001000.1` (its grammar: SPIRV-Headers, extinst.tosa.001000.1) has the attributes first, then the operands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tosaic.errors import GraphError, InputError
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Location, Node, Value
from tosaic.tosa.types import DType, TensorType

# Attributes, then operands: `x` is a tensor, `x*` the rest of them, `-` what our operators do not hold because it follows
# from the types; every other operand is a field that must be constant in the file.
_CONV = ("pad stride dilation acc_type local_bound", "x x x input_zp weight_zp")
_UNARY, _BINARY, _REDUCE, _REDUCE_NAN = ("", "x"), ("", "x x"), ("axis", "x"), ("axis nan_mode", "x")
LAYOUT: dict[str, tuple[str, str]] = {
    "ARGMAX": _REDUCE_NAN,
    "AVG_POOL2D": ("kernel stride pad acc_type", "x input_zp output_zp"),
    "CONV2D": _CONV,
    "CONV3D": _CONV,
    "DEPTHWISE_CONV2D": _CONV,
    "FFT2D": ("inverse local_bound", "x x"),
    "MATMUL": ("", "x x a_zp b_zp"),
    "MAX_POOL2D": ("kernel stride pad nan_mode", "x"),
    "RFFT2D": ("local_bound", "x"),
    "TRANSPOSE_CONV2D": ("out_pad stride acc_type local_bound", "x x x input_zp weight_zp"),
    "CLAMP": ("min_val max_val nan_mode", "x"),
    "ARITHMETIC_RIGHT_SHIFT": ("round", "x x"),
    "MAXIMUM": ("nan_mode", "x x"),
    "MINIMUM": ("nan_mode", "x x"),
    "MUL": ("", "x x shift"),
    "NEGATE": ("", "x input_zp output_zp"),
    "SELECT": ("", "x x x"),
    "REDUCE_ALL": _REDUCE,
    "REDUCE_ANY": _REDUCE,
    "REDUCE_MAX": _REDUCE_NAN,
    "REDUCE_MIN": _REDUCE_NAN,
    "REDUCE_PRODUCT": _REDUCE,
    "REDUCE_SUM": _REDUCE,
    "CONCAT": ("axis", "x*"),
    "PAD": ("", "x padding value"),
    "RESHAPE": ("", "x -"),
    "REVERSE": ("axis", "x"),
    "SLICE": ("", "x start size"),
    "TILE": ("", "x multiples"),
    "TRANSPOSE": ("perms", "x"),
    "SCATTER": ("", "x x x"),
    "RESIZE": ("mode", "x scale offset border"),
    "RESCALE": ("scale32 rounding_mode per_channel input_unsigned output_unsigned", "x multiplier shift input_zp output_zp"),
}
# fmt: off
for _layout, _names in (
    (_UNARY, ("ERF", "SIGMOID", "TANH", "ABS", "BITWISE_NOT", "CEIL", "CLZ", "COS", "EXP", "FLOOR", "LOG", "LOGICAL_NOT",
              "RECIPROCAL", "RSQRT", "SIN", "CAST", "IDENTITY")),
    (_BINARY, ("ADD", "BITWISE_AND", "BITWISE_OR", "BITWISE_XOR", "INTDIV", "LOGICAL_AND", "LOGICAL_OR", "LOGICAL_XOR", "POW",
               "SUB", "LOGICAL_LEFT_SHIFT", "LOGICAL_RIGHT_SHIFT", "TABLE", "EQUAL", "GREATER", "GREATER_EQUAL", "GATHER")),
):
    LAYOUT |= dict.fromkeys(_names, _layout)
# fmt: on

# names in files -> our fields, and what our operators do not hold because types and values settle it
_FIELD = {"out_pad": "pad", "min_val": "min", "max_val": "max", "rounding_mode": "rounding", "acc_type": "acc"}
_NOT_HELD = {"scale32"}
# numbers of the specification's enumerations (both file forms use them)
_ENUMS: dict[str, dict[int, Any]] = {
    "Rounding": {1: ops.Rounding.SINGLE, 2: ops.Rounding.INEXACT, 3: ops.Rounding.DOUBLE},
    "ResizeMode": {1: ops.ResizeMode.NEAREST, 2: ops.ResizeMode.BILINEAR},
    "NanMode": {1: ops.NanMode.PROPAGATE, 2: ops.NanMode.IGNORE},
}
# acc_type in SPIR-V; a TOSA flatbuffer has its numbers of all types there
ACCUMULATORS = {1: DType.INT32, 2: DType.FP16, 3: DType.FP32, 4: DType.INT48}
ENUM_NUMBERS: dict[Any, int] = {member: number for members in (ACCUMULATORS, *_ENUMS.values()) for number, member in members.items()}
_SHAPES = {"padding", "start", "size", "multiples", "scale", "offset", "border"}


@dataclass(eq=False)
class Constant:
    """A constant as a file has it: it becomes an attribute, or a constant value where a tensor is wanted."""

    type: TensorType
    data: np.ndarray
    name: str | None = None
    _value: Value | None = field(default=None, init=False)

    def value(self, builder: Builder) -> Value:
        """The constant in the graph; made once, as a file can name a large one often."""
        if self._value is None:
            self._value = builder.adopt(self.data, self.type.dtype, self.name)
        return self._value


@dataclass(frozen=True)
class Statement:
    """What a file says of an operator.

    Attributes:
        attributes: by the names in `LAYOUT`, in order: bool, int, tuple of int, an enumeration's member (an accumulator's is its
            DType), or a Constant of one number where its type matters.
        operands: in order; a Constant is what our operator holds as an attribute. Of `shapes` the elements are sizes and the like.
        shapes: which operands are those.
    """

    attributes: dict[str, Any]
    operands: list[Value | Constant]
    shapes: frozenset[int]


def statement(node: Node) -> Statement:
    """How a file states a node; the inverse of `operator`."""
    names, kinds = LAYOUT[node.op.NAME]
    attributes = {name: _attribute(name, node) for name in names.split()}
    tensors, shapes = iter(node.inputs), set()
    operands: list[Value | Constant] = []
    for kind in ["x"] * len(node.inputs) if kinds == "x*" else kinds.split():
        if kind == "x":
            operands.append(next(tensors))
            continue
        if kind == "-" or kind in _SHAPES:
            shapes.add(len(operands))
        operands.append(_constant_operand(kind, node))
    return Statement(attributes, operands, frozenset(shapes))


def _attribute(name: str, node: Node) -> Any:
    if name == "acc_type":
        return node.op.accumulator(node.inputs[0].dtype)  # type: ignore[attr-defined]
    value = getattr(node.op, _FIELD.get(name, name))
    return _constant([value], node.inputs[0].dtype) if name in ("min_val", "max_val") else value


def _constant_operand(kind: str, node: Node) -> Constant:
    if kind == "-":
        return _constant(node.output.shape, DType.INT32)
    value: Any = getattr(node.op, kind)
    if kind in _SHAPES:
        return _constant(value, DType.INT32)
    if kind == "multiplier":
        return _constant(value, DType.INT32 if node.op.scale32 else DType.INT16)  # type: ignore[attr-defined]
    if kind == "shift":
        return _constant(np.atleast_1d(value), DType.INT8)
    # zero points and the value of a PAD have the type of their tensor
    dtype = node.inputs[kind in ("weight_zp", "b_zp")].dtype
    if isinstance(node.op, ops.Rescale):
        dtype = node.op.dtype if kind == "output_zp" else dtype
        if value > dtype.max:  # an unsigned one
            value -= 1 << dtype.bits
    return _constant([value], dtype)


def _constant(numbers: Any, dtype: DType) -> Constant:
    data = np.array(numbers).astype(dtype.numpy)
    return Constant(TensorType(dtype, data.shape), data)


def operator(
    builder: Builder,
    name: str,
    attributes: Mapping[str, Any],
    operands: Sequence[Value | Constant],
    results: Sequence[TensorType],
    *,
    outputs: Sequence[str],
    location: Location | None = None,
) -> tuple[Value, ...]:
    """Emit the operator that a file states.

    Args:
        attributes: numbers, or sequences of them, by the names in `LAYOUT`; `acc_type` is a DType.
        results: the types that the file gives to the results.
        outputs: names of the results.

    Raises:
        InputError: the operator is not known, an operand that must be constant is not, or the types break its rule.
    """
    if name not in LAYOUT:
        raise InputError(f"operator {name} is not supported")
    fields: dict[str, Any] = {_FIELD.get(k, k): v for k, v in attributes.items() if k not in _NOT_HELD}
    tensors: list[Value] = []
    for kind, operand in _pairs(name, operands):
        if kind == "x":
            tensors.append(operand if isinstance(operand, Value) else operand.value(builder))
        elif kind == "-":
            continue
        elif isinstance(operand, Value):
            raise InputError(f"{name}: operand {kind} is not constant")
        else:
            fields[kind] = operand.data
    _complete(name, fields, tensors, results[0])
    try:
        with builder.at(outputs[0], location):
            values = builder.emit_all(_make(name, fields), *tensors, names=outputs)
    except (GraphError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise InputError(f"{name}: {getattr(error, 'what', error)}") from None
    matching(name, values, results)
    return values


def matching(name: str, values: Sequence[Value], results: Sequence[TensorType]) -> None:
    """Refuse an operator whose results are not what the file says."""
    for value, result in zip(values, results, strict=True):
        if value.type != result:
            raise InputError(f"{name}: the file says {result} where the operator gives {value.type}")


def _pairs(name: str, operands: Sequence[Value | Constant]) -> list[tuple[str, Value | Constant]]:
    kinds = LAYOUT[name][1].split()
    if kinds == ["x*"]:
        kinds = ["x"] * max(1, len(operands))
    if len(kinds) != len(operands):
        raise InputError(f"{name}: {len(operands)} operands, {len(kinds)} are wanted")
    return list(zip(kinds, operands, strict=True))


def _complete(name: str, fields: dict[str, Any], tensors: list[Value], result: TensorType) -> None:
    """What the files leave to the types, and the sign of unsigned zero points."""
    if name in ("CAST", "RESCALE"):
        fields["dtype"] = result.dtype
    if name == "MATMUL":
        fields["acc"] = result.dtype
    if "acc" in fields and fields["acc"] is ops.BY_NAME[name].usual(tensors[0].dtype):  # type: ignore[attr-defined]
        fields["acc"] = None
    if name == "RESHAPE":
        fields["shape"] = result.shape
    if name == "TRANSPOSE_CONV2D":
        fields["dilation"] = (1, 1)
    if name == "RESCALE":
        for side, dtype in (("input", tensors[0].dtype), ("output", result.dtype)):
            if fields[f"{side}_unsigned"]:
                fields[f"{side}_zp"] = np.asarray(fields[f"{side}_zp"]).astype(np.int64) & ((1 << dtype.bits) - 1)


def _make(name: str, fields: Mapping[str, Any]) -> ops.Op:
    cls = ops.BY_NAME[name]
    kinds = {f.name: str(f.type) for f in dataclasses.fields(cls)}
    return cls(**{key: _convert(kinds[key], value) for key, value in fields.items()})


def _convert(kind: str, value: Any) -> Any:
    if value is None or isinstance(value, DType):
        return value
    if kind.startswith("tuple"):
        return tuple(int(v) for v in np.ravel(value))
    number = np.asarray(value).reshape(()) if np.ndim(value) == 0 else np.asarray(value).reshape(-1)[0]
    if np.size(value) != 1:
        raise ValueError(f"one number is wanted, found {np.size(value)}")
    if kind in _ENUMS:
        return _ENUMS[kind][int(number)]
    if kind == "bool":
        return bool(number)
    if kind == "int":
        if int(number) != number:
            raise ValueError(f"{number} is not an integer")
        return int(number)
    return int(number) if np.asarray(value).dtype.kind in "iub" else float(number)
