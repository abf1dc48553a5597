"""Inputs of an artifact on the command line: arrays and images, by name or in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tosaic.artifact import Artifact
from tosaic.cli.data import ARRAYS, read_arrays
from tosaic.cli.images import SUFFIXES, list_images, read_image
from tosaic.emit.passport import PortRecord
from tosaic.errors import InputError


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
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        if path.is_file() and path.suffix not in ARRAYS:
            raise InputError(f"cannot read {path}", remedy=f"known are {', '.join((*ARRAYS, *SUFFIXES))}, and a folder of images")
        return read_arrays(path)
    if not path.exists():
        raise InputError(f"no such file: {path}")
    if port is None:
        return {"": np.empty(0)}
    shape = tuple(port.shape)
    nhwc = port.layout == "nhwc" and len(shape) == 4
    nchw = (shape[0], shape[3], *shape[1:3]) if nhwc else shape
    files = list_images(path) if path.is_dir() else [path] * nchw[0] if shape else [path]
    batch = np.stack([read_image(f, nchw, mean, std) for f in files])
    return {"": np.ascontiguousarray(batch.transpose(0, 2, 3, 1)) if nhwc else batch}


def picture_names(given: list[str], samples: int) -> list[str]:
    """Names for the samples: those of the images in the first folder that was given, else numbers."""
    for text in given:
        place = Path(text if Path(text).exists() else text.partition("=")[2])
        if place.is_dir():
            return [file.stem for file in list_images(place)]
    return [f"{i:0{len(str(samples - 1))}d}" for i in range(samples)]
