"""The specification string is law: our verifier and Arm's validation in tosa-opt refuse the same operators.

Every operator at every combination of operand types that its rule takes, for each of `SPECS`; and the limits of the levels.
The graphs go through our serializer, one `.tosa` for all cases, which tosa-opt reads back, one function for each case.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tosaic
from tosaic.emit.flatbuffer import serialize
from tosaic.errors import EmitError, GraphError, SpecError
from tosaic.execute.simulator import evaluate
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder, Graph, verify
from tosaic.tosa.spec import EXTENSIONS, Spec
from tosaic.tosa.types import DType, TensorType

SHAPE = (1, 4, 4, 3)
SPECS = [
    *("TOSA-1.0+INT", "TOSA-1.0+FP", "TOSA-1.0+INT+int16", "TOSA-1.0+INT+FP+int4", "TOSA-1.0+INT+doubleround"),
    *("TOSA-1.0+INT+int16+inexactround", "TOSA-1.0+FP+bf16", "TOSA-1.0+FP+fp8e4m3", "TOSA-1.0+INT+FP+bf16+fp8e5m2"),
    "TOSA-1.0+INT+FP+int16+int4+bf16+fp8e4m3+fp8e5m2+fft+variable+cf+dynamic+doubleround+inexactround",
]
_PROFILES, _EXTENSIONS = {"INT": "pro_int", "FP": "pro_fp"}, {"cf": "controlflow"}
Case = tuple[ops.Op, tuple[TensorType, ...]]


def of(dtype: DType, *shape: int) -> TensorType:
    return TensorType(dtype, shape or SHAPE)


def operands(cls: type[ops.Op], dtype: DType) -> Iterator[Case]:
    """The operator on operands whose first is of this type."""
    x = of(dtype)
    match cls.NAME:
        case "AVG_POOL2D" | "MAX_POOL2D":
            yield cls((2, 2), (1, 1), (0,) * 4), (x,)
        case "CONV2D" | "TRANSPOSE_CONV2D" | "DEPTHWISE_CONV2D" | "CONV3D":
            n = 3 if cls is ops.Conv3d else 2
            x = of(dtype, 1, *(4,) * n, 3)
            shape = (2, 2, 3, 1) if cls is ops.DepthwiseConv2d else (2, *(2,) * n, 3)
            for weight in DType:
                yield cls((1,) * n, (0,) * 2 * n, (1,) * n), (x, of(weight, *shape), of(ops.ACCUMULATOR.get(dtype, dtype), 1))
        case "FFT2D" | "RFFT2D":
            x = of(dtype, 1, 4, 4)
            yield (cls(False), (x, x)) if cls is ops.Fft2d else (cls(), (x,))
        case "MATMUL":
            yield cls(), (of(dtype, 1, 2, 3), of(dtype, 1, 3, 4))
        case "CLAMP":
            yield cls(0, 1), (x,)
        case "TABLE":
            yield cls(), (x, of(dtype, 256 if dtype is DType.INT8 else 513))
        case "SELECT":
            yield cls(), (of(DType.BOOL), x, x)
        case "CONCAT":
            yield cls(1), (x, x)
        case "PAD":
            yield cls((0, 1) * 4), (x,)
        case "RESHAPE":
            yield cls((4, 12)), (x,)
        case "SLICE":
            yield cls((0,) * 4, (1,) * 4), (x,)
        case "TILE":
            yield cls((1, 2, 1, 1)), (x,)
        case "TRANSPOSE":
            yield cls((0, 2, 1, 3)), (x,)
        case "GATHER":
            yield cls(), (of(dtype, 1, 4, 3), of(DType.INT32, 1, 2))
        case "SCATTER":
            yield cls(), (of(dtype, 1, 4, 3), of(DType.INT32, 1, 2), of(dtype, 1, 2, 3))
        case "RESIZE":
            for mode in ops.ResizeMode:
                yield cls((2, 1, 2, 1), (0, 0), (0, 0), mode), (x,)
        case "CAST":
            for other in DType:
                yield cls(other), (x,)
        case "RESCALE":
            for other in DType:
                for multiplier in (1 << 14, 1 << 30):
                    for rounding in ops.Rounding:
                        yield cls(other, (multiplier,), (38,), rounding=rounding), (x,)
        case _ if cls.ARITY == 2:
            yield cls(), (x, x)
        case _:
            yield (cls(1) if "axis" in cls.__dataclass_fields__ else cls()), (x,)


def typed(cases: Iterator[Case]) -> list[Case]:
    """Those that the operators' own rules take; the others cannot stand in a graph."""
    taken = []
    for op, types in cases:
        try:
            op.results(*types)
        except GraphError:
            continue
        taken.append((op, types))
    return taken


def graph_of(cases: list[Case]) -> Graph:
    """One graph with all cases side by side; each has inputs of its own, a weight or a table is a constant."""
    b, results = Builder(), []
    for op, types in cases:
        constant = 1 if isinstance(op, ops._Conv | ops.Table) else len(types)
        values = [b.input(f"x{len(b.graph.inputs)}", t.dtype, t.shape) for t in types[:constant]]
        values += [b.const(np.zeros(t.shape), t.dtype) for t in types[constant:]]
        results += b.emit_all(op, *values)
    return b.finish(results)


def image(height: int, width: int, dtype: DType = DType.INT8) -> TensorType:
    return of(dtype, 1, height, width, 1)


def conv(stride: int = 1, pad: int = 0, dilation: int = 1, kernel: int = 1, size: int = 1) -> Case:
    op = ops.Conv2d((1, stride), (0, 0, 0, pad), (1, dilation))
    return op, (image(1, size), of(DType.INT8, 1, 1, kernel, 1), of(DType.INT32, 1))


# inside the 8K level and just beyond it, two by two
LEVELS: list[Case] = [
    *((ops.Abs(), (of(DType.INT32, *(1,) * rank),)) for rank in (6, 7)),
    *((ops.Concat(0), (of(DType.INT8, 1),) * count) for count in (64, 65)),
    *((ops.Abs(), (of(DType.INT32, size),)) for size in (2**29 - 1, 2**29)),
    *((ops.Identity(), (of(DType.INT8, 2**15, columns),)) for columns in (2**16 - 1, 2**16)),
    *((ops.Identity(), (of(DType.INT48, size),)) for size in (2**31 // 6, 2**31 // 6 + 1)),
    *((ops.MaxPool2d((1, k), (1, 1), (0,) * 4), (image(1, k),)) for k in (8192, 8193)),
    *((ops.AvgPool2d((1, 1), (1, s), (0,) * 4), (image(1, 1),)) for s in (8192, 8193)),
    *((ops.MaxPool2d((1, p + 1), (1, 1), (0, 0, p, 0)), (image(1, 1),)) for p in (8191, 8193)),
    *(conv(stride=s) for s in (8192, 8193)),
    *(conv(pad=p) for p in (8192, 8193)),
    *(conv(kernel=2, dilation=d, size=d + 1) for d in (4096, 4097)),
    *((ops.TransposeConv2d((1, s), (0,) * 4, (1, 1)), (image(1, 1), of(DType.INT8, 1, 1, 1, 1), of(DType.INT32, 1))) for s in (8192, 8193)),
    *(
        (ops.TransposeConv2d((1, 1), (0, 0, 0, p), (1, 1)), (image(1, 1), of(DType.INT8, 1, 1, 1, 1), of(DType.INT32, 1)))
        for p in (8192, 8193)
    ),
    *((ops.DepthwiseConv2d((1, 1), (0,) * 4, (1, 1)), (image(1, k), of(DType.INT8, 1, k, 1, 1), of(DType.INT32, 1))) for k in (8192, 8193)),
    *((ops.RFft2d(), (of(DType.FP32, 1, h, 1),)) for h in (8192, 16384)),
    *((ops.Fft2d(True), (of(DType.FP32, 1, 1, w),) * 2) for w in (8192, 16384)),
    *((ops.Resize((n, 1, 1, 1), (0, 0), (0, 0), ops.ResizeMode.NEAREST), (image(2, 1),)) for n in (256, 257)),
]
CASES = typed(case for cls in ops.BY_NAME.values() for dtype in DType for case in operands(cls, dtype))


def functions(text: str, count: int) -> list[str]:
    """The text of tosa-opt, as one module for each operator."""
    arguments = dict(re.findall(r"(%arg\d+): (tensor<[^>]*>)", text))
    lines = {name: line.strip() for line in text.splitlines() if (name := line.strip().partition(" = ")[0]).startswith("%")}
    constants = {name for name, line in lines.items() if re.search(r'= "?tosa\.const(_shape)?"? *[({]', line)}
    found = []
    for name, line in lines.items():
        if name in constants:
            continue
        used = list(dict.fromkeys(re.findall(r"%\w+", line.partition(" = ")[2])))
        signature = ", ".join(f"{v}: {arguments[v]}" for v in used if v in arguments)
        results = ", ".join(re.findall(r"tensor<[^>]*>", line)[-len(name.split(", ")) :])
        body = "\n".join([*(lines[v] for v in used if v in constants), line, f"return {name} : {results}"])
        found.append(f"module {{ func.func @case({signature}) -> ({results}) {{\n{body}\n}} }}\n")
    assert len(found) == count
    return found


def tosa_opt(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("tosa-opt", path=str(Path(sys.executable).parent)) or "tosa-opt"
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def modules_of(cases: list[Case], folder: Path) -> list[str]:
    (folder / "cases.tosa").write_bytes(serialize(graph_of(cases)))
    (folder / "empty.mlir").write_text("module {}")
    done = tosa_opt(f"--tosa-deserialize=tosa-flatbuffer-filename={folder / 'cases.tosa'}", str(folder / "empty.mlir"))
    assert done.returncode == 0, done.stderr
    return functions(done.stdout, len(cases))


def refused_by_tosa_opt(modules: list[str], spec: Spec, folder: Path) -> dict[int, str]:
    """Number of the case -> what tosa-opt says."""
    profiles = ",".join(_PROFILES[p] for p in sorted(spec.profiles))
    extensions = ",".join(_EXTENSIONS.get(e, e) for e in sorted(spec.extensions))
    target = f"--tosa-attach-target=profiles={profiles} level={spec.level.name.lower()} specification_version=1.0"
    target += f" extensions={extensions}" if extensions else ""
    starts, text = [], ""
    for module in modules:
        starts.append(text.count("\n") + 1)
        text += module + "// -----\n"
    (folder / "cases.mlir").write_text(text)
    quick = ("--split-input-file", "--mlir-disable-threading", "--mlir-print-op-on-diagnostic=false", "-o", "/dev/null")
    done = tosa_opt(*quick, target, "--tosa-validate=strict-op-spec-alignment", str(folder / "cases.mlir"))
    errors = re.findall(r"cases\.mlir:(\d+):\d+: error: (.*)", done.stderr)
    assert bool(done.returncode) == bool(errors), done.stderr[-2000:]
    return {int(np.searchsorted(starts, int(line), side="right")) - 1: message for line, message in errors}


def refused_by_us(cases: list[Case], spec: Spec) -> dict[int, str]:
    refused = {}
    for i, node in enumerate(graph_of(cases).nodes):
        alone = Graph("alone", [v for v in node.inputs if not v.is_const], [*node.outputs], [node])
        try:
            verify(alone, spec)
        except SpecError as error:
            refused[i] = error.what.splitlines()[-2]
    return refused


def differences(cases: list[Case], ours: dict[int, str], theirs: dict[int, str]) -> list[str]:
    names = [f"{op.NAME} {op} {' '.join(map(str, types))}" for op, types in cases]
    return [f"{names[i]}: ours {ours.get(i)}, tosa-opt {theirs.get(i)}" for i in sorted(ours.keys() ^ theirs.keys())]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return modules_of(CASES, tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize("text", SPECS)
def test_profiles_and_extensions(text: str, modules: list[str], tmp_path: Path) -> None:
    spec = Spec.parse(text)
    ours, theirs = refused_by_us(CASES, spec), refused_by_tosa_opt(modules, spec, tmp_path)
    assert not differences(CASES, ours, theirs)
    assert len(ours) < len(CASES)


@pytest.mark.parametrize("level", ["8k", "none"])
def test_levels(level: str, tmp_path: Path) -> None:
    spec = Spec.parse(f"TOSA-1.0+INT+FP+int16+fft+{level}")
    cases = modules_of(LEVELS, tmp_path)
    ours, theirs = refused_by_us(LEVELS, spec), refused_by_tosa_opt(cases, spec, tmp_path)
    assert not differences(LEVELS, ours, theirs)
    assert sorted(ours) == (list(range(1, len(LEVELS), 2)) if level == "8k" else [])


@pytest.mark.parametrize(
    "text", ["TOSA-1.0+INT", "TOSA-1.00+INT", "tosa-1.0+int", "TOSA-1.0.0+INT+8k", "TOSA-1.0+INT+8K", " TOSA-1.0 +INT "]
)
def test_spellings(text: str) -> None:
    assert str(Spec.parse(text)) == "TOSA-1.0+INT"


def test_spelling_of_extensions() -> None:
    spec = Spec.parse("TOSA-1.0+FP+INT+int4+INT16")
    assert spec.profiles == {"FP", "INT"} and spec.extensions == {"int4", "int16"}
    assert str(spec) == "TOSA-1.0+INT+FP+int16+int4"
    assert str(Spec.parse("TOSA-1.0+FP+none")) == "TOSA-1.0+FP+none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TOSA-1.0+BI", "unknown part 'BI'"),
        ("TOSA-0.80+BI", "version 0.80 is not supported"),
        ("TOSA-1.0", "names no profile"),
        ("TOSA-1.0+FP+int16", "extension int16 belongs to profile INT"),
        ("TOSA-1.0+INT+bf16", "extension bf16 belongs to profile FP"),
        ("INT", "is not a TOSA specification string"),
    ],
)
def test_what_is_no_specification(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        Spec.parse(text)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_remedy_is_a_specification(extension: str) -> None:
    """What an error proposes can be given: an extension brings its profile along."""
    for profile in ("INT", "FP"):
        wider = Spec.parse(f"TOSA-1.0+{profile}").plus(extension)
        assert Spec.parse(str(wider)) == wider and wider.holds(extension)


@pytest.mark.parametrize("shift", [12, 31, 32, 34, 38, 50])
def test_double_rounding_is_never_nearer(shift: int, reference: Callable) -> None:
    """Why lowering asks for single rounding also where `doubleround` would be allowed; both as the reference model has them."""
    rng = np.random.default_rng(shift)
    values = rng.integers(-(2 ** min(shift - 1, 31)), 2 ** min(shift - 1, 31), 4096).astype(np.int32)
    multiplier = 1 << 30 if shift % 4 else int(rng.integers(1 << 30, 1 << 31))
    worst = []
    for rounding in (ops.Rounding.SINGLE, ops.Rounding.DOUBLE):
        b = Builder()
        graph = b.finish([b.emit(ops.Rescale(DType.INT32, (multiplier,), (shift,), rounding=rounding), b.input("x", DType.INT32, (4096,)))])
        (found,) = evaluate(graph, [values])
        np.testing.assert_array_equal(found, reference(graph, [values])[0])
        worst.append(np.abs(found - values * (multiplier * 2.0**-shift)).max())
    assert worst[0] <= 0.5 and worst[1] >= worst[0]
    assert shift != 32 or worst[1] > 0.7


def test_extensions_that_only_allow_more_change_nothing() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2)).eval(), torch.randn(1, 3, 8, 8)
    quantized = tosaic.quantize(model, x, [x])
    texts = {
        str(tosaic.compile(quantized, spec=f"TOSA-1.0+INT{more}").graph) for more in ("", "+doubleround+inexactround", "+int4", "+cf+none")
    }
    assert len(texts) == 1


def test_a_dimension_beyond_the_file_format() -> None:
    b = Builder()
    graph = b.finish([b.emit(ops.Identity(), b.input("x", DType.INT8, (2**31,)))])
    verify(graph, Spec.parse("TOSA-1.0+INT+none"))
    with pytest.raises(EmitError, match="whose sizes have 32 bits"):
        serialize(graph)
