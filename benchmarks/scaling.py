"""Does compile time grow linearly? Networks of 100, 1,000 and 5,000 operators: processor time of each stage, up to the saved `.vgf`.

    python benchmarks/scaling.py [--operators 100,1000,5000] [--scheme 8a8w] [--profile STAGE]

The network repeats a block of convolutions, residual adds, products, layout changes, slices and concatenations on small tensors, so
that the time is that of the compiler's bookkeeping, not of arithmetic on weights. Microseconds per operator divide by the operators of the
captured program; linear growth keeps them constant. Processor time is that of this process and of those that it starts (a converter).
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

STAGES = {  # in order; what each is
    "export": "torch.export",
    "decompose": "torch: to Core ATen",
    "rewrite": "composites, products, batch norm, checks",
    "prepare": "quantizer; torchao inserts observers",
    "calibrate": "2 samples, and shared scales",
    "convert": "torchao",
    "correct": "bias correction, 2 samples",
    "lower": "to TOSA",
    "optimize": "",
    "verify": "types and specification",
    "ranges": "no operator leaves its range",
    "emit": "the .vgf, saved",
}
TORCH = ("export", "decompose", "convert")  # where nearly all of the time is torch's and torchao's own


class Block(nn.Module):
    """Sixteen operators that keep the shape [1,8,6,6]."""

    OPERATORS = 16

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mix = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        y = self.b(y) + x
        z = self.mix(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        z = z * y
        low, high = z[:, :4], z[:, 4:]
        z = torch.cat((high, low * 0.5), 1)
        z = z.reshape(1, 4, 2, 6, 6).transpose(1, 2).reshape(1, 8, 6, 6)
        return torch.sigmoid(z) + 0.5 * x


def network(operators: int) -> nn.Module:
    """A stack of blocks with about that many operators."""
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(max(1, round(operators / Block.OPERATORS))))).eval()


@dataclass
class Result:
    """One network: its size before and after, and the processor time of each stage."""

    operators: int = 0
    lowered: int = 0
    optimized: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def processor_time() -> float:
    """Seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(operators: int, scheme: str, profiled: str | None = None) -> Result:
    """The order of `tosaic.quantize`, `tosaic.compile` and `Artifact.save`, stage by stage."""
    from tosaic.capture.batch_norm import fold_batch_norm
    from tosaic.capture.export import Captured, as_captured, decomposed, exported
    from tosaic.compiler import LOWERINGS, check_operators, lower_graph, optimize, verify, verify_ranges
    from tosaic.emit.vgf import write_vgf
    from tosaic.execute.simulator import evaluate
    from tosaic.quantization import ptq
    from tosaic.quantization.quantizer import TosaQuantizer
    from tosaic.quantization.schemes import Recipe

    result = Result()

    def timed(stage: str, function: Callable[[], Any]) -> Any:
        profile = cProfile.Profile() if profiled == stage else None
        start = processor_time()
        value = profile.runcall(function) if profile else function()
        result.seconds[stage] = processor_time() - start
        if profile:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(30)
        return value

    generator = torch.Generator().manual_seed(1)
    samples = [(torch.randn(1, 8, 6, 6, generator=generator),) for _ in range(2)]
    net, recipe = network(operators), Recipe(scheme)
    quantizer, spec = TosaQuantizer(recipe), recipe.smallest_spec()

    def rewritten() -> Captured:
        captured = as_captured(program, module, samples[0])
        fold_batch_norm(captured.module)
        check_operators(captured.module)
        return captured

    def calibrated() -> None:
        ptq.calibrate(layers.sample, samples[0], samples)
        ptq.share_scales(prepared)

    program = timed("export", lambda: exported(net, samples[0]))
    module = timed("decompose", lambda: decomposed(program, LOWERINGS))
    captured = timed("rewrite", rewritten)
    result.operators = sum(n.op == "call_function" for n in captured.module.graph.nodes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = timed("prepare", lambda: ptq.prepare(captured.module, quantizer))
        layers = ptq.FloatMeans(prepared)
        timed("calibrate", calibrated)
        converted = timed("convert", lambda: ptq.convert(prepared))
        timed("correct", lambda: ptq.correct_biases(converted, layers.samples, layers.means()))
    lowered = timed("lower", lambda: lower_graph(converted, spec, output_names=captured.output_names, name="main"))
    graph = timed("optimize", lambda: optimize(lowered.graph, evaluate))
    timed("verify", lambda: verify(graph, spec))
    timed("ranges", lambda: verify_ranges(graph))
    with tempfile.TemporaryDirectory() as folder:
        timed("emit", lambda: write_vgf(graph, Path(folder) / "model.vgf"))
    result.lowered, result.optimized = len(lowered.graph.nodes), len(graph.nodes)
    return result


def table_of(results: list[Result], scheme: str) -> Table:
    """Seconds and microseconds per operator; the last column compares the largest network with the one before."""
    table = Table(title=f"Compile time by size, {scheme}: processor seconds (microseconds per operator)")
    table.add_column("stage")
    table.add_column("")
    for result in results:
        table.add_column(f"{result.operators:,} operators", justify="right")
    table.add_column("growth per operator", justify="right")
    for label in ("lowered", "optimized"):
        table.add_row("TOSA operators", label, *(f"{getattr(r, label):,}" for r in results), "")
    table.add_section()

    def add(name: str, what: str, stages: list[str]) -> None:
        seconds = [sum(r.seconds[s] for s in stages) for r in results]
        each = [1e6 * s / r.operators for s, r in zip(seconds, results, strict=True)]
        cells = [f"{s:.2f} ({e:,.0f})" for s, e in zip(seconds, each, strict=True)]
        growth = f"{each[-1] / each[-2]:.2f}x" if len(each) > 1 and each[-2] else ""
        table.add_row(name, what, *cells, growth)

    for stage, what in STAGES.items():
        add(stage, what, [stage])
    table.add_section()
    add("[bold]ours", "", [s for s in STAGES if s not in TORCH])
    add("[bold]torch's", ", ".join(TORCH), list(TORCH))
    add("[bold]all", "", list(STAGES))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--operators", default="100,1000,5000", help="comma-separated sizes")
    parser.add_argument("--scheme", default="8a8w", choices=("8a8w", "16a8w"))
    parser.add_argument("--profile", choices=STAGES, help="print where this stage spends its time, for each size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure(20, arguments.scheme)  # imports and caches
    results = []
    for size in arguments.operators.split(","):
        results.append(measure(int(size), arguments.scheme, arguments.profile))
        Console().print(table_of(results, arguments.scheme))


if __name__ == "__main__":
    main()
