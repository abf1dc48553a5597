"""Rows: arithmetic, range limits, activation functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from ops.rows import Row, function, layer
from torch import Tensor, nn

aten = torch.ops.aten
ADD, SUB, RSUB, MUL = aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.mul.Tensor
PICTURE = (1, 3, 5, 6)
WIDE = (-8.0, 8.0)


class Constant(nn.Module):
    """A binary function of the input and a buffer."""

    def __init__(self, function: object, shape: tuple[int, ...], scale: float = 1.0) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("constant", torch.randn(shape) * scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.constant)  # type: ignore[operator]


class AfterConv(nn.Module):
    """A function of a convolution's output and of arithmetic on it: it sees int32 values."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.conv, self.last, self.function = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), function

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.last(self.function(y + 0.5) * y)  # type: ignore[operator]


def after_conv(name: str, op: torch._ops.OpOverload, run: object) -> Row:
    return layer(name, op, lambda: AfterConv(run), PICTURE, lsb_at_16=4)  # a product and two convolutions


ARITHMETIC = (
    function("add", ADD, torch.add, PICTURE, PICTURE),
    function("add_alpha", ADD, lambda a, b: torch.add(a, b, alpha=-1.5), PICTURE, PICTURE),
    function("add_broadcast", ADD, torch.add, (2, 3, 5, 6), (3, 1, 6)),
    function("add_self", ADD, lambda a: a + a, PICTURE),
    function("add_scalar", ADD, lambda a: a + 1.7, PICTURE),
    function("add_negative_scalar", ADD, lambda a: torch.add(a, -0.3, alpha=2), PICTURE),
    # in float it is the input itself, which a .vgf cannot hold beside other outputs
    function("add_zero", ADD, lambda a: a + 0, PICTURE, precisions=("8a8w", "16a8w")),
    function("add_rank_1", ADD, torch.add, (40,), (40,)),
    function("add_rank_5", ADD, torch.add, (1, 2, 3, 4, 5), (2, 1, 4, 1)),
    layer("add_constant", ADD, lambda: Constant(torch.add, (3, 1, 1)), PICTURE),
    layer("add_large_constant", ADD, lambda: Constant(torch.add, (6,), 50.0), PICTURE),
    function("add_relu", ADD, lambda a, b: torch.relu(a + b), PICTURE, PICTURE),
    function("sub", SUB, torch.sub, PICTURE, (1, 3, 1, 1)),
    function("sub_alpha", SUB, lambda a, b: torch.sub(a, b, alpha=0.25), PICTURE, PICTURE),
    function("sub_scalar", SUB, lambda a: a - 0.7, PICTURE),
    layer("sub_constant", SUB, lambda: Constant(lambda a, c: c - a, (5, 1)), PICTURE),
    function("rsub", RSUB, lambda a: 1.25 - a, PICTURE),
    function("rsub_alpha", RSUB, lambda a: torch.rsub(a, 1.25, alpha=-3), PICTURE),
    function("neg", aten.neg.default, torch.neg, PICTURE),
    function("neg_relu", aten.neg.default, lambda a: torch.relu(-a), PICTURE),
    function("mul", MUL, torch.mul, PICTURE, PICTURE),
    function("mul_broadcast", MUL, torch.mul, (2, 3, 5, 6), (3, 1, 1)),
    function("mul_square", MUL, lambda a: a * a, PICTURE),
    function("square", aten.pow.Tensor_Scalar, lambda a: a**2, PICTURE),
    function("cube", aten.pow.Tensor_Scalar, lambda a: a**3, PICTURE),
    function("lerp", MUL, lambda a, b: torch.lerp(a, b, 0.3), PICTURE, PICTURE),
    function("lerp_by_tensor", MUL, lambda a, b: torch.lerp(a, b, b), PICTURE, PICTURE),
    function("mul_cast", MUL, lambda a: a.to(torch.float32) * 0.7, PICTURE),
    function("mul_scalar", MUL, lambda a: a * 0.3, PICTURE),
    function("mul_negative_scalar", MUL, lambda a: a * -2.5, PICTURE),
    function("mul_zero", MUL, lambda a: a * 0.0, PICTURE, decibels=(("8a8w", -1e9), ("16a8w", -1e9))),  # no signal to measure
    layer("mul_constant", MUL, lambda: Constant(torch.mul, (1, 3, 1, 1)), PICTURE),
    layer("mul_small_constant", MUL, lambda: Constant(torch.mul, (6,), 1e-4), PICTURE),
    function("mul_relu6", MUL, lambda a, b: F.relu6(a * b), PICTURE, PICTURE, span=(-4.0, 4.0)),
    function("div_scalar", aten.div.Tensor, lambda a: a / -3.0, PICTURE),
    layer("div_constant", aten.div.Tensor, lambda: Constant(lambda a, c: a / (c.abs() + 0.5), (3, 1, 1)), PICTURE),
    function("div", aten.div.Tensor, torch.div, PICTURE, PICTURE, span=(0.5, 2.0)),
    function("add_scalar_overload", aten.add.Scalar, lambda a: aten.add.Scalar(a, 2, 3), PICTURE),
    function("sub_scalar_overload", aten.sub.Scalar, lambda a: aten.sub.Scalar(a, 0.5), PICTURE),
    function("mul_scalar_overload", aten.mul.Scalar, lambda a: aten.mul.Scalar(a, -0.5), PICTURE),
    function("div_scalar_overload", aten.div.Scalar, lambda a: aten.div.Scalar(a, 4), PICTURE),
    function("sums_and_products", MUL, lambda a, b: (a + b) * (a - b) * 0.5 + a, PICTURE, PICTURE),
)

ACTIVATIONS = (
    function("relu", aten.relu.default, torch.relu, PICTURE),
    function("relu6", aten.relu6.default, F.relu6, PICTURE, span=WIDE),
    function("hardtanh", aten.hardtanh.default, lambda a: F.hardtanh(a, -0.5, 1.5), PICTURE),
    function("clamp", aten.clamp.default, lambda a: a.clamp(-1.0, 2.0), PICTURE),
    function("clamp_min", aten.clamp.default, lambda a: a.clamp(min=0.3), PICTURE),
    function("clamp_max", aten.clamp.default, lambda a: a.clamp(max=-0.3), PICTURE),
    function("clamp_clamp", aten.clamp.default, lambda a: (a + 1).clamp(min=0.5).clamp(max=1.5), PICTURE),
    function("leaky_relu", aten.leaky_relu.default, F.leaky_relu, PICTURE),
    function("leaky_relu_negative", aten.leaky_relu.default, lambda a: F.leaky_relu(a, -0.4), PICTURE),
    function("leaky_relu_steep", aten.leaky_relu.default, lambda a: F.leaky_relu(a, 5.5), PICTURE),
    after_conv("leaky_relu_wide", aten.leaky_relu.default, F.leaky_relu),
    # a slope of 1/4 makes ties
    layer("prelu", aten.prelu.default, nn.PReLU, PICTURE),
    layer("prelu_channels", aten.prelu.default, lambda: Constant(F.prelu, (3,)), PICTURE),
    layer("prelu_negative", aten.prelu.default, lambda: Constant(lambda a, c: F.prelu(a, -c.abs()), (3,), 2.0), (4, 3)),
    layer("prelu_wide", aten.prelu.default, lambda: AfterConv(nn.PReLU(4)), PICTURE, lsb_at_16=4),
    function("sigmoid", aten.sigmoid.default, torch.sigmoid, PICTURE, span=WIDE),
    function("tanh", aten.tanh.default, torch.tanh, PICTURE, span=(-4.0, 4.0)),
    function("silu", aten.silu.default, F.silu, PICTURE, span=WIDE),
    function("hardsigmoid", aten.hardsigmoid.default, F.hardsigmoid, PICTURE, span=WIDE),
    function("hardswish", aten.hardswish.default, F.hardswish, PICTURE, span=WIDE),
    after_conv("sigmoid_wide", aten.sigmoid.default, torch.sigmoid),
    after_conv("hardswish_wide", aten.hardswish.default, F.hardswish),
    after_conv("relu_wide", aten.relu.default, torch.relu),
    function("sigmoid_rank_1", aten.sigmoid.default, torch.sigmoid, (50,)),
    function("tanh_rank_5", aten.tanh.default, torch.tanh, (1, 2, 3, 4, 5)),
)
