"""One part of a decoder (the start, a layer, the end), calibrated once and compiled for both programs: prefill and decode."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tosaic import compiler
from tosaic.artifact import Artifact
from tosaic.assembly import Piece
from tosaic.llm.architecture import DecoderConfig
from tosaic.llm.checkpoint import Checkpoint
from tosaic.llm.decoder import Layer, Start, Step
from tosaic.llm.memory import release
from tosaic.quantization.ptq import Quantized

PROGRAMS = ("prefill", "decode")


@dataclass(frozen=True)
class Variant:
    """A part in the shapes of one program: the module, and inputs to capture it with."""

    module: nn.Module
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Part:
    """A part of a decoder.

    Attributes:
        name: of the part in the whole; its modules and values go by names that begin so.
        calibrated: what calibration runs: all of P positions.
        prefill, decode: the same operators, and maybe fewer of the positions.
        inputs, outputs: names in the whole of its inputs, and of its outputs in order.
        stream: which of these are the residual stream, or logits: int32 where they are quantized.
    """

    name: str
    calibrated: Variant
    prefill: Variant
    decode: Variant
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    stream: frozenset[str]

    def own_outputs(self) -> list[str]:
        """The names of `outputs` that capture gives them."""
        return [f"output_{i}" for i in range(len(self.outputs))] if len(self.outputs) > 1 else ["output"]

    def wide_ports(self) -> list[str]:
        """The stream by its names in the part."""
        outputs = zip(self.own_outputs(), self.outputs, strict=True)
        return [own for own, outer in (*self.inputs.items(), *outputs) if outer in self.stream]


@dataclass(frozen=True)
class Shapes:
    """P tokens in a call of prefill, caches of S positions, and whether prefill gives logits of all its positions."""

    tokens: int
    length: int
    full_logits: bool = False

    def cache(self, config: DecoderConfig) -> Tensor:
        """An empty cache, float [K,S,D]."""
        return torch.zeros(config.kv_heads, self.length, config.head_dim)


def start_part(start: Start, shapes: Shapes) -> Part:
    """Token ids to the residual stream."""
    prefill, decode = (Variant(start, (torch.zeros(1, count, dtype=torch.int64),)) for count in (shapes.tokens, 1))
    return Part("start.", prefill, prefill, decode, {}, ("stream_0",), frozenset({"stream_0"}))


def layer_part(layer: Layer, index: int, config: DecoderConfig, shapes: Shapes) -> Part:
    """A layer with all that it knows of the position, from one residual stream to the next."""

    def variant(count: int) -> Variant:
        step = Step(layer, config.layer_rope(index), count, shapes.length).eval()
        # two tensors: one that is given twice is one input
        caches = shapes.cache(config), shapes.cache(config)
        return Variant(step, (torch.zeros(1, count, config.hidden), torch.zeros(1, dtype=torch.int64), *caches))

    prefill, decode = variant(shapes.tokens), variant(1)
    inputs = {"x": f"stream_{index}", "keys": f"keys_{index}", "values": f"values_{index}"}
    outputs = (f"stream_{index + 1}", f"keys_{index}_out", f"values_{index}_out")
    return Part(f"layers.{index}.", prefill, prefill, decode, inputs, outputs, frozenset({inputs["x"], outputs[0]}))


def end_part(checkpoint: Checkpoint, shapes: Shapes) -> Part:
    """The residual stream to logits."""
    config = checkpoint.config
    all_positions, last = checkpoint.end(one=False), torch.zeros(1, dtype=torch.int64)
    one = copy.copy(all_positions)  # of the same weights
    one.one = True
    stream = [torch.zeros(1, count, config.hidden) for count in (shapes.tokens, 1)]
    calibrated, decode = (Variant(all_positions, (x,)) for x in stream)
    prefill = calibrated if shapes.full_logits else Variant(one, (stream[0], last))
    inputs = {"x": f"stream_{config.layers}"}
    return Part("end.", calibrated, prefill, decode, inputs, ("logits",), frozenset({inputs["x"], "logits"}))


@dataclass(frozen=True)
class Choice:
    """How a part is quantized; `scheme` None: it stays float. See `tosaic.quantize`."""

    scheme: str | None
    scope: str = "full"
    overrides: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Compiled:
    """A part for each program, with equal integers wherever both compute the same, and its place in the whole (see `Part`)."""

    name: str
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    prefill: Artifact
    decode: Artifact

    def piece(self, program: str) -> Piece:
        """Of one of `PROGRAMS`."""
        artifact: Artifact = getattr(self, program)
        own = [p.name for p in artifact.passport.outputs]
        return Piece(artifact, self.name, self.inputs, dict(zip(own, self.outputs, strict=True)))


def quantize_part(part: Part, choice: Choice, spec: str, samples: Iterable[Any]) -> Quantized:
    """A part as it is calibrated, in fake quantization.

    Args:
        choice: has a scheme.
        samples: inputs of `part.calibrated`.
    """
    return _quantized(part, part.calibrated, choice, spec, samples)


def compile_part(part: Part, choice: Choice, spec: str, samples: Iterable[Any]) -> Compiled:
    """Compile a part for both programs.

    Args:
        samples: inputs of `part.calibrated`; run through it even where nothing is quantized, since the next part wants what it gives.
    """
    if choice.scheme is None:
        for _ in samples:
            pass
        in_float = [compiler.compile(v.module, v.inputs, spec, name=part.name) for v in (part.prefill, part.decode)]
        return Compiled(part.name, part.inputs, part.outputs, *in_float)
    reference = quantize_part(part, choice, spec, samples)
    prefill = reference if part.prefill is part.calibrated else _quantized(part, part.prefill, choice, spec, reference)
    decode = _quantized(part, part.decode, choice, spec, reference)
    compiled = []
    for quantized in (prefill, decode):
        compiled.append(compiler.compile(quantized, spec=spec, name=part.name))
        release()
    return Compiled(part.name, part.inputs, part.outputs, *compiled)


def _quantized(part: Part, variant: Variant, choice: Choice, spec: str, calibration: Any) -> Quantized:
    ports = {} if choice.scope == "linear" else dict.fromkeys(part.wide_ports(), "int32")
    quantized = compiler.quantize(
        variant.module,
        variant.inputs,
        calibration,
        choice.scheme,  # type: ignore[arg-type]
        scope=choice.scope,
        overrides=choice.overrides,
        # static scales hold outliers of thousands of tokens, next to which most have no bits to spare
        observer="tight-minmax",
        bias_correction=False,  # it would give each program weights of its own
        ports=ports,
        spec=spec,
    )
    release()
    return quantized
