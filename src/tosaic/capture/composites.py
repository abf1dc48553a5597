"""Normalisations and activations that a model spells out, put back together: each is one unit of quantization.

    x * rsqrt(mean(x * x) + eps) * w                                   -> rms_norm(x, w, eps)
    (x - mean(x)) * rsqrt(mean((x - mean(x))^2) + eps) * w + b         -> layer_norm(x, w, b, eps); var(x) too
    0.5 * x * (1 + erf(x / sqrt(2)))                                   -> gelu(x)
    0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))          -> gelu(x, "tanh")
    x * sigmoid(x)                                                     -> silu(x)
    x * sigmoid(c * x)                                                 -> silu(c * x) / c
    exp(x) - 1, 1 - exp(x)                                             -> expm1(x), -expm1(x): near 0 the difference has few bits

A product is compared as the set of its factors, so that order and grouping do not matter; a quotient by sqrt(v) counts as a
factor rsqrt(v). The mean must be over the last axis. What is in between and read by something else stays, beside the composite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
_MUL, _DIV = (aten.mul.Tensor, aten.mul.Scalar), (aten.div.Tensor, aten.div.Scalar)
_ADD, _SUB = (aten.add.Tensor, aten.add.Scalar), (aten.sub.Tensor,)
_MEAN, _VAR = (aten.mean.dim,), (aten.var.correction,)


@dataclass
class _Product:
    """number * product of factors / product of roots' square roots."""

    number: float = 1.0
    factors: list[Node] = field(default_factory=list)
    inverse_roots: list[Node] = field(default_factory=list)


def assemble_composites(module: GraphModule) -> None:
    """Replace what is spelled out by the operator itself, in place."""
    constant: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and node.all_input_nodes and constant.issuperset(node.all_input_nodes)):
            constant.add(node)
    for node in reversed(module.graph.nodes):
        if _is(node, *_SUB, aten.sub.Scalar, aten.rsub.Scalar, *_ADD) and node not in constant:
            _expm1(module, node)
        if not _is(node, *_MUL, *_DIV) or not node.users or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        if node in constant or not node.meta["val"].is_floating_point():
            continue
        product = _flatten(node)
        # a weight that only some outer product holds is matched with it; without it the inner one matches by itself later
        _norm(module, node, product, constant) or _gate(module, node, product)


def _is(node: Any, *targets: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def _flatten(node: Node) -> _Product:
    found = _Product()
    _collect(node, found, root=True)
    return found


def _collect(node: Any, found: _Product, *, root: bool = False) -> None:
    if isinstance(node, int | float):
        found.number *= float(node)
    elif _is(node, *_MUL) and (root or len(node.users) == 1) and node.args[0] is not node.args[1]:
        for factor in node.args[:2]:
            _collect(factor, found)
    elif _is(node, *_DIV) and (root or len(node.users) == 1) and not node.kwargs:
        below = node.args[1]
        if isinstance(below, int | float) and below:
            _collect(node.args[0], found)
            found.number /= float(below)
        elif _is(below, aten.sqrt.default):
            _collect(node.args[0], found)
            found.inverse_roots.append(below.args[0])
        else:
            found.factors.append(node)
    elif _is(node, aten.rsqrt.default):
        found.inverse_roots.append(node.args[0])
    else:
        found.factors.append(node)


# Normalisations


def _norm(module: GraphModule, node: Node, product: _Product, constant: set[Node]) -> bool:
    weights = [f for f in product.factors if f in constant]
    rest = [f for f in product.factors if f not in constant]
    if len(rest) != 1 or len(weights) > 1 or len(product.inverse_roots) != 1 or product.number != 1.0:
        return False
    (inner,), (below,) = rest, product.inverse_roots
    split = _plus_number(below)
    if split is None:
        return False
    variance, eps = split
    size = inner.meta["val"].shape[-1]
    if any(tuple(w.meta["val"].shape) != (size,) for w in weights) or node.meta["val"].shape != inner.meta["val"].shape:
        return False
    weight, x = (weights[0] if weights else None), _centred(inner)
    if x is not None and (_is_mean_square(variance, inner) or _is_variance(variance, x)):
        return _layer_norm(module, node, x, size, weight, eps, constant)
    if not _is_mean_square(variance, inner):
        return False
    _replace(module, node, aten.rms_norm.default, (inner, [size], weight, eps))
    return True


def _layer_norm(module: GraphModule, node: Node, x: Node, size: int, weight: Node | None, eps: float, constant: set[Node]) -> bool:
    bias, last = None, node
    if len(node.users) == 1:
        (user,) = node.users
        if _is(user, aten.add.Tensor) and not user.kwargs:
            other = user.args[1] if user.args[0] is node else user.args[0]
            if other in constant and tuple(other.meta["val"].shape) == (size,):  # type: ignore[union-attr]
                bias, last = other, user
    _replace(module, last, aten.layer_norm.default, (x, [size], weight, bias, eps))
    return True


def _plus_number(node: Any) -> tuple[Node, float] | None:
    """(v, eps) of v + eps."""
    if not _is(node, *_ADD) or node.kwargs:
        return None
    a, b = node.args[:2]
    a, b = (b, a) if isinstance(a, int | float) else (a, b)
    return (a, float(b)) if isinstance(a, Node) and isinstance(b, int | float) else None


def _over_last_axis(node: Node) -> bool:
    """A reduction over the last axis that keeps it."""
    dims, keepdim = node.args[1], (node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
    rank = node.args[0].meta["val"].dim()
    return bool(keepdim) and dims is not None and [d % rank for d in dims] == [rank - 1]


def _is_mean_square(node: Any, x: Node) -> bool:
    if not _is(node, *_MEAN) or not _over_last_axis(node):
        return False
    square = node.args[0]
    if _is(square, aten.pow.Tensor_Scalar):
        return _same(square.args[0], x) and square.args[1] == 2
    if _is(square, *_MUL):
        return _same(square.args[0], x) and square.args[1] is square.args[0]
    return _is(square, aten.square.default) and _same(square.args[0], x)


def _same(a: Any, b: Any, depth: int = 3) -> bool:
    """Whether two nodes are the same computation, written twice."""
    if a is b or not (isinstance(a, Node) and isinstance(b, Node)):
        return a is b or (type(a) is type(b) and not isinstance(a, Node) and a == b)
    alike = depth > 0 and a.op == b.op == "call_function" and a.target is b.target and a.kwargs == b.kwargs and len(a.args) == len(b.args)
    return alike and all(_same(p, q, depth - 1) for p, q in zip(a.args, b.args, strict=True))


def _is_variance(node: Any, x: Node) -> bool:
    if not _is(node, *_VAR) or node.args[0] is not x or node.kwargs.get("correction", 1) not in (0, 0.0):
        return False
    dims, rank = (node.args[1] if len(node.args) > 1 else None), x.meta["val"].dim()
    return bool(node.kwargs.get("keepdim")) and dims is not None and [d % rank for d in dims] == [rank - 1]


def _centred(node: Node) -> Node | None:
    """x of x - mean(x)."""
    if not _is(node, *_SUB) or node.kwargs:
        return None
    x, mean = node.args
    return x if _is(mean, *_MEAN) and mean.args[0] is x and _over_last_axis(mean) else None  # type: ignore[union-attr, return-value]


# Gates


def _gate(module: GraphModule, node: Node, product: _Product) -> bool:
    if len(product.factors) != 2 or product.inverse_roots:
        return False
    for x, gate in (product.factors, product.factors[::-1]):
        if _is(gate, aten.sigmoid.default) and (c := _multiple(gate.args[0], x)) is not None and c > 0:
            _silu(module, node, x, c, product.number)
            return True
        if (inside := _one_plus(gate)) is None or not math.isclose(product.number, 0.5, rel_tol=1e-4):
            continue
        if _is(inside, aten.erf.default) and _close(_multiple(inside.args[0], x), math.sqrt(0.5)):
            _replace(module, node, aten.gelu.default, (x,))
            return True
        if _is(inside, aten.tanh.default) and _is_gelu_argument(inside.args[0], x):
            _replace(module, node, aten.gelu.default, (x,), {"approximate": "tanh"})
            return True
    return False


def _expm1(module: GraphModule, node: Node) -> None:
    exp, one = node.args[:2]
    if not _is(exp, aten.exp.default) or len(exp.users) > 1 or len(node.args) > 2 or node.kwargs:
        return
    if _is(node, aten.rsub.Scalar) and one == 1:
        with module.graph.inserting_before(node):
            result = _like(module.graph, node, aten.expm1.default, (exp.args[0],))
            result = _like(module.graph, node, aten.neg.default, (result,))
        node.replace_all_uses_with(result)
    elif one == (-1 if _is(node, *_ADD) else 1) and not _is(node, aten.rsub.Scalar):
        _replace(module, node, aten.expm1.default, (exp.args[0],))


def _silu(module: GraphModule, node: Node, x: Node, c: float, number: float) -> None:
    graph = module.graph
    with graph.inserting_before(node):
        if c != 1.0:
            x = _like(graph, node, aten.mul.Tensor, (x, c))
        result = _like(graph, node, aten.silu.default, (x,))
        if number / c != 1.0:
            result = _like(graph, node, aten.mul.Tensor, (result, number / c))
    node.replace_all_uses_with(result)


def _multiple(node: Any, x: Node) -> float | None:
    """c of c * x."""
    if node is x:
        return 1.0
    if not _is(node, *_MUL, *_DIV):
        return None
    product = _flatten(node)
    return product.number if product.factors == [x] and not product.inverse_roots else None


def _one_plus(node: Any) -> Node | None:
    """v of 1 + v."""
    split = _plus_number(node)
    return split[0] if split and split[1] == 1.0 else None


def _is_gelu_argument(node: Any, x: Node) -> bool:
    """sqrt(2 / pi) * (x + k x^3), or sqrt(2 / pi) * x * (1 + k x^2)"""
    product = _flatten(node) if _is(node, *_MUL) else None
    if product is None or not _close(product.number, math.sqrt(2 / math.pi)):
        return False
    outside = [f for f in product.factors if f is not x]
    if len(outside) != 1 or not _is(outside[0], *_ADD) or outside[0].kwargs:
        return False
    one: Any = x if len(product.factors) == 1 else 1
    a, b = outside[0].args[:2]
    cubic = b if a is one or a == one else a if b is one or b == one else None
    if not _is(cubic, *_MUL):
        return False
    parts = _flatten(cubic)  # type: ignore[arg-type]
    powers = sum(_power_of(f, x) for f in parts.factors)
    return powers == (3 if one is x else 2) and _close(parts.number, 0.044715)


def _power_of(node: Node, x: Node) -> float:
    """n of x^n."""
    if node is x:
        return 1
    if _is(node, aten.pow.Tensor_Scalar) and node.args[0] is x:
        return float(node.args[1])  # type: ignore[arg-type]
    if _is(node, *_MUL):
        return _power_of(node.args[0], x) + _power_of(node.args[1], x)  # type: ignore[arg-type]
    return math.nan


def _close(found: float | None, wanted: float) -> bool:
    return found is not None and math.isclose(found, wanted, rel_tol=1e-3)


# Graph surgery


def _like(graph: torch.fx.Graph, node: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
    made = graph.call_function(target, args, kwargs or {})
    made.meta = node.meta.copy()
    return made


def _replace(module: GraphModule, node: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
    with module.graph.inserting_before(node):
        made = _like(module.graph, node, target, args, kwargs)
    node.replace_all_uses_with(made)
