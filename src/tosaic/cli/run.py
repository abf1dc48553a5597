"""`tosaic run`: an artifact on the simulator, Arm's reference model, or Vulkan, for one sample or a whole test set."""

from __future__ import annotations

import io
import statistics
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tosaic.artifact import Artifact, load
from tosaic.cli.config import RunOptions
from tosaic.cli.console import plural, stdout, steps, table
from tosaic.cli.images import png
from tosaic.cli.inputs import picture_names, read_inputs
from tosaic.emit.files import atomic_write, atomic_write_all
from tosaic.errors import InputError
from tosaic.executors import TITLES
from tosaic.report.profile import Profile
from tosaic.tosa.types import DType

_RESULTS = (".npz", ".npy", ".safetensors", ".png")
_SLOWEST = 10  # nodes that a profile lists


def run(options: RunOptions) -> None:
    """Run a file and print what came out."""
    _check(options)
    artifact = load(options.file)
    inputs = read_inputs(artifact, options.input, options.image_mean, options.image_std)
    samples = len(artifact.split(artifact.arrays(inputs)))
    seconds, profile = [], Profile() if options.profile else None
    with steps() as at:
        for i in range(options.repeat):
            at.begin(f"running on {TITLES[options.on]}", samples if samples > 1 else None)
            if options.repeat > 1 and i == 1 and profile is not None:
                profile = Profile()  # the first run compiles kernels, and meets cold caches
            started = time.perf_counter()
            outputs = artifact.run(inputs, on=options.on, float_io=options.float_io, device=options.device, timer=profile, progress=at.at)
            seconds.append(time.perf_counter() - started)
    if options.output is not None:
        _write(options.output, outputs, artifact, picture_names(options.input, samples))
    rows = [("output", "type", "min", "max", "mean")]
    rows += [(port.name, *_described(array)) for port, array in zip(artifact.passport.outputs, outputs, strict=True)]
    table(rows, indent=0)
    stdout().print(_time(seconds, samples, options.on))
    if profile is not None:
        _profile(profile, artifact)
    if options.output is not None:
        stdout().print(f"wrote {options.output}")


def _described(array: np.ndarray) -> tuple[str, str, str, str]:
    kind = f"{array.dtype}{list(array.shape)}"
    if array.size == 0:
        return kind, "-", "-", "-"
    real = array.astype(np.float64)
    return kind, f"{real.min():.6g}", f"{real.max():.6g}", f"{real.mean():.6g}"


def _time(seconds: list[float], samples: int, on: str) -> str:
    many = f" for {samples} samples, {seconds[-1] / samples:.4f} for each" if samples > 1 else ""
    first = f"{seconds[0]:.3f} seconds on {TITLES[on]}, building included"
    if len(seconds) == 1:
        return first + many
    return f"{first}; then {statistics.median(seconds[1:]):.4f} (median of {len(seconds) - 1}){many}"


def _profile(profile: Profile, artifact: Artifact) -> None:
    total = profile.seconds or 1.0

    def times(seconds: float) -> tuple[str, str]:
        return f"{seconds * 1000:.3f}", f"{seconds / total:.1%}"

    console = stdout()
    console.print(f"\noperators took {total * 1000:.3f} ms in a run (mean of {profile.runs})")
    rows = [("operators", "count", "ms", "share")]
    table([*rows, *((line.operators, str(line.count), *times(line.seconds)) for line in profile.by_operator())])
    slowest = profile.by_node()[:_SLOWEST]
    console.print(f"\n{'the slowest' if len(slowest) == _SLOWEST else 'each'} of them")
    lines = [("value", "operators", "type", "ms", "share", "where in the model")]
    for line in slowest:
        value = line.nodes[-1].outputs[0]
        lines.append((f"%{value.name}", line.operators, str(value.type), *times(line.seconds), artifact.location(line.nodes[0])))
    table(lines)


# Results


def _check(options: RunOptions) -> None:
    path = options.output
    if options.profile and options.on != "simulator":
        raise InputError(f"--profile times the simulator's operators, not those of {options.on}", remedy="leave --on out, or use --repeat")
    if path is not None and path.suffix not in _RESULTS and not _is_folder(path):
        known = ", ".join(_RESULTS)
        raise InputError(f"cannot write {path}: the suffix is none of {known}", remedy="name it like out.npz, or a folder for images")


def _is_folder(path: Path) -> bool:
    return path.is_dir() or not path.suffix


def _write(path: Path, outputs: list[np.ndarray], artifact: Artifact, names: list[str]) -> None:
    outputs = [x.astype(np.float32) if x.dtype == DType.BF16.numpy else x for x in outputs]  # which .npy has no name for
    if path.suffix in (".npz", ".safetensors"):
        arrays = {port.name: array for port, array in zip(artifact.passport.outputs, outputs, strict=True)}
        file = io.BytesIO()
        if path.suffix == ".npz":
            np.savez(file, **arrays)
        else:
            file.write(save(arrays))
        atomic_write(path, file.getvalue())
        return
    if len(outputs) != 1:
        raise InputError(f"{path} holds one array, the artifact has {plural(len(outputs), 'output')}", remedy="write an .npz")
    [output] = outputs
    if path.suffix == ".npy":
        file = io.BytesIO()
        np.save(file, output)
        atomic_write(path, file.getvalue())
    elif path.suffix == ".png":
        atomic_write(path, png(output))
    else:
        atomic_write_all({path / f"{name}.png": png(picture[None]) for name, picture in zip(names, output, strict=True)})
