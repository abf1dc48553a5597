"""aten operators to TOSA operators; importing this package registers every lowering."""

from tosaic.lower import activations, conv, elementwise, layout, reduce, resize  # noqa: F401
