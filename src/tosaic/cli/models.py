"""MODEL on the command line: `file.py:callable`, `package.module:callable`, or a torch.export `.pt2` file."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tosaic.capture.export import as_inputs, load_program
from tosaic.cli.user_code import find, is_reference, reporting
from tosaic.errors import InputError

_FORMS = "write file.py:callable, package.module:callable, or the name of a .pt2 file that torch.export.save wrote"


@dataclass(frozen=True)
class Loaded:
    """A model, the inputs to compile for, and the names of its inputs as far as its signature tells."""

    model: nn.Module | torch.export.ExportedProgram
    example_inputs: tuple[Any, ...]
    names: list[str]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The example inputs, flat."""
        return [t for t in torch.utils._pytree.tree_leaves(self.example_inputs) if isinstance(t, torch.Tensor)]

    def in_float(self) -> nn.Module:
        """What computes the model's float results."""
        if isinstance(self.model, torch.export.ExportedProgram):
            return self.model.module(check_guards=False)
        return self.model.eval()


def load_model(text: str, shapes: Sequence[str] = (), otherwise: Sequence[str] = ()) -> Loaded:
    """Import or read a model.

    Args:
        text: what stands for MODEL.
        shapes: `1,3,224,224` or `1,16:int64`, one for each input; instead of example inputs that the callable returns.
        otherwise: the same, for a callable that returns none.

    Raises:
        InputError: no such model, it raised, it is no model, or its input shapes are not known.
    """
    if text.endswith(".pt2"):
        return _program(Path(text), shapes)
    if not is_reference(text):
        remedy = "torch.save'd models are code, which is not run; write a function that builds the model and loads its weights"
        raise InputError(f"MODEL '{text}' is not of a known form", remedy=remedy if text.endswith((".pt", ".pth")) else _FORMS)
    found = find("MODEL", text)
    if not isinstance(found, nn.Module) and callable(found):
        with reporting(f"MODEL: {text}()"):
            found = found()
    inputs = None
    if isinstance(found, tuple | list) and len(found) == 2:
        found, inputs = found
    if isinstance(found, torch.export.ExportedProgram):
        return Loaded(found, as_inputs(inputs if inputs is not None else found.example_inputs[0]), _program_names(found))
    if not isinstance(found, nn.Module):
        raise InputError(
            f"MODEL: {text} gives {_described(found)}, expected a torch.nn.Module, or one and its example inputs", remedy="return that"
        )
    if shapes:
        inputs = tuple(_example(shape) for shape in shapes)
    if inputs is None and otherwise:
        inputs = tuple(_example(shape) for shape in otherwise)
    if inputs is None:
        raise InputError(
            f"MODEL: the input shapes of {text} are not known",
            remedy="give --input-shape 1,3,224,224 (once for each input), or return (module, example_inputs)",
        )
    parameters = inspect.signature(found.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return Loaded(found, as_inputs(inputs), names)


def _described(found: Any) -> str:
    if isinstance(found, tuple | list):
        return f"a {type(found).__name__} of {len(found)}"
    return type(found).__name__


def _program(path: Path, shapes: Sequence[str]) -> Loaded:
    if shapes:
        raise InputError("--input-shape does not apply to a .pt2 file, which has its shapes already", remedy="leave it out")
    program = load_program(path)
    return Loaded(program, as_inputs(program.example_inputs[0]), _program_names(program))


def _program_names(program: torch.export.ExportedProgram) -> list[str]:
    return [str(name) for name in program.graph_signature.user_inputs]


def _example(text: str) -> torch.Tensor:
    """Zeros of a shape; the values of example inputs do not matter."""
    dims, _, kind = text.partition(":")
    dtype = getattr(torch, kind, None) if kind else torch.float32
    if not isinstance(dtype, torch.dtype):
        raise InputError(f"--input-shape {text}: unknown type '{kind}'", remedy="write it like 1,16:int64")
    try:
        shape = [int(d) for d in dims.replace("x", ",").split(",")]
    except ValueError:
        raise InputError(f"--input-shape {text} is not a list of whole numbers", remedy="write it like 1,3,224,224") from None
    if any(d < 1 for d in shape):
        raise InputError(f"--input-shape {text}: each dimension must be at least 1", remedy="a .vgf has fixed shapes; name the batch size")
    return torch.zeros(shape, dtype=dtype)
