"""The passport: `model.json` beside `model.vgf`, without which nobody can feed an int8 file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_serializer

from tosaic.emit.files import atomic_write
from tosaic.errors import InputError


class PortRecord(BaseModel):
    """An input or output: real = scale * (stored - zero_point); scale is null for float and index tensors."""

    name: str
    dtype: str
    shape: list[int]
    scale: float | None = None
    zero_point: int | None = None
    layout: str = "model"

    @property
    def model_shape(self) -> list[int]:
        """The shape in the model's own layout."""
        shape = self.shape
        return [shape[0], shape[3], *shape[1:3]] if self.layout == "nhwc" and len(shape) == 4 else shape


class LedgerRecord(BaseModel):
    """How one operator of the model was compiled."""

    name: str
    aten: str
    precision: str
    reason: str
    location: str


class ValueRecord(BaseModel):
    """What a value between operators is in the model: the result of a node of the captured program.

    real = scale * (stored - zero_point), then the moves, ["transpose", permutation] or ["reshape", shape], in order.
    """

    node: str
    scale: float | None = None
    zero_point: int | None = None
    moves: list[tuple[Literal["transpose", "reshape"], list[int]]] = []

    def real(self, stored: np.ndarray) -> np.ndarray:
        """Real values (float64) of stored ones, in the model's own shape."""
        result = stored.astype(np.float64)
        if self.scale is not None:
            result = (result - (self.zero_point or 0)) * self.scale
        for kind, numbers in self.moves:
            result = result.transpose(numbers) if kind == "transpose" else result.reshape(numbers)
        return result


class Passport(BaseModel):
    """Everything about an artifact that its file cannot say."""

    model_config = ConfigDict(extra="forbid")

    format: int = 1
    name: str
    spec: str
    sha256: str = ""
    inputs: list[PortRecord]
    outputs: list[PortRecord]
    recipe: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    versions: dict[str, str] = {}
    metrics: dict[str, float] = {}
    verified: dict[str, Any] = {}
    operators: dict[str, int] = {}
    ledger: list[LedgerRecord] = []
    values: dict[str, ValueRecord] = {}

    @field_serializer("values")
    def _short(self, values: dict[str, ValueRecord]) -> dict[str, dict[str, Any]]:
        """There are many, and most need a part of the fields."""
        return {name: record.model_dump(exclude_defaults=True) for name, record in values.items()}


def passport_path(vgf: Path) -> Path:
    """`model.json` for `model.vgf`; another file of the same name (`model.tosa`) has its own, `model.tosa.json`."""
    return vgf.with_suffix(".json") if vgf.suffix == ".vgf" else vgf.with_name(f"{vgf.name}.json")


def encode_passport(passport: Passport) -> bytes:
    return (json.dumps(passport.model_dump(), indent=1) + "\n").encode()


def write_passport(passport: Passport, vgf: Path) -> None:
    atomic_write(passport_path(vgf), encode_passport(passport))


def read_passport(vgf: Path) -> Passport | None:
    """The passport beside a file, or None.

    Raises:
        InputError: there is one, but it is not a passport.
    """
    path = passport_path(vgf)
    if not path.is_file():
        return None
    try:
        return Passport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path} is not a passport: {where}: {first['msg']}", remedy="export the model again, or remove the file"
        ) from None
