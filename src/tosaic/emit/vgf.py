"""Graph -> `.vgf`: Arm's model-converter, then the names of inputs and outputs, which it loses, put back."""

from __future__ import annotations

from pathlib import Path

from tosaic.converter import convert
from tosaic.emit.files import atomic_write
from tosaic.emit.flatbuffer import serialize
from tosaic.errors import EmitError, InputError
from tosaic.tosa import container as vgf
from tosaic.tosa.graph import Graph


def write_vgf(graph: Graph, path: Path | str, *, converter: str | None = None) -> None:
    """Write `graph` to `path` as a VGF file; the same graph gives the same bytes.

    Args:
        path: replaced as a whole when all went well, else left as it is.
        converter: the model-converter to run; without it `tosaic.converter.find_converter` looks for one.

    Raises:
        EmitError: the converter is missing, failed, or wrote no usable file; or `path` cannot be written.
    """
    atomic_write(path, to_vgf(graph, converter=converter))


def to_vgf(graph: Graph, *, converter: str | None = None) -> bytes:
    """The bytes that `write_vgf` writes."""
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
                "an output is an input unchanged, which a .vgf cannot hold beside other outputs",
                remedy="leave it out of the model's outputs",
            )
