"""Decompositions of arithmetic: functions of two numbers, and what integers need where the default is for floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _lerp(x: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """A blend; the default's case distinction is about the last bits."""
    return x + (end - x) * weight


def _power(x: Tensor, exponent: float) -> Tensor:
    """Whole powers of integers are products; floats have a lowering."""
    if x.is_floating_point() or not isinstance(exponent, int) or exponent < 0:
        return NotImplemented
    if exponent < 2:
        return torch.ones_like(x) if exponent == 0 else x.clone()
    half = _power(x, exponent // 2)
    return half * half * x if exponent % 2 else half * half


def _hypot(x: Tensor, y: Tensor) -> Tensor:
    """A root is steep near zero: a norm, which normalises each pair, is exact there."""
    return torch.linalg.vector_norm(torch.stack(torch.broadcast_tensors(x, y)), 2, 0)


def _copysign(x: Tensor, y: Tensor) -> Tensor:
    """Integers have no negative zero, whose sign PyTorch copies."""
    size = x.abs()
    return torch.where(y < 0, -size, size)


def _copysign_number(x: Tensor, y: float) -> Tensor:
    return -x.abs() if math.copysign(1.0, y) < 0 else x.abs()


def _signbit(x: Tensor) -> Tensor:
    return x < 0


def _angle(x: Tensor) -> Tensor:
    """Of a real number: pi below zero."""
    if x.is_complex():
        return NotImplemented
    return torch.where(x < 0, torch.full((), math.pi, dtype=x.dtype), torch.zeros((), dtype=x.dtype))


def _ldexp(x: Tensor, y: Tensor) -> Tensor:
    return x * torch.pow(2.0, y)


def _dist(x: Tensor, y: Tensor, p: float = 2) -> Tensor:
    return torch.linalg.vector_norm(x - y, p)


def _xlogy(x: Tensor, y: Tensor) -> Tensor:
    """x log(y), and 0 where x is; the default writes NaN where y is."""
    return torch.where(x == 0, torch.zeros((), dtype=x.dtype), x * torch.log(y))


def _xlog1py(x: Tensor, y: Tensor) -> Tensor:
    """Like `_xlogy`."""
    return torch.where(x == 0, torch.zeros((), dtype=x.dtype), x * torch.log1p(y))


def _heaviside(x: Tensor, values: Tensor) -> Tensor:
    """The default chooses between integers, which the FP profile lacks."""
    return torch.where(x == 0, values, (x > 0).to(values.dtype))


def _histc(x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """How many reach each edge but not the next; the last bin holds its end. Without limits they would be those of the values."""
    if not min < max:
        return NotImplemented
    edges = torch.linspace(min, max, bins + 1, dtype=x.dtype)
    x = x.reshape(-1, 1)
    reached = torch.cat([x >= edges[:-1], x > edges[-1:]], 1).to(x.dtype).sum(0)
    return reached[:-1] - reached[1:]


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """Of a scalar; the rest has a lowering."""
    return torch.ones_like(x) if x.ndim == 0 else NotImplemented


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """Like `_softmax`."""
    return torch.zeros_like(x) if x.ndim == 0 else NotImplemented


ARITHMETIC: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
    aten.pow.Tensor_Scalar: _power,
    aten.hypot.default: _hypot,
    aten.copysign.Tensor: _copysign,
    aten.copysign.Scalar: _copysign_number,
    aten.signbit.default: _signbit,
    aten.angle.default: _angle,
    aten.ldexp.Tensor: _ldexp,
    aten.dist.default: _dist,
    aten.xlogy.Tensor: _xlogy,
    aten.special_xlog1py.default: _xlog1py,
    aten.heaviside.default: _heaviside,
    aten.histc.default: _histc,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _log_softmax,
}
