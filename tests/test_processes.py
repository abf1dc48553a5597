"""Programs of others that hang, abort or run out of memory end in one clear error, and the next call works."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tosaic.converter import convert
from tosaic.emit.flatbuffer import serialize
from tosaic.errors import EmitError, ExecuteError, InputError
from tosaic.execute.reference import Reference
from tosaic.execute.worker import Worker
from tosaic.processes import Limits
from tosaic.tosa import ops
from tosaic.tosa.graph import Builder
from tosaic.tosa.types import DType

PATH = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
QUICK, SMALL = Limits(seconds=1.0, gigabytes=16.0), Limits(seconds=60.0, gigabytes=4.0)


@pytest.mark.parametrize(
    ("what", "limits", "message"),
    [
        ("hang", QUICK, r"the worker did not finish within 1 s\n  try: set TOSAIC_TIME_LIMIT \(seconds\) to wait longer$"),
        ("spin", QUICK, "the worker did not finish within 1 s"),
        ("abort", SMALL, r"the worker was stopped by SIGABRT\n  terminate called$"),
        ("crash", SMALL, "the worker was stopped by SIGSEGV"),
        ("leave", SMALL, "the worker failed with exit code 3$"),
        ("fill memory", SMALL, r"the worker: ran out of memory \(4 GiB allowed\)\n  try: set TOSAIC_MEMORY_LIMIT \(GiB\)"),
        (
            "fill memory and abort",
            SMALL,
            r"the worker ran out of memory \(4 GiB allowed\)\n  terminate called(?s:.*)try: set TOSAIC_MEMORY",
        ),
        ("raise", SMALL, "the worker: it raised"),
    ],
)
def test_a_worker(what: str, limits: Limits, message: str) -> None:
    worker = Worker("misbehaving", "the worker", {"PYTHONPATH": PATH}, limits)
    try:
        assert _patiently(worker, "well") == "done: well"
        worker.limits = limits
        start = time.monotonic()
        with pytest.raises(ExecuteError, match=message):
            worker.call(what)
        assert time.monotonic() - start < 40
        assert _patiently(worker, "well") == "done: well"
    finally:
        worker.close()


def _patiently(worker: Worker, what: str) -> object:
    """A call that starts the process, which takes its time on a busy machine."""
    worker.limits = Limits(seconds=120.0, gigabytes=worker.limits.gigabytes)
    return worker.call(what)


def _tiled(count: int) -> tuple[bytes, list[np.ndarray]]:
    b = Builder()
    wide = b.emit(ops.Tile((count,)), b.input("x", DType.INT32, (1 << 10,)))
    return serialize(b.finish([b.emit(ops.ReduceSum(0), wide)])), [np.ones(1 << 10, np.int32)]


def test_the_reference_model_runs_out_of_memory() -> None:
    model = Reference(SMALL)
    try:
        with pytest.raises(ExecuteError, match=r"the TOSA reference model:? ran out of memory \(4 GiB allowed\)"):
            model.run(*_tiled(1 << 20), [np.dtype(np.int32)], [(1,)])
        assert model.run(*_tiled(2), [np.dtype(np.int32)], [(1,)])[0] == 2 << 10
    finally:
        model.close()


def test_the_reference_model_takes_too_long() -> None:
    b = Builder()
    x = b.input("x", DType.INT8, (1, 64, 1 << 10))
    other = b.emit(ops.Tile((1, 1, 1 << 6)), b.const(np.ones((1, 1 << 10, 1 << 6)), DType.INT8))
    graph, inputs = b.finish([b.emit(ops.MatMul(), x, other)]), [np.ones(x.shape, np.int8)]
    model = Reference(Limits(seconds=0.2))
    try:
        with pytest.raises(ExecuteError, match=r"the TOSA reference model did not finish within 0\.2 s"):
            model.run(serialize(graph), inputs, [np.dtype(np.int32)], [graph.outputs[0].shape])
    finally:
        model.close()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("exec sleep 60", r"model-converter did not finish within 0\.5 s"),
        ("kill -ABRT $$", "model-converter was stopped by SIGABRT"),
        ("kill -KILL $$", "model-converter was killed, as the system does when memory runs out"),
        ('echo "what():  std::bad_alloc" >&2; kill -ABRT $$', r"model-converter ran out of memory \(8 GiB allowed\)"),
        (f"exec {sys.executable} -c 'bytes(1 << 40)'", r"model-converter ran out of memory \(8 GiB allowed\)"),
    ],
)
def test_a_converter(body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "model-converter"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("TOSAIC_TIME_LIMIT", "0.5" if "sleep" in body else "60")
    monkeypatch.setenv("TOSAIC_MEMORY_LIMIT", "8")
    with pytest.raises(EmitError, match=message):
        convert(b"", str(program))


def test_limits_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("0", "-1", "soon", "nan"):
        monkeypatch.setenv("TOSAIC_TIME_LIMIT", text)
        with pytest.raises(InputError, match=rf"\$TOSAIC_TIME_LIMIT is '{text}', expected a number above 0"):
            Limits()
