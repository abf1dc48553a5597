"""The VGF container as plain data: modules, resources, constants, and the sequence that binds them.

Only the container: what a graph module computes is SPIR-V, which `emit` writes and reads. The form is that of the VGF
library's page `file_format` and its schema `vgf.fbs`. Files are read in place and with every index checked, which Arm's
decoder leaves to its callers; its encoder writes the tables.
"""

from __future__ import annotations

import io
import mmap
import os
import stat
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import vgfpy

from tosaic.errors import InputError
from tosaic.tosa.content import digest, pieces
from tosaic.tosa.tables import Buffer, Table
from tosaic.tosa.types import DType

_NO_SPARSITY = -1
_CONSTANT_SECTION = 64  # where the header has the offset and the size of the constants
_CONSTANTS_MARK = b"CONST00\0"
_NONE = 0xFFFFFFFF  # for "there is none"
_HEADER = 128
_MAGICS = (b"VGF1", b"\xc3\xd2\xe1\xf0")  # the second in files before version 0.4
_NEWEST = (0, 5)  # version of the format
_SPIRV = 1  # of the kinds of code


class Sink(Protocol):
    """What can be written to."""

    def write(self, data: Any, /) -> object: ...


# VkFormat of an element type, and of one that RESCALE reads or writes as unsigned: TOSA's integers have no sign of their own
FORMATS: dict[DType, int] = {
    DType.BOOL: 1000460000,
    DType.INT8: 14,
    DType.INT16: 75,
    DType.INT32: 99,
    DType.INT48: 111,
    DType.FP16: 76,
    DType.BF16: 1000460001,
    DType.FP8E4M3: 1000460002,
    DType.FP8E5M2: 1000460003,
    DType.FP32: 100,
}
UNSIGNED_FORMATS = {DType.INT8: 13, DType.INT16: 74, DType.INT32: 98}
DTYPES = {number: dtype for formats in (FORMATS, UNSIGNED_FORMATS) for dtype, number in formats.items()}
TENSOR = 1000460000  # VK_DESCRIPTOR_TYPE_TENSOR_ARM


@dataclass
class Module:
    """Code of one or more segments; `code` is SPIR-V words, or None where the file has a placeholder or a source text."""

    kind: vgfpy.ModuleType
    name: str
    entry: str
    code: np.ndarray | None


@dataclass
class Resource:
    """A tensor of the container: Vulkan format number and shape; no descriptor type for constants.

    An `image` is one of a compute shader; how it is sampled is not read, so it cannot be written again.
    """

    category: vgfpy.ResourceCategory
    descriptor: int | None
    format: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    alias: int | None
    image: bool = False  # with a sampler; for compute shaders only


@dataclass
class Constant:
    resource: int
    data: np.ndarray
    sparsity: int = _NO_SPARSITY


@dataclass(frozen=True)
class Binding:
    """A descriptor binding number and the resource behind it."""

    binding: int
    resource: int


@dataclass
class Segment:
    """One dispatch. `sets` are (set index, bindings); `constants` are (id in the SPIR-V, index in the constant table)."""

    name: str
    module: int
    sets: list[tuple[int, list[Binding]]]
    inputs: list[Binding]
    outputs: list[Binding]
    constants: list[tuple[int, int]]
    dispatch: list[int]
    push_constants: list[tuple[int, int, int]]


@dataclass
class Container:
    vulkan_headers: int
    modules: list[Module] = field(default_factory=list)
    resources: list[Resource] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    inputs: list[Binding] = field(default_factory=list)
    outputs: list[Binding] = field(default_factory=list)
    input_names: list[str] = field(default_factory=list)
    output_names: list[str] = field(default_factory=list)


def map_file(path: Path | str) -> memoryview:
    """A file's bytes, read from it when they are looked at; what is made of them keeps them alive.

    Raises:
        InputError: it cannot be read, or is no file (a folder, a pipe).
    """
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise InputError("cannot be read: it is no file")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if state.st_size else b"")
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from None


def decode(data: bytes | memoryview) -> Container:
    """The container that `data` holds. Code and constants are views of `data`, which they keep alive.

    Raises:
        InputError: not a VGF file, truncated, of a newer version, or with tables that do not fit together.
    """
    view = memoryview(data)
    if len(view) < _HEADER or bytes(view[:4]) not in _MAGICS:
        raise InputError("not a VGF file, or a truncated one")
    major, minor = view[8], view[9]
    if (major, minor) > _NEWEST or major != _NEWEST[0]:
        raise InputError(f"VGF version {major}.{minor} is not supported, {'.'.join(map(str, _NEWEST))} is", remedy="update tosaic")
    try:
        return _Decoder(view).container()
    except (ValueError, struct.error) as error:
        raise InputError(f"not a usable VGF file: {error}") from None


class _Decoder:
    """The tables of the schema, `vgf.fbs`; what stands in a table is known by its slot."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        sections = [
            self._section(at, name) for at, name in zip((16, 32, 48, 64), ("modules", "sequence", "resources", "constants"), strict=True)
        ]
        self.modules, self.sequence, self.resources = (Buffer(s).root() if s else None for s in sections[:3])
        self.constants = sections[3]
        self.file = Container(struct.unpack_from("<H", data, 4)[0])

    def _section(self, at: int, name: str) -> memoryview:
        offset, size = struct.unpack_from("<QQ", self.data, at)
        if offset + size > len(self.data):
            raise ValueError(f"the section of the {name} reaches to byte {offset + size} of {len(self.data)}")
        return self.data[offset : offset + size]

    def container(self) -> Container:
        file = self.file
        file.modules = [self._module(t) for t in self.modules.tables(0)] if self.modules else []
        file.resources = [self._resource(t) for t in self.resources.tables(0)] if self.resources else []
        file.constants = self._constants()
        if self.sequence is not None:
            file.segments = [self._segment(t) for t in self.sequence.tables(0)]
            file.inputs, file.outputs = self._bindings(self.sequence, 1), self._bindings(self.sequence, 2)
            file.input_names, file.output_names = self.sequence.texts(3), self.sequence.texts(4)
        return file

    def _module(self, table: Table) -> Module:
        code = table.table(4)
        words = code.array(0, "<u4") if code is not None and table.number(3, "<B") == _SPIRV else None
        return Module(vgfpy.ModuleType(table.number(0, "<B")), table.text(1), table.text(2), words)

    def _resource(self, table: Table) -> Resource:
        description, descriptor, alias = table.table(3), table.number(0), table.number(6, default=_NONE)
        shape, strides = (tuple(description.numbers(i, "<i8")) if description else () for i in (0, 1))
        return Resource(
            vgfpy.ResourceCategory(table.number(2, "<B")),
            None if descriptor == _NONE else descriptor,
            table.number(1),
            shape,
            strides,
            None if alias == _NONE else alias,
            image=bool(table.number(4, "<B")),
        )

    def _constants(self) -> list[Constant]:
        data = self.constants
        if not data:
            return []
        if bytes(data[:8]) != _CONSTANTS_MARK:  # the section of older files
            older = Buffer(data).root().tables(0)
            return [Constant(self._resource_of(t.number(0)), _present(t.array(2, "u1")), t.number(1, "<q")) for t in older]
        buffer = Buffer(data)
        count = buffer.number("<Q", 8)
        payload = 16 + 24 * count
        if payload > len(data):
            raise ValueError(f"{count} constants do not fit their section")
        buffer.count(count)
        found: list[Constant] = []
        for resource, sparsity, size, offset in struct.iter_unpack("<IiQQ", data[16:payload]):
            if payload + offset + size > len(data):
                raise ValueError(f"constant {len(found)} reaches beyond the end")
            raw = np.frombuffer(data, np.uint8, size, payload + offset)
            found.append(Constant(self._resource_of(resource), raw, sparsity))
        return found

    def _segment(self, table: Table) -> Segment:
        # from version 0.5 on, each constant says by which number the module knows it; before, that was its index
        bound = [(t.number(0), t.number(1)) for t in table.tables(9)] or [(i, i) for i in table.numbers(6, "<u4")]
        sets = enumerate(table.tables(3))
        return Segment(
            name=table.text(1),
            module=_index(table.number(2), len(self.file.modules), "module"),
            sets=[(i if (index := t.number(1, default=_NONE)) == _NONE else index, self._bindings(t, 0)) for i, t in sets],
            inputs=self._bindings(table, 4),
            outputs=self._bindings(table, 5),
            constants=[(number, _index(i, len(self.file.constants), "constant")) for number, i in bound],
            dispatch=table.numbers(7, "<u4"),
            push_constants=[(t.number(0), t.number(1), t.number(2)) for t in table.tables(8)],
        )

    def _bindings(self, table: Table, slot: int) -> list[Binding]:
        return [Binding(t.number(0), self._resource_of(t.number(1))) for t in table.tables(slot)]

    def _resource_of(self, index: int) -> int:
        return _index(index, len(self.file.resources), "resource")


def _present(data: np.ndarray | None) -> np.ndarray:
    if data is None:
        raise ValueError("a constant has no data")
    return data


def _index(index: int, size: int, what: str) -> int:
    if index >= size:
        raise ValueError(f"{what} {index} of {size} is named")
    return index


def encode(container: Container) -> bytes:
    """The file's bytes; the same container gives the same bytes."""
    stream = io.BytesIO()
    write(container, stream)
    return stream.getvalue()


def write(container: Container, file: Sink) -> None:
    """Write the file front to back; the data of constants pass in pieces, and nothing holds them all.

    Constants with equal bytes, of whatever shapes and types, have one payload: an embedding and the head that is tied to it.

    Arm's encoder would copy each constant, so it writes a file with one byte for each, and the section of the constants is
    written anew here, as its page `file_format` describes it.

    Raises:
        ValueError: the installed encoder writes that section in another form.
    """
    small = _tables(container)
    start, size = struct.unpack_from("<QQ", small, _CONSTANT_SECTION)
    count = len(container.constants)
    if small[start : start + 16] != _CONSTANTS_MARK + struct.pack("<Q", count) or start + size != len(small):
        raise ValueError("ai-ml-sdk-vgf-library writes constants in another form than CONST00")
    records, payloads, end = bytearray(), dict[tuple[int, bytes], tuple[int, np.ndarray]](), 0
    sizes = Counter(c.data.nbytes for c in container.constants)
    for number, c in enumerate(container.constants):
        size = c.data.nbytes
        # what has its size for itself need not be compared
        key = size, digest(c.data) if sizes[size] > 1 else number.to_bytes(4)
        if key not in payloads:
            payloads[key] = end, c.data
            end += size + -size % 8
        records += struct.pack("<IiQQ", c.resource, c.sparsity, size, payloads[key][0])
    file.write(small[: _CONSTANT_SECTION + 8] + struct.pack("<Q", 16 + len(records) + end) + small[_CONSTANT_SECTION + 16 : start + 16])
    file.write(records)
    for _, data in payloads.values():
        for piece in pieces(data):
            file.write(piece)
        file.write(bytes(-data.nbytes % 8))


def _tables(container: Container) -> bytes:
    """The file with a byte in place of each constant's data."""
    encoder = vgfpy.CreateEncoder(container.vulkan_headers)
    modules = [encoder.AddModule(m.kind, m.name, m.entry, [] if m.code is None else m.code.tolist()) for m in container.modules]
    resources = [_add_resource(encoder, r) for r in container.resources]
    constants = [encoder.AddConstant(resources[c.resource], b"\0", c.sparsity) for c in container.constants]
    slots: dict[Binding, vgfpy.BindingSlotRef] = {}

    def bind(bindings: list[Binding]) -> list[vgfpy.BindingSlotRef]:
        for b in bindings:
            if b not in slots:
                slots[b] = encoder.AddBindingSlot(b.binding, resources[b.resource])
        return [slots[b] for b in bindings]

    for s in container.segments:
        encoder.AddSegmentInfo(
            modules[s.module],
            s.name,
            [encoder.AddDescriptorSetInfo(bind(bindings), index) for index, bindings in s.sets],
            bind(s.inputs),
            bind(s.outputs),
            [vgfpy.GraphConstantBindingRef(id_, constants[index]) for id_, index in s.constants],
            s.dispatch,
            [encoder.AddPushConstRange(*r) for r in s.push_constants],
        )
    encoder.AddModelSequenceInputsOutputs(bind(container.inputs), container.input_names, bind(container.outputs), container.output_names)
    encoder.Finish()
    stream = io.BytesIO()
    if not encoder.WriteTo(stream):
        raise ValueError("the VGF encoder failed")
    return stream.getvalue()


def _add_resource(encoder: vgfpy.Encoder, r: Resource) -> vgfpy.ResourceRef:
    if r.image:
        raise ValueError("images cannot be written")
    if r.category == vgfpy.ResourceCategory.Constant:
        return encoder.AddConstantResource(r.format, r.shape, r.strides)
    add = getattr(encoder, f"Add{r.category.name}Resource")
    return add(r.descriptor, r.format, r.shape, r.strides, r.alias)
