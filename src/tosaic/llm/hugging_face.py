"""Hugging Face checkpoints: config.json and .safetensors, in one file or in shards."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tosaic.errors import InputError
from tosaic.llm.architecture import from_hugging_face
from tosaic.llm.checkpoint import Checkpoint, read_config


class HuggingFaceCheckpoint(Checkpoint):
    """A folder, or one .safetensors file beside its config.json; tensors are read from the memory-mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        folder = path if path.is_dir() else path.parent
        self.config = from_hugging_face(read_config(folder / "config.json"))
        self._files: dict[str, Any] = {}  # tensor name -> the open file that holds it
        for file in _shards(folder) if path.is_dir() else [path]:
            try:
                opened = safe_open(file, "pt")
            except (SafetensorError, OSError) as error:
                raise InputError(f"{file} cannot be read: {error}", remedy="the file may be truncated; fetch it again") from None
            self._files |= dict.fromkeys(opened.keys(), opened)

    def shape(self, name: str) -> tuple[int, ...] | None:
        file = self._files.get(name)
        return None if file is None else tuple(file.get_slice(name).get_shape())

    def _read(self, name: str) -> Tensor:
        with contextlib.suppress(SafetensorError):
            return self._files[name].get_tensor(name)
        raise ValueError("the file is damaged")


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = read_config(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise InputError(f"{index} has no weight_map")
        files = [folder / str(name) for name in dict.fromkeys(names.values())]
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)}, which its index names")
    if not files:
        pickled = any(folder.glob("*.bin"))
        remedy = "save the model again with safe_serialization=True" if pickled else None
        raise InputError(f"{folder} has no .safetensors file{', only pickled ones (.bin)' if pickled else ''}", remedy=remedy)
    return files
