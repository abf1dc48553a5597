"""The table of operator tests: one row for each case, by family. `test_operators.py` runs it."""

from __future__ import annotations

from ops.rows import Row
from ops.rows_elementwise import ACTIVATIONS, ARITHMETIC
from ops.rows_mac import CONVOLUTIONS, PRODUCTS, TRANSPOSED
from ops.rows_shape import CHOICES, MOVEMENT, POOLS, RESIZES

FAMILIES: dict[str, tuple[Row, ...]] = {
    "convolutions": CONVOLUTIONS,
    "transposed convolutions": TRANSPOSED,
    "products": PRODUCTS,
    "arithmetic": ARITHMETIC,
    "activations": ACTIVATIONS,
    "movement": MOVEMENT,
    "pools": POOLS,
    "resizes": RESIZES,
    "choices": CHOICES,
}
