"""The VGF container as plain data: modules, resources, constants, and the sequence that binds them.

Only the container: what a graph module computes is SPIR-V, which `emit/read.py` decodes. Arm's `vgfpy` does the byte
work. Its memoryviews point into the buffer that it was given, so `decode` holds the buffer and copies what it keeps; it
does not check indexes, so every index is checked here first.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import vgfpy

from tosaic.errors import InputError

_NO_SPARSITY = -1
_BROKEN = (ValueError, TypeError, IndexError, RuntimeError, OverflowError, MemoryError)


@dataclass
class Module:
    """Code of one or more segments; `code` is SPIR-V words, or None where the file has a placeholder or a source text."""

    kind: vgfpy.ModuleType
    name: str
    entry: str
    code: np.ndarray | None


@dataclass
class Resource:
    """A tensor of the container: Vulkan format number and shape; no descriptor type for constants."""

    category: vgfpy.ResourceCategory
    descriptor: int | None
    format: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    alias: int | None


@dataclass
class Constant:
    resource: int
    data: bytes
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


def decode(data: bytes) -> Container:
    """The container that `data` holds.

    Raises:
        InputError: not a VGF file, truncated, of a newer version, or with tables that do not fit together.
    """
    try:
        return _Decoder(data).container()
    except _BROKEN as error:
        raise InputError(f"not a usable VGF file: {error}") from None


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        header = vgfpy.CreateHeaderDecoder(self.data, vgfpy.HeaderSize(), len(data)) if len(data) >= vgfpy.HeaderSize() else None
        if header is None or not header.IsValid():
            raise InputError("not a VGF file, or a truncated one")
        if not header.CheckVersion():
            raise InputError(f"VGF version {header.GetMajor()}.{header.GetMinor()} is not supported", remedy="update ai-ml-sdk-vgf-library")
        self.headers = header.GetEncoderVulkanHeadersVersion()
        self.modules = self._table("ModuleTable", header.GetModuleTableOffset(), header.GetModuleTableSize())
        self.sequence = self._table("ModelSequenceTable", header.GetModelSequenceTableOffset(), header.GetModelSequenceTableSize())
        self.resources = self._table("ModelResourceTable", header.GetModelResourceTableOffset(), header.GetModelResourceTableSize())
        self.constants = self._table("Constant", header.GetConstantsOffset(), header.GetConstantsSize())

    def _table(self, name: str, offset: int, size: int) -> Any:
        section = self.data[offset : offset + size]
        if not section:
            return None
        table = getattr(vgfpy, f"Create{name}Decoder")(section, len(section))  # not `size`, which may reach past the end
        if table is None:
            raise ValueError(f"{name} is malformed")
        return table

    def container(self) -> Container:
        result = Container(self.headers)
        result.modules = [self._module(i) for i in range(_size(self.modules))]
        result.resources = [self._resource(i) for i in range(_size(self.resources))]
        result.constants = [self._constant(i) for i in range(_size(self.constants))]
        s = self.sequence
        if s is None:
            return result
        result.segments = [self._segment(i, len(result.modules)) for i in range(s.modelSequenceTableSize())]
        result.inputs = self._bindings(s.getModelSequenceInputBindingSlotsHandle())
        result.outputs = self._bindings(s.getModelSequenceOutputBindingSlotsHandle())
        result.input_names = self._names(s.getModelSequenceInputNamesHandle())
        result.output_names = self._names(s.getModelSequenceOutputNamesHandle())
        return result

    def _module(self, i: int) -> Module:
        table = self.modules
        code = table.getSPIRVModuleCode(i) if table.hasSPIRVCode(i) else None
        words = None if code is None else np.frombuffer(bytes(code), dtype="<u4")
        return Module(table.getModuleType(i), table.getModuleName(i), table.getModuleEntryPoint(i), words)

    def _resource(self, i: int) -> Resource:
        t = self.resources
        if t.getSamplerConfigHandle(i) is not None:
            raise InputError("the file has image resources; only tensors are supported")
        shape, strides = (tuple(m.tolist()) if m is not None else () for m in (t.getTensorShape(i), t.getTensorStride(i)))
        return Resource(t.getCategory(i), t.getDescriptorType(i), t.getVkFormat(i), shape, strides, t.getAliasGroupId(i))

    def _constant(self, i: int) -> Constant:
        t = self.constants
        data = t.getConstant(i)
        if data is None:
            raise ValueError(f"constant {i} has no data")
        return Constant(
            self._index(t.getConstantMrtIndex(i), _size(self.resources), "resource"), bytes(data), t.getConstantSparsityDimension(i)
        )

    def _segment(self, i: int, modules: int) -> Segment:
        s = self.sequence
        module = self._index(s.getSegmentModuleIndex(i), modules, "module")
        sets = range(s.getSegmentDescriptorSetInfosSize(i))
        push = s.getSegmentPushConstRange(i)
        ranges = range(s.getPushConstRangesSize(push)) if push is not None else ()
        constants = [(c.graphConstantId, c.constantIndex) for c in s.getSegmentConstantBindings(i)]
        for _, index in constants:
            self._index(index, _size(self.constants), "constant")
        return Segment(
            name=s.getSegmentName(i),
            module=module,
            sets=[(s.getSegmentDescriptorSetIndex(i, j), self._bindings(s.getDescriptorBindingSlotsHandle(i, j))) for j in sets],
            inputs=self._bindings(s.getSegmentInputBindingSlotsHandle(i)),
            outputs=self._bindings(s.getSegmentOutputBindingSlotsHandle(i)),
            constants=constants,
            dispatch=list(s.getSegmentDispatchShape(i)),
            push_constants=[
                (s.getPushConstRangeStageFlags(push, j), s.getPushConstRangeOffset(push, j), s.getPushConstRangeSize(push, j))
                for j in ranges
            ],
        )

    def _bindings(self, handle: Any) -> list[Binding]:
        s = self.sequence
        slots = range(s.getBindingsSize(handle)) if handle is not None else ()
        count = _size(self.resources)
        return [
            Binding(s.getBindingSlotBinding(handle, j), self._index(s.getBindingSlotMrtIndex(handle, j), count, "resource")) for j in slots
        ]

    def _names(self, handle: Any) -> list[str]:
        s = self.sequence
        return [s.getName(handle, j) for j in range(s.getNamesSize(handle))] if handle is not None else []

    @staticmethod
    def _index(index: int, size: int, what: str) -> int:
        if not 0 <= index < size:
            raise ValueError(f"{what} {index} of {size} is named")
        return index


def _size(table: Any) -> int:
    return 0 if table is None else table.size()


def encode(container: Container) -> bytes:
    """The file's bytes; the same container gives the same bytes."""
    encoder = vgfpy.CreateEncoder(container.vulkan_headers)
    modules = [encoder.AddModule(m.kind, m.name, m.entry, [] if m.code is None else m.code.tolist()) for m in container.modules]
    resources = [_add_resource(encoder, r) for r in container.resources]
    # the encoder keeps pointers to the data: `container` holds it until WriteTo
    constants = [encoder.AddConstant(resources[c.resource], c.data, c.sparsity) for c in container.constants]
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
    if r.category == vgfpy.ResourceCategory.Constant:
        return encoder.AddConstantResource(r.format, r.shape, r.strides)
    add = getattr(encoder, f"Add{r.category.name}Resource")
    return add(r.descriptor, r.format, r.shape, r.strides, r.alias)
