"""`tosaic export` and `tosaic qat`: checks first, then the library, then the summary."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tosaic.cli.config import CompileOptions, ExportOptions, QatOptions
from tosaic.cli.console import Steps, plural, size, stdout, steps, table
from tosaic.cli.data import Data, check_data, load_data
from tosaic.cli.user_code import check_reference, find, is_reference, reporting
from tosaic.converter import find_converter
from tosaic.emit.files import check_writable
from tosaic.emit.passport import PortRecord, passport_path, write_passport
from tosaic.errors import InputError
from tosaic.quantization.schemes import FLOATS, Recipe
from tosaic.tosa.spec import Spec

if TYPE_CHECKING:
    from tosaic.artifact import Artifact
    from tosaic.cli.models import Loaded

SCORED = 8  # calibration samples that the artifact is scored on


def export(options: ExportOptions) -> None:
    """Quantize after training (or compile in float), write, score, print."""
    recipe = _recipe(options, options.observer, options.bias_correction)
    in_float = recipe.scheme in FLOATS and not recipe.overrides
    _check(options, recipe)
    if options.calibration is None and not in_float:
        raise InputError(
            f"scheme {recipe.scheme} needs calibration data",
            remedy="give --calibration DATA: an .npy, .npz or .safetensors file, a folder of images, or file.py:callable",
        )
    with steps() as at:
        tosaic = _import_tosaic(at)
        loaded, data = _load(options, at)
        if in_float:
            at.begin("compiling")
            program: Any = loaded.model
            example: Any = loaded.example_inputs
            float_scheme = None if recipe.scheme == "fp32" else recipe.scheme  # a model given in half precision stays so
            if data is not None:  # which nothing is calibrated on, but the artifact is scored
                data.kept = list(islice(data.samples, SCORED))
        else:
            assert data is not None
            at.begin("calibrating", data.count)
            program = tosaic.quantize(
                loaded.model,
                loaded.example_inputs,
                data,
                recipe.scheme,
                scope=recipe.scope,
                overrides=recipe.overrides,
                between=recipe.between,
                observer=recipe.observer,
                bias_correction=recipe.bias_correction,
                spec=options.spec,
                progress=at.at,
                dump=options.dump,
            )
            example = float_scheme = None
        artifact = _compile(tosaic, program, example, options, at, float_scheme)
        _record(artifact, options, data)
        at.begin("writing")
        artifact.save(options.output, emitter=options.emitter, debug_info=options.debug_info)
        at.begin("scoring")
        fake = None if in_float else program
        scores = _score(artifact, loaded.in_float(), "the float model", loaded, data, fake) if data is not None else []
    _summary(artifact, options, scores, at.seconds)


def train(options: QatOptions) -> None:
    """Prepare, let the user's function train, finish, write, score, print."""
    recipe = _recipe(options)
    check_reference("--train", options.train)
    if not is_reference(options.train):
        raise InputError(f"--train '{options.train}' is not of a known form", remedy="write file.py:function or package.module:function")
    _check(options, recipe)
    with steps() as at:
        tosaic = _import_tosaic(at)
        loaded, data = _load(options, at)
        if type(loaded.model).__name__ == "ExportedProgram":
            raise InputError("a captured program cannot be trained", remedy="give MODEL as file.py:callable that returns a torch.nn.Module")
        function = find("--train", options.train)
        if not callable(function):
            raise InputError(f"--train: {options.train} is {type(function).__name__}, expected a function of the model")
        at.begin("capturing")
        session = tosaic.prepare_qat(
            loaded.model,
            loaded.example_inputs,
            recipe.scheme,
            scope=recipe.scope,
            overrides=recipe.overrides,
            between=recipe.between,
            spec=options.spec,
        )
        if data is not None:
            at.begin("calibrating", data.count)
            session.calibrate(data, progress=at.at)
        at.begin("training", hidden=True)  # the function may show progress of its own
        with reporting(f"--train: {options.train}"):
            function(session.model, session) if _takes_session(function) else function(session.model)
        at.begin("converting")
        quantized = session.finish()
        artifact = _compile(tosaic, quantized, None, options, at)
        _record(artifact, options, data)
        at.begin("writing")
        artifact.save(options.output, emitter=options.emitter, debug_info=options.debug_info)
        at.begin("scoring")
        scores = _score(artifact, quantized, "the trained model with its fake quantization", loaded, data) if data is not None else []
    _summary(artifact, options, scores, at.seconds)


# Checks that need no torch


def _recipe(options: CompileOptions, observer: str = "minmax", bias_correction: bool = False) -> Recipe:
    return Recipe(options.scheme, options.scope, options.override, options.between, observer, bias_correction)


def _check(options: CompileOptions, recipe: Recipe) -> None:
    """Everything that can be refused before the first slow step."""
    if options.spec is not None:
        recipe.check(Spec.parse(options.spec))
    _check_output(options.output, options.emitter)
    if options.dump is not None and options.dump.exists() and not options.dump.is_dir():
        raise InputError(f"--dump {options.dump} is a file, expected a folder")
    if options.model.endswith(".pt2") and not Path(options.model).is_file():
        raise InputError(f"MODEL: no such file: {options.model}")
    check_reference("MODEL", options.model)
    if options.calibration is not None:
        check_data(options.calibration)


def _check_output(path: Path, emitter: str) -> None:
    if path.suffix not in (".vgf", ".tosa"):
        raise InputError(f"cannot write {path}: the suffix is neither .vgf nor .tosa", remedy="name it like model.vgf")
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder", remedy=f"name a file in it, like {path / 'model.vgf'}")
    check_writable(path)
    if path.suffix == ".vgf" and emitter == "converter":
        find_converter()


# Steps


def _import_tosaic(at: Steps) -> Any:
    at.begin("importing torch")
    import tosaic
    import tosaic.compiler

    return tosaic


def _load(options: CompileOptions, at: Steps) -> tuple[Loaded, Data | None]:
    from tosaic.cli.models import load_model

    at.begin("loading")
    loaded = load_model(options.model, options.input_shape)
    if options.calibration is None:
        return loaded, None
    data = load_data(
        options.calibration,
        [tuple(t.shape) for t in loaded.tensors],
        loaded.names,
        limit=options.samples,
        mean=options.image_mean,
        std=options.image_std,
        keep=SCORED,
    )
    return loaded, data


def _compile(tosaic: Any, program: Any, example: Any, options: CompileOptions, at: Steps, scheme: str | None = None) -> Artifact:
    at.begin("compiling")
    return tosaic.compile(
        program,
        example,
        options.spec,
        scheme=scheme,
        name=options.name or options.output.stem,
        io_layout=options.io_layout,
        strict=options.strict,
        dump=options.dump,
    )


def _record(artifact: Artifact, options: CompileOptions, data: Data | None) -> None:
    """What the passport should say of the data, beside their digest."""
    if data is not None:
        artifact.passport.calibration |= {k: v for k, v in data.record.items() if v is not None}


def _takes_session(function: Callable[..., Any]) -> bool:
    """Whether a second positional argument is asked for (one with a default is an option of the user's own)."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 and (positional[1].default is positional[1].empty or positional[1].name == "session")


def _score(
    artifact: Artifact, model: Callable[..., Any], against: str, loaded: Loaded, data: Data, fake: Callable[..., Any] | None = None
) -> list[str]:
    """Score the file that was written on the first calibration samples, and its fake quantization; note it in the passport.

    Returns:
        One line for each output.
    """
    from tosaic.artifact import load
    from tosaic.scoring import metrics, score

    assert artifact.path is not None
    scores = score(load(artifact.path), model, loaded.example_inputs, data.kept, SCORED)
    ideal = score(artifact, model, loaded.example_inputs, data.kept, SCORED, instead=fake) if fake is not None else {}
    artifact.passport.metrics |= metrics(scores, artifact) | metrics(ideal, artifact, "fake_quantized_")
    write_passport(artifact.passport, artifact.path)
    samples = min(SCORED, artifact.passport.calibration.get("samples", len(data.kept)))
    lines = []
    for name, value in scores.items():
        which = f"{name}: " if len(scores) > 1 else ""
        quantized = f" (its fake quantization: {_result(artifact, name, ideal[name]).removeprefix('SQNR ')})" if name in ideal else ""
        lines.append(f"{which}{_result(artifact, name, value)} against {against}{quantized}, on {plural(samples, 'sample')}")
    return lines


def _result(artifact: Artifact, name: str, value: float) -> str:
    port = next(p for p in artifact.passport.outputs if p.name == name)
    if port.scale is None and port.dtype.startswith("i"):
        return f"{value:.2%} equal"
    return f"SQNR {value:.1f} dB" if math.isfinite(value) else "exactly equal"


# Summary


def _summary(artifact: Artifact, options: CompileOptions, scores: list[str], seconds: dict[str, float]) -> None:
    passport, path = artifact.passport, artifact.path
    assert path is not None
    chosen = "" if options.spec is not None else " (the smallest that will do)"
    console = stdout()
    console.print(f"{path}  {size(path.stat().st_size)}, {plural(len(artifact.graph.ops), 'operator')}; {passport_path(path)} describes it")
    stages = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if value >= 0.05)
    rows = [("spec", f"{passport.spec}{chosen}")]
    rows += [(kind, port_line(port)) for kind, ports in (("input", passport.inputs), ("output", passport.outputs)) for port in ports]
    rows += [("operators", ", ".join(f"{name} {count}" for name, count in passport.operators.items()))]
    counts = Counter(row.precision for row in passport.ledger)
    rows += [("precision", ", ".join(f"{name} {count}" for name, count in counts.most_common()))]
    rows += [("score" if i == 0 else "", line) for i, line in enumerate(scores or ["not known without --calibration"])]
    rows += [("seconds", f"{sum(seconds.values()):.1f} ({stages})")]
    table(rows)
    floats = [row for row in passport.ledger if row.precision in FLOATS]
    if floats and passport.recipe and passport.recipe["scheme"] not in FLOATS:
        console.print(f"{plural(len(floats), 'operator')} of the model {'stays' if len(floats) == 1 else 'stay'} float:")
        table([(row.name, row.aten, row.reason, row.location.partition(" | ")[2]) for row in floats])


def port_line(port: PortRecord) -> str:
    """An input or output in one line: name, type, shape, how stored values become real ones."""
    line = f"{port.name}  {port.dtype}{port.shape}"
    if port.layout != "model":
        line += f" {port.layout}"
    if port.scale is not None:
        line += f"  real = {port.scale:.7g} * " + (f"(stored - {port.zero_point})" if port.zero_point else "stored")
    return line.replace("- -", "+ ")
