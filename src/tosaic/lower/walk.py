"""The FX graph, node by node, into a TOSA graph.

quantize and dequantize operators only say how a value is stored: a dequantize passes its operand on, and a quantize
requantizes it, so that `dequantize -> op -> quantize` becomes integer arithmetic and one RESCALE.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import Node
from torch.utils import _pytree as pytree
from torchao.quantization.pt2e import quantize_pt2e as _registers_quantized_decomposed  # noqa: F401

from tosaic import digits
from tosaic.errors import GraphError, UnsupportedError, line_of
from tosaic.lower.context import NCHW, NHWC, Context
from tosaic.lower.halves import brought, finished, float_type, rounds_once
from tosaic.lower.ledger import LedgerRow, entry
from tosaic.lower.limits import check_limits
from tosaic.lower.operand import Operand, Quant
from tosaic.lower.registry import LOWERINGS
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, Location, Meaning, Value
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType

_q = torch.ops.quantized_decomposed
QUANTIZE = (_q.quantize_per_tensor.default, _q.quantize_per_tensor.tensor, _q.quantize_per_channel.default)
DEQUANTIZE = (_q.dequantize_per_tensor.default, _q.dequantize_per_tensor.tensor, _q.dequantize_per_channel.default)
_DTYPES = {torch.int8: DType.INT8, torch.uint8: DType.INT8, torch.int16: DType.INT16, torch.int32: DType.INT32}
_MOVES = 4  # operators that move a result, at most
_CLAMPS = ("relu", "relu6", "hardtanh", "clamp")


@dataclass(frozen=True)
class Port:
    """An input or output of the graph: what a caller must feed, or gets.

    Attributes:
        shape: as stored; `layout` says how it relates to the model's own ("nhwc": channels moved last).
        scale, zero_point: real = scale * (stored - zero_point); None for float and index tensors.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    scale: float | None = None
    zero_point: int | None = None
    layout: str = "model"


@dataclass
class Lowered:
    graph: Graph
    inputs: list[Port]
    outputs: list[Port]
    ledger: list[LedgerRow]


def lower_graph(
    module: torch.fx.GraphModule,
    spec: Spec,
    *,
    output_names: list[str],
    name: str = "main",
    io_layout: str = "model",
    reasons: Mapping[str, str] | None = None,
    magnitudes: Mapping[str, float] | None = None,
) -> Lowered:
    """Lower a captured (and quantized) module.

    Args:
        io_layout: "nhwc" stores rank-4 inputs and outputs channels last.
        reasons: node name -> why the quantizer left it float, for the ledger.
        magnitudes: node name -> what calibration saw of an int32 value, where that is less than its scale says.

    Raises:
        UnsupportedError: lists every operator that cannot be lowered, with its place in the model.
    """
    return _Walk(module, spec, output_names, name, io_layout, reasons or {}, magnitudes or {}).run()


def _refusal(node: Node) -> str | None:
    """Why an operator cannot be lowered; None if it can be. One without a lowering may still be folded, if its inputs are constants."""
    if _is_random(node):
        return f"{node.target} draws random numbers, which a .vgf cannot: give them to the model as an input"
    known = node.target in LOWERINGS or node.target in (*QUANTIZE, *DEQUANTIZE, operator.getitem)
    return None if known else f"{node.target} has no lowering"


def _is_random(node: Node) -> bool:
    """Folded, it would be the same numbers in every run."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def check_operators(module: torch.fx.GraphModule) -> None:
    """Refuse operators that have no lowering, all at once, before calibration or training spends time on them.

    Raises:
        UnsupportedError: lists them with their places in the model; or a tensor has no elements.
    """
    check_limits(module, location_of)
    constant: set[Node] = set()
    failures: list[tuple[str, str]] = []
    for node in module.graph.nodes:
        folded = node.op == "call_function" and not _is_random(node) and all(a in constant for a in node.all_input_nodes)
        if node.op == "get_attr" or folded:
            constant.add(node)
        elif node.op == "call_function" and (reason := _refusal(node)) is not None:
            failures.append((reason, str(location_of(node))))
    if failures:
        raise _all_failures(failures)


class _Walk:
    def __init__(
        self,
        module: torch.fx.GraphModule,
        spec: Spec,
        output_names: list[str],
        name: str,
        io_layout: str,
        reasons: Mapping[str, str],
        magnitudes: Mapping[str, float],
    ) -> None:
        self.module, self.spec, self.output_names, self.io_layout = module, spec, output_names, io_layout
        self.reasons, self.magnitudes = reasons, magnitudes
        self.builder = Builder(name)
        self.builder.reserve(output_names)
        self.ctx = Context(self.builder, spec)
        self.results: dict[Node, Any] = {}
        self.failures: list[tuple[str, str]] = []
        self.inputs: list[Port] = []
        self.ledger: list[LedgerRow] = []

    def run(self) -> Lowered:
        check_limits(self.module, location_of, self.spec.level)
        outputs: list[Port] = []
        values: list[Value] = []
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.results[node] = self._input(node)
            elif node.op == "get_attr":
                self.results[node] = Operand(array=_array(self._tensor(node)))
            elif node.op == "output":
                if not self.failures:
                    for leaf, name in zip(pytree.tree_leaves(node.args[0]), self.output_names, strict=True):
                        value, port = self._output(leaf, name, values)
                        values.append(value)
                        outputs.append(port)
            else:
                self._operator(node)
        if self.failures:
            raise _all_failures(self.failures)
        return Lowered(self.builder.finish(values), self.inputs, outputs, self.ledger)

    def _tensor(self, node: Node) -> torch.Tensor:
        found: Any = self.module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found

    # Inputs and outputs

    def _input(self, node: Node) -> Operand:
        example = node.meta["val"]
        if not isinstance(example, torch.Tensor):
            raise UnsupportedError(f"input '{node.name}' is not a tensor but {type(example).__name__}", remedy="close over it in the model")
        quants = {_quant_of(u) for u in node.users if u.target in QUANTIZE}
        stored = quants.pop() if len(quants) == 1 and all(u.target in QUANTIZE for u in node.users) else None
        shape = tuple(example.shape)
        perm = NCHW if self.io_layout == "nhwc" and len(shape) == 4 else None
        if perm:
            shape = tuple(shape[p] for p in NHWC)
        dtype = stored.dtype if stored else _input_dtype(node, example)
        value = self.builder.input(node.name, dtype, shape)
        scale = float(stored.scale) if stored else None
        zero_point = stored.zero_point if stored else None
        self._note(node, Operand(value, quant=stored, perm=perm))
        self.inputs.append(Port(value.name, dtype, shape, scale, zero_point, "nhwc" if perm else "model"))
        x = Operand(value, quant=stored, perm=perm)
        return self.ctx.saturated(x) if stored is not None and dtype is DType.INT32 else x

    def _output(self, leaf: Any, name: str, taken: list[Value]) -> tuple[Value, Port]:
        if not isinstance(leaf, Node | bool | int | float):
            raise UnsupportedError(f"output '{name}' is not a tensor but {type(leaf).__name__}", remedy="return tensors only")
        x = self.results[leaf] if isinstance(leaf, Node) else Operand(array=np.array(leaf))
        if x.is_real_const and x.array.dtype.kind not in "biu" and not self.spec.holds("FP"):
            # a constant that no operator reads has no scale yet: 24 significant bits, as any value between operators
            largest = float(np.abs(x.reals()).max(initial=0.0)) or 1.0
            x = self.ctx.requantize(x, Quant(largest / (2.0**23 - 1), 0, DType.INT32))
        with self.builder.at(name):
            x = self.ctx.store(self.ctx.resolve_clamp(self.ctx.uniform(x)))
            nhwc = self.io_layout == "nhwc" and len(x.shape) == 4
            value = self.ctx.permuted(x, NHWC) if nhwc else self.ctx.logical(x)
            if value in self.builder.graph.inputs or value in taken or value.is_const:
                value = self.builder.emit(ops.Identity(), value)
        value.name = name
        if isinstance(leaf, Node) and value.meaning is None:
            self._note(_source(leaf), Operand(value, quant=x.quant, perm=NCHW if nhwc else None))
        scale = x.scale if x.quant else None
        zero_point = x.quant.zero_point if x.quant else None
        return value, Port(name, value.dtype, value.shape, scale, zero_point, "nhwc" if nhwc else "model")

    # Operators

    def _operator(self, node: Node) -> None:
        location = location_of(node)
        if any(self.results.get(a) is None for a in node.all_input_nodes):
            # one of its inputs failed: it cannot be lowered now, but the user wants to know whether it could be
            if (reason := _refusal(node)) is not None:
                self.failures.append((reason, str(location)))
            return
        try:
            if node.target in QUANTIZE:
                self.results[node] = self._quantize(node)
                self._note(_source(node), self.results[node])
            elif node.target in DEQUANTIZE:
                self.results[node] = self._dequantize(node)
            elif node.target is operator.getitem:
                self.results[node] = _part(node, self.results[node.args[0]])
                self._note(node, self.results[node])
            elif not _is_random(node) and (folded := self._fold(node)) is not None:
                self.results[node] = folded
            elif (reason := _refusal(node)) is not None:
                self.failures.append((reason, str(location)))
            else:
                self._lower(node, LOWERINGS[node.target], location)
        except UnsupportedError as error:
            self.failures.append((f"{node.target}: {error.what}", str(location)))
        except GraphError as error:
            raise GraphError(f"{node.target}: {error.what}", where=str(location)) from error

    def _lower(self, node: Node, function: Any, location: Location) -> None:
        self.ctx.want, self.ctx.location, self.ctx.floating = self._want(node), location, _floating(node)
        self.ctx.digits = _digits(node.args[0]) if node.target is torch.ops.aten.linear.default else None
        floating = self.ctx.floating
        first = len(self.builder.graph.nodes)
        with self.builder.at(node.name, location):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: self.results[n])
            self.results[node] = self._computed(node, function, args, kwargs)
        emitted = self.builder.graph.nodes[first:]
        self._note(node, self.results[node])
        self.ledger.append(entry(node.name, location, self.results[node], emitted, self.ctx.want, floating, self.reasons.get(node.name)))

    def _note(self, node: Node, x: Any) -> None:
        """Say that the value of `x` is the result of `node`, where it is just that, and not known as another's already."""
        if not isinstance(x, Operand) or x.value is None or x.value.is_const or x.value.meaning is not None:
            return
        if x.clamped or (x.quant is not None and x.quant.per_channel):
            return
        scale, zero_point = (None, None) if x.quant is None else (x.scale, x.quant.zero_point)
        meaning = Meaning(node.name, scale, zero_point)
        if x.view is not None:
            meaning = meaning.after(("reshape", x.view))
        if x.perm is not None:
            meaning = meaning.after(("transpose", x.perm))
        x.value.meaning = meaning
        self._note_moved(x.value, meaning)

    def _note_moved(self, value: Value, meaning: Meaning) -> None:
        """The same of what `value` was moved from: optimization takes such operators away."""
        for node in reversed(self.builder.graph.nodes[-_MOVES:]):
            if value not in node.outputs:
                continue
            if not isinstance(node.op, ops.Reshape | ops.Transpose) or node.inputs[0].meaning is not None or node.inputs[0].is_const:
                return
            move = ("transpose", node.op.perms) if isinstance(node.op, ops.Transpose) else ("reshape", node.op.shape)
            value, meaning = node.inputs[0], meaning.after(move)
            value.meaning = meaning

    def _computed(self, node: Node, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a lowering function gives: in the operator's own float type where that rounds once, else in float32."""
        ctx, expected = self.ctx, node.meta.get("val")
        floats = isinstance(expected, torch.Tensor | list | tuple)

        def compute() -> Any:
            own_args, own_kwargs = brought(ctx, (args, kwargs), ctx.floating) if floats else (args, kwargs)
            result = function(ctx, *own_args, **own_kwargs)
            return finished(ctx, result, expected) if floats else result

        start = self.builder.mark()
        result = compute()
        if rounds_once(self.builder.graph.nodes[start.nodes :]):
            return result
        self.builder.undo(start)
        ctx.floating = DType.FP32
        return compute()

    def _want(self, node: Node) -> Quant | None:
        """The quantization that the readers ask for: the widest, if several; None if one reads it in float."""
        quants, in_float = [], False
        for user in node.users:
            if _digits(user) is not None:
                in_float = True  # they are taken of the value as it is
            elif user.target in QUANTIZE:
                quants.append(_quant_of(user))
            elif user.target is operator.getitem or getattr(user.target, "_opname", "") in _CLAMPS:
                found = self._want(user)
                quants += [found] if found else []
                in_float |= found is None
            else:
                in_float = True
        if not quants or (in_float and self.spec.holds("FP")):
            return None
        return max(quants, key=lambda q: q.dtype.bits)

    def _quantize(self, node: Node) -> Operand:
        x = self.results[node.args[0]]
        if x.is_real_const:
            return self._quantized_constant(node, x)
        if _digits(node) is not None:
            return x  # whoever reads it takes the digits
        target = _quant_of(node)
        low, high = node.args[3:5]
        shift = 128 if node.args[5] is torch.uint8 else 0
        if low - shift > target.dtype.min or high - shift < target.dtype.max:
            x = x.clamp(float(target.real(np.array(low - shift))), float(target.real(np.array(high - shift))))
        source = _source(node)
        with self.builder.at(source.name, location_of(source)):
            return self.ctx.store_as(x, target, self.magnitudes.get(source.name))

    def _quantized_constant(self, node: Node, x: Operand) -> Operand:
        """A weight: quantized by PyTorch's own operator, so that it is what the fake-quantized model computes with."""
        args = torch.fx.map_arg(node.args[1:], lambda n: _tensor(self.results[n].array))
        per_channel = node.target is _q.quantize_per_channel.default
        return _constant(node.target(_tensor(x.array), *args), args, per_channel, self.spec.holds("int4"))

    def _dequantize(self, node: Node) -> Operand:
        """The operand itself; a constant that is stored quantized (convert_pt2e folds weights) gets its scales here."""
        x = self.results[node.args[0]]
        if not x.is_real_const or x.array.dtype.kind not in "biu":
            return x
        args = torch.fx.map_arg(node.args[1:], lambda n: _tensor(self.results[n].array))
        return _constant(_tensor(x.array), args, node.target is _q.dequantize_per_channel.default, self.spec.holds("int4"))

    def _fold(self, node: Node) -> Operand | tuple[Operand, ...] | None:
        """Run an operator whose tensors are all constants."""
        operands = [self.results[n] for n in node.all_input_nodes]
        if not all(isinstance(x, Operand) and x.is_real_const for x in operands):
            return None
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: _tensor(self.results[n].array))
        result = node.target(*args, **kwargs)
        if isinstance(result, tuple | list):
            return tuple(Operand(array=_array(t)) for t in result)
        return Operand(array=_array(result))


def _part(node: Node, parts: tuple[Operand, ...]) -> Operand:
    """One of several results."""
    producer, position = node.args
    if position >= len(parts):
        raise UnsupportedError(f"{producer.target}: its result number {position} is not computed")
    return parts[position]


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:  # numpy has no such type; ml_dtypes does
        return tensor.contiguous().view(torch.int16).numpy().view(DType.BF16.numpy)
    return tensor.numpy()


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(array.view(np.int16)).view(torch.bfloat16) if array.dtype == DType.BF16.numpy else torch.as_tensor(array)


def _constant(stored: torch.Tensor, args: tuple[Any, ...], per_channel: bool, int4: bool) -> Operand:
    """A tensor that is stored quantized; `args` are those of its (de)quantize operator after the tensor.

    PyTorch has no 4-bit type: what its range confines to 4 bits is int4 where the specification has it.
    """
    scale, zero_point = np.asarray(args[0], dtype=np.float64), np.asarray(args[1])
    shift = 128 if stored.dtype is torch.uint8 else 0
    if (zero_point - shift).any():
        # TOSA has no zero points per channel, and int16 and int32 have none at all: compute with the real numbers
        dequantize = _q.dequantize_per_channel.default if per_channel else _q.dequantize_per_tensor.default
        return Operand(array=dequantize(stored, *args).numpy())
    scales = tuple(scale.tolist()) if per_channel else float(scale)
    low, high = args[3:5] if per_channel else args[2:4]
    four_bits = int4 and DType.INT4.min <= low - shift and high - shift <= DType.INT4.max
    quant = Quant(scales, 0, DType.INT4 if four_bits else _DTYPES[stored.dtype])
    numbers = stored.numpy().astype(np.int64) - shift if shift else stored.numpy()  # a large table is not copied
    return Operand(array=numbers, quant=quant, axis=int(args[2]) if per_channel else None)


def _source(node: Node) -> Node:
    """What a quantize operator quantizes, through others of its kind."""
    while node.target in (*QUANTIZE, *DEQUANTIZE):
        node = node.args[0]
    return node


def _quant_of(node: Node) -> Quant:
    """Storage that a quantize_per_tensor operator asks for; uint8 becomes int8, zero point shifted along."""
    scale, zero_point, _, _, dtype = node.args[1:6]
    if dtype not in _DTYPES or isinstance(scale, Node) or isinstance(zero_point, Node):
        raise UnsupportedError(f"quantization to {dtype} with computed or unsupported parameters", where=str(location_of(node)))
    return Quant(float(scale), int(zero_point) - (128 if dtype is torch.uint8 else 0), _DTYPES[dtype])


def _digits(node: Any) -> float | None:
    """The step of a value that is quantized to two digits; None for any other."""
    if not isinstance(node, Node) or node.target not in (QUANTIZE[0], DEQUANTIZE[0]):
        return None
    return float(node.args[1]) if tuple(node.args[3:6]) == (digits.LEAST, digits.MOST, torch.int16) else None


def _input_dtype(node: Node, example: torch.Tensor) -> DType:
    known = {
        torch.float32: DType.FP32,
        torch.float16: DType.FP16,
        torch.bfloat16: DType.BF16,
        torch.bool: DType.BOOL,
        torch.int8: DType.INT8,
        torch.int16: DType.INT16,
        torch.int32: DType.INT32,
        torch.int64: DType.INT32,
    }
    if example.dtype not in known:
        remedy = "use float32, float16, bfloat16, int32, int64 or bool inputs"
        raise UnsupportedError(f"input '{node.name}' has type {example.dtype}", remedy=remedy)
    return known[example.dtype]


def _floating(node: Node) -> DType:
    return float_type(node.meta.get("val"), [n.meta.get("val") for n in node.all_input_nodes])


def location_of(node: Node) -> Location:
    """aten operator, module path, and the user's line (the innermost outside torch)."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((p for p, _ in reversed(list(stack.values()))), "")
    line = line_of(node.meta.get("stack_trace"))
    return Location(str(node.target), path, f"{_short(line[0], os.getcwd())}:{line[1]}" if line else "")


@functools.cache
def _short(file: str, folder: str) -> str:
    """A path relative to the working folder, if it is inside: what an artifact records should not depend on the machine."""
    path = Path(file)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else file


def _all_failures(failures: list[tuple[str, str]]) -> UnsupportedError:
    lines = [f"  {what}\n    at: {where}" for what, where in failures]
    count = f"{len(failures)} operator{'s' if len(failures) > 1 else ''}"
    return UnsupportedError(
        f"{count} cannot be lowered to TOSA:\n" + "\n".join(lines),
        remedy="replace them in the model, or see docs/ops.md for what is supported",
    )
