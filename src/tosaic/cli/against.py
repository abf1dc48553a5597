"""`tosaic verify --against`: another file, or the float model layer by layer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from tosaic.artifact import Artifact, dequantize, load
from tosaic.cli.config import VerifyOptions
from tosaic.cli.console import plural, stdout, steps, table
from tosaic.cli.inputs import read_inputs
from tosaic.cli.user_code import check_reference, is_reference
from tosaic.comparison import Comparison, Pair, compare_artifacts
from tosaic.emit.passport import PortRecord, passport_path, write_passport
from tosaic.errors import InputError
from tosaic.verification import random_inputs

_ROWS = 20  # of a list that is sorted by error


def compare(options: VerifyOptions) -> bool:
    """Compare an artifact with another file or with its float model, and print what was found.

    Returns:
        Whether the outputs of two files are equal; for a model, which is never met exactly, true.
    """
    text = options.against or ""
    artifact = load(options.file)
    inputs = read_inputs(artifact, options.input, options.image_mean, options.image_std) if options.input else None
    if text.endswith(".pt2") or is_reference(text):
        check_reference("--against", text)
        record, equal = _with_model(artifact, text, inputs), True
    elif Path(text).suffix in (".vgf", ".tosa"):
        found = _with_file(artifact, load(text), inputs, options.ulp)
        record, equal = {"file": text, "outputs": "equal" if found.equal else "different"}, found.equal
    else:
        raise InputError(f"--against '{text}' is not of a known form", remedy="give a .vgf or .tosa file, file.py:callable, or a .pt2 file")
    artifact.passport.verified["against"] = {"input": "random" if inputs is None else "given", **record}
    if passport_path(options.file).is_file():
        write_passport(artifact.passport, options.file)
    return equal


# Another file


def _with_file(one: Artifact, other: Artifact, inputs: Any, tolerance: float | None) -> Comparison:
    with steps() as at:
        at.begin("running both")
        found = compare_artifacts(one, other, inputs, tolerance=tolerance, progress=at.at)
    console = stdout()
    console.print(f"{one.path} and {other.path} on {plural(found.samples, 'sample')}")
    table([("output", "stored values", "SQNR, dB"), *((pair.name, _stored(pair), _decibels(pair.sqnr)) for pair in found.outputs)])
    if not found.values:
        console.print("they have no names of values in common, so that only outputs were compared")
        return found
    differ = [pair for pair in found.values if not pair.equal]
    console.print(f"{len(found.values)} values between operators have the same name in both; {len(differ)} differ")
    if (first := found.first) is not None and first in found.values:
        console.print("\nthe first that differs:")
        assert first.stored is not None
        facts = [("value", f"%{first.name}: {first.types[0]}"), ("in the model", first.location or "not known")]
        examples = [("", f"at {list(e.index)}: {e.expected:.9g}, {e.found:.9g}") for e in first.stored.examples]
        table([*facts, ("difference", str(first.stored)), *examples])
    real = sorted((pair for pair in differ if pair.sqnr is not None), key=lambda pair: pair.sqnr or 0.0)
    if real:
        console.print(f"\nthe {'worst' if len(real) > _ROWS else 'values that differ, worst first'}")
        rows = [("value", "types", "SQNR, dB", "where in the model")]
        table([*rows, *((f"%{p.name}", " ".join(dict.fromkeys(p.types)), _decibels(p.sqnr), p.location) for p in real[:_ROWS])])
    return found


def _stored(pair: Pair) -> str:
    return str(pair.stored) if pair.stored is not None else f"{pair.types[0]} and {pair.types[1]}, or of other scales"


# The float model


def _with_model(artifact: Artifact, text: str, inputs: Any) -> dict[str, Any]:
    with steps() as at:
        at.begin("importing torch")
        from tosaic.cli.models import load_model
        from tosaic.layers import compare_layers

        at.begin("loading")
        loaded = load_model(text, otherwise=[_example(port) for port in artifact.passport.inputs])
        samples = artifact.split(artifact.arrays(_random_reals(artifact) if inputs is None else inputs))
        at.begin("running both", len(samples))
        scheme = artifact.passport.recipe.get("scheme")
        halves = scheme if scheme in ("fp16", "bf16") else None
        found = compare_layers(artifact, loaded.model, loaded.example_inputs, samples, scheme=halves, progress=at.at)
    console = stdout()
    results = {port.name for port in artifact.passport.outputs}
    count = f"{len(found.layers)} values" if len(found.layers) <= _ROWS else f"{_ROWS} of {len(found.layers)} values"
    kind = "random inputs, which are not what the model was calibrated for" if inputs is None else plural(found.samples, "sample")
    console.print(f"{artifact.path} against {text} on {kind}: {count}, worst first")
    console.print("  SQNR: of the value; own: of the layer alone, given the artifact's own inputs; both in dB")
    rows = [("value", "type", "SQNR", "own", "where in the model")]
    for layer in found.worst()[:_ROWS]:
        name = f"%{layer.value}{' (output)' if layer.value in results else ''}"
        rows.append((name, layer.dtype, _decibels(layer.sqnr), _decibels(layer.own_sqnr), layer.location or "an input"))
    table(rows)
    outputs = {layer.value: layer.sqnr for layer in found.layers if layer.value in results}
    if (weakest := found.weakest()) is not None:
        console.print(f"the largest error of its own: {_decibels(weakest.own_sqnr)} dB in %{weakest.value}  {weakest.location}")
    for name, value in outputs.items():
        console.print(f"output {name}: {_decibels(value)} dB")
    record: dict[str, Any] = {"model": text, "samples": found.samples}
    record["sqnr_db"] = {name: round(value, 2) for name, value in outputs.items() if math.isfinite(value)}
    if weakest is not None and math.isfinite(weakest.own_sqnr):
        record["weakest"] = {"value": weakest.value, "own_sqnr_db": round(weakest.own_sqnr, 2), "location": weakest.location}
    return record


def _random_reals(artifact: Artifact) -> dict[str, np.ndarray]:
    stored = random_inputs(artifact)
    return {port.name: dequantize(stored[port.name], port) for port in artifact.passport.inputs}


def _example(port: PortRecord) -> str:
    """An input of the model as `--input-shape` would say it."""
    kind = "" if port.scale is not None or port.dtype.endswith(("f32", "f16")) else ":bool" if port.dtype == "i1" else ":int64"
    return ",".join(map(str, port.model_shape)) + kind


def _decibels(value: float | None) -> str:
    return "" if value is None else "equal" if value == math.inf else f"{value:.2f}"
