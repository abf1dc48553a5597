"""An artifact against the float model that it was made from, layer by layer: the error that reaches each value, and who makes it.

The captured float program is interpreted twice, side by side. Once with the float inputs: what an artifact's value is away from
that is the error that has come together so far. And once with each result replaced by the artifact's own value wherever the
artifact stores it: what a layer gives there is what it would give in float of the artifact's own inputs, so that the rest of the
error is the layer's alone. A wrong layer shows there, however small its effect, and no layer behind it is taken for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from tosaic.artifact import Artifact, dequantize
from tosaic.compiler import captured_for_inference
from tosaic.emit.passport import ValueRecord
from tosaic.errors import InputError
from tosaic.execute.compare import decibels
from tosaic.tosa import ops
from tosaic.tosa.graph import Value


@dataclass
class _Power:
    """Power of signal and noise, added up over samples."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        good = np.isfinite(expected) & np.isfinite(found)  # a mask's -inf is no signal
        self.signal += float(np.square(expected[good]).sum())
        self.noise += float(np.square(expected[good] - found[good]).sum())

    @property
    def decibels(self) -> float:
        return decibels(self.signal, self.noise)


@dataclass
class Layer:
    """One value of the artifact against the float program.

    Attributes:
        value: its name in the file.
        node: of the float program that it is the result of.
        target: the node's aten operator; empty for inputs.
        location: in the user's model.
        dtype: that it is stored in.
        total, own: the error that reaches the value, and the layer's own.
    """

    value: str
    node: str
    target: str
    location: str
    dtype: str
    total: _Power = field(default_factory=_Power, repr=False)
    own: _Power = field(default_factory=_Power, repr=False)

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise in dB, of all samples together; inf: exactly equal."""
        return self.total.decibels

    @property
    def own_sqnr(self) -> float:
        """The same of this layer alone, given the artifact's own inputs."""
        return self.own.decibels


@dataclass(frozen=True)
class Layers:
    """The result of `compare_layers`.

    Attributes:
        layers: in the order of the model.
        samples: how many there were.
    """

    layers: list[Layer]
    samples: int

    def worst(self) -> list[Layer]:
        """By the error that reaches the value, worst first."""
        return sorted(self.layers, key=lambda layer: layer.sqnr)

    def weakest(self) -> Layer | None:
        """The layer whose own error is largest."""
        return min(self.layers, key=lambda layer: layer.own_sqnr, default=None)


def compare_layers(
    artifact: Artifact,
    model: Any,
    example_inputs: Any,
    samples: Iterable[Sequence[np.ndarray]],
    *,
    scheme: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Layers:
    """Compare each value of an artifact that the passport knows with the same value of a float model.

    Args:
        artifact: with a passport, which has the scales of values between operators.
        model: a module or captured program, as it was compiled.
        example_inputs: those that it was compiled for.
        samples: the model's inputs, each in the batch that the artifact was compiled for: real values, or stored ones.
        scheme: the float type that the model is captured in.
        progress: called with the number of samples that are done.

    Raises:
        InputError: the passport knows no values, or none is the model's; the model has other inputs.
        CaptureError: the model cannot be captured.
    """
    records = artifact.passport.values
    if not records:
        raise InputError(
            f"{artifact.path or 'the artifact'} has no passport with the scales of its values, so layers cannot be compared",
            remedy="export it again, and keep the .json beside it",
        )
    captured = captured_for_inference(model, example_inputs, scheme)
    if len(captured.input_names) != len(artifact.graph.inputs):
        raise InputError(f"the model takes {len(captured.input_names)} inputs, the artifact {len(artifact.graph.inputs)}")
    sums = _sums(artifact, captured.module.graph)
    known = _layers(artifact, captured.module.graph, sums)
    meanings: dict[str, ValueRecord | _Sums] = {**records, **sums}
    examples = [t for t in pytree.tree_leaves(captured.example_inputs) if isinstance(t, torch.Tensor)]
    count = 0
    for sample in samples:
        [stored] = list(artifact.samples(list(sample)))
        found = {name: meanings[name].real(array) for name, array in _artifact_values(artifact, stored, known).items()}
        inputs = [_tensor(x, s, p, e) for x, s, p, e in zip(sample, stored, artifact.passport.inputs, examples, strict=True)]
        with torch.no_grad():
            _Both(captured.module, known, found).run(*inputs, enable_io_processing=False)
        count += 1
        if progress is not None:
            progress(count)
    met = [layer for layers in known.values() for layer in layers if layer.total.signal or layer.total.noise]
    if not met:
        raise InputError("no value of the artifact is one of the model's", remedy="give the model that the artifact was made from")
    return Layers(met, count)


_PRODUCTS = (ops.Conv2d, ops.Conv3d, ops.DepthwiseConv2d, ops.TransposeConv2d, ops.MatMul)
_LIMITS = (ops.Clamp, ops.Maximum)


@dataclass(frozen=True)
class _Sums:
    """What sums of products are in the model: real = scale * stored, with a scale for each channel, then the moves of `rescaled`."""

    node: str
    scale: tuple[float, ...]
    rescaled: ValueRecord
    zero_point: int = 0

    def real(self, stored: np.ndarray) -> np.ndarray:
        """See `ValueRecord.real`."""
        return self.rescaled.model_copy(update={"scale": None}).real(stored * np.array(self.scale))


def _sums(artifact: Artifact, graph: torch.fx.Graph) -> dict[str, _Sums]:
    """Sums of products, by name, whose scales follow from what the RESCALE behind them multiplies by. With them the error that quantized
    operands make stands apart from that of rounding the result."""
    records, users, nodes = artifact.passport.values, artifact.graph.users(), {node.name: node for node in graph.nodes}
    makers = {value: n for n in artifact.graph.nodes if isinstance(n.op, _PRODUCTS) for value in n.outputs if value.dtype.is_integer}
    found = {}
    for rescale in artifact.graph.nodes:
        maker = makers.get(rescale.inputs[0])
        if not isinstance(rescale.op, ops.Rescale) or maker is None or maker.location is None:
            continue
        result, aten = rescale.output, maker.location.aten
        readers = users.get(result, [])
        if result.name not in records and len(readers) == 1 and isinstance(readers[0].op, _LIMITS):  # which have its scale
            result = readers[0].output
        record = records.get(result.name)
        if record is None or record.scale is None or record.node not in nodes:
            continue
        # a function of the sums may be all that the record is of
        near = (nodes[record.node], *nodes[record.node].all_input_nodes)
        node = next((n for n in near if str(n.target) == aten), None)
        if node is not None:
            scale = record.scale * np.array(rescale.op.multiplier) / np.exp2(np.array(rescale.op.shift, np.float64))
            found[rescale.inputs[0].name] = _Sums(node.name, tuple(scale.tolist()), record)
    return found


def _layers(artifact: Artifact, graph: torch.fx.Graph, sums: Mapping[str, _Sums]) -> dict[str, list[Layer]]:
    """By node of the float program, in its order: the values of the artifact that are its result, sums before what is made of them."""
    aten = {row.name: (row.aten, row.location) for row in artifact.passport.ledger}
    types = {value.name: value.type for value in artifact.graph.values()}
    by_node: dict[str, list[tuple[str, ValueRecord | _Sums]]] = {}
    meanings: list[tuple[str, ValueRecord | _Sums]] = [*sums.items(), *artifact.passport.values.items()]
    for name, record in meanings:
        if name in types:
            by_node.setdefault(record.node, []).append((name, record))
    known = {}
    for node in graph.nodes:
        target = "" if node.op == "placeholder" else str(node.target)
        if node.name not in by_node or not _is_real(node) or aten.get(node.name, (target, ""))[0] != target:
            continue
        location = aten.get(node.name, ("", ""))[1]
        forms: dict[tuple[Any, ...], str] = {}  # one name for each: the others are the same numbers in another order
        for name, record in by_node[node.name]:
            forms[types[name].dtype, record.scale, record.zero_point] = name
        known[node.name] = [Layer(name, node.name, target, location, dtype.value) for (dtype, *_), name in forms.items()]
    return known


def _is_real(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _artifact_values(artifact: Artifact, stored: Sequence[np.ndarray], known: dict[str, list[Layer]]) -> dict[str, np.ndarray]:
    """What the artifact stores, by name of the value."""
    wanted = {layer.value for layers in known.values() for layer in layers}
    found = {v.name: x for v, x in zip(artifact.graph.inputs, stored, strict=True) if v.name in wanted}

    def watch(value: Value, array: np.ndarray) -> None:
        if value.name in wanted:
            found[value.name] = array

    artifact.executor("simulator")(stored, watch=watch)
    return found


def _tensor(given: Any, stored: np.ndarray, port: Any, example: torch.Tensor) -> torch.Tensor:
    """What the float model gets: the real values as they were given, or those of stored ones."""
    array = np.asarray(given)
    if array.shape != tuple(example.shape) or (array.dtype.kind in "iub" and example.is_floating_point()):
        array = dequantize(stored, port)
    return torch.as_tensor(np.ascontiguousarray(array.astype(np.float32) if example.is_floating_point() else array)).to(example.dtype)


class _Both(torch.fx.Interpreter):
    """The float program with its own results, and beside them with those of the artifact."""

    def __init__(self, module: torch.fx.GraphModule, known: dict[str, list[Layer]], found: dict[str, np.ndarray]) -> None:
        super().__init__(module)
        self._known, self._found = known, found
        self._own: dict[torch.fx.Node, Any] = {}

    def run_node(self, node: torch.fx.Node) -> Any:
        result = super().run_node(node)
        if node.op == "output":
            return result
        own = result
        if node.op.startswith("call_"):
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: self._own[n])
            own = getattr(self, node.op)(node.target, args, kwargs)
        for layer in self._known.get(node.name, ()):
            value = self._found.pop(layer.value)
            if value.shape != tuple(result.shape):
                continue
            layer.total.add(_array(result), value)
            layer.own.add(_array(own), value)
            own = torch.from_numpy(value).to(result.dtype)
        self._own[node] = own
        for dead in self.user_to_last_uses.get(node, []):
            self._own.pop(dead, None)
        return result


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float64).numpy()
