"""FlatBuffers tables, read with every offset and length checked, so that no file can lead outside itself or grow in memory.

The layout is that of the FlatBuffers internals page: a table begins with the signed distance to its vtable, which has the
table's fields by slot; vectors and strings begin with their length; offsets count from where they stand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

MOST = 1_000_000  # tables of one buffer (as in FlatBuffers' own verifier); numbers and text count too, by 64 bytes


class Buffer:
    """A section of a file that holds one root table.

    Everything that is read counts, and no more than MOST may be: a few bytes can refer to the same place often.
    """

    __slots__ = ("data", "left")

    def __init__(self, data: memoryview) -> None:
        self.data, self.left = data, MOST

    def root(self) -> Table:
        return Table(self, self.offset(0))

    def number(self, form: str, at: int) -> int:
        """The number that stands at a place.

        Raises:
            ValueError: the place is outside.
        """
        size = struct.calcsize(form)
        if not 0 <= at <= len(self.data) - size:
            raise ValueError(f"an offset leads to byte {at} of {len(self.data)}")
        return struct.unpack_from(form, self.data, at)[0]

    def offset(self, at: int) -> int:
        """The place that the offset at a place leads to."""
        return at + self.number("<I", at)

    def count(self, entries: int) -> None:
        self.left -= entries
        if self.left < 0:
            raise ValueError(f"more than {MOST} entries")


class Table:
    """One table; slots are the positions of its fields in the schema (a union takes two). Raises ValueError for what lies outside."""

    __slots__ = ("_at", "_buffer", "_fields", "_size")

    def __init__(self, buffer: Buffer, at: int) -> None:
        self._buffer, self._at = buffer, at
        self._fields = at - buffer.number("<i", at)
        self._size = buffer.number("<H", self._fields)

    def _place(self, slot: int) -> int | None:
        """Where a field stands; None if it is left out."""
        entry = 4 + 2 * slot
        offset = self._buffer.number("<H", self._fields + entry) if entry + 2 <= self._size else 0
        return self._at + offset if offset else None

    def number(self, slot: int, form: str = "<I", default: int = 0) -> int:
        place = self._place(slot)
        return default if place is None else self._buffer.number(form, place)

    def table(self, slot: int) -> Table | None:
        place = self._place(slot)
        return None if place is None else Table(self._buffer, self._buffer.offset(place))

    def _vector(self, place: int, size: int) -> tuple[int, int]:
        """Where the elements of a vector begin, and how many there are; they lie inside."""
        start = self._buffer.offset(place) + 4
        length = self._buffer.number("<I", start - 4)
        if start + length * size > len(self._buffer.data):
            raise ValueError(f"a vector of {length} elements at byte {start - 4} reaches beyond the end")
        return start, length

    def tables(self, slot: int) -> Iterator[Table]:
        return (Table(self._buffer, self._buffer.offset(at)) for at in self._elements(slot))

    def _elements(self, slot: int) -> range:
        """Where the elements of a vector of offsets stand; each counts."""
        if (place := self._place(slot)) is None:
            return range(0)
        start, length = self._vector(place, 4)
        self._buffer.count(length)
        return range(start, start + 4 * length, 4)

    def numbers(self, slot: int, dtype: str) -> list[int]:
        """A vector of numbers, as a copy."""
        data = self.array(slot, dtype)
        self._buffer.count(0 if data is None else 1 + data.nbytes // 64)
        return [] if data is None else data.tolist()

    def array(self, slot: int, dtype: str) -> np.ndarray | None:
        """A vector of numbers, in place."""
        if (place := self._place(slot)) is None:
            return None
        start, length = self._vector(place, np.dtype(dtype).itemsize)
        return np.frombuffer(self._buffer.data, dtype, length, start)

    def text(self, slot: int) -> str:
        place = self._place(slot)
        return "" if place is None else self._text(place)

    def texts(self, slot: int) -> list[str]:
        return [self._text(at) for at in self._elements(slot)]

    def _text(self, place: int) -> str:
        start, length = self._vector(place, 1)
        self._buffer.count(length // 64)
        return bytes(self._buffer.data[start : start + length]).decode(errors="replace")
