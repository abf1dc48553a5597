"""Does compile time grow linearly? Generated networks of 100, 1,000 and 5,000 operators: seconds of each stage.

    python benchmarks/scaling.py [--operators 100,1000,5000] [--scheme 8a8w] [--profile STAGE]

The network repeats a block of convolutions, residual adds, products, layout changes, slices and concatenations on small tensors, so
that the time is that of the compiler's bookkeeping, not of arithmetic on weights. `per operator` divides by the operators of the
captured program; linear growth keeps it constant.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

STAGES = ("capture", "quantize", "lower", "optimize", "verify", "serialize")


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


def measure(operators: int, scheme: str, profiled: str | None = None) -> dict[str, Any]:
    """Seconds of each stage for one network, and its size before and after."""
    from tosaic.compiler import lower_graph, optimize, quantize, verify
    from tosaic.emit.flatbuffer import serialize
    from tosaic.execute.simulator import evaluate

    generator = torch.Generator().manual_seed(1)
    samples = [(torch.randn(1, 8, 6, 6, generator=generator),) for _ in range(2)]
    quantized = quantize(network(operators), samples[0], samples, scheme, bias_correction=False)
    seconds = {stage: quantized.timings[stage] for stage in ("capture", "quantize")}

    def timed(stage: str, function: Callable[[], Any]) -> Any:
        profile = cProfile.Profile() if profiled == stage else None
        start = time.perf_counter()
        result = profile.runcall(function) if profile else function()
        seconds[stage] = time.perf_counter() - start
        if profile:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(30)
        return result

    spec = quantized.recipe.smallest_spec()
    lowered = timed("lower", lambda: lower_graph(quantized.module, spec, output_names=quantized.output_names, name="main"))
    graph = timed("optimize", lambda: optimize(lowered.graph, evaluate))
    timed("verify", lambda: verify(graph, spec))
    timed("serialize", lambda: serialize(graph))
    traced = sum(n.op == "call_function" and "quantized_decomposed" not in str(n.target) for n in quantized.module.graph.nodes)
    return {"operators": traced, "lowered": len(lowered.graph.nodes), "optimized": len(graph.nodes), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--operators", default="100,1000,5000", help="comma-separated sizes")
    parser.add_argument("--scheme", default="8a8w", choices=("8a8w", "16a8w"))
    parser.add_argument("--profile", choices=STAGES[2:], help="print where this stage spends its time, for each size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure(20, arguments.scheme)  # imports and caches
    results = [measure(int(size), arguments.scheme, arguments.profile) for size in arguments.operators.split(",")]
    table = Table(title=f"Compile time by size, {arguments.scheme}")
    table.add_column("")
    for result in results:
        table.add_column(f"{result['operators']:,} operators", justify="right")
    for label in ("lowered", "optimized"):
        table.add_row(f"TOSA operators, {label}", *(f"{r[label]:,}" for r in results))
    for stage in STAGES:
        table.add_row(f"{stage}, s", *(f"{r['seconds'][stage]:.3f}" for r in results))
    ours = [sum(r["seconds"][stage] for stage in STAGES[2:]) for r in results]
    table.add_section()
    table.add_row("[bold]lower to serialize, s", *(f"{s:.3f}" for s in ours))
    table.add_row("per operator, us", *(f"{1e6 * s / r['operators']:.0f}" for s, r in zip(ours, results, strict=True)))
    Console().print(table)


if __name__ == "__main__":
    main()
