"""Post-training quantization, and what quantization hands to the compiler."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from tosaic.errors import InputError, QuantizeError
from tosaic.quantization.bias_correction import LIMIT, FloatMeans, correct_biases
from tosaic.quantization.biases import round_biases
from tosaic.quantization.observers import Observer
from tosaic.quantization.per_token import mark_linears, set_units
from tosaic.quantization.pt2e import convert, prepare
from tosaic.quantization.quantizer import Chosen, TosaQuantizer
from tosaic.quantization.schemes import Recipe
from tosaic.quantization.siblings import share_zero_points
from tosaic.quantization.streams import share_scales

Inputs = tuple[Any, ...]
Ranges = dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Quantized:
    """A quantized program: quantize and dequantize operators around float arithmetic.

    Attributes:
        module: callable; computes what the quantized model means in float (fake quantization).
        recipe: what the user asked for.
        chosen: node name -> decision of the quantizer.
        calibration: number of samples and SHA-256 of the calibration data.
        magnitudes: node name -> the largest magnitude in calibration of an int32 value whose scale holds more.
        ranges: what calibration found, by observed node and type; another program of the same operators can take it over.
        timings: seconds of each stage so far.
    """

    module: torch.fx.GraphModule
    example_inputs: Inputs
    input_names: list[str]
    output_names: list[str]
    recipe: Recipe
    chosen: dict[str, Chosen]
    calibration: dict[str, Any] = field(default_factory=dict)
    magnitudes: dict[str, float] = field(default_factory=dict)
    ranges: Ranges = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        with torch.no_grad():
            return self.module(*inputs)


def quantize_captured(
    module: torch.fx.GraphModule,
    example_inputs: Inputs,
    calibration: Iterable[Any] | Quantized,
    recipe: Recipe,
    *,
    output_names: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> tuple[torch.fx.GraphModule, dict[str, Chosen], dict[str, Any], dict[str, float], Ranges]:
    """Observe, calibrate and convert a captured graph (batch norm folded already).

    Args:
        calibration: an iterable of input tuples (or tensors); batches of any size that is a multiple of the
            captured batch size. Or a program of the same operators, in other shapes, whose ranges are taken over.
        output_names: of the flattened outputs, for the recipe's `ports`.
        progress: called with the number of samples seen.

    Returns:
        The quantized module, the decisions, the record of the calibration data, the magnitudes and the ranges (see `Quantized`).

    Raises:
        InputError: empty calibration, wrong shapes or types, or values that are not finite.
        QuantizeError: the other program lacks the range of a value.
    """
    quantizer = TosaQuantizer(recipe, output_names=output_names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mark_linears(module, recipe)
        prepared = prepare(module, quantizer)
        layers = FloatMeans(prepared, LIMIT if recipe.bias_correction else 0)
        if isinstance(calibration, Quantized):
            record = calibration.calibration
            _take_over(prepared, calibration.ranges)
        else:
            record = calibrate(layers.sample, example_inputs, calibration, progress)
        ranges = {key: observer.range() for key, observer in _observers(prepared)}
        magnitudes = share_scales(prepared)
        share_zero_points(prepared)
        converted = convert(prepared)
        set_units(converted)
        round_biases(converted)
        if recipe.bias_correction:
            correct_biases(converted, layers.samples, layers.means())
    return converted, quantizer.chosen, record, magnitudes, ranges


def _observers(prepared: torch.fx.GraphModule) -> Iterator[tuple[tuple[str, str], Observer]]:
    """Each observer with the node that it observes and its type; one that several nodes share comes with each."""
    for node in prepared.graph.find_nodes(op="call_module"):
        observer = prepared.get_submodule(str(node.target))
        if isinstance(observer, Observer):
            source = node.args[0]
            while source.op == "call_module":  # what one observer gives, another may observe; observers have numbers for names
                source = source.args[0]
            yield (source.name, f"{observer.dtype} {observer.quant_max}"), observer


def _take_over(prepared: torch.fx.GraphModule, ranges: Ranges) -> None:
    """Give each observer the range that one of its nodes has in another program."""
    missing = {observer: key for key, observer in _observers(prepared)}
    for key, observer in _observers(prepared):
        if key in ranges:
            observer.low, observer.high = (edge.clone() for edge in ranges[key])
            missing.pop(observer, None)
    if missing:
        name, kind = next(iter(missing.values()))
        remedy = "both must have the same operators and recipe; calibrate with data instead"
        raise QuantizeError(f"the program to take ranges from has none of '{name}' ({kind})", remedy=remedy)


@torch.no_grad()
def calibrate(
    run: Callable[[Inputs], Any], example_inputs: Inputs, data: Iterable[Any], progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Run calibration data through observers.

    Args:
        run: runs the observed model on one sample, its tensors flattened.

    Returns:
        {"samples": number of model calls, "sha256": digest of the data}.
    """
    digest, samples = hashlib.sha256(), 0
    for inputs in batches(data, example_inputs):
        run(inputs)
        for tensor in inputs:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        samples += 1
        if progress:
            progress(samples)
    if not samples:
        raise InputError("the calibration data is empty", remedy="give at least one sample; 32 to 256 are usual")
    return {"samples": samples, "sha256": digest.hexdigest()}


def batches(data: Iterable[Any], example_inputs: Inputs) -> Iterator[Inputs]:
    """Input tuples in the captured shapes, from an iterable of tensors, arrays, tuples or larger batches.

    Raises:
        InputError: the data is not iterable, or a sample has another shape, type or count than the model takes.
    """
    if not isinstance(data, Iterable) or isinstance(data, str | bytes | dict):
        raise InputError(f"calibration data is an iterable of input tuples, found {type(data).__name__}")
    want = [t for t in pytree.tree_leaves(example_inputs) if isinstance(t, torch.Tensor)]
    for index, sample in enumerate(data):
        found = [torch.as_tensor(np.ascontiguousarray(t)) if isinstance(t, np.ndarray) else t for t in tensors_of(sample)]
        # a DataLoader of a labelled data set yields (inputs, label); what the model takes comes first
        tensors = found[: len(want)]
        if len(found) < len(want) or not all(isinstance(t, torch.Tensor) for t in tensors):
            raise InputError(f"calibration sample {index} has {len(found)} tensors; the model takes {len(want)}")
        yield from _split(tensors, want, index)


def tensors_of(sample: Any) -> list[Any]:
    """What a sample of a data set holds, in order."""
    if isinstance(sample, dict):
        sample = list(sample.values())
    return list(pytree.tree_leaves(sample))


def _split(tensors: list[torch.Tensor], want: list[torch.Tensor], index: int) -> Iterator[Inputs]:
    parts = []
    for position, (tensor, example) in enumerate(zip(tensors, want, strict=True)):
        where = f"calibration sample {index}, input {position}"
        if tensor.dtype != example.dtype:
            raise InputError(f"{where}: expected {example.dtype}, found {tensor.dtype}", remedy="convert the data before")
        if tensor.dim() == example.dim() - 1 and tensor.shape == example.shape[1:] and example.shape[0] == 1:
            tensor = tensor.unsqueeze(0)
        same = tensor.dim() == example.dim() and tensor.shape[1:] == example.shape[1:]
        if not same or (tensor.dim() and tensor.shape[0] % example.shape[0]):
            raise InputError(f"{where}: expected shape {tuple(example.shape)} (or a multiple of its batch), found {tuple(tensor.shape)}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{where} contains NaN or infinite values", remedy="remove that sample or repair the data")
        parts.append(tensor.split(example.shape[0]) if tensor.dim() else (tensor,))
    yield from zip(*parts, strict=True)


class Stopwatch:
    """Collects seconds by stage name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
