"""Each row of the table through the public API, at each of its precisions: against the oracle, PyTorch and the specification."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from ops.rows import ALL, Family
from ops.table import FAMILIES
from torch import nn
from torch.utils import _pytree as pytree

import tosaic
from tosaic.artifact import Artifact
from tosaic.compiler import captured_for_inference
from tosaic.lower.registry import LOWERINGS
from tosaic.quantization.ptq import Quantized
from tosaic.quantization.rules import RULES
from tosaic.tosa.graph import Graph, verify
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType

aten = torch.ops.aten
Run = Callable[[Graph, Sequence[np.ndarray]], list[np.ndarray]]
CheckVgf = Callable[[Graph, Sequence[np.ndarray]], None]
SPECS = {"8a8w": "TOSA-1.0+INT", "16a8w": "TOSA-1.0+INT+int16", "fp32": "TOSA-1.0+FP"}
CALIBRATION = 3
TIE = 2.0**-9  # of a step: what float32 makes of a number half-way between two
QUANTIZE, DEQUANTIZE = (getattr(torch.ops.quantized_decomposed, f"{n}_per_tensor").default for n in ("quantize", "dequantize"))
CASES = [(family, precision) for family in FAMILIES for precision in ALL]
HALVES = {"fp16": (torch.float16, "TOSA-1.0+FP"), "bf16": (torch.bfloat16, "TOSA-1.0+FP+bf16")}
# rows that run in float16 and bfloat16 without being compared with PyTorch, and why
_STEP = "a step behind a convolution: where its last digit differs, the result does by a whole step"
_SHORT = "a * (1/b) may fall short of a whole number, which quotients of such short numbers often are"
NOT_COMPARED = {
    **dict.fromkeys(("trunc_between", "round_between", "round_decimals_between", "ceil_between", "floor_between"), _STEP),
    **dict.fromkeys(("floor_divide_reals", "remainder_pairs_signed", "remainder_wide"), _SHORT),
}
# not compared beyond calibration: of so steep a function, what head-room lets in gives more than its TABLE covers, and saturates there
STEEP = ("cosh_between",)
# lowered in float, without a quantization rule, and why
FLOAT_ONLY: dict[str, str] = {}


@functools.cache
def program(family: str, precision: str) -> tuple[Family, torch.export.ExportedProgram]:
    """The rows of a family that run at a precision, captured; float16 and bfloat16 take those of float32."""
    model = Family([row for row in FAMILIES[family] if precision in row.precisions])
    return model, torch.export.export(model, model.inputs(0))


def build(family: str, precision: str) -> tuple[Family, Artifact, Quantized | None]:
    model, exported = program(family, precision)
    if precision == "fp32":
        return model, tosaic.compile(exported, spec=SPECS[precision]), None
    calibration = [model.inputs(i) for i in range(CALIBRATION)]
    quantized = tosaic.quantize(exported, model.inputs(0), calibration, precision)
    return model, tosaic.compile(quantized, spec=SPECS[precision]), quantized


@pytest.mark.parametrize(("family", "precision"), CASES, ids=[" ".join(c) for c in CASES])
def test_rows(family: str, precision: str, reference: Run, check_vgf: CheckVgf) -> None:
    model, artifact, quantized = build(family, precision)
    verify(artifact.graph, Spec.parse(SPECS[precision]))
    check_vgf(artifact.graph, stored(artifact, model.inputs(0)))
    problems = [*missing_operators(model, artifact)]
    for sample in range(2):
        inputs = model.inputs(sample)
        problems += against_reference(artifact, inputs, reference)
        problems += against_torch(model, artifact, quantized, inputs, precision)
    if quantized is not None:
        # beyond the calibrated range and its head-room both sides saturate (to few values, so that how many are equal says nothing)
        outside = tuple(1.5 * x if x.is_floating_point() else x for x in model.inputs(1))
        problems += against_fake_quantized(model, artifact, quantized, outside, precision, count=False)
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_half_precision(family: str, kind: str, reference: Run, check_vgf: CheckVgf) -> None:
    model, exported = program(family, "fp32")
    dtype, spec = HALVES[kind]
    artifact = tosaic.compile(exported, scheme=kind)
    assert artifact.passport.spec == spec
    verify(artifact.graph, Spec.parse(spec))
    assert not any(v.dtype is DType.FP32 for v in (*artifact.graph.inputs, *artifact.graph.outputs))
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in model.inputs(1)]
    arrays = stored(artifact, inputs, float_io=False)
    check_vgf(artifact.graph, arrays)
    results = artifact.run(arrays, float_io=False)
    oracle = Rounded(captured_for_inference(exported, None, kind).module)
    with torch.no_grad():
        expected = oracle.run(*inputs)
    counts = Counter(re.split(r"[. ]", row.location.partition("| cases.")[2])[0] for row in artifact.passport.ledger)
    problems = []
    for port, ours, theirs in zip(artifact.passport.outputs, results, reference(artifact.graph, arrays), strict=True):
        want, row = _numbers(expected[port.name]), model.row_of(port.name)
        # both compute in float32 and round, to neighbours where float32 sums in another order; convolutions round before the bias
        weighted = any(p.dim() > 1 for p in model.cases[row.name].parameters())
        if not np.all(_close(ours, theirs, _ulp(np.abs(want).max() if weighted else theirs, dtype) + 1e-5)):
            problems.append(f"{port.name}: simulator and reference model differ by {_largest_difference(ours, theirs)}")
        # each operator rounds once, by half a unit of the largest number that it sees, and so does the bias of a convolution
        bound = counts[row.name] * _ulp(np.abs(want[np.isfinite(want)]).max(initial=0.0), dtype)
        if row.name not in NOT_COMPARED and not np.all(_close(ours, want, bound)):
            problems.append(f"{port.name}: differs from PyTorch by {_largest_difference(ours, want)}, bound {bound}")
    assert not problems, "\n" + "\n".join(problems)


class Rounded(torch.fx.Interpreter):
    """PyTorch's operators in float32, each result rounded to its type: as its kernels for float16 and bfloat16 mean to compute,
    of which not all exist for CPUs. Numbers beside a tensor are constants of its type."""

    def run_node(self, node: torch.fx.Node) -> Any:
        if node.op != "call_function":
            return super().run_node(node)
        arguments = self.fetch_args_kwargs_from_env(node)
        if node.target in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor):
            kind = node.meta["val"].dtype
            most = torch.finfo(kind).max if kind.is_floating_point else 0.0
            arguments = pytree.tree_map(
                lambda x: torch.tensor(min(max(x, -most), most), dtype=kind).item() if isinstance(x, float) and most else x, arguments
            )
        if node.target is not aten.nan_to_num.default:  # whose largest number is that of the type
            arguments = pytree.tree_map(self._wide, arguments)
        result = node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
        return pytree.tree_map(lambda x, like: x.to(like.dtype) if x.is_floating_point() else x, result, node.meta["val"])

    @staticmethod
    def _wide(x: Any) -> Any:
        if isinstance(x, torch.dtype):
            return torch.float32 if x.is_floating_point else x
        return x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _numbers(x: torch.Tensor) -> np.ndarray:
    return (x.double() if x.is_floating_point() else x).numpy()


def _ulp(x: np.ndarray | float, dtype: torch.dtype) -> np.ndarray:
    """Distance of neighbours in a float type at the magnitude of x."""
    limits = torch.finfo(dtype)
    magnitude = np.maximum(np.abs(np.asarray(x, np.float64)), limits.tiny)
    return np.exp2(np.floor(np.log2(np.minimum(magnitude, limits.max)))) * limits.eps


def _close(a: np.ndarray, b: np.ndarray, bound: np.ndarray | float) -> np.ndarray:
    """Whether numbers are equal (NaN and infinities too; integers and bools must be), or within the bound."""
    bound = 0.0 if a.dtype.kind in "biu" else bound
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= bound)


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.nanmax(np.abs(a.astype(np.float64) - b.astype(np.float64)), initial=0.0))


def missing_operators(model: Family, artifact: Artifact) -> Iterator[str]:
    """Rows whose operator is not in the compiled program."""
    for row in model.rows:
        found = {r.aten for r in artifact.passport.ledger if f"| cases.{row.name}" in r.location}
        if str(row.op) not in found:
            yield f"{row.name}: {row.op} is not among {sorted(found)}"


def stored(artifact: Artifact, inputs: Sequence[torch.Tensor], float_io: bool = True) -> list[np.ndarray]:
    ports = zip(artifact.arrays(list(inputs)), artifact.passport.inputs, artifact.graph.inputs, strict=True)
    return [artifact._stored(x, port, value, float_io) for x, port, value in ports]


def against_reference(artifact: Artifact, inputs: Sequence[torch.Tensor], reference: Run) -> Iterator[str]:
    """Simulator and reference model: equal integers, floats to 1e-5."""
    arrays = stored(artifact, inputs)
    for port, ours, theirs in zip(
        artifact.passport.outputs, artifact.run(arrays, float_io=False), reference(artifact.graph, arrays), strict=True
    ):
        same = np.array_equal(ours, theirs) if ours.dtype.kind != "f" else np.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        if not same:
            yield f"{port.name}: simulator and reference model differ at {np.argwhere(ours != theirs)[:4].tolist()}"


def against_torch(
    model: Family, artifact: Artifact, quantized: Quantized | None, inputs: Sequence[torch.Tensor], precision: str
) -> Iterator[str]:
    """SQNR against the float module, and steps against the fake-quantized one."""
    with torch.no_grad():
        expected = model(*inputs)
    results = artifact.run(list(inputs), float_io=True)
    for port, ours in zip(artifact.passport.outputs, results, strict=True):
        row, want = model.row_of(port.name), expected[port.name].numpy()
        if ours.shape != want.shape:
            yield f"{port.name}: shape {ours.shape}, PyTorch has {want.shape}"
        elif precision == "fp32":
            if not np.allclose(ours, want, rtol=1e-4, atol=1e-5):
                yield f"{port.name}: differs from PyTorch by {np.abs(ours - want).max()}"
        elif port.scale is not None and (decibels := sqnr(want, ours)) < (least := row.least_decibels(precision, model.cases[row.name])):
            yield f"{port.name}: {decibels:.1f} dB against float, {least} expected"
    if quantized is not None:
        yield from against_fake_quantized(model, artifact, quantized, inputs, precision)


def against_fake_quantized(
    model: Family, artifact: Artifact, quantized: Quantized, inputs: Sequence[torch.Tensor], precision: str, count: bool = True
) -> Iterator[str]:
    """Steps of the output, and what 16 bits keep; indices are equal.

    A result counts as equal where it is what the fake-quantized module says, or as near to what that rounds: of ties RESCALE takes the
    upper number, PyTorch the even one. PyTorch's quantize operator is not defined for what is not a number, nor for what int32 does
    not hold, as it holds 256 times the calibrated range between operators.
    """
    program = Unrounded(quantized)
    expected, exact = program.outputs(inputs)
    with torch.no_grad():
        numbers = model(*inputs)
    for port, ours in zip(artifact.passport.outputs, artifact.run(list(inputs), float_io=True), strict=True):
        row, want = model.row_of(port.name), expected[port.name].numpy()
        if not count and row.name in STEEP:
            continue
        if port.scale is None:
            if not np.array_equal(ours, want):
                yield f"{port.name}: indices differ from the fake-quantized module"
            continue
        defined = np.abs(numbers[port.name].numpy() / port.scale) < 2**22  # not of NaN
        difference = np.abs(ours - want)[defined] / port.scale
        nearest = np.abs(ours - exact[port.name].double().numpy())[defined] / port.scale <= 0.5 + TIE
        worst, equal = float(difference.max(initial=0.0)), float(((difference < 0.5) | nearest).sum() / max(difference.size, 1))
        lsb, share = row.steps(precision, model.cases[row.name])
        # of a small tensor one element may be off
        if worst > lsb + 0.1 or (count and equal < min(share, 1 - 1 / max(difference.size, 1))):
            yield f"{port.name}: up to {worst:.2f} steps from the fake-quantized module, {equal:.1%} equal (bounds {lsb}, {share:.0%})"
        if count and precision == "16a8w" and worst > 1.1 and (decibels := sqnr(want, ours)) < (least := row.least_kept):
            yield f"{port.name}: {decibels:.1f} dB against the fake-quantized module, {least} expected"


class Unrounded(torch.fx.Interpreter):
    """Runs a quantized program and keeps what it rounds to its outputs."""

    def __init__(self, quantized: Quantized) -> None:
        super().__init__(quantized.module)
        (output,) = quantized.module.graph.find_nodes(op="output")
        self._sources = {name: self._source(leaf) for name, leaf in zip(quantized.output_names, output.all_input_nodes, strict=True)}
        self._kept: dict[torch.fx.Node, torch.Tensor] = {}

    @staticmethod
    def _source(node: torch.fx.Node) -> torch.fx.Node:
        """Behind the last dequantize and quantize."""
        for target in (DEQUANTIZE, QUANTIZE):
            if node.target is not target:
                break
            node = node.all_input_nodes[0]
        return node

    def run_node(self, node: torch.fx.Node) -> Any:
        result = super().run_node(node)
        if node in self._sources.values():
            self._kept[node] = result
        return result

    def outputs(self, inputs: Sequence[torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The outputs, and the same unrounded, by name."""
        with torch.no_grad():
            results = pytree.tree_leaves(self.run(*inputs, enable_io_processing=False))
        names = list(self._sources)
        return dict(zip(names, results, strict=True)), {name: self._kept[source] for name, source in self._sources.items()}


def sqnr(want: np.ndarray, got: np.ndarray) -> float:
    """Signal to quantization noise, dB."""
    noise = float(np.square(want.astype(np.float64) - got).sum())
    return 10 * np.log10(max(float(np.square(want.astype(np.float64)).sum()), 1e-300) / noise) if noise else np.inf


def test_each_lowering_has_a_row() -> None:
    rows = {row.op for family in FAMILIES.values() for row in family}
    assert sorted(map(str, set(LOWERINGS) - rows)) == []


def test_names_of_rows_are_unique() -> None:
    names = [row.name for family in FAMILIES.values() for row in family]
    assert len(names) == len(set(names))


def test_each_lowering_has_a_rule_and_each_rule_a_lowering() -> None:
    assert sorted(map(str, set(LOWERINGS) - set(RULES))) == sorted(FLOAT_ONLY)
    assert sorted(map(str, set(RULES) - set(LOWERINGS))) == []


class Mixed(nn.Module):
    """Layers that are compiled at three precisions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(torch.relu(self.middle(torch.relu(self.first(x)))).mean((2, 3))), -1)


@pytest.mark.parametrize(
    ("overrides", "spec"),
    [
        ({"middle": "16a8w"}, "TOSA-1.0+INT+int16"),
        ({"head": "fp32"}, "TOSA-1.0+INT+FP"),
        ({"first": "16a8w", "middle": "fp32", "_softmax": "fp32"}, "TOSA-1.0+INT+FP+int16"),
    ],
)
def test_mixed_precision(overrides: dict[str, str], spec: str, reference: Run) -> None:
    torch.manual_seed(0)
    model, inputs = Mixed().eval(), [torch.rand(1, 3, 8, 8) * 4 - 2 for _ in range(3)]
    quantized = tosaic.quantize(model, inputs[0], inputs, overrides=overrides)
    artifact = tosaic.compile(quantized, spec=spec)
    assert str(quantized.recipe.smallest_spec()) == spec
    for x in inputs:
        arrays = stored(artifact, [x])
        ours, theirs = artifact.run(arrays, float_io=False)[0], reference(artifact.graph, arrays)[0]
        assert np.array_equal(ours, theirs) if ours.dtype.kind != "f" else np.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        ours = artifact.run([x], float_io=True)[0]
        assert np.abs(ours - quantized(x).numpy()).max() <= 1.01 / 256
        assert sqnr(model(x).detach().numpy(), ours) > 30
