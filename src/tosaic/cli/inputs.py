"""Inputs of an artifact on the command line: arrays and images, by name or in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tosaic.artifact import Artifact
from tosaic.cli.data import ARRAYS, load_data, read_arrays
from tosaic.cli.images import SUFFIXES, list_images, read_image
from tosaic.cli.user_code import is_reference
from tosaic.emit.passport import PortRecord
from tosaic.errors import InputError


def read_inputs(artifact: Artifact, given: list[str], mean: list[float] | None, std: list[float] | None) -> dict[str, np.ndarray]:
    """Arrays by input name from `x.npy`, `name=x.npy`, `all.npz`, `photo.png`, `file.py:callable`.

    Raises:
        InputError: an input is missing or given twice, or a file cannot be read.
    """
    ports = {port.name: port for port in artifact.passport.inputs}
    if not given:
        inputs = ", ".join(f"{p.name} {p.dtype}{p.shape}" for p in ports.values())
        raise InputError(
            f"--input is missing; {artifact.path} takes {inputs}", remedy=f"give --input x.npy{' for each' if len(ports) > 1 else ''}"
        )
    if (code := next((text for text in given if is_reference(text) and not Path(text).exists()), None)) is not None:
        if len(given) > 1:
            raise InputError(f"--input {code} gives all inputs", remedy="give it alone")
        return _of_code(artifact, code)
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
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        if path.is_file() and path.suffix not in ARRAYS:
            raise InputError(f"cannot read {path}", remedy=f"known are {', '.join((*ARRAYS, *SUFFIXES))}, and a folder of images")
        return read_arrays(path)
    if not path.exists():
        raise InputError(f"no such file: {path}")
    if port is None:
        return {"": np.empty(0)}
    shape = tuple(port.model_shape)
    files = list_images(path) if path.is_dir() else [path] * shape[0] if shape else [path]
    batch = np.stack([read_image(f, shape, mean, std) for f in files])
    return {"": np.ascontiguousarray(batch.transpose(0, 2, 3, 1)) if list(shape) != port.shape else batch}


def _of_code(artifact: Artifact, text: str) -> dict[str, np.ndarray]:
    """What user code gives for calibration serves as inputs too: all samples, one behind the other."""
    from tosaic.quantization.ptq import tensors_of  # it imports torch

    ports = artifact.passport.inputs
    rows: list[list[np.ndarray]] = []
    for index, sample in enumerate(load_data(text, [], [], option="--input")):
        arrays = [np.asarray(x.detach().cpu() if hasattr(x, "detach") else x) for x in tensors_of(sample)[: len(ports)]]
        if len(arrays) < len(ports):
            raise InputError(f"--input {text}: sample {index} has {len(arrays)} arrays, and {artifact.path} takes {len(ports)}")
        # a sample of a data set has no batch
        rows.append([a[None] if a.ndim == len(p.shape) - 1 and p.shape[0] == 1 else a for a, p in zip(arrays, ports, strict=True)])
    if not rows:
        raise InputError(f"--input {text}: it gives no samples")
    try:
        together = [
            np.concatenate(arrays) if port.shape else arrays[0] for port, arrays in zip(ports, zip(*rows, strict=True), strict=True)
        ]
    except ValueError as error:
        raise InputError(f"--input {text}: the samples do not go together: {error}") from None
    return {port.name: array for port, array in zip(ports, together, strict=True)}


def picture_names(given: list[str], samples: int) -> list[str]:
    """Names for the samples: those of the images in the first folder that was given, else numbers."""
    for text in given:
        place = text if Path(text).exists() else text.partition("=")[2]
        if place and Path(place).is_dir():
            return [file.stem for file in list_images(Path(place))]
    return [f"{i:0{len(str(samples - 1))}d}" for i in range(samples)]
