"""The folder of what is finished of an export: compiled parts, and the residual stream behind the last of them."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from tosaic.emit.files import atomic_write
from tosaic.errors import InputError
from tosaic.llm.chain import Streams
from tosaic.llm.parts import Compiled
from tosaic.tosa.container import map_file

_ALIGNED = 64  # bytes at whose multiples arrays begin


class Work(Streams):
    """The folder.

    A file of a part holds its arrays, each content once, then the rest of it.

    Attributes:
        threads: of torch, on which the export began; sums of floats have another order on another number of them.

    Args:
        identity: of the export: what is there of another one is removed.
        resume: go on with what is there.

    Raises:
        InputError: to go on with another export.
    """

    def __init__(self, folder: Path, identity: str, resume: bool) -> None:
        self.folder = folder
        state = folder / "identity"
        known = json.loads(state.read_text()) if resume and state.is_file() else {}
        if known and known["export"] != identity:
            what = f"{folder} belongs to an export of another checkpoint, with other options or versions, or on another kind of processor"
            raise InputError(what, remedy="export with the same options as before, or without --resume")
        if not known:
            shutil.rmtree(folder, ignore_errors=True)
            known = {"export": identity, "threads": torch.get_num_threads()}
            atomic_write(state, json.dumps(known).encode())
        self.threads: int = known["threads"]
        self._behind: np.ndarray | None = None  # the stream that is being filled

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.part").is_file()

    def keep(self, name: str, compiled: Compiled) -> None:
        """Keep a part, after the stream behind it."""
        if isinstance(self._behind, np.memmap):
            self._behind.flush()
            self._behind = None
        arrays: list[pickle.PickleBuffer] = []
        rest = pickle.dumps(compiled, 5, buffer_callback=arrays.append)
        places: dict[bytes, tuple[int, memoryview]] = {}  # by content: both programs have the same weights
        index, end = list[tuple[int, int]](), 0
        for array in arrays:
            data = array.raw()
            start, _ = places.setdefault(hashlib.sha256(data).digest(), (end, data))
            index.append((start, data.nbytes))
            end = max(end, start + data.nbytes + -data.nbytes % _ALIGNED)

        def write(file: BinaryIO) -> None:
            for _, data in places.values():
                file.write(data)
                file.write(bytes(-data.nbytes % _ALIGNED))
            file.write(pickle.dumps((rest, index)) + struct.pack("<Q", end))

        atomic_write(self.folder / f"{name}.part", write)

    def part(self, name: str) -> Compiled:
        """A part whose arrays are read from its file when they are looked at."""
        data = map_file(self.folder / f"{name}.part")
        (end,) = struct.unpack("<Q", data[-8:])
        rest, index = pickle.loads(data[end:-8])
        return pickle.loads(rest, buffers=[data[start : start + size] for start, size in index])

    def new_stream(self, number: int, shape: tuple[int, ...]) -> np.ndarray:
        if not np.prod(shape):
            return np.zeros(shape, np.float32)
        (self.folder / f"{number - 2}.npy").unlink(missing_ok=True)
        self._behind = np.lib.format.open_memmap(self.folder / f"{number}.npy", "w+", np.float32, shape)
        return self._behind

    def stream(self, number: int) -> np.ndarray:
        file = self.folder / f"{number}.npy"
        return np.load(file, mmap_mode="r") if file.is_file() else np.zeros((0, 0), np.float32)

    def remove(self) -> None:
        shutil.rmtree(self.folder)
