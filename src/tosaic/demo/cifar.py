"""CIFAR-10 (Krizhevsky, 2009) from its official archive: where it lies, or downloaded where the network allows."""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tosaic.errors import InputError

ARCHIVE = "cifar-10-python.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ANSWER_SECONDS = 4.0  # for the server to answer at all
PATIENCE_SECONDS = 60.0  # for the whole download
_FOLDERS = ("~/.cache/tosaic", "~/.keras/datasets", "~/.torch/datasets", "data")


def cifar10() -> Tensor:
    """The training images: uint8 [50000,3,32,32].

    The archive is looked for in the file or folder that $TOSAIC_CIFAR10 names, in `_FOLDERS`, and then on the network.

    Raises:
        InputError: it is nowhere, or is not the official archive.
    """
    path = _find() or _download()
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise InputError(f"{path} is not the official archive of CIFAR-10 (its SHA-256 differs)", remedy=f"remove it, or get {URL}")
    return read(path)


def read(path: Path) -> Tensor:
    """The training images in an archive: uint8 [N,3,32,32]."""
    with tarfile.open(path) as archive:
        batches = sorted(m.name for m in archive.getmembers() if "/data_batch_" in m.name)
        arrays = [_Unpickler(archive.extractfile(name), encoding="bytes").load()[b"data"] for name in batches]  # type: ignore[arg-type]
    return torch.cat([torch.from_numpy(a.reshape(-1, 3, 32, 32).copy()) for a in arrays])


class _Unpickler(pickle.Unpickler):
    """Loads numpy arrays and nothing that can execute."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("_core", "core"), name) not in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }:
            raise InputError(f"the archive of CIFAR-10 asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _find() -> Path | None:
    if named := os.environ.get("TOSAIC_CIFAR10"):
        path = Path(named).expanduser()
        path = path / ARCHIVE if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"$TOSAIC_CIFAR10 names {path}, which does not exist")
        return path
    return next((p for folder in _FOLDERS if (p := Path(folder).expanduser() / ARCHIVE).is_file()), None)


def _download() -> Path:
    try:
        import pooch
        import requests
    except ImportError:
        raise InputError("CIFAR-10 is not here, and pooch to download it is not installed", remedy="pip install 'tosaic[demo]'") from None
    if (reason := _unreachable()) is not None:
        raise InputError(f"CIFAR-10 is not here and cannot be downloaded ({reason})", remedy=f"put {URL} into ~/.cache/tosaic")
    folder = Path("~/.cache/tosaic").expanduser()
    try:
        return Path(pooch.retrieve(URL, f"sha256:{SHA256}", ARCHIVE, folder, downloader=_fetch))
    except (requests.RequestException, OSError, ValueError) as error:
        raise InputError(f"CIFAR-10 cannot be downloaded ({error})", remedy=f"put {URL} into ~/.cache/tosaic") from None


def _unreachable() -> str | None:
    """Why the server does not answer, or None. In a thread: the resolver's own timeout is far longer than ours."""
    import requests

    reason: list[str | None] = [f"no answer in {ANSWER_SECONDS:.0f} s"]

    def ask() -> None:
        try:
            requests.head(URL, timeout=ANSWER_SECONDS).raise_for_status()
            reason[0] = None
        except requests.RequestException as error:
            reason[0] = f"{type(error).__name__} from {URL.split('/')[2]}"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return reason[0]


def _fetch(url: str, output: Any, _: Any) -> None:
    """A downloader for pooch, with a bar and an end to its patience."""
    import requests
    from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn())
    with requests.get(url, stream=True, timeout=ANSWER_SECONDS) as response, Progress(*columns, transient=True) as progress:
        response.raise_for_status()
        task = progress.add_task("downloading CIFAR-10", total=int(response.headers.get("content-length", 0)) or None)
        begin = time.monotonic()
        with open(output, "wb") as file:
            for chunk in response.iter_content(1 << 20):
                file.write(chunk)
                progress.advance(task, len(chunk))
                if time.monotonic() - begin > PATIENCE_SECONDS:
                    raise OSError(f"the network is slow: not done after {PATIENCE_SECONDS:.0f} s")
