"""Fourier transforms and complex numbers, which TOSA's tensors do not have: each becomes a real and an imaginary part.

    _fft_r2c(x)        ->  linear(x, [cos; -sin]), split in two        one axis after the other, the real one first
    _fft_c2c(a + bi)   ->  linear(cat(a, b), [[cos, sin], [-sin, cos]]), split in two
    _fft_c2r(a + bi)   ->  linear(cat(a, b), [cos, -sin])
    polar(r, t)        ->  r cos(t), r sin(t)
    abs(a + bi)        ->  sqrt(a a + b b); without the root where it is squared next
    view_as_real       ->  a stack of the parts, or the one that is selected next

Sums, products with real and complex numbers and data movement are done on the parts; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from tosaic.errors import UnsupportedError, line_of

aten = torch.ops.aten
Parts = tuple[Node, Node]
_MOVES = {
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.slice.Tensor,
    aten.select.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.expand.default,
    aten.flip.default,
    aten.neg.default,
}


def without_complex(module: GraphModule) -> None:
    """Rewrite a captured graph in place.

    Raises:
        UnsupportedError: an operator on complex numbers that has no real form here.
    """
    rewriter = _Rewriter(module)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and (_is_complex(node) or any(_is_complex(a) for a in node.all_input_nodes)):
            rewriter.rewrite(node)
        elif _is_complex(node):
            raise UnsupportedError(f"complex tensor '{node.name}'", remedy="pass its real and imaginary parts, and join them in the model")
        elif node.op == "output" and any(_is_complex(a) for a in node.all_input_nodes):
            raise UnsupportedError("an output of complex numbers", remedy="return torch.view_as_real of it")
    if rewriter.parts:
        module.graph.eliminate_dead_code()


def _is_complex(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


class _Rewriter:
    """Attributes:
    parts: complex node -> its real and imaginary part.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.parts: dict[Node, Parts] = {}
        self.rules: dict[Any, Callable[..., Node | Parts]] = {
            aten._fft_r2c.default: self._r2c,
            aten._fft_c2c.default: self._c2c,
            aten._fft_c2r.default: self._c2r,
            aten.view_as_real.default: self._as_real,
            aten.view_as_complex.default: lambda x: (self.call(aten.select.int, x, -1, 0), self.call(aten.select.int, x, -1, 1)),
            aten.complex.default: lambda a, b: (a, b),
            aten.polar.default: self._polar,
            aten.abs.default: self._abs,
            aten._conj.default: self._conj,
            aten.conj_physical.default: self._conj,
            aten.mul.Tensor: self._mul,
            aten.add.Tensor: lambda a, b: self._each(aten.add.Tensor, a, b),
            aten.sub.Tensor: lambda a, b: self._each(aten.sub.Tensor, a, b),
        }

    def rewrite(self, node: Node) -> None:
        self.node = node
        with self.module.graph.inserting_before(node):
            if node.target in self.rules and not node.kwargs:
                result = self.rules[node.target](*node.args)
            elif node.target in _MOVES:
                a, b = self.parts[node.args[0]]
                result = self.call(node.target, a, *node.args[1:]), self.call(node.target, b, *node.args[1:])
            else:
                raise UnsupportedError(f"{node.target} of complex numbers", where=_line(node), remedy="write it with real tensors")
        if isinstance(result, tuple):
            self.parts[node] = result
        else:
            node.replace_all_uses_with(result)

    def call(self, target: torch._ops.OpOverload, *args: Any) -> Node:
        """A call in the place of the node that is rewritten."""
        call = self.module.graph.call_function(target, args)
        call.meta = self.node.meta.copy()
        call.meta["val"] = target(*torch.fx.map_arg(args, lambda n: n.meta["val"]))
        return call

    def constant(self, array: np.ndarray, like: Node) -> Node:
        name = f"_fourier_{len(list(self.module.buffers()))}"
        tensor = torch.tensor(array, dtype=like.meta["val"].dtype)
        self.module.register_buffer(name, tensor)
        node = self.module.graph.get_attr(name)
        node.meta["val"] = like.meta["val"].fake_mode.from_tensor(tensor)
        return node

    def _polar(self, size: Node, angle: Node) -> Parts:
        cos, sin = (self.call(f, angle) for f in (aten.cos.default, aten.sin.default))
        return self.call(aten.mul.Tensor, size, cos), self.call(aten.mul.Tensor, size, sin)

    # Transforms

    def transformed(self, x: Node, matrix: np.ndarray, dim: int, count: int = 1) -> list[Node]:
        """Products of an axis with a matrix [count * out, in], split in `count`."""
        rank = x.meta["val"].dim()
        swap = [*range(dim), *range(dim + 1, rank), dim]
        last = dim == rank - 1
        x = x if last else self.call(aten.permute.default, x, swap)
        rows = self.call(aten.linear.default, x, self.constant(matrix, x))
        out = len(matrix) // count
        parts = [self.call(aten.slice.Tensor, rows, rank - 1, i * out, (i + 1) * out) for i in range(count)] if count > 1 else [rows]
        return parts if last else [self.call(aten.permute.default, p, [int(i) for i in np.argsort(swap)]) for p in parts]

    def _dims(self, node: Node, dims: list[int]) -> list[int]:
        rank = len(_shape(node))
        return [d % rank for d in dims]

    def _r2c(self, x: Node, dims: list[int], norm: int, onesided: bool) -> Parts:
        *others, last = self._dims(self.node, dims)
        n = _shape(x)[last]
        cos, sin = _turns(n, n // 2 + 1 if onesided else n, norm)
        re, im = self.transformed(x, np.concatenate([cos, -sin]), last, 2)
        return self._along(re, im, others, norm, True)

    def _along(self, re: Node, im: Node, dims: list[int], norm: int, forward: bool) -> Parts:
        for dim in dims:
            n = _shape(re)[dim]
            cos, sin = _turns(n, n, norm)
            sin = sin if forward else -sin
            joined = self.call(aten.cat.default, [re, im], dim)
            re, im = self.transformed(joined, np.block([[cos, sin], [-sin, cos]]), dim, 2)
        return re, im

    def _c2c(self, x: Node, dims: list[int], norm: int, forward: bool) -> Parts:
        return self._along(*self.parts[x], self._dims(x, dims), norm, forward)

    def _c2r(self, x: Node, dims: list[int], norm: int, size: int) -> Node:
        """The last axis holds the first half of a symmetric spectrum: what is between its ends counts twice."""
        *others, last = self._dims(x, dims)
        re, im = self._along(*self.parts[x], others, norm, False)
        cos, sin = _turns(size, _shape(re)[last], norm)
        twice = np.array([1.0 if k == 0 or 2 * k == size else 2.0 for k in range(len(cos))])
        joined = self.call(aten.cat.default, [re, im], last)
        return self.transformed(joined, np.concatenate([(cos.T * twice), -(sin.T * twice)], 1), last)[0]

    # Arithmetic

    def _as_real(self, x: Node) -> Node:
        parts, rank = self.parts[x], len(_shape(x))
        for user in list(self.node.users):
            if user.target is aten.select.int and user.args[1] in (-1, rank):
                user.replace_all_uses_with(parts[user.args[2]])
        stacked = [self.call(aten.unsqueeze.default, p, -1) for p in parts]
        return self.call(aten.cat.default, stacked, rank)

    def _abs(self, x: Node) -> Node:
        re, im = self.parts[x]
        squares = self.call(aten.add.Tensor, *(self.call(aten.mul.Tensor, p, p) for p in (re, im)))
        for user in list(self.node.users):
            if user.target is aten.pow.Tensor_Scalar and user.args[1] == 2:
                user.replace_all_uses_with(squares)
        return self.call(aten.sqrt.default, squares)

    def _conj(self, x: Node) -> Parts:
        re, im = self.parts[x]
        return re, self.call(aten.neg.default, im)

    def _mul(self, a: Node | float, b: Node | float) -> Parts:
        if a in self.parts and b in self.parts:
            (ar, ai), (br, bi) = self.parts[a], self.parts[b]  # type: ignore[index]
            mul = aten.mul.Tensor
            re = self.call(aten.sub.Tensor, self.call(mul, ar, br), self.call(mul, ai, bi))
            return re, self.call(aten.add.Tensor, self.call(mul, ar, bi), self.call(mul, ai, br))
        a, b = (a, b) if a in self.parts else (b, a)
        if isinstance(b, complex):
            raise UnsupportedError("product with a complex constant", where=_line(self.node), remedy="write it with real tensors")
        re, im = self.parts[a]  # type: ignore[index]
        return self.call(aten.mul.Tensor, re, b), self.call(aten.mul.Tensor, im, b)

    def _each(self, op: torch._ops.OpOverload, a: Node, b: Node) -> Parts:
        if a not in self.parts or b not in self.parts:
            raise UnsupportedError("sum of complex and real numbers", where=_line(self.node), remedy="write it with real tensors")
        return tuple(self.call(op, *pair) for pair in zip(self.parts[a], self.parts[b], strict=True))  # type: ignore[return-value]


def _shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _turns(n: int, count: int, norm: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of 2 pi k m / n, [count, n]; norm 1 divides by sqrt(n), 2 by n."""
    angles = np.outer(np.arange(count), np.arange(n)) % n * (2 * np.pi / n)
    scale = (1.0, n**-0.5, 1.0 / n)[norm]
    # what should be zero is: rows of 1e-16 would get weights of their own
    return np.round(np.cos(angles), 12) * scale, np.round(np.sin(angles), 12) * scale


def _line(node: Node) -> str:
    """The user's line."""
    return ":".join(line_of(node.meta.get("stack_trace")) or ())
