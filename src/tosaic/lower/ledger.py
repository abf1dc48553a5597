"""The ledger: at which precision each operator of the model was compiled, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tosaic.lower.operand import Operand, Quant
from tosaic.tosa.graph import Location, Node
from tosaic.tosa.types import DType


@dataclass(frozen=True)
class LedgerRow:
    """How one operator of the model was compiled.

    Attributes:
        precision: of its result: "int8", "int16", "int32", "int48", "fp32" (or another float), "bool" or "index".
    """

    name: str
    aten: str
    precision: str
    reason: str
    location: str


def entry(
    name: str, location: Location, result: Any, emitted: Sequence[Node], want: Quant | None, floating: DType, chosen: str | None
) -> LedgerRow:
    """The row of an operator.

    Args:
        result: what its lowering gave: an Operand, or several.
        emitted: the nodes that it became.
        want: the quantization that its readers ask for.
        floating: the float type that it computes in, if it does.
        chosen: why the quantizer left it float, or "rule" where it did not.
    """
    main: Operand = result[0] if isinstance(result, tuple | list) else result
    in_float = any(v.dtype.is_float for n in emitted for v in n.outputs) or (
        main.quant is None and main.value is not None and main.value.dtype.is_float
    )
    stored = want or main.quant
    if in_float:
        precision, reason = floating.name.lower(), {None: "float", "rule": "no integer form"}.get(chosen, chosen)
    elif main.value is not None and main.value.dtype is DType.BOOL:
        precision, reason = "bool", "a condition"
    elif stored is None:
        precision, reason = "index", "integers without a scale"
    else:
        precision, reason = stored.dtype.name.lower(), _why(stored.dtype, want)
    return LedgerRow(name, location.aten, precision, str(reason), str(location))


def _why(dtype: DType, want: Quant | None) -> str:
    if want is None:
        return "exact, until a reader rounds it"
    return "arithmetic reads it" if dtype is DType.INT32 else "the precision that its readers take"
