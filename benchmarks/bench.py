"""Tosaic against ExecuTorch's Arm VGF backend on MobileNetV2, 8a8w: seconds, memory, accuracy, size.

    python benchmarks/bench.py [--no-peer] [--rounds N] [--json FILE]

Both sides export the same model, calibrate on the same ten images, write a `.vgf` for TOSA-1.0+INT and score that artifact
on ten other images. Each run is a fresh process; the sides alternate, and medians are shown. The peer lives in an
environment of its own (`.cache/executorch-venv`), which is made on first use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache"
PEER = CACHE / "executorch-venv"
OUTPUT = CACHE / "benchmark"

FRONT_END = ("imports", "capture", "quantize")  # stages that do the same work on both sides

# `executorch[vgf]==1.5.1` pins an older SDK, and its full requirements include coremltools, pandas and scikit-learn; so it is
# installed alone, beside what its export path imports and the same versions of Arm's tools as Tosaic's own.
PEER_INSTALLS: tuple[tuple[str, ...], ...] = (
    ("torch==2.13.0", "torchao==0.18.0", "numpy<2.2"),
    ("--no-deps", "executorch==1.5.1"),
    ("pytorch_tokenizers", "pyyaml", "tabulate", "ruamel.yaml", "pillow", "flatbuffers", "numpy<2.2"),
    ("tosa-tools==2026.8.0", "ai-ml-sdk-model-converter==0.11.0", "ai-ml-sdk-vgf-library==0.11.0", "numpy<2.2"),
    ("--no-deps", "-r", str(HERE / "requirements.txt")),
)

console = Console()


def peer_python() -> Path:
    """The interpreter of the peer's environment, which is made if it is absent or was made from another recipe."""
    python = PEER / "bin" / "python"
    stamp = PEER / "recipe.sha256"
    recipe = hashlib.sha256(json.dumps([PEER_INSTALLS, (HERE / "requirements.txt").read_text()]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == recipe:
        return python
    shutil.rmtree(PEER, ignore_errors=True)
    console.print(f"making the peer's environment in {PEER} (once; about 1.5 GB)", soft_wrap=True)
    subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
    for number, line in enumerate(PEER_INSTALLS, 1):
        step = f"pip install {' '.join(line)}"
        console.print(f"  {number}/{len(PEER_INSTALLS)} {step}", markup=False, highlight=False, soft_wrap=True)
        done = subprocess.run([str(python), "-m", "pip", "install", "-q", *line], capture_output=True, text=True)
        if done.returncode:
            fail(f"{step} failed:\n{done.stderr.strip()}")
    stamp.write_text(recipe)
    return python


def measure(python: str, script: str, *arguments: str) -> dict[str, Any]:
    """Run one of the scripts in a fresh process and return its JSON line."""
    done = subprocess.run([python, str(HERE / script), *arguments], capture_output=True, text=True)
    if done.returncode:
        fail(f"{script} failed:\n{os.linesep.join(done.stderr.strip().splitlines()[-25:])}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def fail(message: str) -> None:
    """Stop with a message on stderr."""
    Console(stderr=True).print(message, markup=False, highlight=False)
    raise SystemExit(1)


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The last run with its times and its memory replaced by the medians over all runs."""
    stages = {stage: statistics.median(run["seconds"][stage] for run in runs) for stage in runs[-1]["seconds"]}
    medians = {key: statistics.median(run[key] for run in runs) for key in ("back_end", "total", "processor_seconds", "peak_memory_mb")}
    peaks = {stage: statistics.median(run["peaks"][stage] for run in runs) for stage in runs[-1]["peaks"]}
    return {**runs[-1], **medians, "seconds": stages, "peaks": peaks, "runs": len(runs), "totals": [run["total"] for run in runs]}


def comparison(ours: dict[str, Any], peer: dict[str, Any] | None) -> Table:
    """The results side by side, with the ratio peer / ours where one means something."""
    sides = [ours, peer] if peer else [ours]
    table = Table(title="MobileNetV2, 8a8w, TOSA-1.0+INT")
    table.add_column("")
    for side in sides:
        table.add_column(side["name"], justify="right")
    if peer:
        table.add_column("peer / ours", justify="right")

    def row(label: str, values: list[float | None], form: str, ratio: bool = True) -> None:
        cells = ["" if value is None else form.format(value) for value in values]
        if peer:
            comparable = ratio and None not in values and values[0]
            cells.append(f"{values[1] / values[0]:.1f}x" if comparable else "")  # type: ignore[operator]
        table.add_row(label, *cells)

    for stage in dict.fromkeys(stage for side in sides for stage in side["seconds"]):
        # the peer's `lower` goes all the way to the file, ours ends at the TOSA graph: see the row below
        row(f"{stage}, s", [side["seconds"].get(stage) for side in sides], "{:.2f}", ratio=stage in FRONT_END)
    row("quantized model to .vgf, s", [side["back_end"] for side in sides], "{:.2f}")
    table.add_section()
    row("[bold]total, s", [side["total"] for side in sides], "[bold]{:.2f}")
    row("total without imports, s", [side["total"] - side["seconds"]["imports"] for side in sides], "{:.2f}")
    row("processor time, all cores, s", [side["processor_seconds"] for side in sides], "{:.2f}")
    table.add_section()
    for stage in dict.fromkeys(stage for side in sides for stage in side["peaks"]):
        row(f"peak by the end of {stage}, MB", [side["peaks"].get(stage) for side in sides], "{:.0f}", ratio=stage in FRONT_END)
    row("[bold]peak memory, MB", [side["peak_memory_mb"] for side in sides], "[bold]{:.0f}")
    table.add_section()
    row(".vgf, MB (10^6 bytes)", [side["file_bytes"] / 1e6 for side in sides], "{:.2f}")
    row("TOSA operators, without constants", [side["operator_count"] for side in sides], "{:.0f}")
    table.add_section()
    row("[bold]SQNR against float, dB", [side["score"]["sqnr_db"] for side in sides], "[bold]{:.2f}", ratio=False)
    row(f"top-1 as float, of {ours['score']['images']}", [side["score"]["same_top1"] for side in sides], "{:.0f}", ratio=False)
    row(f"top-1 correct, of {ours['score']['images']}", [side["score"]["top1"] for side in sides], "{:.0f}", ratio=False)
    return table


def machine() -> str:
    """The processor and its load, for the record."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--no-peer", action="store_true", help="measure Tosaic only")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="runs of each side, in alternation (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results as JSON")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")

    here = machine()
    if os.getloadavg()[0] > 0.5:
        console.print("the machine is busy: both sides will be slower than they are, and not by the same factor", style="yellow")
    vgf = OUTPUT / "tosaic" / "mobilenet_v2.vgf"
    commands = {"Tosaic": (sys.executable, "run_tosaic.py", "--output", str(vgf))}
    if not arguments.no_peer:
        commands["ExecuTorch"] = (str(peer_python()), "peer_executorch.py", "--output", str(OUTPUT / "executorch"))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for number in range(arguments.rounds + 1):
        for name, command in commands.items():
            with console.status(f"{name}: round {number} of {arguments.rounds}" if number else f"{name}: warm-up"):
                result = measure(*command)
            if number:  # the first run of each fills disk and compilation caches and is not counted
                runs[name].append(result)
    our_result = median_of(runs["Tosaic"])
    peer_result = median_of(runs["ExecuTorch"]) if "ExecuTorch" in runs else None
    console.print(comparison(our_result, peer_result))
    for side in filter(None, (our_result, peer_result)):
        console.print(f"{side['name']} scored with: {side['scored_with']}; totals {', '.join(f'{t:.1f}' for t in side['totals'])} s")
    console.print(f"{here}; medians of {arguments.rounds} runs each")
    simulator = OUTPUT / "simulator.json"
    subprocess.run([sys.executable, str(HERE / "simulator.py"), "--json", str(simulator)], check=True)
    if arguments.json:
        results = {"tosaic": our_result, "peer": peer_result, "simulator": json.loads(simulator.read_text()), "machine": here}
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
