"""Every stage's work grows linearly with the network: counted, not timed.

The count is that of executed lines of this package and of calls of any Python function, so that it is the same on every machine.
Work within one call of a C function is not seen: a search in a list, a sort.
"""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tosaic
from tosaic.capture.batch_norm import fold_batch_norm
from tosaic.capture.export import as_captured, decomposed, exported
from tosaic.compiler import LOWERINGS, check_operators, lower_graph, optimize, verify, verify_ranges
from tosaic.emit.flatbuffer import serialize
from tosaic.execute.simulator import evaluate
from tosaic.quantization import ptq
from tosaic.quantization.quantizer import TosaQuantizer
from tosaic.quantization.schemes import Recipe

PACKAGE = str(Path(tosaic.__file__).parent)
SIZES = (3, 5, 7)  # blocks: the two last may not cost more than the two before
TOLERANCE = 0.02
# which scales are near, which limits idle and which constants equal is a matter of numbers, so blocks differ a little
DEPENDS_ON_NUMBERS = dict.fromkeys(("shared scales", "lower", "optimize", "verify", "ranges", "serialize"), 0.1)


def steps(function: Callable[[], Any]) -> tuple[int, Any]:
    """Lines of this package and calls that `function` executes, and its result."""
    count = 0

    def line(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return line

    def call(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += 1
        return line if frame.f_code.co_filename.startswith(PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        result = function()
    finally:
        sys.settrace(before)
    return count, result


class Block(nn.Module):
    """Convolutions, a linear layer, sums, products, layout changes, slices and concatenations; [1,4,4,4] stays."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.mix = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        y = F.relu(self.norm(self.a(x))) + x
        z = self.mix(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) * y
        z = torch.cat((z[:, 2:], z[:, :2] * 0.5), 1).reshape(1, 2, 2, 4, 4).transpose(1, 2).reshape(1, 4, 4, 4)
        return F.sigmoid(z) + 0.5 * x


class FromTheFirst(Block):
    """A block that reads the input of the network, which therefore has as many readers as there are blocks."""

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        return F.sigmoid(self.a(x)) * first.transpose(2, 3) + first


class Stack(nn.Module):
    """Blocks one behind the other; `joined` returns all of their results as one concatenation."""

    def __init__(self, kind: type[Block], blocks: int, joined: bool) -> None:
        super().__init__()
        self.blocks, self.joined = nn.ModuleList(kind() for _ in range(blocks)), joined

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for block in self.blocks:
            found.append(block(found[-1], x))
        return torch.cat(found, 1) if self.joined else found[-1]


def work(net: nn.Module) -> Iterator[tuple[str, int]]:
    """Steps of each stage for one network; of torch's and torchao's the calls."""
    generator, recipe = torch.Generator().manual_seed(0), Recipe("8a8w")
    samples = [(torch.randn(1, 4, 4, 4, generator=generator),) for _ in range(2)]
    program = exported(net, samples[0])
    module = decomposed(program, LOWERINGS)

    def rewritten() -> Any:
        captured = as_captured(program, module, samples[0])
        fold_batch_norm(captured.module)
        check_operators(captured.module)
        return captured

    count, captured = steps(rewritten)
    yield "capture", count
    quantizer = TosaQuantizer(recipe)
    yield "quantizer", steps(lambda: quantizer.annotate(captured.module))[0]
    count, prepared = steps(lambda: ptq.prepare(captured.module, quantizer))
    yield "prepare", count
    layers = ptq.FloatMeans(prepared)
    yield "calibrate", steps(lambda: ptq.calibrate(layers.sample, samples[0], samples))[0]
    yield "shared scales", steps(lambda: ptq.share_scales(prepared))[0]
    count, converted = steps(lambda: ptq.convert(prepared))
    yield "convert", count
    yield "bias correction", steps(lambda: ptq.correct_biases(converted, layers.samples, layers.means()))[0]
    spec = recipe.smallest_spec()
    count, lowered = steps(lambda: lower_graph(converted, spec, output_names=captured.output_names))
    yield "lower", count
    count, graph = steps(lambda: optimize(lowered.graph, evaluate))
    yield "optimize", count
    yield "verify", steps(lambda: verify(graph, spec))[0]
    yield "ranges", steps(lambda: verify_ranges(graph))[0]
    yield "serialize", steps(lambda: serialize(graph))[0]


QUADRATIC: dict[type[Block], set[str]] = {FromTheFirst: {"prepare"}}  # torchao compares every reader of a value with every other


@pytest.mark.parametrize(("kind", "joined"), [(Block, True), (FromTheFirst, False)])
def test_each_stage_grows_linearly(kind: type[Block], joined: bool) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        few, more, most = (dict(work(Stack(kind, blocks, joined).eval())) for blocks in SIZES)
    growth = {stage: (most[stage] - more[stage]) / (more[stage] - few[stage]) for stage in few}
    allowed = {stage: 1 + DEPENDS_ON_NUMBERS.get(stage, TOLERANCE) for stage in growth.keys() - QUADRATIC.get(kind, set())}
    assert {stage: growth[stage] for stage in allowed if growth[stage] > allowed[stage]} == {}, growth


def test_a_compiled_model_is_let_go() -> None:
    """The layers of a large model follow each other through one process."""

    def compiled() -> tuple[weakref.ref[Tensor], tosaic.Artifact]:
        model, x = nn.Linear(4, 4).eval(), torch.randn(1, 4)
        return weakref.ref(model.weight), tosaic.compile(tosaic.quantize(model, x, [x]))

    weight, _ = compiled()
    gc.collect()
    assert weight() is None
