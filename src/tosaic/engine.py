"""For the engine that runs a `.vgf`: its interface as a C header, and a scenario for Arm's scenario runner."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tosaic.artifact import Artifact
from tosaic.emit.passport import PortRecord
from tosaic.errors import InputError
from tosaic.tosa import container as vgf
from tosaic.tosa.graph import Names, Value
from tosaic.tosa.types import DType

# numbers and names of the Vulkan registry (VkFormat; VK_ARM_tensors and VK_KHR_shader_bfloat16 add theirs)
FORMAT_NAMES = {
    13: "VK_FORMAT_R8_UINT",
    14: "VK_FORMAT_R8_SINT",
    74: "VK_FORMAT_R16_UINT",
    75: "VK_FORMAT_R16_SINT",
    76: "VK_FORMAT_R16_SFLOAT",
    98: "VK_FORMAT_R32_UINT",
    99: "VK_FORMAT_R32_SINT",
    100: "VK_FORMAT_R32_SFLOAT",
    111: "VK_FORMAT_R64_SINT",
    1000460000: "VK_FORMAT_R8_BOOL_ARM",
    1000460001: "VK_FORMAT_R16_SFLOAT_FPENCODING_BFLOAT16_ARM",
    1000460002: "VK_FORMAT_R8_SFLOAT_FPENCODING_FLOAT8E4M3_ARM",
    1000460003: "VK_FORMAT_R8_SFLOAT_FPENCODING_FLOAT8E5M2_ARM",
}
_C_TYPES = {
    **{DType.BOOL: "uint8_t", DType.INT8: "int8_t", DType.INT16: "int16_t", DType.INT32: "int32_t", DType.INT48: "int64_t"},
    **{DType.FP32: "float", DType.FP16: "uint16_t", DType.BF16: "uint16_t", DType.FP8E4M3: "uint8_t", DType.FP8E5M2: "uint8_t"},
}


@dataclass(frozen=True)
class Port:
    """An input or output as Vulkan sees it.

    Attributes:
        format: number of the VkFormat.
        record: of the passport: scale, zero point, layout.
    """

    kind: str
    set: int
    binding: int
    format: int
    value: Value
    record: PortRecord

    @property
    def format_name(self) -> str:
        return FORMAT_NAMES.get(self.format, f"VkFormat {self.format}")


def vulkan_ports(artifact: Artifact) -> list[Port]:
    """Inputs, then outputs, with the bindings of the `.vgf` that an artifact was read from.

    Raises:
        InputError: it is no `.vgf`.
    """
    path = artifact.path
    if path is None or path.suffix != ".vgf":
        raise InputError(f"{path or 'the artifact'} is no .vgf, and only that has bindings", remedy="write it as a .vgf first")
    file = vgf.decode(vgf.map_file(path))
    sets = {b: index for segment in file.segments for index, bindings in segment.sets for b in bindings}
    ports = []
    for kind, bindings, values, records in (
        ("input", file.inputs, artifact.graph.inputs, artifact.passport.inputs),
        ("output", file.outputs, artifact.graph.outputs, artifact.passport.outputs),
    ):
        for b, value, record in zip(bindings, values, records, strict=True):
            ports.append(Port(kind, sets.get(b, 0), b.binding, file.resources[b.resource].format, value, record))
    return ports


# A scenario


def scenario(artifact: Artifact, path: Path) -> str:
    """A JSON scenario that runs the artifact once: each input from `NAME.npy`, each output to `NAME.npy`, stored values.

    Args:
        path: where the text will stand; the `.vgf` is named relative to it, and the runner looks for inputs beside it.
    """
    ports = vulkan_ports(artifact)
    assert artifact.path is not None
    resources: list[dict[str, object]] = [{"graph": {"uid": "graph", "src": os.path.relpath(artifact.path, path.absolute().parent)}}]
    for port in ports:
        access = {"input": ("readonly", "src"), "output": ("writeonly", "dst")}[port.kind]
        tensor = {"uid": port.record.name, "dims": list(port.value.shape), "format": port.format_name}
        resources.append({"tensor": {**tensor, "shader_access": access[0], access[1]: f"{port.record.name}.npy"}})
    bindings = [{"set": port.set, "id": port.binding, "resource_ref": port.record.name} for port in ports]
    commands = [{"dispatch_vgf": {"graph_ref": "graph", "bindings": bindings}}]
    return json.dumps({"commands": commands, "resources": resources}, indent=2) + "\n"


# A header

_STRUCT = """\
#ifndef TOSAIC_TENSOR
#define TOSAIC_TENSOR
/* real = scale * (stored - zero_point); a scale of 0 says that stored values are the real ones, indices or conditions */
typedef struct tosaic_tensor {
    const char *name;
    uint32_t set;
    uint32_t binding;
    int32_t format; /* VkFormat */
    uint32_t rank;
    int64_t dims[6]; /* outermost first, as in VkTensorDescriptionARM */
    uint64_t bytes;
    double scale;
    int32_t zero_point;
} tosaic_tensor;
#endif
"""


def header(artifact: Artifact) -> str:
    """A C99 (and C++11) header that describes inputs and outputs, with functions that quantize and dequantize one value.

    They round as the artifact itself does: what `tosaic run --float` feeds is what they feed.
    """
    ports = vulkan_ports(artifact)
    assert artifact.path is not None
    prefix = identifier(artifact.path.stem)
    guard = f"TOSAIC_{prefix.upper()}_H"
    parts = [
        f"/* Inputs and outputs of {_comment(artifact.path.name)}, SHA-256 {artifact.passport.sha256 or 'unknown'}. Written by tosaic. */",
        f"#ifndef {guard}\n#define {guard}\n\n#include <math.h>\n#include <stdint.h>\n",
        _STRUCT,
    ]
    functions = []
    for kind in ("input", "output"):
        group = [port for port in ports if port.kind == kind]
        words = _words([port.record.name for port in group])
        functions += [_function(prefix, word, port) for word, port in zip(words, group, strict=True) if port.record.scale is not None]
        names = ", ".join(f"{prefix.upper()}_{kind.upper()}_{word.upper()} = {i}" for i, word in enumerate(words))
        parts.append(f"enum {{ {names}, {prefix.upper()}_{kind.upper()}_COUNT = {len(group)} }};")
        rows = "\n".join(f"    {_row(port)}" for port in group)
        parts.append(f"static const tosaic_tensor {prefix}_{kind}s[] = {{\n{rows}\n}};\n")
    return "\n".join([*parts, *functions, f"#endif /* {guard} */"]) + "\n"


def identifier(name: str) -> str:
    """A name as C can have it, behind a prefix of its own."""
    word = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"_{word}" if not word or word[0].isdigit() else word


def _words(names: Sequence[str]) -> list[str]:
    """An identifier for each name, other than all others in any case and than that of the count, by a number behind it where need be."""
    taken, words = Names(), []
    taken.take(["count"])
    for name in names:
        word = identifier(name)
        words.append(word + taken.unique(word.lower())[len(word) :])
    return words


def _comment(text: str) -> str:
    return text.replace("*/", "* /")


def _row(port: Port) -> str:
    shape = port.value.shape
    dims = ", ".join(map(str, shape)) or "1"
    size = port.value.type.size * port.value.dtype.numpy.itemsize
    layout = f", layout {port.record.layout}" if port.record.layout != "model" else ""
    scale, zero_point = port.record.scale or 0.0, port.record.zero_point or 0
    fields = [json.dumps(port.record.name), port.set, port.binding, port.format, len(shape), f"{{{dims}}}", size, repr(scale), zero_point]
    return f"{{{', '.join(map(str, fields))}}}, /* {port.format_name}{layout} */"


def _function(prefix: str, name: str, port: Port) -> str:
    dtype = port.value.dtype
    kind, zero_point = _C_TYPES[dtype], port.record.zero_point or 0
    if port.kind == "output":
        return (
            f"static inline float {prefix}_dequantize_{name}({kind} stored)\n{{\n"
            f"    return (float)(((double)stored - {zero_point}) * {float(port.record.scale or 0.0)!r});\n}}\n"
        )
    inverse = np.float32(1) / np.float32(port.record.scale)
    return (
        f"static inline {kind} {prefix}_quantize_{name}(float real)\n{{\n"
        f"    const double stored = (double)rintf(real * {_c_float(inverse)}) + {zero_point};\n"
        f"    if (!(stored > {dtype.min}.0))\n        return ({kind})({dtype.min}LL); /* and NaN */\n"
        f"    return stored < {dtype.max}.0 ? ({kind})stored : ({kind}){dtype.max}LL;\n}}\n"
    )


def _c_float(number: np.float32) -> str:
    text = f"{number:.9g}"
    return f"{text}f" if any(c in text for c in ".e") else f"{text}.0f"
