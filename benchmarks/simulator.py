"""The simulator against float PyTorch, and against Arm's reference model: time and memory on whole models.

    python benchmarks/simulator.py [CASE ...] [--json FILE]

The simulator computes every integer of the artifact exactly; the question is what that costs over running the float model. Each
case is a fresh process with default threads, in which the two take turns, so that a disturbance meets both; medians are compared.
The reference model, which has no batches, runs one sample, once. Memory is what a run adds to the process at its peak, after a first run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import claim_stdout, processor_seconds, write_result

RUNS, WARM_UP = 10, 3
SPECS = {"8a8w": "TOSA-1.0+INT", "16a8w": "TOSA-1.0+INT+int16"}
MEMORY_BAR, REFERENCE_BAR = 2.0, 100.0


@dataclass(frozen=True)
class Case:
    """A model, its scheme, how many times float eager's time the simulator may take, and the samples that run at once."""

    model: str
    scheme: str
    bar: float
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.model}-{self.scheme}" + (f"-batch{self.batch}" if self.batch > 1 else "")


CASES = {
    str(case): case
    for case in (
        Case("mobilenet_v2", "8a8w", 2.0),
        Case("mobilenet_v2", "16a8w", 3.0),
        Case("upscaler512", "8a8w", 2.0),
        Case("upscaler512", "16a8w", 3.0),
        Case("minilm", "8a8w", 2.5),
        Case("minilm", "16a8w", 3.0),
        Case("mobilenet_v2", "8a8w", 2.0, batch=16),
        Case("minilm", "8a8w", 2.5, batch=8),
    )
}


def medians(*functions: Callable[[], object], runs: int = RUNS, warm_up: int = WARM_UP) -> list[float]:
    """Median seconds of each function, called in turn; the first `warm_up` rounds (caches) are not counted."""
    seconds: list[list[float]] = [[] for _ in functions]
    for index in range(warm_up + runs):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if index >= warm_up:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def added_memory_mb(function: Callable[[], object]) -> float | None:
    """Peak resident memory during a call, beyond what was resident before it; None where Linux does not tell."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs left to the allocator would hide this one
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    function()
    return (_status("VmHWM") - before) / 2**10


def _status(key: str) -> int:
    """A figure of /proc/self/status, in KiB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:")]
    return int(line.split()[1])


def model_of(name: str) -> tuple[Any, list[tuple[Any, ...]]]:
    """The float model, and samples of batch 1: of the test suite's zoo, or the demo's upscaler on a photograph of 512 x 512."""
    import torch

    if name == "upscaler512":
        from tosaic.demo.data import photograph
        from tosaic.demo.upscaler import Upscaler

        torch.manual_seed(0)
        return Upscaler().eval(), [(photograph("astronaut")[None].float() / 255,)]
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from zoo_models import CASES as ZOO

    return ZOO[name].build(), ZOO[name].samples()


def measured(case: Case) -> dict[str, Any]:
    """All figures of a case, in this process."""
    import torch

    import tosaic
    from tosaic.emit.flatbuffer import serialize
    from tosaic.execute.reference import Reference

    model, samples = model_of(case.model)
    artifact = tosaic.compile(tosaic.quantize(model, samples[0], samples[:16], scheme=case.scheme), spec=SPECS[case.scheme])
    model, _ = model_of(case.model)  # capture is free to fold things in the one it was given
    some = [samples[i % len(samples)] for i in range(case.batch)]
    stacked = tuple(torch.cat(parts) for parts in zip(*some, strict=True))

    def simulate() -> object:
        return artifact.run(stacked, on="simulator", float_io=True, batch=case.batch)

    processor = processor_seconds()
    simulate()
    first = processor_seconds() - processor
    with torch.no_grad():
        simulator, eager = medians(simulate, lambda: model(*stacked))
        memory, eager_memory = added_memory_mb(simulate), added_memory_mb(lambda: model(*stacked))
    result = {
        **{"simulator": simulator, "eager": eager, "ratio": simulator / eager, "first": first, "threads": torch.get_num_threads()},
        **{"memory": memory, "eager_memory": eager_memory, "operators": len(artifact.graph.nodes)},
    }
    if (case.model, case.scheme) == ("mobilenet_v2", "8a8w"):
        [stored] = artifact.samples(samples[0])
        outputs, reference = artifact.graph.outputs, Reference()
        start = time.perf_counter()
        reference.run(serialize(artifact.graph), stored, [v.dtype.numpy for v in outputs], [v.shape for v in outputs])
        result["reference"] = time.perf_counter() - start
        reference.close()
    return result


def lines(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row for each bar: what, simulator, against, ratio, bar, whether it holds."""
    rows = []
    for name, r in results.items():
        bar = CASES[name].bar
        times = f"{r['simulator'] * 1e3:.1f} ms", f"{r['eager'] * 1e3:.1f} ms"
        rows.append((name, *times, f"{r['ratio']:.2f}x", f"at most {bar}x", "holds" if r["ratio"] <= bar else "MISSED"))
        if r["memory"] is not None:
            ratio = r["memory"] / max(r["eager_memory"], 1.0)
            sizes = f"{r['memory']:.0f} MB", f"{r['eager_memory']:.0f} MB"
            rows.append(("  memory", *sizes, f"{ratio:.2f}x", f"at most {MEMORY_BAR}x", "holds" if ratio <= MEMORY_BAR else "MISSED"))
        rows.append(("  first run", f"{r['first']:.2f} s (processor)", "", "", "", ""))
        if "reference" in r:
            seconds = r["simulator"] / CASES[name].batch
            ratio = r["reference"] / seconds
            against = f"{r['reference']:.2f} s (reference model)"
            holds = "holds" if ratio >= REFERENCE_BAR else "MISSED"
            rows.append(
                ("  of a sample", f"{seconds * 1e3:.1f} ms", against, f"{ratio:.0f}x less", f"at least {REFERENCE_BAR:.0f}x", holds)
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    parser.add_argument("--here", action="store_true", help="measure one case in this process, and print one JSON line")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if arguments.here:
        stdout = claim_stdout()
        write_result(stdout, measured(CASES[arguments.cases[0]]))
        return

    from bench import console, machine, measure
    from rich.table import Table

    here, results = machine(), {}
    for name in arguments.cases or CASES:
        with console.status(name):
            results[name] = measure(sys.executable, "simulator.py", "--here", name)
    table = Table("case", "simulator", "float eager", "ratio", "bar", "", title="The simulator against float PyTorch")
    for row in lines(results):
        table.add_row(*row)
    console.print(table)
    console.print(f"{here}; {next(iter(results.values()))['threads']} threads, medians of {RUNS}, the two in turns", soft_wrap=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
