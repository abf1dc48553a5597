"""Tosaic against ExecuTorch's Arm VGF backend on whole models: accuracy of the artifact, operators, time from quantized model to .vgf.

    python benchmarks/models.py [MODEL ...] [--schemes 8a8w,16a8w] [--no-peer | --cached-peer | --refresh-peer] [--markdown FILE]

Both sides get the same model, calibrate on the same sixteen samples, and their artifacts are scored on eight others as SQNR against
float, energies summed over all outputs. Each run is a fresh process, one at a time. The peer's results are kept in
`.cache/benchmark/peer`, since they take minutes; they are used as long as the float model gives what it gave then.

`8a8w` is compiled for TOSA-1.0+INT, `16a8w` for TOSA-1.0+INT+int16, and `8a8w+int16` is 8a8w for TOSA-1.0+INT+int16, where
composites need fewer operators; its peer is the peer's 8a8w.

Where the peer's artifact (ExecuTorch 1.5.1) scores far below the peer's own fake quantization, the first value that differs shows why.
UNet 8a8w: a ReLU whose result is concatenated, and so shares a zero point above -128, is left out of the TOSA graph; with a CLAMP in
each of the two places the artifact scores what fake quantization does. Encoders 16a8w: the rsqrt of a layer norm is a TABLE of 513
entries, 128 steps of the input apart, and small variances lie between the first two; fake quantization with that TABLE scores what the
artifact does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import OUTPUT, console, machine, peer_python
from rich.table import Table

HERE = Path(__file__).parent
MODELS = (
    *("mobilenet_v2", "resnet", "unet", "upscaler", "conv_lstm", "keywords"),
    *("vit", "minilm", "minilm_masked", "minilm_sdpa", "outlier_bert", "llama"),
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "8a8w": ("8a8w",),
    "16a8w": ("16a8w",),
    "8a8w+int16": ("8a8w", "--spec", "TOSA-1.0+INT+int16"),
}
PEER_LIMIT = 1800  # seconds
SAME_FLOAT = 1e-3  # relative difference of the float outputs' RMS: the model is the one that the peer had

Result = dict[str, Any]


def run(python: str, script: str, *arguments: str, limit: float | None = None) -> Result:
    """Run one of the scripts in a fresh process and return its JSON line; a crash or a timeout is a result too."""
    try:
        done = subprocess.run([python, str(HERE / script), *arguments], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"no result within {limit} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"failed": f"crash: {lines[-1]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def cached_peer(model: str, scheme: str, float_rms: float | None) -> Result | None:
    """The peer's result that is kept, if it is of the same float model."""
    file = peer_file(model, scheme)
    if not file.exists() or not file.stat().st_size:
        return None
    result = json.loads(file.read_text())
    known = result.get("float_rms")
    return result if float_rms is None or known is None or math.isclose(known, float_rms, rel_tol=SAME_FLOAT) else None


def peer_result(model: str, scheme: str, refresh: bool, float_rms: float | None) -> Result:
    """The peer's result, from the cache if that is possible."""
    result = None if refresh else cached_peer(model, scheme, float_rms)
    if result is None:
        file = peer_file(model, scheme)
        result = run(str(peer_python()), "peer_models.py", model, scheme, "--output", str(file.with_suffix("")), limit=PEER_LIMIT)
        file.write_text(json.dumps(result))
    return result


def peer_file(model: str, scheme: str) -> Path:
    return OUTPUT / "peer" / f"{model}-{scheme}.json"


def row_of(model: str, variant: str, ours: Result, peer: Result | None) -> list[str]:
    """One line of the table."""
    cells = [model, variant]
    cells += [_number(ours, "sqnr_db", "{:.1f}"), _number(ours, "fake_sqnr_db", "{:.1f}")]
    cells += [_number(peer, "sqnr_db", "{:.1f}"), _number(peer, "fake_sqnr_db", "{:.1f}"), _delegates(peer)]
    counts = [ours.get("operator_count"), peer.get("operator_count") if peer else None]
    share = f"{counts[0] / counts[1]:.0%}" if all(counts) else ""
    cells += [" / ".join(_text(c) for c in counts), share]
    cells += [f"{_text(ours.get('rescales'))} / {_text(peer.get('rescales') if peer else None)}"]
    clock = "back_end_processor" if peer and "back_end_processor" in peer else "back_end"  # less disturbed by other work
    times = [ours.get(clock), peer.get(clock) if peer else None]
    cells += [" / ".join("-" if t is None else f"{t:.2f}" for t in times), f"{times[1] / times[0]:.0f}x" if all(times) else ""]
    return cells


COLUMNS = (
    *("model", "scheme", "SQNR, dB", "fake quant", "peer SQNR", "peer fake quant", "peer delegates"),
    *("operators ours / peer", "share", "RESCALE ours / peer", "quantized -> .vgf, processor s", "peer / ours"),
)


def _number(result: Result | None, key: str, form: str) -> str:
    if result is None:
        return ""
    return form.format(result[key]) if key in result else "failed" if "failed" in result else "-"


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _delegates(peer: Result | None) -> str:
    """How many pieces the peer makes of the model, and how many operators it leaves to the CPU."""
    if peer is None or "delegates" not in peer:
        return ""
    left = sum(peer.get("left_over", {}).values())
    return f"{peer['delegates']}" + (f" + {left} ops" if left else "")


def markdown(rows: list[list[str]], notes: list[str]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--schemes", default=",".join(VARIANTS), help=f"comma-separated (default: {','.join(VARIANTS)})")
    parser.add_argument("--no-peer", action="store_true", help="measure Tosaic only")
    parser.add_argument("--cached-peer", action="store_true", help="take the peer's kept results only")
    parser.add_argument("--refresh-peer", action="store_true", help="measure the peer again")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table as markdown, after each model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all results as JSON")
    arguments = parser.parse_args()
    unknown = [m for m in arguments.models if m not in MODELS] + [v for v in arguments.schemes.split(",") if v not in VARIANTS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")

    (OUTPUT / "peer").mkdir(parents=True, exist_ok=True)
    here = machine()
    rows: list[list[str]] = []
    notes: list[str] = []
    everything: dict[str, Any] = {"machine": here}
    for model in arguments.models or MODELS:
        for variant in arguments.schemes.split(","):
            scheme, *options = VARIANTS[variant]
            with console.status(f"{model} {variant}: Tosaic"):
                ours = run(sys.executable, "ours_models.py", model, scheme, *options)
            peer = None
            if arguments.cached_peer:
                peer = cached_peer(model, scheme, ours.get("float_rms"))
            elif not arguments.no_peer:
                with console.status(f"{model} {variant}: ExecuTorch"):
                    peer = peer_result(model, scheme, arguments.refresh_peer and not options, ours.get("float_rms"))
            everything[f"{model} {variant}"] = {"tosaic": ours, "peer": peer}
            rows.append(row_of(model, variant, ours, peer))
            notes += [f"{model} {variant}, {side}: {r['failed']}" for side, r in (("Tosaic", ours), ("peer", peer)) if r and "failed" in r]
            console.print(" | ".join(rows[-1]), markup=False, highlight=False, soft_wrap=True)
            if arguments.markdown:
                arguments.markdown.write_text(markdown(rows, notes))
            if arguments.json:
                arguments.json.write_text(json.dumps(everything, indent=1) + "\n")
    table = Table(*COLUMNS, title="Whole models")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{here}; {os.environ.get('OMP_NUM_THREADS', 'default')} threads")


if __name__ == "__main__":
    main()
