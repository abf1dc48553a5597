"""Graph -> TOSA flatbuffer, through Arm's compiled `tosa_serializer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tosa_serializer as ts

from tosaic.errors import EmitError
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Node, Value
from tosaic.tosa.types import DType, TensorType

_DTYPE = {d: getattr(ts.DType, d.name) for d in DType}
_ROUNDING = {
    ops.Rounding.SINGLE: ts.RoundingMode.SINGLE_ROUND,
    ops.Rounding.DOUBLE: ts.RoundingMode.DOUBLE_ROUND,
    ops.Rounding.INEXACT: ts.RoundingMode.INEXACT_ROUND,
}
_RESIZE = {ops.ResizeMode.NEAREST: ts.ResizeMode.NEAREST, ops.ResizeMode.BILINEAR: ts.ResizeMode.BILINEAR}
_PROPAGATE = ts.NanPropagationMode.PROPAGATE


def serialize(graph: Graph) -> bytes:
    """The graph as a `.tosa` file, version 1.0.

    Operands that this project keeps as attributes (zero points, shapes, multipliers, shifts) become CONST and
    CONST_SHAPE operators, shared where equal. Locations are kept.
    """
    return _Writer(graph).bytes()


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.file = ts.TosaSerializer("", targetMajor=1, targetMinor=0, targetPatch=0, targetDraft=False)
        self.block = self.file.currRegion.currBasicBlock
        self.shared: dict[tuple, str] = {}
        self.taken = {v.name for v in (*graph.inputs, *graph.constants())} | {v.name for n in graph.nodes for v in n.outputs}

    def bytes(self) -> bytes:
        for value in self.graph.inputs:
            self._tensor(value)
            self.block.addInput(value.name)
        for value in self.graph.constants():
            self._tensor(value)
            self._operator(ts.Op.CONST, [], [value.name], _none("ConstAttribute"), None)
        for node in self.graph.nodes:
            self._node(node)
        for value in self.graph.outputs:
            self.block.addOutput(value.name)
        return self.file.serialize()

    def _tensor(self, value: Value) -> None:
        if max(value.shape, default=0) >= 1 << 31:
            raise EmitError(f"{value.type} does not fit a TOSA file, whose sizes have 32 bits")
        # data goes in as numbers; the serializer packs them by the type
        self.block.addTensor(value.name, list(value.shape), _DTYPE[value.dtype], value.data)

    def _operator(self, op: ts.Op, inputs: list[str], outputs: list[str], attribute: object, node: Node | None) -> None:
        location = ts.TosaOpLocation(str(node.location)) if node and node.location else ts.TosaOpLocation()
        self.block.addOperator(op, inputs, outputs, attribute, location)

    def _name(self, base: str) -> str:
        name, n = base, 0
        while name in self.taken:
            n += 1
            name = f"{base}_{n}"
        self.taken.add(name)
        return name

    def _const(self, numbers: Iterable[int | float], dtype: DType) -> str:
        array = np.array(list(numbers)).astype(dtype.numpy)
        key = (dtype, array.shape, array.tobytes())
        if key not in self.shared:
            value = Value(self._name(f"c{len(self.shared)}"), TensorType(dtype, array.shape), array)
            self._tensor(value)
            self._operator(ts.Op.CONST, [], [value.name], _none("ConstAttribute"), None)
            self.shared[key] = value.name
        return self.shared[key]

    def _shape(self, numbers: Iterable[int]) -> str:
        key = ("shape", tuple(numbers))
        if key not in self.shared:
            name = self._name(f"s{len(self.shared)}")
            data = np.array(key[1], dtype=np.int64).tobytes()
            self.block.addShape(name, len(key[1]), np.frombuffer(data, dtype=np.uint8))
            self._operator(ts.Op.CONST_SHAPE, [], [name], _none("ConstShapeAttribute"), None)
            self.shared[key] = name
        return self.shared[key]

    def _node(self, node: Node) -> None:
        op, operands = node.op, [v.name for v in node.inputs]
        extra, attribute = _ENCODE.get(type(op), _plain)(self, op, node)
        for value in node.outputs:
            self._tensor(value)
        self._operator(getattr(ts.Op, op.NAME), operands + extra, [v.name for v in node.outputs], attribute, node)


def _attribute(kind: str, *arguments: object) -> ts.TosaSerializerAttribute:
    attribute = ts.TosaSerializerAttribute()
    getattr(attribute, kind)(*arguments)
    return attribute


def _none(kind: str) -> ts.TosaSerializerAttribute:
    return _attribute(kind)


def _plain(w: _Writer, op: Any, node: Node) -> tuple[list[str], object]:
    return [], _none(f"{type(op).__name__}Attribute")


def _acc(node: Node) -> ts.DType:
    """Accumulator type: f32 for floats (f16 and bf16 convolutions accumulate in f32), f16 for those of 8 bits."""
    dtype = node.inputs[0].dtype
    acc = ops.ACCUMULATOR[dtype]
    return _DTYPE[DType.FP32 if acc.is_float and dtype not in ops.FP8 else acc]


def _conv(w: _Writer, op: Any, node: Node) -> tuple[list[str], object]:
    zps = [w._const([op.input_zp], node.inputs[0].dtype), w._const([op.weight_zp], node.inputs[1].dtype)]
    if isinstance(op, ops.TransposeConv2d):
        return zps, _attribute("TransposeConv2dAttribute", op.pad, op.stride, op.local_bound, _acc(node))
    return zps, _attribute(f"{type(op).__name__}Attribute", op.pad, op.stride, op.dilation, op.local_bound, _acc(node))


def _matmul(w: _Writer, op: Any, node: Node) -> tuple[list[str], object]:
    dtype = node.inputs[0].dtype
    return [w._const([op.a_zp], dtype), w._const([op.b_zp], dtype)], _none("MatMulAttribute")


def _avg_pool(w: _Writer, op: Any, node: Node) -> tuple[list[str], object]:
    dtype = node.inputs[0].dtype
    acc = _DTYPE[DType.INT32 if dtype.is_integer else DType.FP16 if dtype in ops.FP8 else DType.FP32]
    zps = [w._const([op.input_zp], dtype), w._const([op.output_zp], dtype)]
    return zps, _attribute("AvgPool2dAttribute", op.kernel, op.stride, op.pad, acc)


def _clamp(w: _Writer, op: Any, node: Node) -> tuple[list[str], object]:
    dtype = node.inputs[0].dtype.numpy
    low, high = (list(np.array([v]).astype(dtype).tobytes()) for v in (op.min, op.max))
    return [], _attribute("ClampAttribute", low, high, _PROPAGATE)


def _negate(w: _Writer, op: Any, node: Node) -> tuple[list[str], object]:
    dtype = node.inputs[0].dtype
    return [w._const([op.input_zp], dtype), w._const([op.output_zp], dtype)], _none("NegateAttribute")


def _resize(w: _Writer, op: Any, node: Node) -> tuple[list[str], object]:
    return [w._shape(op.scale), w._shape(op.offset), w._shape(op.border)], _attribute("ResizeAttribute", _RESIZE[op.mode])


def _rescale(w: _Writer, op: Any, node: Node) -> tuple[list[str], object]:
    def zero_point(zp: int, dtype: DType, unsigned: bool) -> str:
        return w._const([zp - (1 << dtype.bits) if unsigned and zp > dtype.max else zp], dtype)

    extra = [
        w._const(op.multiplier, DType.INT32 if op.scale32 else DType.INT16),
        w._const(op.shift, DType.INT8),
        zero_point(op.input_zp, node.inputs[0].dtype, op.input_unsigned),
        zero_point(op.output_zp, op.dtype, op.output_unsigned),
    ]
    flags = (op.scale32, _ROUNDING[op.rounding], op.per_channel, op.input_unsigned, op.output_unsigned)
    return extra, _attribute("RescaleAttribute", *flags)


_ENCODE: dict[type[ops.Op], Callable[[_Writer, Any, Node], tuple[list[str], object]]] = {
    ops.ArgMax: lambda w, op, n: ([], _attribute("ArgMaxAttribute", op.axis, _PROPAGATE)),
    ops.AvgPool2d: _avg_pool,
    ops.MaxPool2d: lambda w, op, n: ([], _attribute("MaxPool2dAttribute", op.kernel, op.stride, op.pad, _PROPAGATE)),
    ops.Conv2d: _conv,
    ops.Conv3d: _conv,
    ops.DepthwiseConv2d: _conv,
    ops.TransposeConv2d: _conv,
    ops.MatMul: _matmul,
    ops.Fft2d: lambda w, op, n: ([], _attribute("FFT2dAttribute", op.inverse, op.local_bound)),
    ops.RFft2d: lambda w, op, n: ([], _attribute("RFFT2dAttribute", op.local_bound)),
    ops.Clamp: _clamp,
    ops.ArithmeticRightShift: lambda w, op, n: ([], _attribute("ArithmeticRightShiftAttribute", op.round)),
    ops.Maximum: lambda w, op, n: ([], _attribute("MaximumAttribute", _PROPAGATE)),
    ops.Minimum: lambda w, op, n: ([], _attribute("MinimumAttribute", _PROPAGATE)),
    ops.Mul: lambda w, op, n: ([w._const([op.shift], DType.INT8)], _none("MulAttribute")),
    ops.Negate: _negate,
    ops.ReduceAll: lambda w, op, n: ([], _attribute("ReduceAllAttribute", op.axis)),
    ops.ReduceAny: lambda w, op, n: ([], _attribute("ReduceAnyAttribute", op.axis)),
    ops.ReduceMax: lambda w, op, n: ([], _attribute("ReduceMaxAttribute", op.axis, _PROPAGATE)),
    ops.ReduceMin: lambda w, op, n: ([], _attribute("ReduceMinAttribute", op.axis, _PROPAGATE)),
    ops.ReduceProduct: lambda w, op, n: ([], _attribute("ReduceProductAttribute", op.axis)),
    ops.ReduceSum: lambda w, op, n: ([], _attribute("ReduceSumAttribute", op.axis)),
    ops.Concat: lambda w, op, n: ([], _attribute("ConcatAttribute", op.axis)),
    ops.Pad: lambda w, op, n: ([w._shape(op.padding), w._const([op.value], n.inputs[0].dtype)], _none("PadAttribute")),
    ops.Reshape: lambda w, op, n: ([w._shape(op.shape)], _none("ReshapeAttribute")),
    ops.Reverse: lambda w, op, n: ([], _attribute("ReverseAttribute", op.axis)),
    ops.Slice: lambda w, op, n: ([w._shape(op.start), w._shape(op.size)], _none("SliceAttribute")),
    ops.Tile: lambda w, op, n: ([w._shape(op.multiples)], _none("TileAttribute")),
    ops.Transpose: lambda w, op, n: ([], _attribute("TransposeAttribute", op.perms)),
    ops.Resize: _resize,
    ops.Rescale: _rescale,
}
