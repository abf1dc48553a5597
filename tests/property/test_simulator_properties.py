"""The simulator, with its own kernels and with those of other devices, equals the reference model on drawn operators and data, bit for bit.

Only what the specification defines is drawn: sums that fit the accumulator, rescaled values inside of their shift.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tosaic.errors import GraphError
from tosaic.execute import exact_products, ops_conv
from tosaic.execute.device_simulator import DeviceSimulator
from tosaic.execute.simulator import evaluate
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Value
from tosaic.tosa.ops import I4, I8, I16, I32, I48
from tosaic.tosa.types import DType

# Reproducible, and free of time limits: the first example of each type compiles its kernel.
drawn = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
small = st.integers(1, 4)


@pytest.fixture(params=["as it is", "without int8 products", "without f32 convolutions"])
def processor(request, monkeypatch) -> None:
    """This machine, one that has no exact int8 products, and one whose f32 convolutions are not exact either."""
    if request.param != "as it is":
        monkeypatch.setattr(exact_products, "is_int8_exact", lambda: False)
    if request.param == "without f32 convolutions":
        monkeypatch.setattr(exact_products, "is_f32_exact", lambda: False)


@pytest.fixture(params=[1, 50, 1 << 18])
def block(request, monkeypatch) -> None:
    """Sizes of the blocks in which convolutions are computed."""
    monkeypatch.setattr(ops_conv, "BLOCK", request.param)


def fill(draw: st.DrawFn, dtype: DType, shape: tuple[int, ...], low: int | None = None, high: int | None = None) -> np.ndarray:
    """Integers of which many sit on the borders of the range."""
    low, high = dtype.min if low is None else low, dtype.max if high is None else high
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    data = rng.integers(low, high, shape, endpoint=True, dtype=np.int64)
    border = rng.choice([low, high], shape)
    return np.where(rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0])), border, data).astype(dtype.numpy)


def check(reference, op: ops.Op, inputs: list[tuple[DType, np.ndarray]], consts: list[tuple[DType, np.ndarray]] = ()) -> None:
    """Run `op` on both; i48 results, which the reference model does not give out, are rescaled to i32."""
    build = Builder()
    values = [build.input("x", d, a.shape) for d, a in inputs] + [build.const(a, d) for d, a in consts]
    try:
        result = build.emit(op, *values)
    except GraphError:  # drawn sizes that leave elements over, or nothing
        assume(False)
    graph, arrays = build.finish([result]), [a for _, a in inputs]
    if result.dtype is I48:
        shift = 14 + max(0, int(np.abs(evaluate(graph, arrays)[0]).max()).bit_length() - 31)
        build.finish([build.emit(ops.Rescale(I32, (1 << 14,), (shift,)), result)])
    want = reference(graph, arrays)[0]
    for found in (evaluate(graph, arrays), DeviceSimulator(graph, torch.device("cpu")).run(arrays)):
        np.testing.assert_array_equal(found[0], want)


@drawn
@given(st.data())
def test_rescale(reference, data) -> None:
    draw = data.draw
    source, target = draw(st.sampled_from([I8, I16, I32, I48])), draw(st.sampled_from([I8, I16, I32]))
    unsigned = draw(st.sampled_from(["", "", "input", "output"])) if source in (I8, I16) and target in (I8, I16) else ""
    per_channel = draw(st.booleans())
    shape = (*draw(st.lists(small, max_size=2)), draw(st.integers(1, 9)))
    count = shape[-1] if per_channel else 1
    wide = source is not I48 and draw(st.booleans())
    double = wide and draw(st.booleans())
    multiplier = draw(st.lists(st.integers(2**15, 2**31 - 1) if wide else st.integers(0, 2**15 - 1), min_size=count, max_size=count))
    # below 2^(shift-1), or with 16-bit multipliers a result that fits i32 beside its zero point
    fits = min(source.bits, 32) + 1 if wide else max(2, source.bits + 15 - 31)
    shift = draw(st.lists(st.integers(fits, 62), min_size=count, max_size=count))

    def zero_point(dtype: DType, is_unsigned: bool) -> int:
        if is_unsigned:
            return draw(st.integers(0, 255) if dtype is I8 else st.sampled_from([0, 32768]))
        return draw(st.integers(-128, 127)) if dtype is I8 else 0

    op = ops.Rescale(
        target,
        tuple(multiplier),
        tuple(shift),
        zero_point(source, unsigned == "input"),
        zero_point(target, unsigned == "output"),
        per_channel,
        ops.Rounding.DOUBLE if double else ops.Rounding.SINGLE,
        unsigned == "input",
        unsigned == "output",
    )
    x = fill(draw, source, shape)
    check(reference, op, [] if source is I48 else [(source, x)], [(I48, x)] if source is I48 else [])


def _mac_types(draw: st.DrawFn) -> tuple[DType, DType, DType, int, int]:
    """Types of input, weight and bias, and the zero points of input and weight."""
    x, w, b = draw(st.sampled_from([(I8, I8, I32), (I8, I8, I32), (I8, I4, I32), (I16, I8, I48)]))
    zp = st.integers(-128, 127)
    return x, w, b, draw(zp) if x is I8 else 0, draw(zp) if x is I8 and w is I8 else 0


def _weights(draw: st.DrawFn, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    return fill(draw, dtype, shape, low=dtype.min + 1)  # -128 is no weight in TOSA's symmetric types


def _bias(draw: st.DrawFn, channels: int) -> np.ndarray:
    return fill(draw, I32, (draw(st.sampled_from([1, channels])),), low=-(2**29), high=2**29).astype(np.int64)


def _window(draw: st.DrawFn, kernel: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, ...], tuple[int, int], tuple[int, int]]:
    """Stride, pad, dilation, and input sizes that the window fits without rest."""
    stride, dilation = (draw(small), draw(small)), (draw(small), draw(small))
    pad = tuple(draw(st.integers(0, 3)) for _ in range(4))
    sizes = []
    for i in range(2):
        out = draw(small)
        size = (out - 1) * stride[i] + (kernel[i] - 1) * dilation[i] + 1 - pad[2 * i] - pad[2 * i + 1]
        sizes.append(max(1, size + stride[i] * (-size // stride[i] + 1) if size < 1 else size))
    return stride, pad, dilation, (sizes[0], sizes[1])


@drawn
@given(st.data())
def test_conv2d(processor, reference, data) -> None:
    draw = data.draw
    x, w, b, *zps = _mac_types(draw)
    kernel, ic, oc = (draw(small), draw(small)), draw(st.integers(1, 70)), draw(st.integers(1, 9))
    stride, pad, dilation, size = _window(draw, kernel)
    inputs = [(x, fill(draw, x, (draw(st.integers(1, 2)), *size, ic)))]
    check(reference, ops.Conv2d(stride, pad, dilation, *zps), inputs, [(w, _weights(draw, w, (oc, *kernel, ic))), (b, _bias(draw, oc))])


@drawn
@given(st.data())
def test_conv2d_beyond_f32(processor, reference, data) -> None:
    """Sums far above 2^24, for which input channels are split."""
    draw = data.draw
    ic, oc, zp = draw(st.integers(200, 2500)), draw(small), draw(st.sampled_from([-128, 0, 127]))
    low, high = draw(st.sampled_from([(-128, 127), (120, 127), (-128, -120)]))
    x = fill(draw, I8, (1, 2, 2, ic), low, high)
    op = ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1), zp, draw(st.sampled_from([-128, 0, 127])))
    check(reference, op, [(I8, x)], [(I8, fill(draw, I8, (oc, 2, 2, ic), low, high)), (I32, _bias(draw, oc))])


@pytest.mark.parametrize("dtype", [I8, I16], ids=str)
def test_sums_of_one_channel_beyond_f32(processor, reference, dtype: DType) -> None:
    """Large windows of the largest values, for which splitting channels is not enough."""
    x = np.full((1, 41, 41, 1), dtype.min, dtype.numpy)
    x[0, 0] = dtype.max
    weights, bias = np.full((2, 40, 40, 1), 127, np.int8), np.array([1, -1])
    op = ops.Conv2d((1, 1), (0, 0, 0, 0), (1, 1))
    check(reference, op, [(dtype, x)], [(I8, weights), (I32 if dtype is I8 else I48, bias)])


@drawn
@given(st.data())
def test_depthwise_conv2d(reference, data) -> None:
    draw = data.draw
    x, w, b, *zps = _mac_types(draw)
    kernel, c, m = (draw(small), draw(small)), draw(st.integers(1, 20)), draw(st.integers(1, 3))
    stride, pad, dilation, size = _window(draw, kernel)
    inputs = [(x, fill(draw, x, (draw(st.integers(1, 2)), *size, c)))]
    consts = [(w, _weights(draw, w, (*kernel, c, m))), (b, _bias(draw, c * m))]
    check(reference, ops.DepthwiseConv2d(stride, pad, dilation, *zps), inputs, consts)


@drawn
@given(st.data())
def test_convolution_with_the_rescales_and_clamps_behind_it(processor, block, reference, data) -> None:
    """They are computed as one, unless someone watches."""
    draw = data.draw
    x, w, b, *zps = _mac_types(draw)
    depthwise = draw(st.booleans())
    kernel = draw(st.sampled_from([(3, 3), (1, 1), (draw(small), draw(small))]))
    ic, oc = draw(st.integers(1, 20)), draw(st.integers(1, 9))
    stride, pad, dilation, size = _window(draw, kernel)
    cls, shape, channels = (ops.DepthwiseConv2d, (*kernel, ic, 1), ic) if depthwise else (ops.Conv2d, (oc, *kernel, ic), oc)
    build = Builder()
    values = build.input("x", x, (draw(st.integers(1, 2)), *size, ic))
    operands = build.const(_weights(draw, w, shape), w), build.const(_bias(draw, channels) // 512, b)
    try:
        total = build.emit(cls(stride, pad, dilation, *zps), values, *operands)
    except GraphError:
        assume(False)
    results = [_rescaled(draw, build, total, x, channels) for _ in range(draw(st.integers(1, 2)))]
    graph, seen = build.finish(results), []
    inputs = [fill(draw, x, values.shape)]
    wanted = reference(graph, inputs)
    watched = evaluate(graph, inputs, watch=lambda value, array: seen.append(value))
    for found in (evaluate(graph, inputs), watched):
        for one, want in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, want)
    assert seen == [node.output for node in graph.nodes]


def _rescaled(draw: st.DrawFn, build: Builder, total: Value, x: DType, channels: int) -> Value:
    """A RESCALE of a convolution's sums, with a CLAMP or none."""
    count = channels if draw(st.booleans()) else 1
    # sums are below 2^31: a shift of 32 and more keeps within the specification, and so does a 16-bit scale of 2^-2 and less
    wide = x is I8 and draw(st.booleans())
    multiplier = draw(st.lists(st.integers(2**30, 2**31 - 1) if wide else st.integers(1, 2**15 - 1), min_size=count, max_size=count))
    shift = draw(st.lists(st.integers(33, 50) if wide else st.integers(17, 40), min_size=count, max_size=count))
    rounding = draw(st.sampled_from([ops.Rounding.SINGLE, ops.Rounding.DOUBLE])) if wide else ops.Rounding.SINGLE
    target = draw(st.sampled_from([I8, I16, I32]))
    op = ops.Rescale(target, tuple(multiplier), tuple(shift), 0, draw(st.integers(-128, 127)) if target is I8 else 0, count > 1, rounding)
    result = build.emit(op, total)
    if target is not I32 and draw(st.booleans()):
        low, high = sorted(draw(st.lists(st.integers(target.min, target.max), min_size=2, max_size=2)))
        result = build.emit(ops.Clamp(low, high), result)
    return result


@drawn
@given(st.data())
def test_transpose_conv2d(reference, data) -> None:
    draw = data.draw
    x, w, b, *zps = _mac_types(draw)
    kernel, ic, oc = (draw(small), draw(small)), draw(st.integers(1, 12)), draw(st.integers(1, 9))
    pad = tuple(draw(st.integers(1 - kernel[i // 2], 3)) for i in range(4))
    inputs = [(x, fill(draw, x, (draw(st.integers(1, 2)), draw(small), draw(small), ic)))]
    op = ops.TransposeConv2d((draw(small), draw(small)), pad, (1, 1), *zps)
    check(reference, op, inputs, [(w, _weights(draw, w, (oc, *kernel, ic))), (b, _bias(draw, oc))])


@drawn
@given(st.data())
def test_matmul(processor, reference, data) -> None:
    draw = data.draw
    dtype = draw(st.sampled_from([I8, I16]))
    zp = st.integers(-128, 127) if dtype is I8 else st.just(0)
    n, h, c, w = draw(st.integers(1, 2)), draw(small), draw(st.integers(1, 1200)), draw(small)
    low, high = draw(st.sampled_from([(-128, 127), (-128, -121), (120, 127)])) if dtype is I8 else (-(2**15), 2**15 - 1)
    operands = [(dtype, fill(draw, dtype, shape, low, high)) for shape in ((n, h, c), (n, c, w))]
    check(reference, ops.MatMul(draw(zp), draw(zp)), operands)


@drawn
@given(st.data())
def test_pools(reference, data) -> None:
    draw = data.draw
    dtype = draw(st.sampled_from([I8, I16]))
    zp = st.integers(-128, 127) if dtype is I8 else st.just(0)
    kernel, stride = (draw(st.integers(1, 7)), draw(st.integers(1, 7))), (draw(small), draw(small))
    pad = tuple(draw(st.integers(0, kernel[i // 2] - 1)) for i in range(4))
    size = [draw(small) * stride[i] + kernel[i] - pad[2 * i] - pad[2 * i + 1] for i in range(2)]
    assume(min(size) > 0)
    x = [(dtype, fill(draw, dtype, (draw(st.integers(1, 2)), *size, draw(st.integers(1, 9)))))]
    check(reference, ops.MaxPool2d(kernel, stride, pad), x)
    check(reference, ops.AvgPool2d(kernel, stride, pad, draw(zp), draw(zp)), x)


@drawn
@given(st.data())
def test_resize(reference, data) -> None:
    draw = data.draw
    dtype, mode = draw(st.sampled_from([I8, I16])), draw(st.sampled_from(list(ops.ResizeMode)))
    scale, offset, border, size = [], [], [], []
    for _ in range(2):
        n = draw(st.sampled_from([2, 4, 16]) | st.integers(1, 40))  # even ones put positions on the border between neighbours
        d = draw(st.integers(1, min(60, 16 * n - 1)))
        length, start = draw(st.integers(1, 9)), draw(st.integers(-n, min(2 * n, 16 * n - 1)))
        span = (length - 1) * n - start
        # a border that leaves no rest
        choices = [b for b in range(max(-16 * n, -span), n) if (span + b) % d == 0 and span + b <= 40 * d]
        assume(choices)
        scale += [n, d]
        offset.append(start)
        border.append(draw(st.sampled_from(choices)))
        size.append(length)
    x = fill(draw, dtype, (draw(st.integers(1, 2)), *size, draw(small)))
    check(reference, ops.Resize(tuple(scale), tuple(offset), tuple(border), mode), [(dtype, x)])


@drawn
@given(st.data())
def test_mul(reference, data) -> None:
    draw = data.draw
    dtype = draw(st.sampled_from([I8, I16, I32]))
    shift = draw(st.integers(0, 63)) if dtype is I32 else 0
    bits = min(dtype.bits - 1, (30 + shift) // 2) if shift else dtype.bits - 1  # the shifted product fits i32
    shape = tuple(draw(st.lists(small, max_size=3)))
    other = tuple(draw(st.sampled_from([1, d])) for d in shape)
    operands = [(dtype, fill(draw, dtype, s, low=-(2**bits), high=2**bits - 1)) for s in (shape, other)]
    check(reference, ops.Mul(shift), operands)


@drawn
@given(st.data())
def test_table(reference, data) -> None:
    draw = data.draw
    dtype = draw(st.sampled_from([I8, I16]))
    table = fill(draw, I8, (256,)) if dtype is I8 else fill(draw, I16, (513,), low=-16384, high=16383)  # slopes fit i16
    check(reference, ops.Table(), [(dtype, fill(draw, dtype, (draw(small), 50)))], [(dtype, table)])
