"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from tosaic.errors import EmitError

# what a file is to hold, or a function that writes it
Content = bytes | memoryview | Callable[[BinaryIO], object]


def atomic_write(path: Path | str, data: Content) -> None:
    """Write `data` to `path` whole or not at all; an older file stays as it was when anything fails.

    The bytes go to a hidden file in the same directory (a rename across file systems would be a copy), then replace the
    target. A symbolic link is followed, missing directories are made.

    Raises:
        EmitError: the file cannot be written; the message has the system's reason.
    """
    atomic_write_all({path: data})


def atomic_write_all(files: Mapping[Path | str, Content]) -> None:
    """Like `atomic_write`, for files that belong together: they are written in order, none is replaced before all are.

    Raises:
        EmitError: one of them cannot be written; the message has the system's reason.
    """
    moves: list[tuple[Path, Path]] = []
    path: Path | str = ""
    try:
        for path, data in files.items():
            target = Path(os.path.realpath(path))
            if target.is_dir():  # the one failure that only the rename would meet
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
            target.parent.mkdir(parents=True, exist_ok=True)
            moves.append((temporary, target))
            with open(temporary, "xb") as file:
                if callable(data):
                    data(file)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())  # else a power cut after the rename leaves an empty file under the new name
        for path, (temporary, target) in zip(files, moves, strict=True):  # noqa: B007 (the message names it)
            os.replace(temporary, target)
    except OSError as error:
        raise EmitError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        for temporary, _ in moves:
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a file, or a folder to put files in, that cannot be written, before anything is done for it.

    Raises:
        EmitError: a folder on the way is a file, or may not be written to.
    """
    folder = next((p for p in path.absolute().parents if p.exists()), Path("/"))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise EmitError(f"cannot write {path}: {folder} is {'not writable' if folder.is_dir() else 'a file'}")


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Hashed:
    """A file that is only written to, and the SHA-256 of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._state = file, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self._state.update(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        return self._state.hexdigest()
