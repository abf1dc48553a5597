"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from tosaic.errors import EmitError


def atomic_write(path: Path | str, data: bytes | memoryview) -> None:
    """Write `data` to `path` whole or not at all; an older file stays as it was when anything fails.

    The bytes go to a hidden file in the same directory (a rename across file systems would be a copy), then replace the
    target. A symbolic link is followed, missing directories are made.

    Raises:
        EmitError: the file cannot be written; the message has the system's reason.
    """
    atomic_write_all({path: data})


def atomic_write_all(files: Mapping[Path | str, bytes | memoryview]) -> None:
    """Like `atomic_write`, for files that belong together: none is replaced before all are written.

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
