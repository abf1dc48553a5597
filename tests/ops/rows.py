"""What a row of the operator table is, and how rows are run together.

Rows of one family become one model with an input and an output for each row: capturing and quantizing has a fixed price
of half a second, whatever the size of the model, and no row sees another's values.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tosaic.quantization.rules import RULES, Kind

ALL = ("8a8w", "16a8w", "fp32")
# lowest SQNR against the float module; with weights, these are at 8 bits
DECIBELS = {"8a8w": 30.0, "16a8w": 72.0}
WEIGHT_DECIBELS = {"8a8w": 28.0, "16a8w": 38.0}
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase)
# (lsb, equal): at most a step from the fake-quantized module, and on this share of the output equal
STEPS = (1, 0.95)
# the same at int16, where the operator itself is coarser than one rounding:
_ACCUMULATED = (2, 0.4)  # 48-bit accumulators take 16-bit multipliers, off by up to 2^-15: a step of the largest value
_INTERPOLATED = (1, 0.6)  # the entries of a TABLE are int16 themselves
_STEPS_AT_16 = {
    **dict.fromkeys(("convolution", "linear", "bmm", "mm", "upsample_bilinear2d", "upsample_linear1d"), _ACCUMULATED),
    **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"), _ACCUMULATED),
    **dict.fromkeys(("sigmoid", "tanh", "silu", "hardsigmoid", "hardswish", "gelu", "mish", "erf", "erfc"), _INTERPOLATED),
    **dict.fromkeys(("softplus", "log_sigmoid", "elu", "celu", "exp", "exp2", "expm1", "atan", "asinh", "sinh", "cosh"), _INTERPOLATED),
    **dict.fromkeys(("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan", "pow", "reciprocal"), _INTERPOLATED),
    "_softmax": (1, 0.8),  # exp of an int32 in 2^16 steps of 18 nats
    "exp_below_max": (10, 0.6),  # a TABLE of 256 intervals over 11 nats: half a step of its index costs 5.5, a chord 4
    **dict.fromkeys(("_log_softmax", "logsumexp"), (1, 0.6)),  # a logarithm in 2^14 steps
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm", "rms_norm"), (2, 0.75)),  # 1/sqrt by TABLE
    **dict.fromkeys(("std", "linalg_vector_norm"), (1, 0.2)),  # sqrt by TABLE, of few elements
    "div": (3, 0.5),  # a reciprocal of 14 bits
    "cosine_similarity": (2, 0.5),  # two roots of 15 bits
}


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        op: the aten operator that it is about; the captured graph must contain it.
        make: gives the module; called with a fixed seed.
        shapes: of the inputs.
        span: range of the (uniform) input values; the second input has 0.73 of it, as equal scales make for ties.
        precisions: where it runs; the reason for a missing one stands beside it in the table.
        lsb_at_16: how far the artifact may be from the fake-quantized module, in steps of its output, at int16, for several operators
            in a row.
        decibels: lowest SQNR against the float module, where it is not what `DECIBELS` says.
        equal_at_16: share of the output that must be what the fake-quantized module says, or as near to what that rounds, likewise.
        least_kept: lowest SQNR at int16 against the fake-quantized module, where not all is within a step of it.
        dtypes: of the inputs, where they are not all float32: integers of the span, bools that are as often true as not.
        exact: a function that only moves data; see `exact`.
    """

    name: str
    op: torch._ops.OpOverload
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    span: tuple[float, float] = (-2.1, 3.3)
    precisions: tuple[str, ...] = ALL
    decibels: tuple[tuple[str, float], ...] = ()
    lsb_at_16: int | None = None
    dtypes: tuple[torch.dtype, ...] = ()
    equal_at_16: float | None = None
    least_kept: float = 72.0
    exact: bool = False

    def least_decibels(self, precision: str, module: nn.Module) -> float:
        weighted = any(isinstance(m, _WEIGHTED) for m in module.modules())
        return dict(self.decibels).get(precision, (WEIGHT_DECIBELS if weighted else DECIBELS)[precision])

    def steps(self, precision: str, module: nn.Module) -> tuple[int, float]:
        """(lsb, equal) at a precision."""
        if self.exact and isinstance(module, Function):
            return 0, 1.0
        if precision == "16a8w":
            weighted = any(isinstance(m, _WEIGHTED) for m in module.modules())
            name = self.op._schema.name.split("::")[1]
            lsb, equal = _ACCUMULATED if weighted else _STEPS_AT_16.get(name, STEPS)
            return self.lsb_at_16 or lsb, equal if self.equal_at_16 is None else self.equal_at_16
        return STEPS

    def inputs(self, sample: int) -> list[Tensor]:
        """Values of one sample: full range in the first, so that calibration sees it."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()) + sample)
        tensors = []
        for i, shape in enumerate(self.shapes):
            low, high = (end * 0.73**i for end in self.span)
            tensor = torch.rand(shape, generator=generator) * (high - low) + low
            if sample == 0 and tensor.numel() > 1:
                tensor.view(-1)[0], tensor.view(-1)[-1] = low, high
            dtype = self.dtypes[i] if self.dtypes else torch.float32
            if dtype is torch.bool:
                tensor = tensor > (low + high) / 2
            tensors.append(tensor if tensor.dtype is dtype else tensor.round().to(dtype))
        return tensors


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def layer(name: str, op: torch._ops.OpOverload, make: Callable[[], nn.Module], *shapes: tuple[int, ...], **options: Any) -> Row:
    """A row about a module."""
    return Row(name, op, make, shapes, **options)


def function(name: str, op: torch._ops.OpOverload, run: Callable[..., Any], *shapes: tuple[int, ...], **options: Any) -> Row:
    """A row about a function of tensors."""
    return Row(name, op, lambda: Function(run), shapes, **options)


def resized(name: str, op: torch._ops.OpOverload, shape: tuple[int, ...], **options: Any) -> Row:
    """A row about images of another size."""
    return function(name, op, lambda a: F.interpolate(a, **options), shape)


def exact(*rows: Row) -> tuple[Row, ...]:
    """Rows, of which functions that only move data must give the very numbers of the fake-quantized module."""
    return tuple(dataclasses.replace(r, exact=RULES[r.op].kind is Kind.MOVE) for r in rows)


class Family(nn.Module):
    """Rows side by side; outputs are named after them (`split_0`, `split_1`, ... where a row has several)."""

    def __init__(self, rows: Sequence[Row]) -> None:
        super().__init__()
        self.rows, self.cases = list(rows), nn.ModuleDict()
        with torch.random.fork_rng():
            for row in rows:
                torch.manual_seed(zlib.crc32(row.name.encode()))
                self.cases[row.name] = settled(row.make())
        self.eval()

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        left, results = list(inputs), {}
        for row in self.rows:
            own = [left.pop(0) for _ in row.shapes]
            result = self.cases[row.name](*own)
            parts = result if isinstance(result, list | tuple) else [result]
            results |= {row.name if len(parts) == 1 else f"{row.name}_{i}": part for i, part in enumerate(parts)}
        return results

    def inputs(self, sample: int) -> tuple[Tensor, ...]:
        return tuple(tensor for row in self.rows for tensor in row.inputs(sample))

    def row_of(self, output: str) -> Row:
        """The row that an output belongs to."""
        return next(
            row for row in self.rows if output == row.name or (output.startswith(row.name) and output[len(row.name) :][1:].isdigit())
        )


def settled(module: nn.Module) -> nn.Module:
    """Batch norms with statistics as training leaves them, not the initial zeros and ones."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.running_mean.normal_()
            child.running_var.uniform_(0.5, 2.0)
            child.weight.data.uniform_(-1.5, 1.5)
            child.bias.data.normal_()
    return module
