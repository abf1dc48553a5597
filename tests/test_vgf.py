"""`.vgf` and `.tosa` files: what is written reads back as the same computation, and Vulkan computes it too."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import io
import os
import random
import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import vgfpy
from hypothesis import given, settings
from hypothesis import strategies as st
from same_graph import computed

from tosaic import converter
from tosaic.emit.files import atomic_write, atomic_write_all
from tosaic.emit.flatbuffer import serialize
from tosaic.emit.read import read_tosa, read_vgf
from tosaic.emit.vgf import EMITTERS, to_vgf, write_vgf
from tosaic.errors import EmitError, InputError
from tosaic.execute.simulator import Simulator
from tosaic.execute.vulkan import Vulkan
from tosaic.tosa import container, ops
from tosaic.tosa.graph import Builder, Graph, Location, Value, verify
from tosaic.tosa.tables import Buffer
from tosaic.tosa.types import DType, TensorType

B, I4, I8, I16, I32, I48 = DType.BOOL, DType.INT4, DType.INT8, DType.INT16, DType.INT32, DType.INT48
F16, BF16, F32 = DType.FP16, DType.BF16, DType.FP32
E4M3, E5M2 = DType.FP8E4M3, DType.FP8E5M2
Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]


def t(dtype: DType, *shape: int) -> TensorType:
    """An input."""
    return TensorType(dtype, shape)


def c(dtype: DType, *shape: int) -> tuple[TensorType]:
    """A constant."""
    return (TensorType(dtype, shape),)


def x(dtype: DType) -> TensorType:
    return t(dtype, 2, 3, 4)


_WINDOW = {"stride": (2, 1), "pad": (1, 1, 0, 1), "dilation": (1, 2)}
IGNORE = ops.NanMode.IGNORE
_RESIZE = ((4, 2, 4, 2), (-1, -1), (1, 1))
# operator and operands; a name is made of them
ROWS: list[tuple] = [
    *((ops.ArgMax(1), x(d)) for d in (I8, I16, F16, BF16, F32)),
    (ops.AvgPool2d((2, 2), (1, 1), (1, 0, 0, 1), 3, -5), t(I8, 1, 5, 6, 3)),
    *((ops.AvgPool2d((2, 3), (1, 1), (0, 0, 0, 0)), t(d, 1, 4, 5, 3)) for d in (I16, F16, F32)),
    *((ops.MaxPool2d((3, 2), (2, 1), (1, 1, 1, 0)), t(d, 1, 5, 6, 3)) for d in (I8, I16, F16, F32)),
    (ops.Conv2d(**_WINDOW, input_zp=7, weight_zp=-3), t(I8, 1, 5, 6, 3), c(I8, 4, 3, 2, 3), c(I32, 4)),
    (ops.Conv2d(**_WINDOW, input_zp=-7), t(I8, 1, 5, 6, 3), c(I4, 5, 3, 1, 3), c(I32, 5)),
    (ops.Conv2d(**_WINDOW), t(I16, 1, 5, 6, 3), c(I8, 4, 3, 2, 3), c(I48, 4)),
    (ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1)), t(I16, 1, 2, 2, 5), c(I8, 40, 1, 1, 5), c(I48, 40)),
    *((ops.Conv2d(**_WINDOW), t(d, 1, 5, 6, 3), c(d, 4, 3, 2, 3), c(d, 4)) for d in (F16, F32)),
    (ops.Conv2d(**_WINDOW, input_zp=7), t(I8, 1, 5, 6, 3), t(I8, 4, 3, 2, 3), t(I32, 4)),
    (ops.Conv3d((1, 2, 1), (1, 0, 0, 1, 1, 0), (1, 1, 1), -2, 0), t(I8, 1, 3, 4, 5, 2), c(I8, 3, 2, 3, 2, 2), c(I32, 3)),
    (ops.DepthwiseConv2d((1, 1), (1, 1, 1, 1), (1, 1), 5, 0), t(I8, 1, 4, 5, 3), c(I8, 3, 3, 3, 2), c(I32, 6)),
    (ops.TransposeConv2d((2, 2), (-1, 0, 0, -1), (1, 1), 4, 0), t(I8, 1, 3, 4, 3), c(I8, 2, 3, 3, 3), c(I32, 2)),
    (ops.MatMul(3, -4), t(I8, 2, 3, 4), t(I8, 2, 4, 5)),
    *((ops.MatMul(), t(d, 2, 3, 4), t(d, 2, 4, 5)) for d in (I16, F16, F32)),
    (ops.Clamp(-100, 90), x(I8)),
    (ops.Clamp(-1000, 9000), x(I16)),
    (ops.Clamp(-1.5, float("inf")), x(F32)),
    *((ops.Clamp(-1.5, 2.0), x(d)) for d in (F16, BF16)),
    *((f(), x(F32)) for f in (ops.Erf, ops.Sigmoid, ops.Tanh, ops.Cos, ops.Exp, ops.Floor, ops.Log, ops.Reciprocal, ops.Rsqrt, ops.Sin)),
    *((ops.Ceil(), x(d)) for d in (F16, BF16, F32)),
    *((ops.Abs(), x(d)) for d in (I32, F32)),
    (ops.Abs(), t(I32)),
    *((ops.BitwiseNot(), x(d)) for d in (I8, I16, I32)),
    (ops.Clz(), x(I32)),
    (ops.LogicalNot(), x(B)),
    *((ops.Identity(), x(d)) for d in (B, I8, F32)),
    *((f(), x(d), c(d, 2, 1, 4)) for f in (ops.Add, ops.Sub) for d in (I32, F16, F32)),
    *((f(), x(d), c(d, 2, 1, 4)) for f in (ops.Maximum, ops.Minimum, ops.Equal, ops.Greater, ops.GreaterEqual) for d in (I32, F32)),
    (ops.Pow(), x(F32), c(F32, 2, 1, 4)),
    (ops.IntDiv(), x(I32), c(I32, 2, 1, 4)),
    *((f(), x(d), c(d, 2, 1, 4)) for f in (ops.BitwiseAnd, ops.BitwiseOr, ops.BitwiseXor) for d in (I8, I16, I32)),
    *((f(), x(B), c(B, 2, 1, 4)) for f in (ops.LogicalAnd, ops.LogicalOr, ops.LogicalXor)),
    *((f(), x(d), c(d, 1, 1, 4)) for f in (ops.LogicalLeftShift, ops.LogicalRightShift) for d in (I8, I16, I32)),
    *((ops.ArithmeticRightShift(r), x(d), c(d, 1, 1, 4)) for r, d in ((True, I32), (False, I8), (True, I16))),
    *((ops.Mul(), x(d), x(d)) for d in (I8, I16, F32)),
    (ops.Mul(31), x(I32), t(I32, 2, 1, 4)),
    (ops.Table(), x(I8), c(I8, 256)),
    (ops.Table(), x(I16), c(I16, 513)),
    (ops.Negate(5, -9), x(I8)),
    *((ops.Negate(), x(d)) for d in (I16, I32, F32)),
    *((ops.Select(), x(B), x(d), t(d, 1, 1, 4)) for d in (B, I8, I16, I32, F32)),
    (ops.ReduceAll(1), x(B)),
    (ops.ReduceAny(0), x(B)),
    *((f(1), x(d)) for f in (ops.ReduceMax, ops.ReduceMin) for d in (I8, I16, I32, F32)),
    (ops.ReduceProduct(1), x(F32)),
    *((ops.ReduceSum(1), x(d)) for d in (I32, F32)),
    *((ops.Concat(1), x(d), c(d, 2, 6, 4), x(d)) for d in (B, I8, I16, I32, F32)),
    *((ops.Fft2d(i, i), t(F32, 1, 2, 4), t(F32, 1, 2, 4)) for i in (False, True)),
    *((ops.RFft2d(bound), t(F32, 1, 2, 4)) for bound in (False, True)),
    (ops.ArgMax(1, IGNORE), x(F32)),
    (ops.Clamp(-1.5, 2.5, IGNORE), x(F16)),
    *((cls(IGNORE), x(F32), x(F32)) for cls in (ops.Maximum, ops.Minimum)),
    *((cls(1, IGNORE), x(F32)) for cls in (ops.ReduceMax, ops.ReduceMin)),
    (ops.MaxPool2d((2, 2), (1, 1), (0,) * 4, IGNORE), t(F16, 1, 3, 4, 2)),
    (ops.MatMul(acc=F16), t(F16, 1, 2, 3), t(F16, 1, 3, 4)),
    (ops.AvgPool2d((2, 2), (1, 1), (0,) * 4, acc=F16), t(F16, 1, 3, 4, 2)),
    (ops.Conv2d(**_WINDOW, local_bound=True, acc=F16), t(F16, 1, 5, 6, 3), c(F16, 4, 3, 2, 3), c(F16, 4)),
    (ops.TransposeConv2d((2, 2), (0,) * 4, (1, 1), local_bound=True, acc=F16), t(F16, 1, 3, 4, 3), c(F16, 2, 3, 3, 3), c(F16, 2)),
    *((op, x(d)) for op in (ops.Transpose((2, 0, 1)), ops.Pad((1, 0, 0, 2, 1, 1), -1.5)) for d in (E4M3, E5M2)),
    *((ops.Cast(b), x(a)) for d in (E4M3, E5M2) for a, b in ((F32, d), (d, F16))),
    *((ops.MatMul(), t(d, 1, 2, 3), t(d, 1, 3, 4)) for d in (E4M3, E5M2)),
    *((ops.Conv2d(**_WINDOW), t(d, 1, 5, 6, 3), c(d, 4, 3, 2, 3), c(F16, 4)) for d in (E4M3, E5M2)),
    (ops.Concat(1), x(I8)),
    *((ops.Pad((1, 0, 0, 2, 1, 1), v), x(d)) for v, d in ((-7, I8), (1, B), (-1.5, F32), (1 << 20, I32))),
    (ops.Reshape((4, 6)), x(I8)),
    (ops.Reshape(()), t(I8, 1, 1)),
    (ops.Reverse(1), x(I8)),
    (ops.Slice((0, 1, 1), (2, 2, 3)), x(I16)),
    (ops.Tile((2, 1, 3)), x(B)),
    *((ops.Transpose((2, 0, 1)), x(d)) for d in (B, I8)),
    *((ops.Gather(), t(d, 2, 3, 4), c(I32, 2, 5)) for d in (I8, I32, F32)),
    *((ops.Scatter(), t(d, 2, 5, 4), c(I32, 2, 3), t(d, 2, 3, 4)) for d in (I8, I32)),
    *((ops.Resize(*_RESIZE, m), t(d, 1, 3, 4, 2)) for m in ops.ResizeMode for d in (I8, I16, F32)),
    *((ops.Cast(b), x(a)) for a, b in ((I8, I32), (I32, I8), (I8, B), (B, I32), (F32, I8), (I16, F32), (F32, BF16), (BF16, F32))),
    (ops.Rescale(I8, (1 << 30,), (38,), 0, -5), x(I32)),
    (ops.Rescale(I8, (30000,), (38,), 0, -5), x(I32)),
    (ops.Rescale(I8, (1 << 30, 3, 1 << 29, 77777), (38, 20, 35, 40), 3, -5, per_channel=True), x(I8)),
    (ops.Rescale(I32, (1 << 30,), (20,), -7), x(I8)),
    (ops.Rescale(I8, (1 << 30,), (38,), 0, -5, rounding=ops.Rounding.DOUBLE), x(I32)),
    (ops.Rescale(I16, (1 << 30,), (30,), rounding=ops.Rounding.INEXACT), x(I8)),
    (ops.Rescale(I8, (1 << 30,), (30,), 200, -5, input_unsigned=True), x(I8)),
    (ops.Rescale(I8, (1 << 30,), (30,), -3, 130, output_unsigned=True), x(I8)),
    (ops.Rescale(I16, (1 << 30,), (30,), 32768, 0, input_unsigned=True), x(I16)),
]


def _name(row: tuple) -> str:
    op, *operands = row
    attributes = "".join(f"-{v.value}" for v in vars(op).values() if isinstance(v, enum.Enum))
    return f"{op.NAME}{attributes}-" + "-".join(str(o[0] if isinstance(o, tuple) else o) for o in operands)


CASES = dict(zip(map(_name, ROWS), ROWS, strict=True)) | {f"{i}-{_name(r)}": r for i, r in enumerate(ROWS) if ROWS.index(r) != i}


def draw(op: ops.Op, position: int, type_: TensorType, seed: int = 0) -> np.ndarray:
    """Data for one operand, inside what the specification gives a result for (it leaves overflow open)."""
    rng = np.random.default_rng(1000 * seed + position)
    if type_.dtype is B:
        return rng.integers(0, 2, type_.shape).astype(bool)
    if isinstance(op, ops.Pow | ops.Log | ops.Rsqrt):
        return rng.uniform(0.1, 4, type_.shape).astype(type_.dtype.numpy)
    if type_.dtype.is_float:
        return rng.uniform(-4, 4, type_.shape).astype(type_.dtype.numpy)
    if isinstance(op, ops.Gather | ops.Scatter) and position == 1:
        return np.stack([rng.permutation(5)[: type_.shape[1]] % (3 if isinstance(op, ops.Gather) else 5) for _ in range(2)])
    if isinstance(op, ops.LogicalLeftShift | ops.LogicalRightShift | ops.ArithmeticRightShift) and position == 1:
        return rng.integers(0, 8, type_.shape)
    if isinstance(op, ops.Table) and type_.dtype is I16 and position == 1:
        return np.cumsum(rng.integers(-100, 100, type_.shape))
    low, high = (-7, 7) if type_.dtype is I4 else (type_.dtype.min >> 3, type_.dtype.max >> 3) if type_.dtype is I32 else (None, None)
    return rng.integers(low or type_.dtype.min, high or type_.dtype.max, type_.shape, endpoint=True)


def build(row: tuple) -> Graph:
    op, *operands = row
    b = Builder("main")
    values = [
        b.const(draw(op, i, o[0]), o[0].dtype, f"c{i}") if isinstance(o, tuple) else b.input(f"in put/{i}", o.dtype, o.shape)
        for i, o in enumerate(operands)
    ]
    with b.at("y", Location("aten.op", "net.0", "net.py:3")):
        types = op.results(*(v.type for v in values))
        names = ["the output", "another"][: len(types)] if types[0].dtype is not I48 else ["inner"]
        results = b.emit_all(op, *values, names=names)
        if types[0].dtype is I48:  # no file carries int48 at its border
            results = b.emit_all(ops.Rescale(I16, (30000,), (45,)), *results, names=["the output"])
    return b.finish(results)


def inputs_of(graph: Graph, row: tuple, seed: int = 7) -> list[np.ndarray]:
    types = [(i, o) for i, o in enumerate(row[1:]) if not isinstance(o, tuple)]
    return [draw(row[0], i, o, seed).astype(o.dtype.numpy) for i, o in types]


def same_bits(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> bool:
    return [(a.dtype, a.shape, a.tobytes()) for a in found] == [(a.dtype, a.shape, a.tobytes()) for a in wanted]


def conv() -> Graph:
    return build(next(r for r in ROWS if isinstance(r[0], ops.Conv2d)))


def test_the_table_has_every_operator() -> None:
    assert {row[0].NAME for row in ROWS} == set(ops.BY_NAME)


# rows that a .vgf says otherwise, in text: what a scalar is inside, and that nothing is not done
OTHERWISE = {"ABS-i32[]", "RESHAPE-i8[1,1]"}


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    """What is read back is what was written, with names and locations, and what the converter's file holds."""
    graph, path = build(CASES[name]), tmp_path / "main.vgf"
    write_vgf(graph, path)
    back = read_vgf(path)
    verify(back)
    text = str(graph).replace("i4[", "i8[")
    if name not in OTHERWISE and "IDENTITY" not in name:
        assert str(back) == text
    assert computed(back) == computed(graph)
    write_vgf(graph, path, emitter="converter")
    converted = read_vgf(path)
    assert [(v.name, v.type) for v in (*converted.inputs, *converted.outputs)] == [
        (v.name, v.type) for v in (*graph.inputs, *graph.outputs)
    ]
    if name != "CONCAT-i8[2,3,4]":  # of one operand, which the converter leaves out
        assert computed(converted) == computed(graph)


def test_spirv_val_accepts_every_row(spirv_val: Callable[..., None]) -> None:
    spirv_val(*(build(row) for row in CASES.values()))
    assert len(CASES) > 150


@pytest.mark.parametrize("name", CASES)
def test_tosa_round_trip_is_the_same_text(name: str, tmp_path: Path) -> None:
    graph, path = build(CASES[name]), tmp_path / "main.tosa"
    path.write_bytes(serialize(graph))
    assert str(read_tosa(path)) == str(graph)


ON_VULKAN = [n for n, row in CASES.items() if row[0].NAME in ("CONV2D", "MATMUL", "TABLE", "RESCALE", "RESIZE", "SELECT", "GATHER", "ABS")]


@pytest.mark.parametrize("name", [n for n in ON_VULKAN if not re.search("f8|f16|f32", n)])
def test_vulkan_equals_the_reference_model(name: str, tmp_path: Path, reference: Run) -> None:
    graph, path = build(CASES[name]), tmp_path / "g.vgf"
    write_vgf(graph, path)
    device = Vulkan(path)
    for seed in (1, 2):
        inputs = inputs_of(graph, CASES[name], seed)
        assert same_bits(device.run(inputs), reference(graph, inputs))


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_vulkan_carries_floats(dtype: DType, tmp_path: Path) -> None:
    row = (ops.Abs(), x(dtype))
    write_vgf(build(row), tmp_path / "g.vgf")
    data = draw(*row[:1], 0, row[1])
    assert same_bits(Vulkan(tmp_path / "g.vgf").run([data]), [np.abs(data)])


def test_a_rewritten_file_is_built_anew(tmp_path: Path) -> None:
    path, data = tmp_path / "g.vgf", np.array([-2, 5], np.int32)
    for op, wanted in ((ops.Abs(), [2, 5]), (ops.Negate(), [2, -5])):
        write_vgf(build((op, t(I32, 2))), path)
        assert Vulkan(path).run([data])[0].tolist() == wanted


def test_vulkan_refuses_other_inputs(tmp_path: Path) -> None:
    path = tmp_path / "g.vgf"
    write_vgf(build((ops.Abs(), t(I32, 2))), path)
    with pytest.raises(InputError, match=r"input 0 is int32\[2\], found int64\[2\]"):
        Vulkan(path).run([np.zeros(2, np.int64)])
    with pytest.raises(InputError, match="takes 1 inputs, found 0"):
        Vulkan(path).run([])
    with pytest.raises(InputError, match="cannot be read"):
        Vulkan(tmp_path / "absent.vgf")


def test_the_same_graph_gives_the_same_bytes_in_another_process() -> None:
    b = Builder("main")
    x = b.input("x", I8, (1, 4, 4, 2))
    weights, bias = b.const(np.arange(8).reshape(2, 2, 2, 1), I8), b.const(np.array([5, -7]), I32)
    x = b.emit(ops.DepthwiseConv2d((1, 1), (0, 1, 0, 1), (1, 1), 3), x, weights, bias)
    text = str(b.finish([b.emit(ops.Rescale(I8, (1 << 30,), (38,), 0, 3), x)]))
    script = (
        "import sys, hashlib; from tosaic.emit.vgf import to_vgf; from tosaic.tosa.text import parse_graph;"
        "print(hashlib.sha256(to_vgf(parse_graph(sys.stdin.read()))).hexdigest())"
    )
    digests = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", script], input=text, env=environment, capture_output=True, check=True, text=True)
        digests.append(done.stdout.strip())
    assert set(digests) == {hashlib.sha256(to_vgf(b.graph)).hexdigest()}


def test_the_name_of_the_file_and_of_the_graph_are_not_in_it(tmp_path: Path) -> None:
    graph = conv()
    write_vgf(graph, tmp_path / "a.vgf")
    graph.name = "another"
    write_vgf(graph, tmp_path / "b.vgf")
    assert (tmp_path / "a.vgf").read_bytes() == (tmp_path / "b.vgf").read_bytes()


def test_without_debug_info_no_name_of_the_model_is_in_the_file(tmp_path: Path) -> None:
    graph = conv()
    assert b"net.py:3" in to_vgf(graph)
    write_vgf(graph, tmp_path / "g.vgf", debug_info=False)
    data, back = (tmp_path / "g.vgf").read_bytes(), read_vgf(tmp_path / "g.vgf")
    assert b"net.py" not in data and b"c1" not in data
    assert all(node.location is None for node in back.nodes) and computed(back) == computed(graph)
    assert [v.name for v in (*back.inputs, *back.outputs)] == ["in put/0", "the output"]


def test_equal_constants_are_written_once(tmp_path: Path) -> None:
    def sums(*numbers: np.ndarray) -> Graph:
        b = Builder("main")
        a = b.input("a", I32, (1000,))
        for i, data in enumerate(numbers):
            value = Value(f"c{i}", TensorType(I32, (1000,)), data)  # not through the builder, which would share them
            a = b.emit(ops.Add(), a, value)
        return b.finish([a])

    one = np.arange(1000, dtype=np.int32)
    backwards = np.arange(999, -1, -1, dtype=np.int32)
    graph = sums(one, one.copy(), backwards[::-1], np.broadcast_to(np.int32(7), 1000), backwards)  # equal too, though it lies otherwise
    file = container.decode(to_vgf(graph))
    assert [c.data.view(np.int32).tolist() for c in file.constants] == [one.tolist(), [7] * 1000, backwards.tolist()]
    write_vgf(graph, tmp_path / "main.vgf")
    assert computed(read_vgf(tmp_path / "main.vgf")) == computed(graph)


def test_equal_bytes_are_stored_once_whatever_the_shape(tmp_path: Path) -> None:
    """An embedding and the head that is tied to it; Arm's decoder and layers read them too."""
    b, rng = Builder("main"), np.random.default_rng(0)
    table = rng.integers(-100, 100, (64, 32), np.int8)
    x, at = b.input("x", I8, (1, 1, 1, 32)), b.input("at", I32, (1, 4))
    head = b.const(table.reshape(64, 1, 1, 32), I8)
    product = b.emit(ops.Conv2d(stride=(1, 1), pad=(0, 0, 0, 0), dilation=(1, 1)), x, head, b.const(np.arange(64), I32))
    graph = b.finish([product, b.emit(ops.Gather(), b.const(table[None], I8), at)])
    path = tmp_path / "main.vgf"
    write_vgf(graph, path)
    data = path.read_bytes()
    start, size = struct.unpack_from("<QQ", data, 64)
    assert len(data) == start + size and size == 16 + 3 * 24 + 64 * 32 + 64 * 4
    theirs = vgfpy.CreateConstantDecoder(data[start:], size)
    assert [bytes(theirs.getConstant(i)) for i in (0, 2)] == [table.tobytes()] * 2
    assert computed(read_vgf(path)) == computed(graph)
    inputs = [rng.integers(-100, 100, (1, 1, 1, 32), np.int8), np.array([[3, 1, 63, 0]], np.int32)]
    for found, expected in zip(Vulkan(path).run(inputs), Simulator(graph).run(inputs), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_large_constants_alone_of_their_type_are_not_confused(tmp_path: Path) -> None:
    b = Builder("main")
    a = b.input("a", I32, (1, 300_000))
    c = b.const(np.full((1, 300_000), 7), I32)
    graph = b.finish([b.emit(ops.Add(), b.emit(ops.Add(), a, c), b.const(np.arange(300_000).reshape(1, -1), I32))])
    alone = b.finish([b.emit(ops.Sub(), a, c)])
    for case in (graph, alone):
        write_vgf(case, tmp_path / "g.vgf")
        assert computed(read_vgf(tmp_path / "g.vgf")) == computed(case)


def test_what_is_written_is_what_arms_encoder_writes() -> None:
    """The section of constants is ours, byte for byte; it is only smaller where constants are equal."""
    b = Builder("main")
    x = b.input("x", I32, (17,))
    graph = b.finish([b.emit(ops.Add(), b.emit(ops.Mul(), x, b.const(np.arange(17), I32)), b.const(np.arange(17) * 3, I32))])
    file = container.decode(to_vgf(graph))
    encoder = vgfpy.CreateEncoder(0)
    module = encoder.AddModule(vgfpy.ModuleType.Graph, "main", "main", file.modules[0].code.tolist())
    resources = [encoder.AddConstantResource(99, (17,), ()) for _ in range(2)]
    resources += [
        encoder.AddInputResource(container.TENSOR, 99, (17,), (), None),
        encoder.AddOutputResource(container.TENSOR, 99, (17,), (), None),
    ]
    constants = [encoder.AddConstant(r, c.data.tobytes(), -1) for r, c in zip(resources, file.constants, strict=False)]
    slots = [encoder.AddBindingSlot(i, r) for i, r in enumerate(resources[2:])]
    references = [vgfpy.GraphConstantBindingRef(i, c) for i, c in enumerate(constants)]
    encoder.AddSegmentInfo(module, "main", [encoder.AddDescriptorSetInfo(slots, 0)], slots[:1], slots[1:], references, [0, 0, 0], [])
    encoder.AddModelSequenceInputsOutputs(slots[:1], ["x"], slots[1:], [graph.outputs[0].name])
    encoder.Finish()
    stream = io.BytesIO()
    assert encoder.WriteTo(stream)
    assert to_vgf(graph) == stream.getvalue()


def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "g.vgf"
    target.write_bytes(b"old")

    def fail(data: np.ndarray) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(container, "pieces", fail)
    with pytest.raises(EmitError, match="No space left on device"):
        write_vgf(conv(), target)
    assert [p.name for p in tmp_path.iterdir()] == ["g.vgf"] and target.read_bytes() == b"old"


def test_an_unknown_emitter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown emitter 'other'"):
        write_vgf(conv(), tmp_path / "g.vgf", emitter="other")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("emitter", EMITTERS)
def test_two_outputs_of_one_value_and_constant_outputs(emitter: str, tmp_path: Path, reference: Run) -> None:
    b = Builder("main")
    a = b.input("a", I32, (2, 3))
    weights = b.const(np.arange(6).reshape(2, 3) * 1000, I32, "weights")
    total = b.emit(ops.Add(), a, weights, name="total")
    write_vgf(b.finish([total, weights, total]), tmp_path / "g.vgf", emitter=emitter)
    back = read_vgf(tmp_path / "g.vgf")
    verify(back)
    assert [v.name for v in back.outputs] == ["total", "weights", "total"]
    data = np.arange(6, dtype=np.int32).reshape(2, 3)
    wanted = [data * 1001, data * 1000, data * 1001]
    assert same_bits(Vulkan(tmp_path / "g.vgf").run([data]), wanted)
    assert same_bits(reference(back, [data])[:2], wanted[:2])


def unchanged() -> Graph:
    """Inputs that are outputs, beside others and under other names; scalars under both of their shapes."""
    b = Builder("main")
    a, one = b.input("a", I32, (2, 3)), b.input("one", I32, ())
    negated = b.emit(ops.Negate(), one, name="negated")
    twice = b.emit(ops.Identity(), a, name="twice")
    wide = b.emit(ops.Reshape((1,)), negated, name="wide")
    return b.finish([b.emit(ops.Abs(), a, name="abs"), a, twice, one, negated, wide])


def test_inputs_that_are_outputs(tmp_path: Path, spirv_val: Callable[..., None]) -> None:
    graph = unchanged()
    spirv_val(graph)
    write_vgf(graph, tmp_path / "g.vgf")
    back = read_vgf(tmp_path / "g.vgf")
    verify(back)
    assert [v.type for v in back.outputs] == [v.type for v in graph.outputs] and computed(back) == computed(graph)
    a, one = np.array([[1, -2, 3], [-4, 5, -6]], np.int32), np.array(-5, np.int32)
    wanted = [np.abs(a), a, a, one, -one, -one.reshape(1)]
    assert same_bits(Simulator(back).run([a, one]), wanted)
    assert same_bits(Vulkan(tmp_path / "g.vgf").run([a, one]), wanted)


def test_the_converter_refuses_inputs_that_are_outputs(tmp_path: Path) -> None:
    with pytest.raises(EmitError, match="cannot write an output that is an input unchanged"):
        write_vgf(unchanged(), tmp_path / "g.vgf", emitter="converter")
    assert not (tmp_path / "g.vgf").exists()


def _two_segments() -> container.Container:
    """ABS, then NEGATE, as two segments that hand over through an intermediate resource."""
    first, second = (container.decode(to_vgf(build((op, t(I32, 4))))) for op in (ops.Abs(), ops.Negate()))
    middle = dataclasses.replace(first.resources[1], category=vgfpy.ResourceCategory.Intermediate)
    first.resources = [first.resources[0], middle, second.resources[1]]
    first.modules += second.modules
    segment = second.segments[0]
    segment.module, segment.name = 1, "second"
    hand_over, result = container.Binding(0, 1), container.Binding(1, 2)
    segment.sets, segment.inputs, segment.outputs = [(0, [hand_over, result])], [hand_over], [result]
    first.segments.append(segment)
    first.outputs = [result]
    return first


def test_segments_are_read_in_sequence(tmp_path: Path, reference: Run) -> None:
    (tmp_path / "g.vgf").write_bytes(container.encode(_two_segments()))
    graph = read_vgf(tmp_path / "g.vgf")
    assert [op.NAME for op in graph.ops] == ["ABS", "NEGATE"]
    assert reference(graph, [np.array([1, -2, 3, -4], np.int32)])[0].tolist() == [-1, -2, -3, -4]


def test_compute_shaders_are_refused(tmp_path: Path) -> None:
    file = _two_segments()
    file.modules[1].kind = vgfpy.ModuleType.Compute
    (tmp_path / "g.vgf").write_bytes(container.encode(file))
    with pytest.raises(InputError, match="segment 'second' is a compute shader"):
        read_vgf(tmp_path / "g.vgf")


def _edited(graph: Graph, code: int, word: int, old: int | None, new: int, emitter: str = "direct") -> bytes:
    """The file with one word changed in its first SPIR-V instruction `code` (whose word is `old`)."""
    file = container.decode(to_vgf(graph, emitter=emitter))
    words, at = file.modules[0].code.copy(), 5
    while words[at] & 0xFFFF != code or old not in (None, words[at + word]):
        at += words[at] >> 16
    words[at + word] = new
    file.modules[0].code = words
    return container.encode(file)


def test_a_result_of_another_type_than_the_operator_gives_is_refused(tmp_path: Path) -> None:
    type_of_input = _instructions(conv(), 4184)[0][1]
    (tmp_path / "g.vgf").write_bytes(_edited(conv(), 12, 1, None, type_of_input))
    with pytest.raises(InputError, match=r"CONV2D: the file says i8\[1,5,6,3\] where the operator gives i32\[1,3,5,4\]"):
        read_vgf(tmp_path / "g.vgf")


def test_a_few_words_cannot_state_a_giant_constant(tmp_path: Path) -> None:
    b = Builder("main")
    graph = b.finish([b.emit(ops.Add(), b.input("a", I32, (2, 7)), b.const(np.full((2, 7), 5), I32))])
    (tmp_path / "g.vgf").write_bytes(_edited(graph, 43, 3, 7, 1 << 28, emitter="converter"))
    with pytest.raises(InputError, match="constants of more than"):
        read_vgf(tmp_path / "g.vgf")


def _instructions(graph: Graph, code: int) -> list[list[int]]:
    words, at, found = container.decode(to_vgf(graph)).modules[0].code.tolist(), 5, []
    while at < len(words):
        if words[at] & 0xFFFF == code:
            found.append(words[at : at + (words[at] >> 16)])
        at += words[at] >> 16
    return found


def test_a_binding_without_a_resource_is_refused() -> None:
    encoder = vgfpy.CreateEncoder(0)
    slots = [encoder.AddBindingSlot(0, vgfpy.ResourceRef(99))]
    encoder.AddModelSequenceInputsOutputs(slots, ["a"], slots, ["b"])
    encoder.Finish()
    stream = io.BytesIO()
    assert encoder.WriteTo(stream)
    with pytest.raises(InputError, match="resource 99 of 0 is named"):
        container.decode(stream.getvalue())


def test_nameless_files_get_names(tmp_path: Path) -> None:
    file = container.decode(to_vgf(conv()))
    file.input_names, file.output_names = [], []
    (tmp_path / "g.vgf").write_bytes(container.encode(file))
    graph = read_vgf(tmp_path / "g.vgf")
    assert [v.name for v in (*graph.inputs, *graph.outputs)] == ["input_0", "output_0"]


VALID = {read_vgf: to_vgf(conv()), read_tosa: serialize(conv())}


@pytest.mark.parametrize("reader", VALID)
def test_truncated_files_are_refused(reader: Callable, tmp_path: Path) -> None:
    data, path = VALID[reader], tmp_path / "bad"
    # the last bytes of this flatbuffer are the name of its region, which nobody reads
    end = len(data) if reader is read_vgf else data.rindex(b"main\0") - 8
    for length in {*range(0, end, end // 40), end - 1}:
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="bad"):
            reader(path)


@settings(derandomize=True, max_examples=100, deadline=None, database=None)
@given(seed=st.integers(0, 1 << 32), reader=st.sampled_from(list(VALID)), words=st.integers(0, 4))
def test_damaged_files_are_refused_or_read(seed: int, reader: Callable, words: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Single bits and whole words are changed; damage in weights cannot be seen, any other error than InputError fails."""
    rng, data = random.Random(seed), bytearray(VALID[reader])
    for _ in range(words):
        at = rng.randrange(len(data) // 4) * 4
        data[at : at + 4] = rng.choice([0, 1, 255, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]).to_bytes(4, "little")
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    try:
        verify(reader(path))
    except InputError as error:
        assert "damaged" in str(error)


@pytest.mark.parametrize("reader", VALID)
def test_other_files_are_refused(reader: Callable, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        reader(tmp_path / "absent")
    (tmp_path / "text").write_text("PK\x03\x04 this is something else" * 20)
    with pytest.raises(InputError, match="not a"):
        reader(tmp_path / "text")


SCRIPTS = {
    "failing": ("echo 'error: failed to legalize operation' >&2; exit 7", "exit code 7\n  error: failed to legalize operation"),
    "silent": ("exit 0", "wrote no file"),
    "empty": ('while [ "$1" != --output ]; do shift; done; : > "$2"', "wrote no file"),
    "garbage": ('while [ "$1" != --output ]; do shift; done; echo nonsense > "$2"', "wrote no usable file"),
    "crashing": ("kill -SEGV $$", "was stopped by SIGSEGV"),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_failing_converter_leaves_the_old_file(name: str, tmp_path: Path) -> None:
    script, message = SCRIPTS[name]
    program, target = tmp_path / "model-converter", tmp_path / "out" / "g.vgf"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(EmitError, match=message):
        write_vgf(conv(), target, emitter="converter", converter=str(program))
    assert [p.name for p in target.parent.iterdir()] == ["g.vgf"] and target.read_bytes() == b"old"


def test_a_missing_converter_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmitError, match="'/absent/mc' is not an executable file"):
        write_vgf(conv(), tmp_path / "g.vgf", emitter="converter", converter="/absent/mc")
    monkeypatch.setenv("TOSAIC_MODEL_CONVERTER", "/other/mc")
    with pytest.raises(EmitError, match=r"'/other/mc' \(\$TOSAIC_MODEL_CONVERTER\) is not an executable file"):
        write_vgf(conv(), tmp_path / "g.vgf", emitter="converter")
    monkeypatch.delenv("TOSAIC_MODEL_CONVERTER")
    monkeypatch.setattr(converter.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(converter.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmitError, match="pip install ai-ml-sdk-model-converter"):
        write_vgf(conv(), tmp_path / "g.vgf", emitter="converter")


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new" / "file"
    atomic_write(target, b"first")
    (tmp_path / "link").symlink_to(target)
    atomic_write(tmp_path / "link", b"second")
    assert target.read_bytes() == b"second" and (tmp_path / "link").is_symlink()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(EmitError, match="No space left on device"):
        atomic_write(target, b"third")
    assert [p.name for p in target.parent.iterdir()] == ["file"] and target.read_bytes() == b"second"


def test_files_that_belong_together_are_replaced_together(tmp_path: Path) -> None:
    atomic_write_all({tmp_path / "a": b"first", tmp_path / "b": b"first"})
    (tmp_path / "folder").mkdir()
    with pytest.raises(EmitError, match=r"cannot write .*folder: Is a directory"):
        atomic_write_all({tmp_path / "a": b"second", tmp_path / "b": b"second", tmp_path / "folder": b"second"})
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "folder"}
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"first"


def large(count: int = 1 << 23) -> Graph:
    """One operator with a constant of 32 MiB, of which 4 bytes are in memory."""
    b = Builder("main")
    constant = Value("c", TensorType(I32, (count,)), np.broadcast_to(np.int32(7), count))
    return b.finish([b.emit(ops.Add(), b.input("x", I32, (count,)), constant)])


def test_constants_are_neither_copied_in_writing_nor_in_reading(tmp_path: Path) -> None:
    path = tmp_path / "g.vgf"
    write_vgf(large(16), path)  # imports
    tracemalloc.start()
    try:
        write_vgf(large(), path)
        write_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        graph = read_vgf(path)
        read_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 1 << 25
    assert write_peak < 1 << 24 and read_peak < 1 << 20
    path.unlink()  # what was read keeps the data
    (constant,) = graph.constants()
    assert constant.data is not None and constant.data.flags.aligned and not constant.data.flags.owndata and (constant.data == 7).all()


def test_constants_of_tosa_files_stay_there_too(tmp_path: Path) -> None:
    (tmp_path / "g.tosa").write_bytes(serialize(large(1 << 20)))
    graph = read_tosa(tmp_path / "g.tosa")
    (constant,) = graph.constants()
    assert constant.data is not None and not constant.data.flags.owndata and (constant.data == 7).all()


def test_the_converters_debug_information_is_read(tmp_path: Path) -> None:
    (tmp_path / "g.tosa").write_bytes(serialize(conv()))
    command = [converter.find_converter(), "--emit-debug-info", "--input", tmp_path / "g.tosa", "--output", tmp_path / "g.vgf"]
    subprocess.run(command, check=True, capture_output=True)
    (node,) = read_vgf(tmp_path / "g.vgf").nodes
    assert node.location == Location("aten.op", "net.0", "net.py:3")


@pytest.mark.parametrize("emitter", EMITTERS)
def test_a_scalar_result_of_argmax_is_read(emitter: str, tmp_path: Path) -> None:
    b = Builder("main")
    graph = b.finish([b.emit(ops.ArgMax(0), b.input("x", I8, (7,)), name="index")])
    write_vgf(graph, tmp_path / "g.vgf", emitter=emitter)
    back = read_vgf(tmp_path / "g.vgf")
    verify(back)
    assert [v.type for v in back.outputs] == [t(I32)] and computed(back) == computed(graph)


def _tables(emitted: vgfpy.Encoder) -> container.Container:
    emitted.Finish()
    stream = io.BytesIO()
    assert emitted.WriteTo(stream)
    return container.decode(stream.getvalue())


def test_what_arms_encoder_writes_is_decoded() -> None:
    """What our own files do not have: numbers of constants, push constants, intermediate resources, aliases, strides, set indexes."""
    encoder = vgfpy.CreateEncoder(321)
    graph = encoder.AddModule(vgfpy.ModuleType.Graph, "name", "entry", [1, 2, 3])
    shader = encoder.AddModule(vgfpy.ModuleType.Compute, "shader", "main", [])
    resources = [
        encoder.AddConstantResource(99, (2,), ()),
        encoder.AddConstantResource(14, (3,), ()),
        encoder.AddInputResource(container.TENSOR, 99, (2, 3), (12, 4), None),
        encoder.AddIntermediateResource(container.TENSOR, 99, (2, 3), (), 5),
    ]
    constants = [encoder.AddConstant(r, d, -1) for r, d in zip(resources, (b"12345678", b"abc"), strict=False)]
    slots = [encoder.AddBindingSlot(7, resources[2]), encoder.AddBindingSlot(8, resources[3])]
    sets = [encoder.AddDescriptorSetInfo(slots[:1], 3), encoder.AddDescriptorSetInfo(slots[1:], 0xFFFFFFFF)]
    bound = [vgfpy.GraphConstantBindingRef(9, constants[1]), vgfpy.GraphConstantBindingRef(4, constants[0])]
    encoder.AddSegmentInfo(graph, "first", sets, slots[:1], slots[1:], bound, [1, 2, 3], [encoder.AddPushConstRange(6, 7, 8)])
    encoder.AddSegmentInfo(shader, "second", [], slots[1:], [], [], [0, 0, 0], [])
    encoder.AddModelSequenceInputsOutputs(slots[:1], ["input"], slots[1:], ["é"])
    file = _tables(encoder)
    assert file.vulkan_headers == 321
    assert [(m.kind, m.name, m.entry, None if m.code is None else m.code.tolist()) for m in file.modules] == [
        (vgfpy.ModuleType.Graph, "name", "entry", [1, 2, 3]),
        (vgfpy.ModuleType.Compute, "shader", "main", None),
    ]
    assert [(r.category.name, r.descriptor, r.format, r.shape, r.strides, r.alias) for r in file.resources] == [
        ("Constant", None, 99, (2,), (), None),
        ("Constant", None, 14, (3,), (), None),
        ("Input", container.TENSOR, 99, (2, 3), (12, 4), None),
        ("Intermediate", container.TENSOR, 99, (2, 3), (), 5),
    ]
    assert [(c.resource, c.data.tobytes(), c.sparsity) for c in file.constants] == [(0, b"12345678", -1), (1, b"abc", -1)]
    first, second = container.Binding(7, 2), container.Binding(8, 3)
    assert file.segments[0] == container.Segment(
        "first", 0, [(3, [first]), (1, [second])], [first], [second], [(9, 1), (4, 0)], [1, 2, 3], [(6, 7, 8)]
    )
    assert file.segments[1] == container.Segment("second", 1, [], [second], [], [], [0, 0, 0], [])
    assert (file.inputs, file.outputs, file.input_names, file.output_names) == ([first], [second], ["input"], ["é"])


def test_other_versions_are_refused_by_name() -> None:
    data = bytearray(to_vgf(conv()))
    data[9] = 6
    with pytest.raises(InputError, match=r"VGF version 0\.6 is not supported"):
        container.decode(bytes(data))


def test_many_references_to_one_place_are_refused() -> None:
    """Sixteen megabytes that claim four million tables, all of them one."""
    count = 1 << 22
    table = struct.pack("<HHi", 4, 4, 4)  # a vtable without fields, and a table of it
    root = struct.pack("<IHHHHi", 12, 6, 8, 4, 0, 8) + struct.pack("<II", 4, count)
    start = len(root)
    offsets = (start + 4 * count + 4 - np.arange(start, start + 4 * count, 4)).astype("<u4").tobytes()
    buffer = Buffer(memoryview(root + offsets + table))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 1000000 entries"):
            list(buffer.root().tables(0))
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.vgf")
    for path in (tmp_path, tmp_path / "pipe.vgf"):
        with pytest.raises(InputError, match="cannot be read"):
            read_vgf(path)
