"""The manifest: `llm.json` in an export folder, which says what its two artifacts are and how they fit together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from tosaic.emit.files import atomic_write, digest
from tosaic.errors import InputError

NAME = "llm.json"

Positive = Annotated[int, Field(ge=1)]
FileName = Annotated[str, StringConstraints(pattern=r"^[^/\\]*[^/\\.][^/\\]*$")]  # of something in the folder itself


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CacheRecord(_Record):
    """The keys or the values of one layer; real = scale * (stored - zero_point), and scale is null where floats are stored.

    Attributes:
        input, output: names in both graphs; what a call gives as `output` is `input` of the next, in the same type and with the same scale.
        dtype: as the passports name types, like "i8".
        shape: [K,S,D]: heads of keys and values, positions, size of a head.
    """

    input: str
    output: str
    dtype: str
    shape: Annotated[list[Positive], Field(min_length=3, max_length=3)]
    scale: float | None = None
    zero_point: int | None = None


class ProgramRecord(_Record):
    """One artifact, beside which its passport stands.

    Attributes:
        sha256: of the file.
        tokens: how many tokens one call takes.
    """

    file: FileName
    sha256: str
    tokens: Positive


class Manifest(_Record):
    """An exported language model.

    Attributes:
        vocabulary: V, how many logits there are for a position.
        max_seq_length: S, how many positions the caches hold; whole calls of `prefill` fill them.
        full_logits: `prefill` gives logits of all its positions, [1,P,V]; otherwise of the one that its input `last` names, [1,1,V].
        caches: in the order of the graphs' inputs.
        tokenizer: a file or folder in the export folder, for `open_tokenizer`; None: the model came without one.
        end_tokens: ids that end a text or a turn.
        quantization: how it was quantized, as it was asked for.
        calibration: what with.
        checkpoint: where the weights came from.
        metrics: what was measured when it was exported.
    """

    format: Literal[1] = 1
    name: str
    architecture: str
    vocabulary: Positive
    max_seq_length: Positive
    full_logits: bool = False
    prefill: ProgramRecord
    decode: ProgramRecord
    caches: list[CacheRecord]
    tokenizer: FileName | None = None
    end_tokens: list[int] = []
    quantization: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    checkpoint: str = ""
    versions: dict[str, str] = {}
    metrics: dict[str, float] = {}


def write_manifest(manifest: Manifest, folder: Path | str) -> Path:
    """Write `llm.json` whole or not at all. It comes last: a folder that has one is complete."""
    path = Path(folder) / NAME
    atomic_write(path, (json.dumps(manifest.model_dump(), indent=1) + "\n").encode())
    return path


def manifest_path(folder: Path | str) -> Path:
    """Where the manifest of an export folder is.

    Raises:
        InputError: no folder, or no manifest in it.
    """
    folder = Path(folder)
    path = folder / NAME
    if not path.is_file():
        found = f"{folder} has no {NAME}" if folder.is_dir() else f"{folder} is no folder"
        raise InputError(f"no exported language model: {found}", remedy="give the --output-dir of tosaic llm export")
    return path


def read_manifest(folder: Path | str) -> Manifest:
    """The manifest of an export folder, once the files that it names are found to be there, and to be the ones it means.

    Raises:
        InputError: no folder, no manifest in it, or one that is malformed; a file that it names is missing or has another content.
    """
    folder, path = Path(folder), manifest_path(folder)
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        why = f"{where}: {first['msg']}" if where else first["msg"]
        raise InputError(f"{path} is no manifest of this version: {why}", remedy="export the model again") from None
    for program in (manifest.prefill, manifest.decode):
        file = folder / program.file
        if not file.is_file():
            raise InputError(f"{path} names {program.file}, which is missing", remedy="export the model again")
        if digest(file) != program.sha256:
            raise InputError(f"{file} is another file than {path} was written for", remedy="export the model again")
    if manifest.tokenizer is not None and not (folder / manifest.tokenizer).exists():
        raise InputError(f"{path} names {manifest.tokenizer}, which is missing", remedy="export the model again")
    return manifest
