"""Graph -> `.vgf`, written directly or by Arm's model-converter."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import vgfpy

from tosaic.converter import convert
from tosaic.emit.files import atomic_write
from tosaic.emit.spirv_write import ENTRY, Written, write_module
from tosaic.errors import EmitError, InputError
from tosaic.tosa import container as vgf
from tosaic.tosa import ops
from tosaic.tosa.graph import Graph, Value

EMITTERS = ("direct", "converter")


def write_vgf(graph: Graph, path: Path | str, *, emitter: str = "direct", debug_info: bool = True, converter: str | None = None) -> None:
    """Write `graph` to `path` as a VGF file; the same graph gives the same bytes.

    Args:
        path: replaced as a whole when all went well, else left as it is.
        emitter: "direct", or "converter" for Arm's model-converter.
        debug_info: names of values and locations of operators (the converter has none).
        converter: the model-converter to run; without it `tosaic.converter.find_converter` looks for one.

    Raises:
        EmitError: the converter is missing, failed, or wrote no usable file; the graph does not fit a file; or `path` cannot be written.
    """
    atomic_write(path, lambda file: stream_vgf(graph, file, emitter=emitter, debug_info=debug_info, converter=converter))


def to_vgf(graph: Graph, *, emitter: str = "direct", debug_info: bool = True, converter: str | None = None) -> bytes:
    """The bytes that `write_vgf` writes."""
    stream = io.BytesIO()
    stream_vgf(graph, stream, emitter=emitter, debug_info=debug_info, converter=converter)
    return stream.getvalue()


def stream_vgf(graph: Graph, file: vgf.Sink, *, emitter: str = "direct", debug_info: bool = True, converter: str | None = None) -> None:
    """Write what `write_vgf` writes into an open file, front to back; "direct" copies no constant."""
    if emitter not in EMITTERS:
        raise InputError(f"unknown emitter '{emitter}'", remedy=f"known are {', '.join(EMITTERS)}")
    if (node := next((n for n in graph.nodes if n.op.graphs), None)) is not None:
        where = str(node.location) if node.location else f"%{node.outputs[0].name}"
        raise EmitError(f"a .vgf cannot hold {node.op.NAME}: its graphs have no control flow", where=where, remedy="write a .tosa file")
    if emitter == "converter":
        file.write(_converted(graph, converter))
        return
    try:
        vgf.write(_container(graph, write_module(graph, debug_info=debug_info)), file)
    except ValueError as error:
        raise EmitError(f"the VGF file cannot be written: {error}") from None


def _container(graph: Graph, written: Written) -> vgf.Container:
    """One segment: the constants of the pool, then the inputs, then the results, bound in that order."""
    unsigned = _unsigned(graph)
    file = vgf.Container(vulkan_headers=0)
    file.modules = [vgf.Module(vgfpy.ModuleType.Graph, ENTRY, ENTRY, written.words)]
    for number, constant in enumerate(written.pool.constants):
        format_ = vgf.FORMATS[constant.type.dtype]
        file.resources.append(vgf.Resource(vgfpy.ResourceCategory.Constant, None, format_, constant.type.shape, (), None))
        file.constants.append(vgf.Constant(number, constant.data))
    bindings: list[vgf.Binding] = []
    for category, values in ((vgfpy.ResourceCategory.Input, graph.inputs), (vgfpy.ResourceCategory.Output, written.results)):
        for value in values:
            format_ = (vgf.UNSIGNED_FORMATS if unsigned.get(value) else vgf.FORMATS)[value.dtype]
            bindings.append(vgf.Binding(len(bindings), len(file.resources)))
            file.resources.append(vgf.Resource(category, vgf.TENSOR, format_, value.shape, (), None))
    file.inputs, results = bindings[: len(graph.inputs)], bindings[len(graph.inputs) :]
    file.outputs = [results[i] for i in written.outputs]
    file.input_names, file.output_names = [v.name for v in graph.inputs], [v.name for v in graph.outputs]
    constants = [(number, number) for number in range(len(file.constants))]
    file.segments = [vgf.Segment(ENTRY, 0, [(0, bindings)], file.inputs, results, constants, [0, 0, 0], [])]
    return file


def _unsigned(graph: Graph) -> Mapping[Value, bool]:
    """Inputs that a RESCALE reads as unsigned, and what one writes so."""
    found: dict[Value, bool] = {}
    for node in graph.nodes:
        if isinstance(node.op, ops.Rescale):
            if node.op.input_unsigned:
                found[node.inputs[0]] = True
            if node.op.output_unsigned:
                found[node.output] = True
    return found


def _converted(graph: Graph, converter: str | None) -> bytes:
    """What the converter writes, with the names of inputs and outputs, which it loses, put back."""
    from tosaic.emit.flatbuffer import serialize  # late: nobody else needs tosa_serializer

    data = convert(serialize(graph), converter)
    try:
        container = vgf.decode(data)
    except InputError as error:
        raise EmitError(f"model-converter wrote no usable file: {error.what}") from None
    _check_interface(graph, container)
    container.input_names = [v.name for v in graph.inputs]
    container.output_names = [v.name for v in graph.outputs]
    return vgf.encode(container)


def _check_interface(graph: Graph, container: vgf.Container) -> None:
    """Names are put back by position, so count and shapes must agree; and each resource must have a binding of its own."""
    for kind, values, bindings in (("inputs", graph.inputs, container.inputs), ("outputs", graph.outputs, container.outputs)):
        if len(values) != len(bindings):
            raise EmitError(f"model-converter kept {len(bindings)} of {len(values)} {kind}")
        for value, binding in zip(values, bindings, strict=True):
            shape = container.resources[binding.resource].shape
            if shape != value.shape:
                raise EmitError(f"model-converter gave {value!r} the shape {list(shape)}")
    owner: dict[int, int] = {}
    for binding in (*container.inputs, *container.outputs):
        if owner.setdefault(binding.binding, binding.resource) != binding.resource:
            # seen when one of several outputs is an input unchanged: the module then has no such output
            raise EmitError(
                "model-converter cannot write an output that is an input unchanged, beside other outputs",
                remedy="leave --emitter converter out",
            )
