"""Quantization schemes: what is int8, what is int16, and what the specification must have for it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tosaic import digits
from tosaic.errors import InputError, SpecError, check_known
from tosaic.tosa.spec import Spec
from tosaic.tosa.types import DType

if TYPE_CHECKING:
    import torch

WIDE_BITS = 24  # significant bits of an int32 value; float32 fake quantization models up to 24 exactly


@dataclass(frozen=True)
class Precision:
    """How a value of one type is quantized."""

    dtype: DType
    quant_min: int  # range of stored values
    quant_max: int
    top: int  # the stored value that the calibrated maximum maps to (symmetric only); what lies above is head-room
    symmetric: bool

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch  # late: a recipe is checked before anyone waits for torch

        # PT2E has no 4-bit type: such values lie in int8, and lowering knows them by their range
        return getattr(torch, "int8" if self.dtype is DType.INT4 else self.dtype.name.lower())


INT8 = Precision(DType.INT8, -128, 127, 127, symmetric=False)
# int16 has bits to spare beside weights of 8: a factor of 1.3 is head-room for what calibration did not see, where saturation would err
# far more than a third of a bit. The top is a multiple of all numbers up to 10, so that whole numbers up to there stay whole
_TOP_OF_16 = 25200
INT16 = Precision(DType.INT16, -32768, 32767, _TOP_OF_16, symmetric=True)
DIGITS = Precision(DType.INT16, digits.LEAST, digits.MOST, _TOP_OF_16, symmetric=True)  # of two int8 numbers
# 8 bits above the calibrated maximum are head-room for additions
INT32 = Precision(DType.INT32, -(2**31), 2**31 - 1, 2 ** (WIDE_BITS - 1) - 1, symmetric=True)
WEIGHT8 = Precision(DType.INT8, -127, 127, 127, symmetric=True)
# without -8, so that a weight and its negative cost the same
WEIGHT4 = Precision(DType.INT4, -7, 7, 7, symmetric=True)
PRECISIONS = {"int8": INT8, "int16": INT16, "int32": INT32}


@dataclass(frozen=True)
class Scheme:
    """A named combination of weight and activation precision.

    Attributes:
        activation: of what enters a multiply-accumulate; None for the schemes that compute in float.
        requires: profile or extensions of the specification.
        linear: of what enters a linear layer of constant weights, where that is not `activation`.
        per_token: inputs of linear layers are scaled by a power of two for each row, which is found at run time.
    """

    name: str
    activation: Precision | None
    weight: Precision | None
    requires: tuple[str, ...]
    linear: Precision | None = None
    per_token: bool = False


SCHEMES = {
    "8a8w": Scheme("8a8w", INT8, WEIGHT8, ("INT",)),
    "8a8w-per-token": Scheme("8a8w-per-token", INT8, WEIGHT8, ("INT",), per_token=True),
    "16a8w": Scheme("16a8w", INT16, WEIGHT8, ("INT", "int16")),
    "16a8w-digits": Scheme("16a8w-digits", INT8, WEIGHT8, ("INT",), linear=DIGITS),
    "16a8w-per-token": Scheme("16a8w-per-token", INT8, WEIGHT8, ("INT",), linear=DIGITS, per_token=True),
    "8a4w": Scheme("8a4w", INT8, WEIGHT4, ("INT", "int4")),
    "fp32": Scheme("fp32", None, None, ("FP",)),
    "fp16": Scheme("fp16", None, None, ("FP",)),
    "bf16": Scheme("bf16", None, None, ("FP", "bf16")),
}
FLOATS = ("fp32", "fp16", "bf16")
_WHOLE = ("fp16", "bf16")  # a graph that quantizes computes its scales in float32
SCOPES = ("full", "linear")
OBSERVERS = ("minmax", "tight-minmax", "percentile")


@dataclass(frozen=True)
class Recipe:
    """What the user asked for.

    Attributes:
        scheme: for everything that `overrides` does not name.
        scope: "full" quantizes all, "linear" only nn.Linear and what `overrides` names.
        overrides: module path pattern (`blocks.3.*`) or aten operator name -> scheme.
        between: precision of values that arithmetic consumes ("int8" stands for the scheme's own activations).
        observer: "minmax" or "percentile" (99.99th) for calibration of int8 and int16 values; "tight-minmax" is minmax without the
            head-room of int16.
        bias_correction: move each layer's mean output to the float model's (PTQ only).
        ports: input or output name -> precision, where it is not the scheme's: "int32" hands a value on as it is between operators,
            for a part of a larger model. Such an input may hold any integer: beyond 64 times its calibrated range it saturates.
    """

    scheme: str = "8a8w"
    scope: str = "full"
    overrides: Mapping[str, str] = field(default_factory=dict)
    between: str = "int32"
    observer: str = "minmax"
    bias_correction: bool = True
    ports: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_scheme("scheme", self.scheme)
        check_known("scope", self.scope, SCOPES)
        check_known("between", self.between, PRECISIONS)
        check_known("observer", self.observer, OBSERVERS)
        for name, precision in self.ports.items():
            check_known(f"precision of port '{name}'", precision, PRECISIONS)
        for pattern, scheme in self.overrides.items():
            check_scheme(f"scheme of override '{pattern}'", scheme)
            if scheme in _WHOLE or self.scheme in _WHOLE:
                what = f"{scheme} for '{pattern}'" if scheme in _WHOLE else f"{self.scheme} with overrides"
                raise InputError(f"{what}: fp16 and bf16 are for whole models", remedy="what is not quantized beside 8a8w or 16a8w is fp32")

    def scheme_of(self, module_path: str, aten: str, is_linear: bool) -> Scheme:
        """The scheme of one operator; the last override that matches wins."""
        found = self.scheme if self.scope == "full" or is_linear else "fp32"
        for pattern, scheme in self.overrides.items():
            if matches(pattern, module_path, aten):
                found = scheme
        return SCHEMES[found]

    def requires(self) -> list[str]:
        """Profiles and extensions that the specification must have."""
        names = [SCHEMES[s] for s in (self.scheme, *self.overrides.values())]
        needs = [r for s in names for r in s.requires]
        if self.scope == "linear":
            needs.append("FP")
        return list(dict.fromkeys(needs))

    def smallest_spec(self) -> Spec:
        """The smallest specification that holds this recipe."""
        needs = self.requires()
        return Spec(frozenset(n for n in needs if n in ("INT", "FP")), frozenset(n for n in needs if n not in ("INT", "FP")))

    def check(self, spec: Spec, flag: str = "--spec") -> None:
        """Refuse a specification that cannot hold this recipe, before any work is done.

        Args:
            flag: with which the user gives it.

        Raises:
            SpecError: names what is missing and the specification that would do.
        """
        missing = [r for r in self.requires() if not spec.holds(r)]
        if missing:
            what = f"{self.scheme}{', scope ' + self.scope if self.scope != 'full' else ''}{' with overrides' if self.overrides else ''}"
            kinds = " and ".join(f"the {r} {'profile' if r in ('INT', 'FP') else 'extension'}" for r in missing)
            raise SpecError(f"{what} needs {kinds}, which {spec} does not have", remedy=f"use {flag} {spec.plus(*missing)}")


def check_scheme(what: str, name: str) -> None:
    """Refuse a scheme that is not known.

    Raises:
        InputError: names the nearest.
    """
    if name == "16a4w":
        raise InputError(f"{what} '16a4w': TOSA has 4-bit weights for int8 activations only", remedy="use 8a4w or 16a8w")
    check_known(what, name, SCHEMES)


def matches(pattern: str, module_path: str, aten: str) -> bool:
    """Whether an override's pattern names an operator."""
    return pattern in (aten, module_path) or fnmatch.fnmatch(module_path, pattern)
