"""The operators of TOSA 1.0: one frozen dataclass each, with its own type rule.

Fields are the attributes, and those operands that TOSA demands to be compile-time constants. `results` is the type
rule (specification chapter 2, the operator's own section): it raises GraphError where the specification has ERROR_IF.
`requires` names the profile or extension for the given operand types; `exceeds` checks the level limits.
"""

# ruff: noqa: F401, F403  the names of the chapters, and of those bases that others ask for
from __future__ import annotations

from tosaic.tosa.ops.base import *
from tosaic.tosa.ops.base import Op
from tosaic.tosa.ops.control import CondIf, ControlFlow, WhileLoop
from tosaic.tosa.ops.conversion import *
from tosaic.tosa.ops.elementwise import *
from tosaic.tosa.ops.elementwise import _Binary, _Extremum, _FloatUnary
from tosaic.tosa.ops.image import *
from tosaic.tosa.ops.indexing import *
from tosaic.tosa.ops.layout import *
from tosaic.tosa.ops.reduction import *
from tosaic.tosa.ops.reduction import _Reduce
from tosaic.tosa.ops.tensor import *
from tosaic.tosa.ops.tensor import _Conv, _Fourier, _Pool, _Sums


def _subclasses(cls: type[Op]) -> list[type[Op]]:
    return [s for c in cls.__subclasses__() for s in (c, *_subclasses(c))]


# TOSA name -> operator class; what readers, the text form and the simulator look up. Those of control flow stand apart: their fields are
# graphs, and a .vgf cannot hold them.
CONTROL_FLOW: dict[str, type[ControlFlow]] = {c.NAME: c for c in (CondIf, WhileLoop)}
BY_NAME: dict[str, type[Op]] = {c.NAME: c for c in _subclasses(Op) if "NAME" in vars(c) and c.NAME not in CONTROL_FLOW}
