"""`tosaic run` and `tosaic verify`: the same artifact on the simulator, Arm's reference model, and Vulkan."""

from __future__ import annotations

import io
import statistics
import time
from pathlib import Path

import numpy as np

from tosaic.artifact import EXECUTORS, Artifact, is_float, load, quantize
from tosaic.cli.config import RunOptions, VerifyOptions
from tosaic.cli.console import plural, stdout, steps, table
from tosaic.cli.data import ARRAYS, read_arrays
from tosaic.cli.images import SUFFIXES, png, read_image
from tosaic.emit.files import atomic_write
from tosaic.emit.passport import PortRecord, passport_path, write_passport
from tosaic.errors import InputError, TosaicError
from tosaic.execute import vulkan
from tosaic.execute.compare import difference
from tosaic.tosa.types import DType

_RESULTS = (".npz", ".npy", ".png")


def run(options: RunOptions) -> None:
    """Run a file and print what came out."""
    _check_result(options.output)
    artifact = load(options.file)
    inputs = read_inputs(artifact, options.input, options.image_mean, options.image_std)
    seconds = []
    with steps() as at:
        at.begin(f"running on the {options.on}" if options.on != "vulkan" else "running on Vulkan", options.repeat)
        for i in range(options.repeat):
            started = time.perf_counter()
            outputs = artifact.run(inputs, on=options.on, float_io=options.float_io)
            seconds.append(time.perf_counter() - started)
            at.at(i + 1)
    if options.output is not None:
        _write(options.output, outputs, artifact)
    rows = [("output", "type", "min", "max", "mean")]
    rows += [(port.name, *_described(array)) for port, array in zip(artifact.passport.outputs, outputs, strict=True)]
    table(rows, indent=0)
    stdout().print(_time(seconds, options.on))
    if options.output is not None:
        stdout().print(f"wrote {options.output}")


def verify(options: VerifyOptions) -> bool:
    """Run a file on every executor that there is, and print whether they agree.

    Returns:
        Whether all agree; false too where one failed.
    """
    artifact = load(options.file)
    inputs = read_inputs(artifact, options.input, options.image_mean, options.image_std) if options.input else random_inputs(artifact)
    inputs = {p.name: _stored(inputs[p.name], p, v.dtype) for p, v in zip(artifact.passport.inputs, artifact.graph.inputs, strict=True)}
    expected: list[np.ndarray] = []
    rows, verdicts, agrees = [], {}, True
    with steps() as at:
        for executor in EXECUTORS:
            at.begin(f"running on {executor}")
            if executor == "vulkan" and (reason := vulkan.available()) is not None:
                rows.append((executor, f"not available: {reason}"))
                continue
            try:
                outputs = artifact.run(inputs, on=executor, float_io=False)
            except TosaicError as error:
                if executor == "simulator":
                    raise
                rows.append((executor, f"failed: {error.what}"))
                verdicts[executor], agrees = "failed", False
                continue
            if executor == "simulator":
                expected = outputs
                rows.append((executor, f"computed {plural(len(outputs), 'output')}"))
                continue
            lines = _differences(artifact, expected, outputs)
            rows += [(executor if i == 0 else "", line) for i, (line, _) in enumerate(lines)]
            verdicts[executor] = "equal" if all(good for _, good in lines) else "differs"
            agrees &= verdicts[executor] == "equal"
    table(rows, indent=0)
    artifact.passport.verified = {"input": "given" if options.input else "random", **verdicts}
    if passport_path(options.file).is_file():
        write_passport(artifact.passport, options.file)
    return agrees


def _stored(array: np.ndarray, port: PortRecord, dtype: DType) -> np.ndarray:
    """Real values quantized, so that outputs come as stored integers, which must be equal; or in the artifact's own float type."""
    if not is_float(array):
        return array
    return quantize(array, port, dtype) if port.scale is not None else array.astype(dtype.numpy) if dtype.is_float else array


def _differences(artifact: Artifact, expected: list[np.ndarray], found: list[np.ndarray]) -> list[tuple[str, bool]]:
    lines = []
    for port, a, b in zip(artifact.passport.outputs, expected, found, strict=True):
        d = difference(a, b)
        if d.count == 0:
            text = f"equal in all {d.size:,} values"
        else:
            text = f"{d.count:,} of {d.size:,} values differ, by {d.largest:g} at most" + (" (within float tolerance)" if d.agrees else "")
        lines.append((f"{port.name}: {text}", d.agrees))
    return lines


def read_inputs(artifact: Artifact, given: list[str], mean: list[float] | None, std: list[float] | None) -> dict[str, np.ndarray]:
    """Arrays by input name from `x.npy`, `name=x.npy`, `all.npz`, `photo.png`.

    Raises:
        InputError: an input is missing or given twice, or a file cannot be read.
    """
    ports = {port.name: port for port in artifact.passport.inputs}
    if not given:
        inputs = ", ".join(f"{p.name} {p.dtype}{p.shape}" for p in ports.values())
        raise InputError(
            f"--input is missing; {artifact.path} takes {inputs}", remedy=f"give --input x.npy{' for each' if len(ports) > 1 else ''}"
        )
    recorded = artifact.passport.calibration
    mean, std = mean or recorded.get("image_mean"), std or recorded.get("image_std")
    found: dict[str, np.ndarray] = {}
    for text in given:
        name, equals, place = text.partition("=")
        named = bool(equals) and not Path(text).exists()
        path = Path(place if named else text)
        if named and name not in ports:
            raise InputError(f"--input {text}: there is no input '{name}'", remedy=f"inputs are {', '.join(ports)}")
        free = [n for n in ports if n not in found]
        for key, array in _read(path, ports[name] if named else ports[free[0]] if free else None, mean, std).items():
            target = name if named else key or (free[0] if free else "")
            if target not in ports and len(ports) == 1:  # one array for one input, whatever it is called
                target = next(iter(ports))
            if target not in ports:
                raise InputError(f"--input {text}: there is no input '{target or 'left'}'", remedy=f"inputs are {', '.join(ports)}")
            if target in found:
                raise InputError(f"--input {text}: input '{target}' is given twice")
            found[target] = array
    missing = [n for n in ports if n not in found]
    if missing:
        raise InputError(f"--input is missing for {', '.join(missing)}", remedy="write it like --input name=x.npy")
    return {name: found[name] for name in ports}


def _read(path: Path, port: PortRecord | None, mean: list[float] | None, std: list[float] | None) -> dict[str, np.ndarray]:
    if path.suffix.lower() not in SUFFIXES:
        if path.is_file() and path.suffix not in ARRAYS:
            raise InputError(f"cannot read {path}", remedy=f"known are {', '.join((*ARRAYS, *SUFFIXES))}")
        return read_arrays(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    if port is None:
        return {"": np.empty(0)}
    shape = tuple(port.shape)
    nchw = (shape[0], shape[3], *shape[1:3]) if port.layout == "nhwc" and len(shape) == 4 else shape
    pixels = read_image(path, nchw, mean, std)
    batch = np.repeat(pixels[None], nchw[0], 0)
    return {"": np.ascontiguousarray(batch.transpose(0, 2, 3, 1)) if port.layout == "nhwc" else batch}


def random_inputs(artifact: Artifact) -> dict[str, np.ndarray]:
    """The same random stored values each time: the whole range where there is a scale, zeros for indices."""
    random = np.random.default_rng(0)
    inputs = {}
    for port, value in zip(artifact.passport.inputs, artifact.graph.inputs, strict=True):
        dtype = value.dtype
        if dtype.is_float:
            inputs[port.name] = random.standard_normal(value.shape).astype(dtype.numpy)
        elif port.scale is not None or (dtype.bits == 8 and dtype.is_integer):
            # 32-bit values have head-room, which data never uses up
            low, high = (-(2**23), 2**23) if dtype.bits == 32 else (dtype.min, dtype.max)
            inputs[port.name] = random.integers(low, high, value.shape, np.int64, endpoint=True).astype(dtype.numpy)
        else:
            inputs[port.name] = np.zeros(value.shape, dtype.numpy)
    return inputs


def _described(array: np.ndarray) -> tuple[str, str, str, str]:
    kind = f"{array.dtype}{list(array.shape)}"
    if array.size == 0:
        return kind, "-", "-", "-"
    real = array.astype(np.float64)
    return kind, f"{real.min():.6g}", f"{real.max():.6g}", f"{real.mean():.6g}"


def _time(seconds: list[float], on: str) -> str:
    first = f"{seconds[0]:.3f} seconds on {'Vulkan' if on == 'vulkan' else f'the {on}'}, building included"
    if len(seconds) == 1:
        return first
    return f"{first}; then {statistics.median(seconds[1:]):.4f} (median of {len(seconds) - 1})"


def _check_result(path: Path | None) -> None:
    if path is not None and path.suffix not in _RESULTS:
        raise InputError(f"cannot write {path}: the suffix is none of {', '.join(_RESULTS)}", remedy="name it like out.npz")


def _write(path: Path, outputs: list[np.ndarray], artifact: Artifact) -> None:
    if path.suffix != ".npz" and len(outputs) != 1:
        raise InputError(f"{path} holds one array, the artifact has {len(outputs)} outputs", remedy="write an .npz")
    file = io.BytesIO()
    outputs = [x.astype(np.float32) if x.dtype == DType.BF16.numpy else x for x in outputs]  # which .npy has no name for
    if path.suffix == ".png":
        atomic_write(path, png(outputs[0]))
        return
    if path.suffix == ".npy":
        np.save(file, outputs[0])
    else:
        np.savez(file, **{port.name: array for port, array in zip(artifact.passport.outputs, outputs, strict=True)})
    atomic_write(path, file.getvalue())
