"""The whole order, from a model to an artifact; the only module that joins the building stages.

capture -> quantize -> lower -> optimize -> verify -> (emit: Artifact.save)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tosaic.artifact import Artifact, operator_counts, versions
from tosaic.capture.batch_norm import fold_batch_norm
from tosaic.capture.export import Captured, capture, capture_for_training, finish_training
from tosaic.capture.floats import convert_floats, float_types
from tosaic.emit.files import atomic_write
from tosaic.emit.passport import LedgerRecord, Passport, PortRecord, ValueRecord
from tosaic.errors import InputError, SpecError, UnsupportedError
from tosaic.execute.simulator import evaluate
from tosaic.lower.registry import LOWERINGS
from tosaic.lower.walk import Lowered, Port, check_operators, lower_graph
from tosaic.optimize.pipeline import optimize
from tosaic.quantization.ptq import Quantized, Stopwatch, quantize_captured
from tosaic.quantization.qat import QatSession
from tosaic.quantization.schemes import FLOATS, SCHEMES, Recipe
from tosaic.tosa.graph import Graph, verify
from tosaic.tosa.ranges import verify_ranges
from tosaic.tosa.spec import Spec

import tosaic.lower  # noqa: F401  isort: skip  (registers the lowerings)

_TORCH_FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def quantize(
    model: nn.Module | torch.export.ExportedProgram,
    example_inputs: Any,
    calibration: Iterable[Any] | Quantized,
    scheme: str = "8a8w",
    *,
    scope: str = "full",
    overrides: Mapping[str, str] | None = None,
    between: str = "int32",
    observer: str = "minmax",
    bias_correction: bool = True,
    ports: Mapping[str, str] | None = None,
    spec: str | None = None,
    progress: Callable[[int], None] | None = None,
    dump: Path | str | None = None,
) -> Quantized:
    """Post-training quantization.

    Args:
        model: float module, or a program that torch.export captured.
        example_inputs: a tensor or a tuple of inputs, in the shapes to compile for.
        calibration: iterable of input tuples (a DataLoader too), representative of what the model will see. Or what `quantize`
            returned for the same model in other shapes, without bias correction: both then have the same scales.
        scheme: "8a8w" (int8 weights and activations), "16a8w" (int16 activations), "8a4w" (int4 weights), "8a8w-per-token"
            (8a8w with a scale for each row of a linear layer's input, found at run time), "16a8w-digits" or "16a8w-per-token"
            (8a8w with 16 bits in the inputs of linear layers, as two int8 digits, which need no extension).
        scope: "full", or "linear" for nn.Linear only.
        overrides: module path pattern or aten operator name -> scheme, e.g. {"head.*": "fp32"}.
        between: precision of values that arithmetic between the MACs reads: "int32", "int16" or "int8".
        observer: "minmax", "tight-minmax" (no head-room at 16 bits) or "percentile".
        bias_correction: correct the shift that weight rounding gives the mean of each layer's output.
        ports: input or output name -> "int8", "int16" or "int32", where it is not the scheme's own precision.
        spec: checked against the recipe before any work is done.
        progress: called with the number of calibration samples seen.
        dump: a folder for the text of each stage.

    Raises:
        SpecError, InputError, CaptureError, QuantizeError: see their docstrings.
    """
    if isinstance(calibration, Quantized):
        if calibration.recipe.bias_correction:
            raise InputError("the program to take ranges from has corrected biases", remedy="quantize it with bias_correction=False")
        bias_correction = False
    recipe = Recipe(scheme, scope, overrides or {}, between, observer, bias_correction, ports or {})
    if spec is not None:
        recipe.check(Spec.parse(spec))
    if recipe.scheme in FLOATS and not recipe.overrides:
        how = "" if recipe.scheme == "fp32" else f', scheme="{recipe.scheme}"'
        remedy = f"compile the model itself: tosaic.compile(model, example_inputs=...{how})"
        raise InputError(f"scheme {recipe.scheme} needs no quantization", remedy=remedy)
    watch = Stopwatch()
    captured = captured_for_inference(model, example_inputs, dump=dump)
    _check_quantizable(captured)
    watch.lap("capture")
    module, chosen, record, magnitudes, ranges = quantize_captured(
        captured.module, captured.example_inputs, calibration, recipe, output_names=captured.output_names, progress=progress
    )
    _dump(dump, "01_quantized.txt", module)
    watch.lap("quantize")
    names = captured.input_names, captured.output_names
    return Quantized(module, captured.example_inputs, *names, recipe, chosen, record, magnitudes, ranges, watch.seconds)


def prepare_qat(
    model: nn.Module,
    example_inputs: Any,
    scheme: str = "8a8w",
    *,
    scope: str = "full",
    overrides: Mapping[str, str] | None = None,
    between: str = "int32",
    ports: Mapping[str, str] | None = None,
    spec: str | None = None,
) -> QatSession:
    """Prepare a copy of `model` for quantization-aware training; arguments as for `quantize`.

    Returns:
        A session: train `session.model` in your own loop, then `session.finish()` gives what `compile` takes.
    """
    recipe = Recipe(scheme, scope, overrides or {}, between, bias_correction=False, ports=ports or {})  # training moves the biases itself
    if any(SCHEMES[s].per_token for s in (recipe.scheme, *recipe.overrides.values())):
        raise InputError("scales per token are found at run time, after training", remedy="train with 8a8w, or quantize without training")
    if spec is not None:
        recipe.check(Spec.parse(spec))
    captured = capture_for_training(model, example_inputs, keep=LOWERINGS)
    _check_quantizable(captured)
    return QatSession(captured.module, captured.example_inputs, captured.input_names, captured.output_names, recipe, finish_training)


def compile(
    model: Quantized | nn.Module | torch.export.ExportedProgram,
    example_inputs: Any = None,
    spec: str | None = None,
    *,
    scheme: str | None = None,
    name: str | None = None,
    io_layout: str = "model",
    strict: bool = False,
    dump: Path | str | None = None,
) -> Artifact:
    """Lower a quantized program, or a float model, to TOSA.

    Args:
        model: what `quantize` or `QatSession.finish` returned; or a float module, compiled in float (or one that any
            other PT2E quantizer converted).
        example_inputs: needed for a module only.
        spec: the TOSA specification string, which is law; without it the smallest that holds the model is taken.
        scheme: the float type that a float model is compiled in: "fp32", "fp16" or "bf16"; without it each value keeps its own.
        io_layout: "model" keeps the model's own layout, "nhwc" stores rank-4 inputs and outputs channels last.
        strict: refuse operators that stay float in a fully quantized program.
        dump: a folder for the text of each stage.

    Raises:
        UnsupportedError: lists every operator that cannot be lowered.
        SpecError: the specification cannot hold the recipe or an operator.
    """
    if io_layout not in ("model", "nhwc"):
        raise InputError(f"unknown io_layout '{io_layout}'", remedy="known are model, nhwc")
    given = Spec.parse(spec) if spec is not None else None
    if scheme is not None:
        _check_float_scheme(model, scheme, given)
    watch = Stopwatch()
    if isinstance(model, Quantized):
        if given is not None:
            model.recipe.check(given)
        module, output_names, reasons = model.module, model.output_names, {n: c.reason for n, c in model.chosen.items()}
        magnitudes = model.magnitudes
        chosen_spec = given or model.recipe.smallest_spec()
        recipe, calibration = dataclasses.asdict(model.recipe), model.calibration
    else:
        captured = captured_for_inference(model, example_inputs, scheme, dump)
        module, output_names, reasons, magnitudes = captured.module, captured.output_names, {}, {}
        chosen_spec = given or _spec_of(module)
        recipe, calibration = {} if scheme is None else {"scheme": scheme}, {}
        watch.lap("capture")
    title = name or (type(model).__name__ if isinstance(model, nn.Module) else "model")

    def build(spec: Spec) -> tuple[Lowered, Graph]:
        lowered = lower_graph(module, spec, output_names=output_names, io_layout=io_layout, reasons=reasons, magnitudes=magnitudes)
        _dump(dump, "02_lowered.txt", lowered.graph)
        if strict:
            _refuse_floats(lowered)
        watch.lap("lower")
        graph = optimize(lowered.graph, evaluate)
        _dump(dump, "03_optimized.txt", graph)
        watch.lap("optimize")
        verify(graph, spec)
        verify_ranges(graph)
        watch.lap("verify")
        return lowered, graph

    try:
        lowered, graph = build(chosen_spec)
    except SpecError as first:
        with_integers = Spec.parse(f"{chosen_spec}+INT")
        if given is not None or with_integers == chosen_spec:
            raise
        try:
            lowered, graph = build(with_integers)  # a float model that computes with integers
        except SpecError:
            raise first from None
        chosen_spec = with_integers
    passport = Passport(
        name=title,
        spec=str(chosen_spec),
        inputs=[_record(p) for p in lowered.inputs],
        outputs=[_record(p) for p in lowered.outputs],
        recipe=recipe,
        calibration=calibration,
        versions=versions(),
        operators=operator_counts(graph),
        ledger=[LedgerRecord(**dataclasses.asdict(row)) for row in lowered.ledger],
        values={v.name: ValueRecord(**dataclasses.asdict(v.meaning)) for v in graph.values() if v.meaning is not None},
    )
    timings = {**(model.timings if isinstance(model, Quantized) else {}), **watch.seconds}
    return Artifact(graph, passport, timings)


def captured_for_inference(model: Any, example_inputs: Any, scheme: str | None = None, dump: Path | str | None = None) -> Captured:
    """The model as a graph for inference: batch norm folded, in the float type of `scheme`."""
    captured = capture(model, example_inputs, keep=LOWERINGS)
    fold_batch_norm(captured.module)
    if scheme is not None:
        convert_floats(captured, _TORCH_FLOATS[scheme])
    _dump(dump, "00_capture.txt", captured.module)
    return captured


def _spec_of(module: torch.fx.GraphModule) -> Spec:
    """The smallest specification for a program without a recipe: FP, INT where it has quantize operators, and what its types need."""
    dtypes = {n.args[5] for n in module.graph.nodes if str(n.target).startswith("quantized_decomposed.quantize_per_tensor")}
    extensions = ("+int16" if torch.int16 in dtypes else "") + ("+bf16" if torch.bfloat16 in float_types(module) else "")
    return Spec.parse(f"TOSA-1.0{'+INT' if dtypes else ''}+FP{extensions}")


def _check_float_scheme(model: Any, scheme: str, spec: Spec | None) -> None:
    if scheme not in FLOATS:
        known = SCHEMES.keys() - set(FLOATS)
        remedy = f'tosaic.quantize(..., scheme="{scheme}") comes first' if scheme in known else f"known are {', '.join(FLOATS)}"
        raise InputError(f"compile takes a float scheme, found '{scheme}'", remedy=remedy)
    if isinstance(model, Quantized):
        raise InputError(f"scheme {scheme} is for float models; this one is quantized ({model.recipe.scheme})", remedy="leave it out")
    if spec is not None:
        Recipe(scheme).check(spec)


def _check_quantizable(captured: Captured) -> None:
    """Refuse what cannot be quantized before calibration or training spends time on it."""
    halves = sorted(str(t).removeprefix("torch.") for t in float_types(captured.module) & {torch.float16, torch.bfloat16})
    if halves:
        raise InputError(f"the model computes in {' and '.join(halves)}, and quantization starts from float32", remedy="use model.float()")
    check_operators(captured.module)


def _refuse_floats(lowered: Lowered) -> None:
    floats = [row for row in lowered.ledger if row.precision in FLOATS]
    if floats:
        lines = "\n".join(f"  {row.aten} '{row.name}': {row.reason}\n    at: {row.location}" for row in floats)
        count = "1 operator stays" if len(floats) == 1 else f"{len(floats)} operators stay"
        raise UnsupportedError(f"{count} float, and --strict forbids it:\n{lines}", remedy="quantize them, or leave --strict out")


def _record(port: Port) -> PortRecord:
    return PortRecord(
        name=port.name,
        dtype=port.dtype.value,
        shape=list(port.shape),
        scale=port.scale,
        zero_point=port.zero_point,
        layout=port.layout,
    )


def _dump(folder: Path | str | None, name: str, stage: Any) -> None:
    """Write a stage as text."""
    if folder is None:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = str(stage.graph) if isinstance(stage, torch.fx.GraphModule) else str(stage)
    atomic_write(Path(folder) / name, text.encode())
