"""Arm's model-converter: a TOSA flatbuffer in, a VGF file out. Found here, run here; imports nothing but the errors."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tosaic.errors import EmitError
from tosaic.processes import Limits

INSTALL = "pip install ai-ml-sdk-model-converter"
# chatter that every run prints
_NOISE = ("VGF [debug]", "WARNING: Different TOSA spec")


def find_converter(converter: str | None = None) -> str:
    """Path of model-converter: the argument, then $TOSAIC_MODEL_CONVERTER, the installed package, PATH.

    Raises:
        EmitError: there is none, or the one that was named cannot be run.
    """
    if named := converter or os.environ.get("TOSAIC_MODEL_CONVERTER"):
        if found := shutil.which(named):
            return found
        source = "" if converter else " ($TOSAIC_MODEL_CONVERTER)"
        raise EmitError(f"model-converter '{named}'{source} is not an executable file", remedy=f"leave it out and {INSTALL}")
    # the binary itself first: the script beside the interpreter starts one more interpreter
    package = importlib.util.find_spec("model_converter")
    roots = [Path(p) / "binaries" / "bin" for p in (package.submodule_search_locations or ())] if package else []
    for place in (*roots, Path(sys.executable).parent, None):
        if found := shutil.which("model-converter", path=None if place is None else str(place)):
            return found
    raise EmitError("model-converter is not installed", remedy=INSTALL)


def convert(tosa: bytes, converter: str | None = None) -> bytes:
    """The VGF file of a TOSA flatbuffer, as the converter writes it (inputs and outputs without their names).

    Raises:
        EmitError: there is no converter, it failed, wrote nothing, or went beyond its limits of time or memory.
    """
    program = find_converter(converter)
    with tempfile.TemporaryDirectory(prefix="tosaic-") as directory:
        source, target = Path(directory, "graph.tosa"), Path(directory, "graph.vgf")
        source.write_bytes(tosa)
        command = [program, "--input", str(source), "--output", str(target)]
        stderr = _run(command, Limits())
        # exit code 0 is no proof: it is also what an empty graph file gets, with no output
        if not target.is_file() or target.stat().st_size == 0:
            raise EmitError(f"model-converter wrote no file{_last_lines(stderr)}")
        return target.read_bytes()


def _run(command: list[str], limits: Limits) -> bytes:
    """What a command that ends well writes to stderr."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except OSError as error:
        raise EmitError(f"model-converter cannot be started: {error}", remedy=INSTALL) from None
    with process:
        limits.hold(process.pid)
        try:
            _, stderr = process.communicate(timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            what, remedy = limits.late()
            raise EmitError(f"model-converter {what}", remedy=remedy) from None
    if process.returncode != 0:
        what, remedy = limits.ending(process.returncode, stderr.decode(errors="replace"))
        raise EmitError(f"model-converter {what}{_last_lines(stderr)}", remedy=remedy)
    return stderr


def _last_lines(stderr: bytes, count: int = 8) -> str:
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip() and not line.startswith(_NOISE)]
    return "".join(f"\n  {line}" for line in lines[-count:])
