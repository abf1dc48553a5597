"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from tosaic.errors import EmitError


def atomic_write(path: Path | str, data: bytes | memoryview) -> None:
    """Write `data` to `path` whole or not at all; an older file stays as it was when anything fails.

    The bytes go to a hidden file in the same directory (a rename across file systems would be a copy), then replace the
    target. A symbolic link is followed, missing directories are made.

    Raises:
        EmitError: the file cannot be written; the message has the system's reason.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # else a power cut after the rename leaves an empty file under the new name
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise EmitError(f"cannot write {path}: {error.strerror or error}") from None
