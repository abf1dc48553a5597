"""nn.Module -> FX graph in the operator set that `lower` knows."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from tosaic.capture.attention import divide_after_product
from tosaic.capture.batch_norm import canonicalize_batch_norm, finish_folding, simulate_folding
from tosaic.capture.composites import assemble_composites
from tosaic.capture.decompositions import DECOMPOSITIONS
from tosaic.capture.fourier import without_complex
from tosaic.capture.products import products_to_linear
from tosaic.capture.ranks import merge_axes
from tosaic.errors import CaptureError, InputError, line_of, place_of
from tosaic.operators import dropout_marker

aten = torch.ops.aten
Inputs = tuple[Any, ...]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# Operators that change nothing in an inference graph of static shapes.
_ALIASES = {
    aten.clone.default,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
    aten.contiguous.default,
    aten.dropout.default,
}
# Checks that torch.export leaves beside casts and where the model has assertions: they have no result, and a .vgf no place for them.
_CHECKS = {aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten._assert_async.msg, aten._linalg_check_errors.default}


@dataclass
class Captured:
    """A model as a flat FX graph of aten operators.

    Attributes:
        module: callable with the model's own inputs; parameters are get_attr nodes.
        example_inputs: the inputs it was captured with (their shapes are the only ones that it takes).
        input_names, output_names: of the flattened inputs and outputs, in order.
    """

    module: torch.fx.GraphModule
    example_inputs: Inputs
    input_names: list[str]
    output_names: list[str]


def as_inputs(example: Any) -> Inputs:
    """A model's positional inputs from what a user hands over: a tensor, or a tuple or list of inputs."""
    if isinstance(example, torch.Tensor):
        return (example,)
    if isinstance(example, list | tuple):
        return tuple(example)
    raise InputError(f"example inputs are a tensor or a tuple of inputs, found {type(example).__name__}")


def capture(
    model: nn.Module | torch.export.ExportedProgram, example_inputs: Any = None, *, keep: Collection[torch._ops.OpOverload]
) -> Captured:
    """Export `model` and decompose it to Core ATen, except the operators in `keep`.

    Batch normalization is left in place as `aten.batch_norm`, one node each (see `batch_norm.py`).

    Args:
        model: a module, or a program that torch.export captured before.
        example_inputs: positional inputs; needed for a module.
        keep: operators that have a lowering (or a quantization rule) of their own.

    Raises:
        CaptureError: torch.export refused the model, or it has dynamic shapes.
        InputError: no example inputs, or weights that are not finite.
    """
    if isinstance(model, torch.export.ExportedProgram):
        program = model
        example_inputs = example_inputs if example_inputs is not None else program.example_inputs[0]
    else:
        if not isinstance(model, nn.Module):
            raise InputError(f"the model is {type(model).__name__}, expected a torch.nn.Module or a program of torch.export")
        if example_inputs is None:
            raise InputError("example inputs are missing", remedy="pass example_inputs=(tensor, ...), with the shapes to compile for")
        program = exported(model, as_inputs(example_inputs))
    inputs = as_inputs(example_inputs)
    for leaf in pytree.tree_leaves(inputs):
        if not isinstance(leaf, torch.Tensor):
            raise InputError(f"an input is not a tensor but {type(leaf).__name__}", remedy="set it as an attribute of the model")
        if leaf.is_floating_point() and leaf.dtype not in _FLOATS:
            raise InputError(f"an input has type {leaf.dtype}, which TOSA lacks", remedy="use model.float() and float32 inputs")
    return as_captured(program, decomposed(program, keep), inputs)


def decomposed(program: torch.export.ExportedProgram, keep: Collection[torch._ops.OpOverload]) -> torch.fx.GraphModule:
    """A program in Core ATen, except the operators in `keep`, as a flat module whose parameters are get_attr nodes.

    Raises:
        CaptureError, InputError: see `capture`.
    """
    _check_static(program)
    _check_finite(program)
    _copy_inputs(program)
    table = torch.export.default_decompositions()
    for op in keep:
        table.pop(op, None)
    table.update(DECOMPOSITIONS)  # of operators that have a lowering too, those decline what it holds
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            return program.run_decompositions(table).module(check_guards=False)
    except Exception as error:  # whatever torch meets while it traces the program again
        remedy = "--debug shows torch's own report"
        raise CaptureError(
            f"torch.export cannot decompose the model: {_first_line(error)}", where=place_of(error), remedy=remedy
        ) from error


def as_captured(program: torch.export.ExportedProgram, module: torch.fx.GraphModule, inputs: Inputs) -> Captured:
    """What `decomposed` made of a program, rewritten to the operators that `lower` knows, in place."""
    _drop_aliases(module)
    _views_to_reshapes(module)
    without_complex(module)
    products_to_linear(module)
    divide_after_product(module)
    assemble_composites(module)
    canonicalize_batch_norm(module)
    merge_axes(module)
    tidy(module)
    names = [n.name for n in module.graph.nodes if n.op == "placeholder"]
    return Captured(module, inputs, names, _output_names(program, module))


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Read a `.pt2` file that torch.export.save wrote."""
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        with _quiet():
            return torch.export.load(path)
    except Exception as error:  # torch raises many kinds here; all of them mean one thing to the user
        raise InputError(f"{path} is not a torch.export program: {_first_line(error)}", remedy="write it with torch.export.save") from error


def exported(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """The program of a module in evaluation mode.

    Raises:
        CaptureError: torch.export refused the model.
    """
    modes = {m: m.training for m in model.modules()}
    model.eval()
    reasons: list[Exception] = []
    try:
        for strict in (False, True):
            try:
                with warnings.catch_warnings(), _quiet(), torch.no_grad():
                    warnings.simplefilter("ignore")
                    return torch.export.export(model, inputs, strict=strict)
            except Exception as error:  # anything that the user's forward() can raise
                reasons.append(error)
    finally:
        for module, training in modes.items():
            module.training = training
    first = reasons[0]
    raise CaptureError(
        f"torch.export cannot capture {type(model).__name__}: {_first_line(first)}",
        where=place_of(first),
        remedy="check that model(*example_inputs) runs, and that its control flow does not depend on tensor values "
        "(see the torch.export documentation); --debug shows torch's own report",
    ) from first


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.export: its loggers, and what it prints when it fails; a failure is reported in one message."""
    logger, printed = logging.getLogger("torch"), io.StringIO()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(printed):
            yield
        sys.stderr.write(printed.getvalue())  # the user's own, from forward()
    finally:
        logger.setLevel(level)


def _copy_inputs(program: torch.export.ExportedProgram) -> None:
    """Let in-place operators (`nn.ReLU(inplace=True)` first in a model) write to copies of the inputs.

    Decomposition makes writes to an input outputs of the program, which a .vgf does not have.
    """
    graph = program.graph_module.graph
    if not any(isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable for n in graph.nodes):
        return
    users = set(program.graph_signature.user_inputs)
    inputs = [
        n for n in graph.nodes if n.op == "placeholder" and n.name in users and any(u.target is not aten.clone.default for u in n.users)
    ]
    first = next(n for n in graph.nodes if n.op != "placeholder")
    for node in inputs:
        with graph.inserting_before(first):
            copied = graph.call_function(aten.clone.default, (node,))
        copied.meta = node.meta.copy()
        node.replace_all_uses_with(copied, delete_user_cb=lambda user, copied=copied: user is not copied)
    program.graph_module.recompile()


def _check_static(program: torch.export.ExportedProgram) -> None:
    for node in program.graph.nodes:
        value = node.meta.get("val")
        for tensor in (v for v in pytree.tree_leaves(value) if isinstance(v, torch.Tensor)):
            if any(free_unbacked_symbols(d) for d in tensor.shape):
                raise CaptureError(
                    f"the shape of the result of {node.target} '{node.name}' depends on the values of a tensor; a .vgf has fixed shapes",
                    where=":".join(line_of(node.meta.get("stack_trace")) or ()) or None,
                    remedy="keep all elements and choose between them (torch.where, masked_fill, a product with the mask); "
                    "for a mask that is known, index by its positions, found outside forward()",
                )
            if any(not isinstance(d, int) for d in tensor.shape):
                raise CaptureError(
                    f"'{node.name}' has the dynamic shape {tuple(tensor.shape)}; a .vgf has fixed shapes",
                    remedy="export once for each shape, without dynamic_shapes",
                )


def _check_finite(program: torch.export.ExportedProgram) -> None:
    parameters = set(program.graph_signature.parameters)
    for name, tensor in program.state_dict.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            if name not in parameters and (torch.isfinite(tensor) | (tensor == -torch.inf)).all():
                continue  # an attention mask
            bad = "NaN" if torch.isnan(tensor).any() else "an infinite value"
            raise InputError(f"weight '{name}' {tuple(tensor.shape)} contains {bad}", remedy="check the checkpoint")


def _drop_aliases(module: torch.fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        same = node.op == "call_function" and (node.target in _ALIASES or _is_no_op(node))
        if same:
            node.replace_all_uses_with(node.args[0])
        if same or node.target in _CHECKS:
            module.graph.erase_node(node)


def _views_to_reshapes(module: torch.fx.GraphModule) -> None:
    """Without the clones that made their inputs contiguous, views may have to copy."""
    for node in module.graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default


def _is_no_op(node: torch.fx.Node) -> bool:
    """A cast to the type that its input has already, or an expand to its own shape."""
    if node.target not in (aten._to_copy.default, aten.expand.default):
        return False
    source, value = node.args[0].meta.get("val"), node.meta.get("val")
    return source is not None and value is not None and source.dtype == value.dtype and source.shape == value.shape


def tidy(module: torch.fx.GraphModule) -> None:
    """Remove dead nodes and unused parameters, and recompile."""
    module.graph.eliminate_dead_code()
    _delete_unused_submodules(module)
    module.graph.lint()
    module.recompile()


def _delete_unused_submodules(module: torch.fx.GraphModule) -> None:
    """What `delete_all_unused_submodules` does with a list of the names in use, which takes time quadratic in their number."""
    used = {""}
    for node in module.graph.nodes:
        if node.op in ("get_attr", "call_module"):
            path = str(node.target)
            used.update(itertools.accumulate(path.split("."), "{}.{}".format))
            if node.op == "call_module":
                used.update(f"{path}.{name}" for name, _ in module.get_submodule(path).named_modules() if name)
    for name in [name for name, _ in module.named_modules() if name not in used]:
        module.delete_submodule(name)


def _output_names(program: torch.export.ExportedProgram, module: torch.fx.GraphModule) -> list[str]:
    """Keys of a dict result, else `output` or `output_0`, `output_1`, ..."""
    count = len(pytree.tree_leaves(next(n for n in module.graph.nodes if n.op == "output").args[0]))
    spec = program.call_spec.out_spec
    if spec is not None and spec.type is dict and spec.num_children == count:
        return [str(k) for k in spec.context]
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class _DropoutMarker(nn.Module):
    """Stands for a dropout while the model is exported for evaluation, where dropouts vanish."""

    def __init__(self, p: float, kind: int) -> None:
        super().__init__()
        self.p, self.kind = p, kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout_marker(x, self.p, self.kind)


def capture_for_training(model: nn.Module, example_inputs: Any, *, keep: Collection[torch._ops.OpOverload]) -> Captured:
    """Like `capture`, of a copy of `model` whose parameters train; dropout layers stay alive in train mode, and
    batch norms are simulated folded.

    Functional dropout (`F.dropout` in forward()) is dropped, as the export is an evaluation graph.
    """
    copied = copy.deepcopy(model)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in _DROPOUTS:
                setattr(parent, name, _DropoutMarker(child.p, _DROPOUTS.index(type(child))))
    captured = capture(copied, example_inputs, keep=keep)
    module = captured.module
    for i, node in enumerate([n for n in module.graph.nodes if n.target is dropout_marker]):
        module.add_submodule(f"dropout_{i}", _DROPOUTS[node.args[2]](node.args[1]))
        with module.graph.inserting_before(node):
            live = module.graph.call_module(f"dropout_{i}", (node.args[0],))
        live.meta = node.meta.copy()
        node.replace_all_uses_with(live)
        module.graph.erase_node(node)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    for node in _reshapes(module):  # so that batches of any size train; torch.export has written the captured one down
        if node.args[0].meta["val"].shape[:1] == node.meta["val"].shape[:1]:
            node.args = (node.args[0], [-1, *node.meta["val"].shape[1:]])
    tidy(module)
    simulate_folding(module)
    return captured


def _reshapes(module: torch.fx.GraphModule) -> list[torch.fx.Node]:
    targets = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
    return [node for node in module.graph.nodes if node.target in targets and node.meta["val"].numel()]


def finish_training(module: torch.fx.GraphModule) -> None:
    """Undo what `capture_for_training` added: batch norms fold for good, dropouts go, shapes are those of the capture."""
    finish_folding(module)
    for node in _reshapes(module):
        node.args = (node.args[0], list(node.meta["val"].shape))
    for node in list(module.graph.nodes):
        if node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), _DROPOUTS):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    tidy(module)
