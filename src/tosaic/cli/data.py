"""DATA on the command line: arrays, image folders and callables, as an iterable of calibration samples."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tosaic.cli.images import check_shape, list_images, read_image
from tosaic.cli.user_code import check_reference, find, guarded, is_reference, reporting
from tosaic.errors import InputError

ARRAYS = (".npy", ".npz", ".safetensors")
_FORMS = "known are .npy, .npz and .safetensors files, a folder of images, file.py:callable and package.module:callable"


@dataclass
class Data:
    """Calibration samples, to be iterated once; the first few are kept, so that the artifact can be scored on them.

    Attributes:
        count: number of samples, where it is known before.
        record: what the passport says about the data.
    """

    samples: Iterable[Any]
    count: int | None = None
    record: dict[str, Any] = field(default_factory=dict)
    keep: int = 0
    kept: list[Any] = field(default_factory=list)

    def __iter__(self) -> Iterator[Any]:
        for sample in self.samples:
            if len(self.kept) < self.keep:
                self.kept.append(sample)
            yield sample


def check_data(text: str, option: str = "--calibration") -> None:
    """Refuse what cannot be data, or is not there, without reading it. Messages name the option that it was given for.

    Raises:
        InputError: no such file, or a form that is not known.
    """
    if is_reference(text):
        return check_reference(option, text)
    path = Path(text)
    if not path.exists():
        raise InputError(f"{option}: no such file or folder: {text}")
    if path.is_dir():
        list_images(path)
    elif path.suffix not in ARRAYS:
        raise InputError(f"{option}: cannot read {text}", remedy=_FORMS)
    return None


def load_data(
    text: str,
    shapes: list[tuple[int, ...]],
    names: list[str],
    *,
    limit: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    keep: int = 0,
    option: str = "--calibration",
) -> Data:
    """Open calibration data.

    Args:
        text: what stands for DATA.
        shapes: of the model's inputs.
        names: of the model's inputs; arrays in .npz and .safetensors files go by them.
        limit: take so many samples at most.
        mean, std: for images, see `read_image`.
        keep: how many samples to hold on to.
        option: what the text was given for; messages name it.

    Raises:
        InputError: unreadable, or arrays that do not belong to the inputs.
    """
    check_data(text, option)
    path = Path(text)
    samples: Iterable[Any]
    count: int | None
    record: dict[str, Any] = {"data": text}
    if is_reference(text):
        samples, count = _callable(option, text)
    elif path.is_dir():
        check_shape(shapes[0])
        if len(shapes) != 1:
            raise InputError(
                f"a folder of images feeds one input, the model takes {len(shapes)}", remedy="use an .npz file or file.py:callable"
            )
        files = list_images(path)
        batch = shapes[0][0]
        groups = [files[i : i + batch] for i in range(0, len(files) - batch + 1, batch)]
        samples, count = (np.stack([read_image(f, shapes[0], mean, std) for f in group]) for group in groups), len(groups)
        record |= {"image_mean": mean, "image_std": std}
    else:
        arrays = _by_input(path, read_arrays(path), names[: len(shapes)])
        samples, count = _slices(path, arrays, [shape[0] if shape else 1 for shape in shapes])
    if limit is not None:
        samples, count = itertools.islice(samples, limit), limit if count is None else min(limit, count)
    return Data(samples, count, record, keep)


def _callable(option: str, text: str) -> tuple[Iterable[Any], int | None]:
    found = find(option, text)
    if callable(found):
        with reporting(f"{option}: {text}()"):
            found = found()
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | Mapping):
        raise InputError(
            f"{option}: {text} gives {type(found).__name__}, expected an iterable of input tuples", remedy="return or yield that"
        )
    # a loader's own batches may be split further, so that its length is not the number of samples
    count = len(found) if isinstance(found, Sized) and not hasattr(found, "batch_size") else None
    return guarded(f"{option}: {text}", found), count


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name; an .npy file's has the name "".

    Raises:
        InputError: no such file, another suffix, or a malformed file.
    """
    readers: dict[str, Callable[[], dict[str, np.ndarray]]] = {
        ".npy": lambda: {"": np.load(path, allow_pickle=False)},
        ".npz": lambda: dict(np.load(path, allow_pickle=False)),
        ".safetensors": lambda: _safetensors(path),
    }
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    if path.suffix not in readers:
        raise InputError(f"cannot read {path}", remedy=f"known are {', '.join(ARRAYS)}")
    try:
        return readers[path.suffix]()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, InputError) as error:
        raise InputError(f"{path} is not a usable {path.suffix} file: {str(error).splitlines()[0]}", remedy="write plain arrays") from None


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(str(error)) from None


def _by_input(path: Path, arrays: dict[str, np.ndarray], names: list[str]) -> list[np.ndarray]:
    """One array for each input: the only one, or by name."""
    if len(arrays) == 1 and len(names) == 1:
        return list(arrays.values())
    missing = [name for name in names if name not in arrays]
    if missing:
        have = ", ".join(name or "one array without a name" for name in arrays) or "nothing"
        raise InputError(
            f"{path} has no array for {', '.join(missing)}; it holds {have}", remedy="name the arrays after the model's inputs"
        )
    return [arrays[name] for name in names]


def _slices(path: Path, arrays: list[np.ndarray], batches: list[int]) -> tuple[Iterable[Any], int]:
    """Samples of the model's batch size, cut along the first axis; what does not divide is left to be refused."""
    if any(a.ndim == 0 for a in arrays):
        raise InputError(f"{path} holds a single number, expected samples along the first axis")
    counts = {-(-len(a) // b) for a, b in zip(arrays, batches, strict=True)}
    if len(counts) != 1:
        raise InputError(f"{path}: the arrays hold different numbers of samples: {', '.join(str(len(a)) for a in arrays)}")
    [count] = counts
    return (tuple(a[i * b : (i + 1) * b] for a, b in zip(arrays, batches, strict=True)) for i in range(count)), count
