"""Makes the files of this folder: `.vgf` files of ExecuTorch's Arm backend and of model-converter, and the `.tosa` files behind them.

    make bench                                                        # once, for ExecuTorch's environment
    .cache/executorch-venv/bin/python tests/peer_files/make.py [NAME ...]

Nothing of Tosaic takes part; model-converter's own files can be made in any environment that has it. Weights are random with a
fixed seed. `tests/test_peer_files.py` reads, runs and compares the files.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tosa_serializer as ts
from torch import Tensor, nn

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent


class Picture(nn.Module):
    """Strided, grouped and transposed convolutions, a residual, concatenation, all pools, an activation with a TABLE."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.depth, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.rise, self.head = nn.ConvTranspose2d(8, 4, 2, 2), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.stem(x)))
        y = y + F.hardswish(self.point(F.relu(self.depth(y))))
        y = torch.cat((self.rise(F.max_pool2d(y, 2)), F.avg_pool2d(x, 2)), 1)
        y = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Tokens(nn.Module):
    """One transformer layer on vectors: attention, layer norms, GELU."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.o(torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Signal(nn.Module):
    """1-d convolution, gates and a linear layer: what 16-bit activations do (48-bit accumulators, interpolated TABLEs)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(4, 12, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.conv(x).chunk(2, 1)
        h = torch.sigmoid(a) * torch.tanh(b) + h
        return self.head(h.mean(-1)), h


class Words(nn.Module):
    """Token ids (int64) to scores: an embedding, positions, a mask made of comparisons."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(20, 8), nn.Parameter(torch.randn(6, 8)), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places
        return self.head(torch.where((ids > 3)[..., None], x, -x))


class Functions(nn.Module):
    """Float operators: elementwise functions, a normalisation, reductions, data movement."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.exp(-x.abs()) * torch.sin(x) + torch.rsqrt(x * x + 1)
        z = torch.softmax(F.pad(y, (1, 2)), -1).flip(1).amax(2)
        return F.gelu(y).transpose(1, 2), z.repeat(1, 2) + torch.erf(y).sum((1, 2), keepdim=True)[:, 0]


class Warp(nn.Module):
    """A picture sampled where a grid says: the backend writes a compute shader for it, between two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return self.b(F.grid_sample(self.a(x), grid, mode="bilinear", padding_mode="zeros", align_corners=False))


def ids(seed: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(seed)),)


def normal(*shapes: tuple[int, ...]) -> Callable[[int], tuple[Tensor, ...]]:
    """Draws inputs of these shapes from a seed."""

    def draw(seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(shape, generator=generator) for shape in shapes)

    return draw


Draw = Callable[[int], tuple[Tensor, ...]]
INT, INT16, FP = "TOSA-1.0+INT", "TOSA-1.0+INT+int16", "TOSA-1.0+FP"
# functions of ExecuTorch's `arm_quantizer`
int8, int16, int4 = (f"get_symmetric_{kind}quantization_config" for kind in ("", "a16w8_", "a8w4_"))
PICTURE, TOKENS, FUNCTIONS = normal((1, 3, 16, 16)), normal((1, 6, 16)), normal((2, 3, 8))
# name -> network, inputs, specification, and how it is quantized, or the type that a float network is cast to
EXECUTORCH: dict[str, tuple[Callable[[], nn.Module], Draw, str, str | torch.dtype]] = {
    "picture_8a8w": (Picture, PICTURE, INT, int8),
    "picture_16a8w": (Picture, PICTURE, INT16, int16),
    "picture_fp32": (Picture, PICTURE, FP, torch.float32),
    "tokens_8a8w": (Tokens, TOKENS, INT, int8),
    "tokens_8a4w": (Tokens, TOKENS, "TOSA-1.0+INT+int4", int4),
    "tokens_16a8w": (Tokens, TOKENS, INT16, int16),
    "tokens_fp16": (Tokens, TOKENS, FP, torch.float16),
    "signal_16a8w": (Signal, normal((2, 4, 10), (2, 6, 10)), INT16, int16),
    "words_8a8w": (Words, ids, INT, int8),
    "words_fp32": (Words, ids, FP, torch.float32),
    "functions_fp32": (Functions, FUNCTIONS, FP, torch.float32),
    "functions_bf16": (Functions, FUNCTIONS, "TOSA-1.0+FP+bf16", torch.bfloat16),
    "warp_fp32": (Warp, normal((1, 3, 6, 6), (1, 4, 5, 2)), FP, torch.float32),
}


def executorch(name: str) -> tuple[bytes, bytes]:
    """The `.vgf` and the `.tosa` that the backend makes of a network: it must take the whole of it."""
    from executorch.backends.arm.quantizer import VgfQuantizer, arm_quantizer
    from executorch.backends.arm.vgf import VgfCompileSpec, VgfPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    build, draw, spec, how = EXECUTORCH[name]
    torch.manual_seed(0)
    model, example = build().eval(), draw(0)
    if isinstance(how, torch.dtype):
        model, example = model.to(how), tuple(x.to(how) if x.is_floating_point() else x for x in example)
    with tempfile.TemporaryDirectory() as folder:
        compile_spec = VgfCompileSpec(spec)
        compile_spec.dump_intermediate_artifacts_to(folder)
        module = torch.export.export(model, example).module(check_guards=False)
        if isinstance(how, str):
            quantizer = VgfQuantizer(compile_spec)
            quantizer.set_global(getattr(arm_quantizer, how)(is_qat=False))
            module = prepare_pt2e(module, quantizer)
            for seed in range(8):
                module(*draw(seed))
            module = convert_pt2e(module)
        program, config = torch.export.export(module, example), EdgeCompileConfig(_check_ir_validity=False)
        to_edge_transform_and_lower(program, partitioner=[VgfPartitioner(compile_spec)], compile_config=config)
        [vgf], [tosa] = Path(folder).glob("*.vgf"), Path(folder).glob("*.tosa")
        return vgf.read_bytes(), tosa.read_bytes()


class File:
    """A `.tosa` file, operator by operator, through Arm's serializer. Values are their names."""

    def __init__(self) -> None:
        self.file = ts.TosaSerializer("", targetMajor=1, targetMinor=0, targetPatch=0, targetDraft=False)
        self.block = self.file.currRegion.currBasicBlock
        self.rng = np.random.default_rng(0)
        self.count = 0

    def input(self, dtype: str, *shape: int) -> str:
        self.block.addTensor(name := self._name("x"), list(shape), getattr(ts.DType, dtype), None)
        self.block.addInput(name)
        return name

    def const(self, dtype: str, data: Any) -> str:
        data = np.asarray(data)
        self.block.addTensor(name := self._name("c"), list(data.shape), getattr(ts.DType, dtype), data)
        return self._operator("CONST", [], name, "ConstAttribute")

    def draw(self, dtype: str, low: int, high: int, *shape: int) -> str:
        """A constant of random numbers in [low, high]."""
        return self.const(dtype, self.rng.uniform(low, high, shape) if dtype.startswith("FP") else self.rng.integers(low, high + 1, shape))

    def shape(self, *numbers: int) -> str:
        self.block.addShape(name := self._name("s"), len(numbers), np.frombuffer(np.array(numbers, np.int64).tobytes(), np.uint8))
        return self._operator("CONST_SHAPE", [], name, "ConstShapeAttribute")

    def op(self, kind: str, operands: list[str], dtype: str, shape: tuple[int, ...], attribute: str, *fields: Any) -> str:
        self.block.addTensor(name := self._name(kind.lower()), list(shape), getattr(ts.DType, dtype), None)
        return self._operator(kind, operands, name, f"{attribute}Attribute", *fields)

    def rescale(self, x: str, source: str, dtype: str, shape: tuple[int, ...], multiplier: Any, shift: Any, *flags: Any) -> str:
        """A RESCALE, with the zero points 3 and -5 where they are INT8; `flags`: rounding, per channel, in and out unsigned."""
        multipliers, shifts = self.const("INT32", multiplier), self.const("INT8", shift)
        zero = [self.const(d, [z if d == "INT8" else 0]) for d, z in ((source, 3), (dtype, -5))]
        flags = flags or (ts.RoundingMode.SINGLE_ROUND, False, False, False)
        return self.op("RESCALE", [x, multipliers, shifts, *zero], dtype, shape, "Rescale", True, *flags)

    def finish(self, *outputs: str) -> bytes:
        for name in outputs:
            self.block.addOutput(name)
        return self.file.serialize()

    def _name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}_{self.count}"

    def _operator(self, kind: str, operands: list[str], name: str, attribute: str, *fields: Any) -> str:
        holder = ts.TosaSerializerAttribute()
        getattr(holder, attribute)(*fields)
        self.block.addOperator(getattr(ts.Op, kind), operands, [name], holder, ts.TosaOpLocation(f"line {self.count}"))
        return name


def integers() -> bytes:
    """Operators and modes that ExecuTorch does not write: 3-d and int4 convolutions, all roundings, unsigned RESCALE, bits, scatter."""
    f = File()
    film, picture = f.input("INT8", 1, 3, 5, 4, 2), f.input("INT8", 1, 4, 4, 4)
    numbers, rows = f.input("INT32", 2, 3, 4), f.input("INT16", 2, 6)
    zero, half = f.const("INT8", [0]), f.const("INT8", [-7])
    conv = f.op(
        *("CONV3D", [film, f.draw("INT8", -127, 127, 4, 2, 3, 3, 2), f.draw("INT32", -9000, 9000, 4), half, zero]),
        *("INT32", (1, 2, 5, 2, 4), "Conv3d", [0, 0, 1, 1, 0, 1], [1, 1, 2], [1, 1, 1], False, ts.DType.INT32),
    )
    channels = ([1 << 30, 1500000000, 1073741825, 2147483647], [40, 41, 39, 40], ts.RoundingMode.DOUBLE_ROUND, True, False, False)
    conv = f.rescale(conv, "INT32", "INT8", (1, 2, 5, 2, 4), *channels)
    thin = f.op(
        *("CONV2D", [picture, f.draw("INT4", -7, 7, 5, 3, 3, 4), f.draw("INT32", -900, 900, 5), half, f.const("INT4", [0])]),
        *("INT32", (1, 4, 4, 5), "Conv2d", [1, 1, 1, 1], [1, 1], [1, 1], False, ts.DType.INT32),
    )
    thin = f.rescale(thin, "INT32", "INT8", (1, 4, 4, 5), [1234567890], [37])
    grown = f.op(
        "RESIZE", [thin, f.shape(4, 2, 4, 2), f.shape(-1, 1), f.shape(1, -1)], "INT8", (1, 8, 6, 5), "Resize", ts.ResizeMode.NEAREST
    )
    first = f.op("ARGMAX", [grown], "INT32", (1, 8, 6), "ArgMax", 3, ts.NanPropagationMode.PROPAGATE)
    mixed = f.op("MUL", [numbers, f.draw("INT32", 8 - 2**20, 2**20 - 8, 1, 3, 1), f.const("INT8", [20])], "INT32", (2, 3, 4), "Mul")
    bits = f.op("CLZ", [f.op("BITWISE_XOR", [mixed, numbers], "INT32", (2, 3, 4), "BitwiseXor")], "INT32", (2, 3, 4), "Clz")
    shifted = f.op("ARITHMETIC_RIGHT_SHIFT", [mixed, bits], "INT32", (2, 3, 4), "ArithmeticRightShift", True)
    larger = f.op("GREATER", [mixed, numbers], "BOOL", (2, 3, 4), "Greater")
    chosen = f.op("SELECT", [larger, shifted, f.const("INT32", np.full((2, 3, 4), 77))], "INT32", (2, 3, 4), "Select")
    placed = f.op(
        "SCATTER", [f.draw("INT32", -99, 99, 2, 5, 4), f.const("INT32", [[4, 0, 2], [1, 3, 0]]), chosen], "INT32", (2, 5, 4), "Scatter"
    )
    every = f.op("REDUCE_ALL", [larger], "BOOL", (2, 3, 1), "ReduceAll", 2)
    curve = f.op("TABLE", [rows, f.const("INT16", np.round(32000 * np.tanh(np.linspace(-3, 3, 513))))], "INT32", (2, 6), "Table")
    curve = f.rescale(curve, "INT32", "INT16", (2, 6), [1 << 30], [36], ts.RoundingMode.INEXACT_ROUND, False, False, False)
    unsigned = f.rescale(picture, "INT8", "INT16", (1, 4, 4, 4), [1 << 30], [24], ts.RoundingMode.SINGLE_ROUND, False, True, False)
    return f.finish(conv, first, placed, every, curve, unsigned, placed)


def floats() -> bytes:
    """Float operators beside scalars, constants that are outputs, and constants of one number repeated."""
    f = File()
    x, scalar = f.input("FP32", 1, 6, 6, 3), f.input("FP32")
    spread = f.op("RESHAPE", [scalar, f.shape(1, 1, 1, 1)], "FP32", (1, 1, 1, 1), "Reshape")
    zero = f.const("FP32", [0.0])
    rise = f.op(
        *("TRANSPOSE_CONV2D", [x, f.draw("FP32", -1, 1, 4, 3, 3, 3), f.draw("FP32", -1, 1, 4), zero, zero]),
        *("FP32", (1, 12, 11, 4), "TransposeConv2d", [-1, 0, -1, -1], [2, 2], False, ts.DType.FP32),
    )
    pooled = f.op("MAX_POOL2D", [rise], "FP32", (1, 6, 6, 4), "MaxPool2d", [2, 2], [2, 2], [0, 0, 0, 1], ts.NanPropagationMode.PROPAGATE)
    scaled = f.op("MUL", [pooled, spread, f.const("INT8", [0])], "FP32", (1, 6, 6, 4), "Mul")
    gate = f.op("SIGMOID", [scaled], "FP32", (1, 6, 6, 4), "Sigmoid")
    power = f.op("POW", [gate, f.const("FP32", np.full((1, 1, 1, 4), 1.5))], "FP32", (1, 6, 6, 4), "Pow")
    sides = f.op("PAD", [power, f.shape(0, 0, 1, 0, 1, 2, 0, 0), f.const("FP32", [-2.5])], "FP32", (1, 7, 9, 4), "Pad")
    scale, border = f.shape(3, 2, 3, 2), f.shape(0, 0)
    large = f.op("RESIZE", [sides, scale, border, border], "FP32", (1, 10, 13, 4), "Resize", ts.ResizeMode.BILINEAR)
    short = f.op("CAST", [large], "FP16", (1, 10, 13, 4), "Cast")
    constant = f.draw("FP32", -9, 9, 3, 2)
    return f.finish(short, f.op("RECIPROCAL", [spread], "FP32", (1, 1, 1, 1), "Reciprocal"), constant)


def shader() -> bytes:
    """A source text in GLSL between two graphs."""
    f = File()
    x = f.op("ABS", [f.input("FP32", 10)], "FP32", (10,), "Abs")
    description: dict[str, Any] = {"entry_point": "main", "is_vkshader": True, "workgroup_sizes": [64, 1, 1]}
    for port, binding in (("input_0", 0), ("output_0", 1)):
        place = {"binding": binding, "descriptorset": 0, "type": "Tensor"}
        place |= {"vkdescriptortype": "VK_DESCRIPTOR_TYPE_TENSOR_ARM", "vkformat": "VK_FORMAT_R32_SFLOAT"}
        description |= {f"{port}_{key}": value for key, value in place.items()}
    description |= {"shader_language": "GLSL", "shader_code": "#version 450\nvoid main() {}"}
    text = list(json.dumps(description).encode())
    y = f.op("CUSTOM", [x], "FP32", (10,), "Custom", "threefold", "com.arm.VulkanCustomShader", text)
    return f.finish(f.op("NEGATE", [y, *[f.const("FP32", [0.0])] * 2], "FP32", (10,), "Negate"))


# name -> what writes the `.tosa`, options of model-converter
CONVERTER: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "integers": (integers, ()),
    "integers_debug": (integers, ("--emit-debug-info", "--disable-replicated-composites")),
    "floats": (floats, ()),
    "floats_plain": (floats, ("--disable-replicated-composites",)),
    "shader": (shader, ()),
}


def converter(name: str) -> tuple[bytes, bytes]:
    """The `.vgf` that model-converter makes of a `.tosa`, and that."""
    build, options = CONVERTER[name]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "graph.tosa"), Path(folder, "graph.vgf")
        source.write_bytes(build())
        subprocess.run([str(BIN / "model-converter"), *options, "-i", str(source), "-o", str(target)], check=True)
        return target.read_bytes(), source.read_bytes()


def main() -> None:
    os.environ["PATH"] = f"{BIN}:{os.environ.get('PATH', '')}"  # the backend looks for model-converter there
    for name in sys.argv[1:] or (*EXECUTORCH, *CONVERTER):
        vgf, tosa = executorch(name) if name in EXECUTORCH else converter(name)
        (HERE / f"{name}.vgf").write_bytes(vgf)
        (HERE / f"{name}.tosa.gz").write_bytes(gzip.compress(tosa, mtime=0))
        print(f"{name}: {len(vgf)} bytes, its .tosa {len(tosa)}")


if __name__ == "__main__":
    main()
