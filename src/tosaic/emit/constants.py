"""Constants on their way into a file: equal ones once, without a copy of any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tosaic.emit.layout import Constant
from tosaic.tosa.content import digest
from tosaic.tosa.types import TensorType

_CHEAP = 1 << 20  # bytes that are hashed without asking whether there is another constant of the type


class Pool:
    """The distinct constants of a file, numbered from 0 in the order in which they came.

    Args:
        types: of all values that may come; what has its type for itself need not be compared.
    """

    def __init__(self, types: Iterable[TensorType]) -> None:
        self.constants: list[Constant] = []
        self._types = Counter(types)
        self._numbers: dict[tuple, int] = {}

    def add(self, constant: Constant) -> int:
        """The number of a constant; an equal one has the same."""
        alone = constant.type.nbytes > _CHEAP and self._types[constant.type] == 1
        key = (constant.type, id(constant.data) if alone else digest(constant.data))
        if key not in self._numbers:
            self._numbers[key] = len(self.constants)
            self.constants.append(constant)
        return self._numbers[key]
